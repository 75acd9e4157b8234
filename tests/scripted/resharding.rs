//! Splits, merges, many generations, many shards.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, ErrorKind, MemoryStore, OnTrimmed, Ordering,
    StartingPosition,
};
use tokio::time::Instant;

use crate::support::kinesis::{Action, Kinesis};
use crate::{assert_silent, consumer, next, number};

#[tokio::test(start_paused = true)]
async fn children_come_after_their_parents_over_generations() {
    for child_shards in [true, false] {
        let kinesis = Kinesis::with_shards(2);
        kinesis.set_child_shards(child_shards);
        for number in 0..50 {
            kinesis.put(number % 2, number.to_string());
        }
        let [left, right] = kinesis.orders(|orders, now| orders.split(0, now));
        for number in 50..100 {
            kinesis.put([left, right, 1][number % 3], number.to_string());
        }
        let merged = kinesis.orders(|orders, now| orders.merge(right, 1, now));
        for number in 100..150 {
            kinesis.put([left, merged][number % 2], number.to_string());
        }
        let consumer = consumer(&kinesis).limit(7).build().unwrap();
        let mut records = consumer.records();
        let mut seen = BTreeSet::new();
        let mut last = [None; 5];
        for _ in 0..150 {
            let record = next(&mut records).await;
            let shard: usize = record.shard_id().as_str()[8..].parse().unwrap();
            for (parent, count) in [(0, 25), (right, 17), (1, 42)] {
                let children: &[usize] = if parent == 0 { &[left, right] } else { &[merged] };
                if children.contains(&shard) {
                    let read = seen.iter().filter(|(of, _)| *of == parent).count();
                    let all = kinesis.orders(|orders, _| orders.shards[parent].records.len());
                    assert_eq!(read, all, "shard {parent} ({count}) is read before {shard}");
                }
            }
            assert!(last[shard].replace(number(&record)) < Some(number(&record)));
            assert!(seen.insert((shard, number(&record))));
        }
        assert_silent(&mut records).await;
        assert_eq!(kinesis.violations(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn children_wait_until_the_parent_is_finished_and_not_only_read() {
    let kinesis = Kinesis::with_shards(1);
    kinesis.put(0, "0");
    kinesis.put(0, "1");
    let [left, _right] = kinesis.orders(|orders, now| orders.split(0, now));
    kinesis.put(left, "2");
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
async fn unordered_reads_children_at_once() {
    let kinesis = Kinesis::with_shards(1);
    kinesis.put(0, "0");
    let [left, _right] = kinesis.orders(|orders, now| orders.split(0, now));
    kinesis.put(left, "1");
    let consumer = consumer(&kinesis)
        .checkpoint_on(CheckpointOn::Ack)
        .ordering(Ordering::Unordered)
        .build()
        .unwrap();
    let mut records = consumer.records();
    // Neither is acknowledged.
    let mut read = [number(&next(&mut records).await), number(&next(&mut records).await)];
    read.sort_unstable();
    assert_eq!(read, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_finished_shard_is_stored_and_never_read_again() {
    let kinesis = Kinesis::with_shards(1);
    kinesis.put(0, "0");
    let [left, _right] = kinesis.orders(|orders, now| orders.split(0, now));
    let store = MemoryStore::new();
    let first = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = first.records();
    assert_eq!(number(&next(&mut records).await), 0);
    assert_silent(&mut records).await;
    drop(records);
    first.close().await.unwrap();
    let stored = store.load(&Scope::new("default", "orders")).await.unwrap();
    assert_eq!(stored[&"shardId-000000000000".parse().unwrap()], Checkpoint::ShardEnd);

    kinesis.put(left, "1");
    let reads = |kinesis: &Kinesis| {
        kinesis.calls("GetRecords").iter().filter(|call| call.shard == Some(0)).count()
    };
    let before = reads(&kinesis);
    let second = consumer(&kinesis).store(store).build().unwrap();
    assert_eq!(number(&next(&mut second.records()).await), 1);
    assert_eq!(reads(&kinesis), before);
}

/// A stop at the very last record of a closed shard, which some servers refuse to read after.
#[tokio::test(start_paused = true)]
async fn a_restart_behind_the_last_record_of_a_closed_shard_finds_its_end() {
    let kinesis = Kinesis::with_shards(1);
    let last = kinesis.put(0, "0");
    let [left, _right] = kinesis.orders(|orders, now| orders.split(0, now));
    kinesis.put(left, "1");
    let store = MemoryStore::new();
    let checkpoint = Checkpoint::AfterSequence {
        sequence_number: last.parse().unwrap(),
        sub_sequence_number: None,
    };
    let shard = "shardId-000000000000".parse().unwrap();
    store.save(&Scope::new("default", "orders"), &[(shard, checkpoint)]).await.unwrap();
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    assert_eq!(number(&next(&mut consumer.records()).await), 1, "and the record is not repeated");
}

#[tokio::test(start_paused = true)]
async fn shards_that_expired_between_two_runs_follow_the_policy() {
    for policy in [OnTrimmed::Fail, OnTrimmed::TrimHorizon] {
        let kinesis = Kinesis::with_shards(1);
        let read = kinesis.put(0, "0");
        kinesis.put(0, "1");
        let [left, _right] = kinesis.orders(|orders, now| orders.split(0, now));
        kinesis.put(left, "2");
        kinesis.orders(|orders, _| orders.shards[0].expired = true);
        let store = MemoryStore::new();
        let checkpoint = Checkpoint::AfterSequence {
            sequence_number: read.parse().unwrap(),
            sub_sequence_number: None,
        };
        let scope = Scope::new("default", "orders");
        let shard = "shardId-000000000000".parse().unwrap();
        store.save(&scope, &[(shard, checkpoint)]).await.unwrap();
        // What would be latest is still read from its beginning: it is a child.
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
            assert_eq!(error.shard_id(), Some("shardId-000000000000"));
            assert_silent(&mut records).await;
        } else {
            assert_eq!(number(&next(&mut records).await), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_shards_and_more_are_listed_page_by_page() {
    let kinesis = Kinesis::with_shards(2500);
    for shard in 0..2500 {
        kinesis.put(shard, shard.to_string());
    }
    // The second page of the first listing is refused: its token has expired.
    let mut listings = 0;
    kinesis.on_call(move |call| {
        if call.operation == "ListShards" {
            listings += 1;
            if listings == 2 {
                return Action::Fail {
                    status: 400,
                    code: "ExpiredNextTokenException",
                    message: "expired",
                };
            }
        }
        Action::Serve
    });
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    while seen.len() < 2500 {
        seen.insert(number(&next(&mut records).await));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(kinesis.calls("ListShards").len(), 5, "two calls, and three again");
    assert_eq!(kinesis.violations(), [""; 0]);
}
