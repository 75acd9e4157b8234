//! Handoffs of shards between workers: delivered records, late acks, and workers that stop polling.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use kinestream::{CheckpointOn, Consumer, Record};
use tokio::time::{Instant, sleep};

use crate::fleet::fleets::{Fleet, MOMENT, RENEWAL};
use crate::{next, number, shard_of};

/// Starts a worker that holds one delivered record of each of two shards.
async fn held(handoff: Duration) -> (Fleet, Consumer, kinestream::Records, Vec<Record>) {
    let fleet = Fleet::new(2);
    for number in 0..8 {
        fleet.orders.shard(number % 2).put(number.to_string());
    }
    let builder = fleet.builder("a").checkpoint_on(CheckpointOn::Ack).limit(1);
    let consumer = builder.handoff_timeout(handoff).build().unwrap();
    let mut records = consumer.records();
    let held = vec![next(&mut records).await, next(&mut records).await];
    assert_ne!(shard_of(&held[0]), shard_of(&held[1]));
    (fleet, consumer, records, held)
}

#[tokio::test(start_paused = true)]
async fn handoff_waits_for_delivered_records() {
    let (fleet, _consumer, mut records, held) = held(Duration::from_secs(60)).await;
    let _b = fleet.start("b");
    sleep(Duration::from_secs(40)).await;
    fleet.assert_shares(&[("a", 2)]).await;
    // One of the two shards is being handed off: it delivers no further record, and the handoff
    // waits for the delivered one.
    let given = fleet
        .table()
        .await
        .leases
        .iter()
        .find_map(|(shard, lease)| lease.next_owner.as_ref().map(|_| shard.clone()));
    let given = given.expect("a lease with a next owner");
    for _ in 0..3 {
        let record = next(&mut records).await;
        assert_ne!(record.shard_id(), &given);
        record.ack();
        fleet.note("a", &record);
    }
    for record in &held {
        record.ack();
        fleet.note("a", record);
    }
    sleep(RENEWAL + MOMENT).await;
    fleet.assert_shares(&[("a", 1), ("b", 1)]).await;
    sleep(Duration::from_secs(10)).await;
    fleet.assert_each_once_unordered(8);
}

#[tokio::test(start_paused = true)]
async fn handoff_proceeds_after_handoff_timeout() {
    let (fleet, _consumer, _records, held) = held(Duration::from_secs(5)).await;
    let _b = fleet.start("b");
    sleep(2 * RENEWAL + Duration::from_secs(5) + MOMENT).await;
    fleet.assert_shares(&[("a", 1), ("b", 1)]).await;
    sleep(RENEWAL + MOMENT).await;
    // The unfinished record is redelivered in a later epoch. A late ack of the old delivery has no
    // effect.
    let given = fleet.seen_by("b", Instant::now() - Duration::from_secs(60));
    assert_eq!(given.len(), 1);
    let given = *given.first().unwrap();
    let old = held.iter().find(|record| shard_of(record) == given).unwrap();
    let again = {
        let seen = fleet.seen.lock().unwrap();
        seen.iter().find(|seen| seen.number == number(old)).unwrap().epoch
    };
    assert!(again > old.epoch());
    let stored = || async { fleet.table().await.leases[old.shard_id()].clone() };
    sleep(Duration::from_secs(5)).await;
    let before = stored().await;
    old.ack();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stored().await, before);
}

#[tokio::test(start_paused = true)]
async fn ack_after_close_counts_until_another_worker_owns_the_shard() {
    let (fleet, consumer, _records, held) = held(Duration::from_secs(5)).await;
    consumer.close().await.unwrap();
    assert!(fleet.shares().await.is_empty(), "expected close to release the leases");
    held[0].ack();
    consumer.close().await.unwrap();
    let b = fleet.start("b");
    sleep(MOMENT).await;
    held[1].ack();
    sleep(Duration::from_secs(10)).await;
    let numbers: BTreeSet<usize> =
        fleet.seen.lock().unwrap().iter().map(|seen| seen.number).collect();
    assert!(
        !numbers.contains(&number(&held[0])),
        "expected no redelivery of the acknowledged record"
    );
    assert!(
        numbers.contains(&number(&held[1])),
        "expected redelivery of the record that was acknowledged late"
    );
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn sink_rejects_records_of_an_old_epoch() {
    /// The highest epoch of each shard, and the numbers of the written records.
    #[derive(Default)]
    struct FencedSink {
        epochs: BTreeMap<usize, u64>,
        written: Vec<usize>,
    }
    impl FencedSink {
        fn write(&mut self, record: &Record) -> bool {
            let highest = self.epochs.entry(shard_of(record)).or_default();
            if record.epoch() < *highest {
                return false;
            }
            *highest = record.epoch();
            self.written.push(number(record));
            true
        }
    }
    let (fleet, _zombie, _its_records, held) = held(Duration::ZERO).await;
    let mut sink = FencedSink::default();
    let b = fleet.builder("b").build().unwrap();
    let mut records = b.records();
    for _ in 0..4 {
        assert!(sink.write(&next(&mut records).await));
    }
    let outcome: Vec<bool> = held.iter().map(|record| sink.write(record)).collect();
    assert_eq!(
        outcome.iter().filter(|written| !**written).count(),
        1,
        "expected one rejected record, of the shard that was handed off"
    );
    sink.written.sort_unstable();
    sink.written.dedup();
    assert_eq!(sink.written.len(), 5, "expected five different records");
}

#[tokio::test(start_paused = true)]
async fn worker_that_stops_polling_releases_its_leases() {
    let fleet = Fleet::new(4);
    let stopped = fleet.builder("a").poll_timeout(Some(Duration::from_secs(20))).build().unwrap();
    let mut records = stopped.records();
    // The record in flight is of a shard that stays, so that it does not delay the first handoffs.
    fleet.orders.shard(0).put("0");
    let in_flight = next(&mut records).await;
    assert_eq!(shard_of(&in_flight), 0);
    let puts = fleet.put_continuously(Duration::from_millis(100));
    let _b = fleet.start("b");
    sleep(Duration::from_secs(10)).await;
    fleet.assert_shares(&[("a", 2), ("b", 2)]).await;
    sleep(Duration::from_secs(20) + 2 * RENEWAL).await;
    fleet.assert_shares(&[("b", 4)]).await;
    // The worker polls again and gets its share back.
    let polling = tokio::spawn(async move { records.for_each(|_| async {}).await });
    sleep(3 * RENEWAL).await;
    fleet.assert_shares(&[("a", 2), ("b", 2)]).await;
    polling.abort();
    puts.end().await;
}

#[tokio::test(start_paused = true)]
async fn worker_that_waits_for_records_keeps_its_leases() {
    let fleet = Fleet::new(2);
    let consumer = fleet.builder("a").poll_timeout(Some(Duration::from_secs(5))).build().unwrap();
    let (mut shards, mut merged) = (Vec::new(), consumer.shards());
    for _ in 0..2 {
        let mut shard = merged.next().await.unwrap().unwrap();
        shards.push(tokio::spawn(async move {
            shard.next().await.map(|record| number(&record.unwrap()))
        }));
    }
    sleep(Duration::from_secs(300)).await;
    fleet.assert_shares(&[("a", 2)]).await;
    fleet.orders.shard(0).put("0");
    fleet.orders.shard(1).put("1");
    let numbers = futures::future::join_all(shards).await;
    let numbers: BTreeSet<_> = numbers.into_iter().map(|number| number.unwrap().unwrap()).collect();
    assert_eq!(numbers, BTreeSet::from([0, 1]));
}
