//! Incomplete, stale and wrong listings of the shards.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Call, Kinesis, Outcome, WrongListing};
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, ErrorKind, MemoryStore, OnTrimmed, Records, ShardId,
    StartingPosition,
};
use tokio::time::{Instant, sleep, timeout};

use crate::{assert_silent, calls, consumer, next, number, orders, read_first};

fn shard_zero() -> kinestream::ShardId {
    "shardId-000000000000".parse().unwrap()
}

/// Each wrong listing occurs at the start and again while reading. The store ends up as with
/// correct listings, and no record is lost or repeated.
#[tokio::test(start_paused = true)]
async fn wrong_listing_does_not_change_the_store() {
    let wrong = [
        WrongListing::Empty,
        WrongListing::Without(shard_zero()),
        WrongListing::Without("shardId-000000000003".parse().unwrap()),
        WrongListing::Short(1),
        WrongListing::Short(3),
        WrongListing::Stale(2),
        WrongListing::Unreadable,
        WrongListing::Loops,
    ];
    for wrong in wrong {
        let (kinesis, orders) = orders(2);
        orders.shard(0).put("0");
        let [left, right] = orders.shard(0).split();
        left.put("1");
        right.put("2");
        orders.shard(1).put("3");
        let store = MemoryStore::new();
        let consumer = consumer(&kinesis)
            .store(store.clone())
            .discovery_interval(Duration::from_secs(10))
            .build()
            .unwrap();
        kinesis.next_calls("ListShards", 3, Outcome::Mislisted(wrong.clone()));
        let mut records = consumer.records();
        let mut read = Vec::new();
        for expected in 1..=4 {
            read.push(number(&next(&mut records).await));
            let zero = read.iter().position(|number| *number == 0);
            let children_first =
                zero.is_none() && read.iter().any(|number| [1, 2].contains(number));
            assert!(!children_first, "{wrong:?}: {read:?} after {expected} records");
        }
        kinesis.next_calls("ListShards", 6, Outcome::Mislisted(wrong.clone()));
        assert_silent(&mut records).await;
        read.sort_unstable();
        assert_eq!(read, [0, 1, 2, 3], "{wrong:?}");
        let stored = store.load(&Scope::new("default", "orders")).await.unwrap();
        assert_eq!(stored[&shard_zero()], Checkpoint::ShardEnd, "{wrong:?}");
        for open in orders.open_shards() {
            let position = &stored[&open.id()];
            let is_read = matches!(
                position,
                Checkpoint::AfterSequenceNumber { .. }
                    | Checkpoint::CaughtUp { after: Some(_), .. }
            );
            assert!(is_read, "{wrong:?}: {position}");
        }
        let listings = calls(&kinesis, "ListShards").len();
        assert!(listings < 200, "{wrong:?}: {listings} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn persistent_incomplete_listing_is_reported_once() {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    kinesis.next_calls("ListShards", usize::MAX, Outcome::Mislisted(WrongListing::Short(1)));
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    let error = records.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("incomplete"), "{error}");
    assert!(began.elapsed() >= Duration::from_secs(60), "{:?}", began.elapsed());
    let quiet = timeout(Duration::from_secs(600), records.next()).await;
    assert!(quiet.is_err(), "expected one error and no record: {quiet:?}");
    kinesis.on_call(|_| Outcome::Served);
    assert_eq!(number(&next(&mut records).await), 0);
}

#[tokio::test(start_paused = true)]
async fn rejected_page_token_is_retried_with_back_off() {
    for code in
        ["ExpiredNextTokenException", "InvalidArgumentException", "ResourceNotFoundException"]
    {
        let (kinesis, orders) = orders(1500);
        orders.shard(0).put("0");
        // The second page of each listing is rejected.
        let mut listings = 0;
        kinesis.on_call(move |call| {
            if call.operation != "ListShards" {
                return Outcome::Served;
            }
            listings += 1;
            if listings % 2 == 0 { Outcome::failed(400, code, "no") } else { Outcome::Served }
        });
        let consumer = consumer(&kinesis).build().unwrap();
        let mut records = consumer.records();
        let quiet = timeout(Duration::from_secs(30), records.next()).await;
        assert!(quiet.is_err(), "{code}: {quiet:?}");
        let listings = calls(&kinesis, "ListShards").len();
        assert!((4..40).contains(&listings), "{code}: {listings} calls in 30 s");
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_filter_is_given_up() {
    for message in ["ShardFilter is not supported", "the timestamp is not supported"] {
        let (kinesis, orders) = orders(1);
        orders.shard(0).put("0");
        let [left, _right] = orders.shard(0).split();
        sleep(Duration::from_secs(2)).await;
        // The first two calls are full listings.
        kinesis.next_calls("ListShards", 2, Outcome::Served);
        let refused = Outcome::failed(400, "InvalidArgumentException", message);
        kinesis.next_calls("ListShards", 3, refused);
        let consumer =
            consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
        let mut records = consumer.records();
        assert_silent(&mut records).await;
        left.put("1");
        assert_eq!(number(&next(&mut records).await), 1, "{message}");
    }
}

/// Open shards that a filtered listing lacks are still read.
#[tokio::test(start_paused = true)]
async fn incomplete_filtered_listing_ends_no_shard() {
    let (kinesis, orders) = orders(2);
    sleep(Duration::from_secs(2)).await;
    kinesis.next_calls("ListShards", 1, Outcome::Served);
    kinesis.next_calls("ListShards", 5, Outcome::Mislisted(WrongListing::Short(1)));
    let consumer = consumer(&kinesis).starting_position(StartingPosition::Latest).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    orders.shard(1).put("1");
    assert_eq!(number(&next(&mut records).await), 1);
}

/// A closed shard holds records from after the starting time, and the listing of the shards that
/// were open at that time lacks it.
#[tokio::test(start_paused = true)]
async fn listing_by_time_without_a_closed_shard_ends_no_shard() {
    for (wrong, by_seek) in [
        (WrongListing::Without(shard_zero()), false),
        (WrongListing::Without(shard_zero()), true),
        (WrongListing::Empty, false),
        (WrongListing::Empty, true),
    ] {
        // The clock of the test runs ahead of the host's clock.
        let kinesis = Kinesis::at(SystemTime::now() - Duration::from_secs(3600));
        let orders = kinesis.create_stream("orders", 1);
        sleep(Duration::from_secs(5)).await;
        let since = StartingPosition::AtTimestamp(kinesis.now());
        sleep(Duration::from_secs(5)).await;
        orders.shard(0).put("0");
        let [left, _right] = orders.shard(0).split();
        left.put("1");
        sleep(Duration::from_secs(5)).await;
        // The first call is the full listing, which a start makes twice.
        kinesis.next_calls("ListShards", if by_seek { 1 } else { 2 }, Outcome::Served);
        kinesis.next_calls("ListShards", 1, Outcome::Mislisted(wrong.clone()));
        let consumer = if by_seek {
            let consumer = consumer(&kinesis).build().unwrap();
            consumer.seek(since).await.unwrap();
            consumer
        } else {
            consumer(&kinesis).starting_position(since).build().unwrap()
        };
        let mut records = consumer.records();
        for expected in [0, 1] {
            let read = number(&next(&mut records).await);
            assert_eq!(read, expected, "{wrong:?}, by seek: {by_seek}");
        }
    }
}

/// A seek moves every shard that Kinesis retains, even if its first listings lack one.
#[tokio::test(start_paused = true)]
async fn seek_moves_a_shard_missing_from_its_listings() {
    let child: ShardId = "shardId-000000000001".parse().unwrap();
    for wrong in [
        WrongListing::Without(shard_zero()),
        WrongListing::Without(child),
        WrongListing::Stale(1),
        WrongListing::Empty,
    ] {
        for times in [1, 2] {
            let (kinesis, orders) = orders(1);
            orders.shard(0).put("0");
            let [left, right] = orders.shard(0).split();
            left.put("1");
            right.put("2");
            let consumer = consumer(&kinesis).build().unwrap();
            let mut records = consumer.records();
            let read = async |records: &mut Records| {
                let mut read: Vec<usize> = Vec::new();
                while let Ok(next) = timeout(Duration::from_secs(20), records.next()).await {
                    read.push(number(&next.unwrap().unwrap()));
                }
                read.sort_unstable();
                read
            };
            assert_eq!(read(&mut records).await, [0, 1, 2]);
            kinesis.next_calls("ListShards", times, Outcome::Mislisted(wrong.clone()));
            consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
            assert_eq!(read(&mut records).await, [0, 1, 2], "{wrong:?}, {times} listings");
        }
    }
}

/// A shard that no worker knows yet starts at the position that a seek stored.
#[tokio::test(start_paused = true)]
async fn seek_before_the_first_start_moves_a_closed_shard_missing_from_its_listing() {
    let kinesis = Kinesis::at(SystemTime::now() - Duration::from_secs(3600));
    let orders = kinesis.create_stream("orders", 1);
    orders.shard(0).put("0");
    sleep(Duration::from_secs(5)).await;
    let since = StartingPosition::AtTimestamp(kinesis.now());
    sleep(Duration::from_secs(5)).await;
    orders.shard(0).put("1");
    orders.shard(0).split()[0].put("2");
    kinesis.next_calls("ListShards", 3, Outcome::Mislisted(WrongListing::Without(shard_zero())));
    let consumer = consumer(&kinesis).build().unwrap();
    consumer.seek(since).await.unwrap();
    let mut records = consumer.records();
    for expected in [1, 2] {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    assert_silent(&mut records).await;
}

/// The confirmation that parents have expired delays a seek only once.
#[tokio::test(start_paused = true)]
async fn seek_succeeds_after_a_parent_has_expired() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).split()[0].put("1");
    orders.shard(0).expire();
    let consumer = consumer(&kinesis).build().unwrap();
    let began = Instant::now();
    consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "a seek took {:?}", began.elapsed());
    assert_eq!(calls(&kinesis, "GetShardIterator").len(), 3);
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 1);
}

