//! Jobs with several workers: each worker's stream ends when nothing is left for it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, Event, ShardState};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::endings::{LONG, NOTHING, SECOND, rest, until};
use crate::fleet::fleets::{Fleet, LEASE};
use crate::store::store_outages::store_that_goes_down;
use crate::{calls, next, number};

/// A worker of a job that reads in its own task.
struct JobWorker {
    consumer: Consumer,
    /// The numbers of its records, and the time at which its stream ended.
    reading: JoinHandle<(Vec<usize>, Instant)>,
}

fn builder(fleet: &Fleet, name: &str, end: SystemTime) -> ConsumerBuilder {
    let builder = until(&fleet.kinesis, end).store(fleet.store.clone());
    builder.worker_id(name).lease_duration(LEASE)
}

fn start(fleet: &Fleet, name: &str, end: SystemTime, work: Duration) -> JobWorker {
    let consumer = builder(fleet, name, end).limit(10).build().unwrap();
    let mut records = consumer.records();
    let reading = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(record) = records.next().await {
            seen.push(number(&record.unwrap()));
            sleep(work).await;
        }
        let ended = Instant::now();
        // The stream is dropped later than it ends.
        sleep(3600 * SECOND).await;
        (seen, ended)
    });
    JobWorker { consumer, reading }
}

/// Returns a fleet of `shards` shards with 100 records each before the ending, and some after it.
async fn job(shards: usize) -> (Fleet, SystemTime) {
    let fleet = Fleet::new(shards);
    for number in 0..100 * shards {
        fleet.orders.shard(number % shards).put(number.to_string());
    }
    let end = fleet.kinesis.now();
    sleep(SECOND).await;
    for shard in 0..shards {
        fleet.orders.shard(shard).put("999999");
    }
    (fleet, end)
}

#[tokio::test(start_paused = true)]
async fn workers_share_a_job_and_all_of_their_streams_end() {
    let (fleet, end) = job(6).await;
    let began = Instant::now();
    let mut workers = Vec::new();
    for worker in 0..3 {
        workers.push(start(&fleet, &format!("worker-{worker}"), end, SECOND / 10));
        sleep(SECOND).await;
    }
    let mut all = Vec::new();
    for worker in workers {
        let (seen, ended) = timeout(3 * LONG, worker.reading).await.unwrap().unwrap();
        assert!(!seen.is_empty(), "expected every worker to have a share");
        assert!(ended - began < 600 * SECOND, "{:?}", ended - began);
        all.extend(seen);
        worker.consumer.close().await.unwrap();
    }
    all.sort_unstable();
    assert_eq!(all, (0..600).collect::<Vec<_>>());
}

/// Each worker sees that the other one holds shards, and not that it has read them.
#[tokio::test(start_paused = true)]
async fn workers_of_a_job_do_not_wait_for_their_lease_durations() {
    let lease_duration = 20 * LEASE;
    let (fleet, end) = job(4).await;
    let began = Instant::now();
    let workers = ["first", "second"].map(|name| {
        let consumer = builder(&fleet, name, end).lease_duration(lease_duration).build().unwrap();
        tokio::spawn(async move {
            let (mut records, mut read) = (consumer.records(), 0);
            while let Some(record) = records.next().await {
                record.unwrap();
                read += 1;
                sleep(SECOND / 2).await;
            }
            (read, Instant::now(), consumer, records)
        })
    });
    let mut all = 0;
    for worker in workers {
        let (read, ended, ..) = timeout(LONG, worker).await.unwrap().unwrap();
        assert!(read > 0, "expected each worker to have a share");
        assert!(ended - began < 2 * lease_duration, "{:?}", ended - began);
        all += read;
    }
    assert!(all >= 400, "{all} records were read");
}

#[tokio::test(start_paused = true)]
async fn shards_of_a_worker_that_dies_are_read_by_the_others() {
    let (fleet, end) = job(4).await;
    let first = start(&fleet, "first", end, SECOND);
    sleep(SECOND).await;
    let second = start(&fleet, "second", end, SECOND);
    sleep(30 * SECOND).await;
    // Without a last save, as a kill.
    first.reading.abort();
    drop(first);
    let (seen, _) = timeout(3 * LONG, second.reading).await.unwrap().unwrap();
    second.consumer.close().await.unwrap();
    let read: BTreeSet<usize> = seen.into_iter().collect();
    // The first worker has read 30 records at most.
    assert!(read.len() >= 370, "{}", read.len());
    let again = builder(&fleet, "third", end).build().unwrap();
    assert_eq!(rest(&mut again.records()).await, NOTHING, "the job is complete");
}

