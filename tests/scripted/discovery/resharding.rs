//! Splits and merges over several generations, and streams with many shards.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, ErrorKind, MemoryStore, OnTrimmed, Record, ShardId,
    ShardOrdering, StartingPosition,
};
use tokio::time::{Instant, timeout};

use crate::{assert_silent, calls, consumer, next, number, orders, shard_of, shards};
use kinestream::testing::{Kinesis, Outcome, Shard};

#[tokio::test(start_paused = true)]
async fn children_are_read_after_their_parents_over_generations() {
    for child_shards in [true, false] {
        let (kinesis, orders) = orders(2);
        kinesis.set_child_shards(child_shards);
        // From left to right: 0 is split into 2 and 3, and 3 merged with 1 into 4.
        let first = [orders.shard(0), orders.shard(1)];
        let put = |shards: &[Shard], numbers: std::ops::Range<usize>| {
            for number in numbers {
                shards[number % shards.len()].put(number.to_string());
            }
        };
        put(&first, 0..50);
        let [left, right] = first[0].split();
        put(&[left.clone(), right.clone(), first[1].clone()], 50..100);
        let merged = right.merge(&first[1]);
        put(&[left, merged], 100..150);
        let consumer = consumer(&kinesis).limit(7).build().unwrap();
        let mut records = consumer.records();
        let mut seen: Vec<Vec<usize>> = vec![Vec::new(); 5];
        for _ in 0..150 {
            let record = next(&mut records).await;
            let shard = shard_of(&record);
            for parent in orders.shard(shard).parents() {
                let parent: usize = parent.as_str()[8..].parse().unwrap();
                let all = orders.shard(parent).sequence_numbers().len();
                assert_eq!(
                    seen[parent].len(),
                    all,
                    "expected shard {parent} to be read before {shard}"
                );
            }
            assert!(seen[shard].last() < Some(&number(&record)));
            seen[shard].push(number(&record));
        }
        assert_silent(&mut records).await;
        assert_eq!(kinesis.violations(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn children_wait_until_their_parent_is_acknowledged() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    orders.shard(0).put("1");
    let [left, _right] = orders.shard(0).split();
    left.put("2");
    let consumer = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    let mut records = consumer.records();
    let parents = [next(&mut records).await, next(&mut records).await];
    assert_silent(&mut records).await;
    parents[1].ack();
    assert_silent(&mut records).await;
    parents[0].ack();
    assert_eq!(number(&next(&mut records).await), 2);
}

#[tokio::test(start_paused = true)]
async fn unordered_consumer_reads_children_at_once() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let [left, _right] = orders.shard(0).split();
    left.put("1");
    let consumer = consumer(&kinesis)
        .checkpoint_on(CheckpointOn::Ack)
        .ordering(ShardOrdering::Unordered)
        .build()
        .unwrap();
    let mut records = consumer.records();
    // Neither record is acknowledged.
    let mut read = [number(&next(&mut records).await), number(&next(&mut records).await)];
    read.sort_unstable();
    assert_eq!(read, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn finished_shard_is_stored_and_never_read_again() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let [left, _right] = orders.shard(0).split();
    let store = MemoryStore::new();
    let first = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = first.records();
    assert_eq!(number(&next(&mut records).await), 0);
    assert_silent(&mut records).await;
    drop(records);
    first.close().await.unwrap();
    let stored = store.load(&Scope::new("default", "orders")).await.unwrap();
    assert_eq!(stored[&orders.shard(0).id()], Checkpoint::ShardEnd);

    left.put("1");
    let reads = |kinesis: &Kinesis| {
        calls(kinesis, "GetRecords")
            .iter()
            .filter(|call| call.shard_id == Some(orders.shard(0).id()))
            .count()
    };
    let before = reads(&kinesis);
    let second = consumer(&kinesis).store(store).build().unwrap();
    assert_eq!(number(&next(&mut second.records()).await), 1);
    assert_eq!(reads(&kinesis), before);
}

/// The stored position is the last record of a closed shard. Some servers reject reads after it.
#[tokio::test(start_paused = true)]
async fn restart_after_the_last_record_of_a_closed_shard_finds_its_end() {
    let (kinesis, orders) = orders(1);
    let last = orders.shard(0).put("0");
    let [left, _right] = orders.shard(0).split();
    left.put("1");
    let store = MemoryStore::new();
    let checkpoint =
        Checkpoint::AfterSequenceNumber { sequence_number: last, sub_sequence_number: None };
    let shard = "shardId-000000000000".parse().unwrap();
    store.save(&Scope::new("default", "orders"), &[(shard, checkpoint)]).await.unwrap();
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    assert_eq!(
        number(&next(&mut consumer.records()).await),
        1,
        "expected the record of the child without a redelivery before it"
    );
}

#[tokio::test(start_paused = true)]
async fn shards_that_expired_between_two_runs_follow_on_trimmed() {
    for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        let (kinesis, orders) = orders(1);
        let read = orders.shard(0).put("0");
        orders.shard(0).put("1");
        let [left, _right] = orders.shard(0).split();
        left.put("2");
        orders.shard(0).expire();
        let store = MemoryStore::new();
        let checkpoint = Checkpoint::AfterSequenceNumber {
            sequence_number: read.clone(),
            sub_sequence_number: None,
        };
        let scope = Scope::new("default", "orders");
        let shard = "shardId-000000000000".parse().unwrap();
        store.save(&scope, &[(shard, checkpoint)]).await.unwrap();
        // Even with `Latest`, a child is read from its oldest record.
        let consumer = consumer(&kinesis)
            .starting_position(StartingPosition::Latest)
            .on_trimmed(policy)
            .store(store)
            .build()
            .unwrap();
        let mut records = consumer.records();
        if policy == OnTrimmed::Fail {
            let error = records.next().await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Trimmed);
            assert_eq!(error.shard_id().map(ShardId::as_str), Some("shardId-000000000000"));
            assert_silent(&mut records).await;
        } else {
            assert_eq!(number(&next(&mut records).await), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn thousands_of_shards_are_listed_page_by_page() {
    let (kinesis, orders) = orders(2500);
    for shard in 0..2500 {
        orders.shard(shard).put(shard.to_string());
    }
    // The second page of the first listing is rejected: its token has expired.
    let mut listings = 0;
    kinesis.on_call(move |call| {
        if call.operation == "ListShards" {
            listings += 1;
            if listings == 2 {
                return Outcome::failed(400, "ExpiredNextTokenException", "expired");
            }
        }
        Outcome::Served
    });
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    while seen.len() < 2500 {
        seen.insert(number(&next(&mut records).await));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(
        calls(&kinesis, "ListShards").len(),
        8,
        "expected two calls, then three calls twice"
    );
    assert_eq!(kinesis.violations(), [""; 0]);
}

/// The end of a shard names a child. The store has just lost the lease of the child's other parent.
#[tokio::test(start_paused = true)]
async fn child_waits_for_a_parent_that_the_store_has_lost() {
    let (kinesis, orders) = orders(3);
    let store = MemoryStore::new();
    let consumer = consumer(&kinesis)
        .store(store.clone())
        .checkpoint_on(CheckpointOn::Ack)
        .discovery_interval(Duration::from_secs(5))
        .build()
        .unwrap();
    let mut records = consumer.records();
    let mut held = Vec::new();
    for shard in orders.shards() {
        shard.put("0");
    }
    for _ in 0..3 {
        held.push(next(&mut records).await);
    }
    let before = store.replica();
    let merged = orders.shard(1).merge(&orders.shard(2));
    merged.put("1");
    // The merged shard is listed and waits for its parents.
    assert!(timeout(Duration::from_secs(20), records.next()).await.is_err());
    assert!(shards(&consumer).await.contains_key(&merged.id()));
    let last = orders.shard(0).merge(&merged);
    last.put("2");
    store.replace_with_copy_of(&before);
    for record in held.extract_if(.., |record| shard_of(record) == 0) {
        record.ack();
    }
    let early = timeout(Duration::from_secs(30), records.next()).await;
    assert!(early.is_err(), "{early:?}");
    held.iter().for_each(Record::ack);
    for expected in 1..=2 {
        let record = next(&mut records).await;
        assert_eq!(number(&record), expected);
        record.ack();
    }
}

#[tokio::test(start_paused = true)]
async fn closed_shard_without_records_is_finished_and_its_children_are_read() {
    for child_shards in [true, false] {
        let (kinesis, orders) = orders(1);
        kinesis.set_child_shards(child_shards);
        let [left, right] = orders.shard(0).split();
        left.put("1");
        right.put("2");
        let store = MemoryStore::new();
        let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
        let mut records = consumer.records();
        for _ in 0..2 {
            let record = next(&mut records).await;
            assert_eq!(number(&record), shard_of(&record));
        }
        assert_silent(&mut records).await;
        let positions = shards(&consumer).await;
        let first = &positions[&orders.shard(0).id()];
        assert_eq!(first.position, Some(Checkpoint::ShardEnd), "ChildShards {child_shards}");
    }
}