/// The unfinished parent of listed children is missing from two listings, and is listed again after
/// them.
#[tokio::test(start_paused = true)]
async fn shard_missing_from_two_listings_is_read_to_its_end() {
    let (kinesis, orders) = orders(1);
    let read = orders.shard(0).put("0");
    orders.shard(0).put("1");
    let [left, _right] = orders.shard(0).split();
    left.put("2");
    let store = MemoryStore::new();
    let position =
        Checkpoint::AfterSequenceNumber { sequence_number: read, sub_sequence_number: None };
    let scope = Scope::new("default", "orders");
    store.save(&scope, &[(shard_zero(), position)]).await.unwrap();
    let missing = Outcome::Mislisted(WrongListing::Without(shard_zero()));
    kinesis.next_calls("ListShards", 2, missing);
    let not_found = Outcome::failed(400, "ResourceNotFoundException", "no such shard");
    kinesis.next_calls("GetShardIterator", 2, not_found);
    let consumer =
        consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).store(store).build().unwrap();
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 1);
    assert_eq!(number(&next(&mut records).await), 2);
}

#[tokio::test(start_paused = true)]
async fn stream_that_is_briefly_not_found_is_read_on() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).discovery_interval(Duration::from_secs(1)).build().unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    let not_found = Outcome::failed(400, "ResourceNotFoundException", "no such stream");
    kinesis.next_calls("ListShards", 4, not_found);
    sleep(Duration::from_secs(20)).await;
    orders.shard(0).put("0");
    assert_eq!(number(&next(&mut records).await), 0);
}