/// Until its leases expire, the killed worker seems to read all shards.
#[tokio::test(start_paused = true)]
async fn job_that_is_started_again_after_a_kill_reads_the_rest() {
    for pause in [0, 1, 8, 9, 10] {
        let (fleet, end) = job(1).await;
        // Without its store, it releases no lease.
        let (store, is_down) = store_that_goes_down(&fleet);
        let first = builder(&fleet, "first", end).store(store).build().unwrap();
        let mut records = first.records();
        for _ in 0..10 {
            next(&mut records).await;
        }
        is_down.store(true, Ordering::SeqCst);
        drop((records, first));
        sleep(pause * SECOND).await;
        let second = builder(&fleet, "second", end).build().unwrap();
        let read = rest(&mut second.records()).await.len();
        assert!(read >= 90, "{read} records were read by a job started {pause} s after the kill");
        second.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn worker_that_takes_a_reached_shard_reaches_the_ending_at_once() {
    let (fleet, end) = job(4).await;
    let first = builder(&fleet, "first", end).build().unwrap();
    let mut records = first.records();
    assert_eq!(rest(&mut records).await.len(), 400);
    let second = builder(&fleet, "second", end).build().unwrap();
    let (mut others, mut events) = (second.records(), second.events());
    // The first worker has released all of them.
    assert_eq!(rest(&mut others).await, NOTHING);
    sleep(2 * LEASE).await;
    // Both streams have ended, so neither worker accepts a shard.
    let held = [&first, &second].map(|consumer| consumer.health().leases_held);
    assert_eq!(held, [0, 0]);
    let mut reached = 0;
    while let Ok(Some(event)) = timeout(SECOND, events.next()).await {
        reached += usize::from(matches!(event, Event::EndingReached { .. }));
    }
    assert_eq!(reached, 4);
    let before = calls(&fleet.kinesis, "GetRecords").len();
    sleep(LONG).await;
    assert_eq!(calls(&fleet.kinesis, "GetRecords").len(), before, "expected no further call");
}

#[tokio::test(start_paused = true)]
async fn worker_without_a_shard_ends_while_another_reads() {
    let (fleet, end) = job(1).await;
    let first = start(&fleet, "first", end, SECOND);
    sleep(10 * SECOND).await;
    let second = builder(&fleet, "second", end).build().unwrap();
    let began = Instant::now();
    assert_eq!(rest(&mut second.records()).await, NOTHING);
    assert!(began.elapsed() < 30 * SECOND, "{:?}", began.elapsed());
    second.close().await.unwrap();
    let (seen, _) = timeout(3 * LONG, first.reading).await.unwrap().unwrap();
    assert_eq!(seen.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn children_are_read_after_a_worker_without_a_shard_has_ended() {
    let fleet = Fleet::new(1);
    fleet.orders.shard(0).put("0");
    let [left, right] = fleet.orders.shard(0).split();
    left.put("1");
    for child in right.split() {
        child.put("2");
    }
    let end = fleet.kinesis.now();
    sleep(600 * SECOND).await;
    let first = builder(&fleet, "first", end).build().unwrap();
    let mut records = first.records();
    let mut read = vec![number(&next(&mut records).await)];
    // It renews rarely, so the table shows for long what it accepted when it ended.
    let second = builder(&fleet, "second", end).lease_duration(20 * LEASE).build().unwrap();
    let mut others = second.records();
    assert_eq!(rest(&mut others).await, NOTHING);
    // At once the parent ends, and its children are assigned.
    read.extend(rest(&mut records).await);
    read.sort_unstable();
    assert_eq!(read, [0, 1, 2, 2]);
    assert!(others.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn handoff_of_a_reached_shard_waits_for_its_records() {
    let (fleet, end) = job(2).await;
    let ack = |name| builder(&fleet, name, end).checkpoint_on(CheckpointOn::Ack);
    let first = ack("first").handoff_timeout(600 * SECOND).build().unwrap();
    let mut records = first.records();
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(next(&mut records).await);
    }
    assert_eq!(rest(&mut records).await, NOTHING);
    let second = ack("second").build().unwrap();
    let mut others = second.records();
    assert!(timeout(60 * SECOND, others.next()).await.is_err(), "the handoff waits");
    held.iter().for_each(kinestream::Record::ack);
    assert_eq!(rest(&mut others).await, NOTHING);
    sleep(2 * LEASE).await;
    let mut states = crate::shards(&first).await.into_values().map(|shard| shard.state);
    assert!(states.all(|state| state == ShardState::Unassigned), "neither worker reads on");
}

/// An ended stream holds no shard that another worker could read.
#[tokio::test(start_paused = true)]
async fn shards_of_an_ended_stream_are_read_on_by_a_worker_without_an_ending() {
    let (fleet, end) = job(4).await;
    let job = builder(&fleet, "job", end).build().unwrap();
    let mut records = job.records();
    assert_eq!(rest(&mut records).await.len(), 400);
    let service = fleet.builder("service").build().unwrap();
    let mut later = service.records();
    let mut read = Vec::new();
    for _ in 0..4 {
        read.push(number(&timeout(LONG, next(&mut later)).await.unwrap()));
    }
    assert_eq!(read, [999_999; 4]);
    assert!(records.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn position_that_is_moved_back_is_read_again_until_the_stream_has_ended() {
    let (fleet, end) = job(2).await;
    let job = builder(&fleet, "first", end).build().unwrap();
    let mut records = job.records();
    for _ in 0..200 {
        next(&mut records).await;
    }
    job.seek(kinestream::StartingPosition::TrimHorizon).await.unwrap();
    assert_eq!(rest(&mut records).await.len(), 200);
    // No shard is read after the end of the stream.
    job.seek(kinestream::StartingPosition::TrimHorizon).await.unwrap();
    let before = calls(&fleet.kinesis, "GetRecords").len();
    sleep(600 * SECOND).await;
    assert!(records.next().await.is_none());
    assert_eq!(calls(&fleet.kinesis, "GetRecords").len(), before);
}
