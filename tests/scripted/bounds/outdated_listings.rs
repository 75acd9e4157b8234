//! Ends of bounded readings while listings show the stream as it was before a reshard.

use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kinestream::testing::{Kinesis, Outcome, Stream, WrongListing};
use kinestream::{
    CheckpointOn, ConsumerBuilder, EndingPosition, Record, Records, ShardPosition, WireFormat,
};
use tokio::time::{Instant, sleep, timeout};

use super::endings::{LONG, NOTHING, SECOND, rest, until};
use crate::{calls, consumer, next, number, orders};

/// The time for which a listing may be outdated before it is believed, and some time to end.
const BELIEVED: Duration = Duration::from_secs(45);

/// Makes the next listings show the first shard only, as open.
fn outdate_listings(kinesis: &Kinesis, listings: usize) {
    kinesis.next_calls("ListShards", listings, Outcome::Mislisted(WrongListing::Stale(1)));
}

/// The last response of shard 0, which names only one of two children.
const ONE_CHILD: &str = r#"{"Records":[],"MillisBehindLatest":0,"ChildShards":[{"ShardId":"shardId-000000000001",
    "ParentShards":["shardId-000000000000"],"HashKeyRange":{"StartingHashKey":"0","EndingHashKey":"9"}}]}"#;

/// Returns a job that reads shard 0, with its first record. The shard is then closed, and only a
/// listing shows its children, which have a record each of the time.
async fn closed_while_read(
    kinesis: &Kinesis,
    orders: &Stream,
    options: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder,
) -> (Records, Record) {
    orders.shard(0).put("0");
    let builder = until(kinesis, kinesis.now() + 60 * SECOND).discovery_interval(24 * LONG);
    let builder = options(builder).wire_format(WireFormat::Json);
    let mut records = builder.build().unwrap().records();
    let first = next(&mut records).await;
    let [left, right] = orders.shard(0).split();
    left.put("1");
    right.put("2");
    let ends = Outcome::Garbled { status: 200, body: ONE_CHILD.to_owned() };
    kinesis.next_calls("GetRecords", 1, ends);
    (records, first)
}

#[tokio::test(start_paused = true)]
async fn outdated_listing_does_not_end_a_job_before_the_children_of_a_closed_shard() {
    for outdated in [1, 4] {
        let (kinesis, orders) = orders(1);
        let (mut records, first) = closed_while_read(&kinesis, &orders, |builder| builder).await;
        assert_eq!(number(&first), 0);
        outdate_listings(&kinesis, outdated);
        assert_eq!(rest(&mut records).await, [1, 2], "{outdated} outdated listings");
    }
}

#[tokio::test(start_paused = true)]
async fn outdated_listing_does_not_end_a_job_while_the_parent_is_unacknowledged() {
    let (kinesis, orders) = orders(1);
    let (mut records, held) =
        closed_while_read(&kinesis, &orders, |builder| builder.checkpoint_on(CheckpointOn::Ack))
            .await;
    outdate_listings(&kinesis, 4);
    assert!(timeout(60 * SECOND, records.next()).await.is_err(), "the children wait");
    held.ack();
    let mut read = Vec::new();
    for _ in 0..2 {
        let record = next(&mut records).await;
        read.push(number(&record));
        record.ack();
    }
    read.sort_unstable();
    assert_eq!(read, [1, 2]);
    assert_eq!(rest(&mut records).await, NOTHING);
}

/// The server names a next position in the last responses of a closed shard, and a listing shows
/// the shard as open.
#[tokio::test(start_paused = true)]
async fn outdated_listing_does_not_end_a_closed_shard_at_its_tip() {
    for names_children in [true, false] {
        for position in [EndingPosition::Latest, EndingPosition::AtTimestamp(SystemTime::now())] {
            let (kinesis, orders) = orders(1);
            kinesis.set_child_shards(names_children);
            kinesis.set_responses_before_end(2);
            orders.shard(0).put("0");
            let [left, right] = orders.shard(0).split();
            left.put("1");
            right.put("2");
            let position = match position {
                EndingPosition::AtTimestamp(_) => EndingPosition::AtTimestamp(kinesis.now()),
                position => position,
            };
            sleep(600 * SECOND).await;
            let builder = consumer(&kinesis).ending_position(position);
            let mut records = builder.discovery_interval(LONG).build().unwrap().records();
            let first = next(&mut records).await;
            outdate_listings(&kinesis, 3);
            assert_eq!(number(&first), 0);
            let case = (names_children, position);
            assert_eq!(rest(&mut records).await, [1, 2], "{case:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reader_that_polls_rarely_ends_by_a_listing_alone() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    // Each response needs a new iterator.
    let interval = 600 * SECOND;
    let builder = consumer(&kinesis).ending_position(EndingPosition::Latest).interval(interval);
    let mut records = builder.build().unwrap().records();
    let began = Instant::now();
    assert_eq!(rest(&mut records).await, [0]);
    assert!(began.elapsed() < 2 * interval, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn server_that_lists_closed_shards_as_open_ends_a_job_at_once() {
    let (kinesis, orders) = orders(2);
    kinesis.set_child_shards(false);
    kinesis.on_call(|call| match call.operation.as_str() {
        "ListShards" => Outcome::Mislisted(WrongListing::WithoutEnds),
        _ => Outcome::Served,
    });
    orders.shard(0).put("0");
    let [left, right] = orders.shard(0).split();
    left.put("1");
    let merged = right.merge(&orders.shard(1));
    merged.put("2");
    let builder = consumer(&kinesis).ending_position(EndingPosition::Latest);
    let mut records = builder.build().unwrap().records();
    let began = Instant::now();
    assert_eq!(rest(&mut records).await, [0, 1, 2]);
    assert!(began.elapsed() < 30 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn listings_that_never_show_the_children_are_believed_and_few() {
    let (kinesis, orders) = orders(1);
    let (mut records, _) = closed_while_read(&kinesis, &orders, |builder| builder).await;
    outdate_listings(&kinesis, usize::MAX);
    let (began, before) = (Instant::now(), calls(&kinesis, "ListShards").len());
    assert_eq!(rest(&mut records).await, NOTHING);
    assert!(began.elapsed() < BELIEVED, "{:?}", began.elapsed());
    let listings = calls(&kinesis, "ListShards").len() - before;
    assert!((5..12).contains(&listings), "{listings} listings");
}

/// The children of a shard that the caller has set to its end are read from their first record.
#[tokio::test(start_paused = true)]
async fn outdated_first_listings_do_not_end_a_job_whose_shard_is_set_to_its_end() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let [left, right] = orders.shard(0).split();
    left.put("1");
    right.put("2");
    let builder = consumer(&kinesis)
        .starting_position_for(orders.shard(0).id(), ShardPosition::ShardEnd)
        .ending_position(EndingPosition::Latest);
    outdate_listings(&kinesis, 4);
    let mut records = builder.build().unwrap().records();
    assert_eq!(rest(&mut records).await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn open_shard_that_the_caller_has_set_to_its_end_does_not_keep_a_job_open() {
    let (kinesis, orders) = orders(2);
    orders.shard(0).put("0");
    orders.shard(1).put("1");
    let builder = consumer(&kinesis)
        .starting_position_for(orders.shard(0).id(), ShardPosition::ShardEnd)
        .ending_position(EndingPosition::Latest);
    let mut records = builder.build().unwrap().records();
    let began = Instant::now();
    assert_eq!(rest(&mut records).await, [1]);
    assert!(began.elapsed() < BELIEVED, "{:?}", began.elapsed());
}