#[tokio::test(start_paused = true)]
async fn mistyped_stream_name_is_reported_within_seconds() {
    let kinesis = Kinesis::new();
    let consumer = consumer(&kinesis).build().unwrap();
    let began = Instant::now();
    let mut records = consumer.records();
    let error = records.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(records.next().await.is_none());
    let time = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&time), "{time:?}");
}

/// `Latest` means the time of the first poll, regardless of how long listings fail.
#[tokio::test(start_paused = true)]
async fn latest_reads_records_put_while_listings_failed() {
    let failures = [
        Outcome::throttled(),
        Outcome::failed(500, "InternalFailureException", ""),
        Outcome::Refused,
        Outcome::Mislisted(WrongListing::Empty),
    ];
    for failure in failures {
        for minutes in [1, 60] {
            let (kinesis, orders) = orders(1);
            orders.shard(0).put("early");
            sleep(Duration::from_secs(3)).await;
            kinesis.next_calls("ListShards", usize::MAX, failure.clone());
            let consumer = consumer(&kinesis)
                .starting_position(StartingPosition::Latest)
                .checkpoint_on(CheckpointOn::Ack)
                .build()
                .unwrap();
            let mut records = consumer.records();
            let until = Instant::now() + Duration::from_secs(60 * minutes / 2);
            let mut poll_until = async |until: Instant| {
                while let Ok(Some(next)) = timeout(until - Instant::now(), records.next()).await {
                    assert_eq!(next.unwrap_err().kind(), ErrorKind::Unavailable);
                }
            };
            poll_until(until).await;
            orders.shard(0).put("0");
            orders.shard(0).split()[1].put("1");
            poll_until(until + Duration::from_secs(60 * minutes / 2)).await;
            kinesis.on_call(|_| Outcome::Served);
            let first = next(&mut records).await;
            assert_eq!(number(&first), 0, "{failure:?} for {minutes} min");
            first.ack();
            assert_eq!(number(&next(&mut records).await), 1, "{failure:?} for {minutes} min");
        }
    }
}

/// The lease table does not change when a shard is found again, but the shard must be acquired.
#[tokio::test(start_paused = true)]
async fn shard_that_is_briefly_missing_is_read_when_found_again() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let (first, records) = read_first(&kinesis, &orders, &store).await;
    drop(records);
    first.close().await.unwrap();
    orders.shard(0).put("1");
    orders.shard(0).split();
    let incomplete = Outcome::Mislisted(WrongListing::Without(orders.shard(0).id()));
    kinesis.next_calls("ListShards", 1, incomplete);
    let not_found = Outcome::failed(400, "ResourceNotFoundException", "not found");
    kinesis.next_calls("GetShardIterator", 1, not_found);
    let second = consumer(&kinesis).store(store).build().unwrap();
    assert_eq!(number(&next(&mut second.records()).await), 1);
}

/// The parents of all shards have expired, and one in a hundred calls fails.
#[tokio::test(start_paused = true)]
async fn start_with_a_thousand_expired_parents_tolerates_failed_probes() {
    let (kinesis, orders) = orders(1000);
    for pair in orders.shards().chunks(2) {
        pair[0].merge(&pair[1]).put("0");
    }
    for parent in 0..1000 {
        orders.shard(parent).expire();
    }
    let mut probes = 0;
    kinesis.on_call(move |call| {
        if call.operation != "GetShardIterator" {
            return Outcome::Served;
        }
        probes += 1;
        if probes % 100 == 0 {
            return Outcome::failed(500, "InternalFailureException", "one of a hundred");
        }
        Outcome::Served
    });
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let first = timeout(Duration::from_secs(60), records.next()).await;
    first.expect("a record within a minute").unwrap().unwrap();
    let mut iterator_calls = calls(&kinesis, "GetShardIterator");
    let is_parent = |call: &Call| {
        let number = call.shard_id.as_ref().and_then(|id| id.as_str()[8..].parse::<usize>().ok());
        number.is_some_and(|number| number < 1000)
    };
    iterator_calls.retain(is_parent);
    let iterator_calls = iterator_calls.len();
    assert!(
        (3000..3100).contains(&iterator_calls),
        "expected three calls for each parent: {iterator_calls} calls"
    );
}
