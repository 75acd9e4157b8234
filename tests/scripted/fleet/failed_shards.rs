//! Failed shards: the lease, the reported state, and the worker that reads the shard next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Outcome;
use kinestream::{
    Consumer, ErrorKind, Event, IfLeased, MemoryStore, ShardId, ShardState, StartingPosition,
};
use tokio::time::{Instant, sleep, timeout};

use crate::fetching::errors::trimmed_store;
use crate::fleet::fleets::{Fleet, LEASE, RENEWAL};
use crate::simulated_clock::consumer_of;
use crate::{assert_silent, consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

fn id(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

/// Collects the time, the shard and the error kind of each `ShardFailed` event of the consumer.
fn failures(consumer: &Consumer) -> Arc<Mutex<Vec<(Instant, ShardId, ErrorKind)>>> {
    let (mut events, found) = (consumer.events(), Arc::<Mutex<Vec<_>>>::default());
    let seen = Arc::clone(&found);
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let Event::ShardFailed { shard_id, kind, .. } = event {
                seen.lock().unwrap().push((Instant::now(), shard_id, kind));
            }
        }
    });
    found
}

#[tokio::test(start_paused = true)]
async fn failed_shard_is_released_reported_once_and_retried_with_back_off() {
    let (kinesis, orders) = orders(2);
    let store = trimmed_store(&orders).await;
    orders.shard(1).put("100");
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    let failed = failures(&consumer);
    let mut records = consumer.records();
    let (mut errors, mut read) = (Vec::new(), Vec::new());
    while errors.is_empty() || read.is_empty() {
        match timeout(60 * SECOND, records.next()).await.unwrap().unwrap() {
            Ok(record) => read.push(number(&record)),
            Err(error) => errors.push(error.kind()),
        }
    }
    sleep(SECOND).await;
    let status = consumer.status().await.unwrap();
    let [first, second] = [0, 1].map(|number| &status.shards[&id(number)]);
    assert_eq!((first.state, first.owner.as_deref()), (ShardState::Failed, None));
    assert_eq!(first.failure.as_ref().map(|failure| failure.kind), Some(ErrorKind::Trimmed));
    assert_eq!((second.state, &second.failure), (ShardState::Reading, &None));
    let epoch = first.epoch;
    let quiet = timeout(1800 * SECOND, records.next()).await;
    assert!(quiet.is_err(), "expected one error and an open stream: {quiet:?}");
    assert_eq!((errors, read), (vec![ErrorKind::Trimmed], vec![100]));
    {
        let failed = failed.lock().unwrap();
        assert!((7..40).contains(&failed.len()), "expected 7 to 39 attempts: {failed:?}");
        assert!(
            failed.iter().all(|(_, shard, kind)| (shard, *kind) == (&id(0), ErrorKind::Trimmed))
        );
        for pair in failed.windows(2) {
            let pause = pair[1].0 - pair[0].0;
            assert!((10 * SECOND..320 * SECOND).contains(&pause), "{pause:?} between attempts");
        }
    }
    // A position that an operator sets takes effect at the next attempt.
    let retained = kinestream::Checkpoint::TrimHorizon;
    consumer.set_position(&id(0), retained, IfLeased::Refuse).await.unwrap();
    for expected in 5..10 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    let status = consumer.status().await.unwrap();
    let first = &status.shards[&id(0)];
    assert_eq!((first.state, &first.failure), (ShardState::Reading, &None));
    assert!(first.epoch > epoch);
}

#[tokio::test(start_paused = true)]
async fn shard_error_is_reported_again_after_a_record() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    let mut records = consumer.records();
    for round in 0..2 {
        orders.shard(0).put(round.to_string());
        assert_eq!(number(&next(&mut records).await), round);
        kinesis.next_calls("GetRecords", 20, crate::denied());
        let error = timeout(60 * SECOND, records.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let quiet = timeout(900 * SECOND, records.next()).await;
        assert!(quiet.is_err(), "round {round}: expected one error: {quiet:?}");
        let status = consumer.status().await.unwrap();
        assert_eq!(status.shards[&id(0)].state, ShardState::Failed, "round {round}");
        kinesis.on_call(|_| Outcome::Served);
        assert_silent(&mut records).await;
        let quiet = timeout(300 * SECOND, records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_shard_stream_releases_the_lease_while_it_is_kept() {
    let (kinesis, orders) = orders(1);
    let store = trimmed_store(&orders).await;
    let consumer = consumer(&kinesis).store(store).build().unwrap();
    let mut shards = consumer.shards();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut shard = timeout(600 * SECOND, shards.next()).await.unwrap().unwrap().unwrap();
        let first = shard.next().await;
        assert_eq!(first.is_some(), kept.is_empty(), "expected the error once");
        assert!(shard.next().await.is_none(), "expected the stream to end");
        sleep(SECOND).await;
        let status = consumer.status().await.unwrap();
        assert_eq!(status.shards[&id(0)].owner, None);
        kept.push(shard);
    }
}

impl Fleet {
    /// Starts a worker that signs its calls with its name. Returns its consumer and the kinds of
    /// its errors.
    pub(crate) fn start_signed(&self, name: &str) -> (Consumer, Arc<Mutex<Vec<ErrorKind>>>) {
        let consumer = consumer_of(&self.kinesis, self.kinesis.client_with_key(name), "orders")
            .starting_position(StartingPosition::TrimHorizon)
            .store(self.store.clone())
            .worker_id(name)
            .lease_duration(LEASE)
            .build()
            .unwrap();
        let errors = Arc::<Mutex<Vec<_>>>::default();
        let (mut records, fleet, reported) =
            (consumer.records(), self.clone(), Arc::clone(&errors));
        let name = name.to_owned();
        tokio::spawn(async move {
            while let Some(record) = records.next().await {
                match record {
                    Ok(record) => fleet.note(&name, &record),
                    Err(error) => reported.lock().unwrap().push(error.kind()),
                }
            }
        });
        (consumer, errors)
    }

    /// Counts the changes of owner of each shard's lease during `time`.
    pub(crate) async fn takeovers(&self, time: Duration) -> BTreeMap<ShardId, usize> {
        let (began, mut epochs, mut found) =
            (Instant::now(), BTreeMap::new(), BTreeMap::<_, usize>::new());
        while began.elapsed() < time {
            for (shard, lease) in self.table().await.leases {
                if let Some(before) = epochs.insert(shard.clone(), lease.epoch) {
                    *found.entry(shard).or_default() += usize::from(before != lease.epoch);
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
        found
    }
}

#[tokio::test(start_paused = true)]
async fn shards_denied_to_one_worker_are_read_by_the_other() {
    let fleet = Fleet::new(6);
    let _puts = fleet.put_continuously(Duration::from_millis(200));
    let (_a, a_errors) = fleet.start_signed("a");
    let (b, b_errors) = fleet.start_signed("b");
    sleep(30 * SECOND).await;
    fleet.assert_shares(&[("a", 3), ("b", 3)]).await;
    fleet.kinesis.on_call(|call| match call.access_key_id.as_deref() {
        Some("a") if call.operation != "ListShards" => crate::denied(),
        _ => Outcome::Served,
    });
    // Retries for 60 s, at most 30 s apart, plus the time of the moves.
    sleep(100 * SECOND).await;
    let since = Instant::now();
    let takeovers = fleet.takeovers(600 * SECOND).await;
    let read = fleet.seen_by("b", since);
    assert_eq!(
        read.len(),
        6,
        "expected b to read all shards: {takeovers:?}, {:?}",
        fleet.shares().await
    );
    // A trial is 60 s of retries after a back-off of at least 10 s, and moves one shard to `a` and
    // back.
    let most_trials = 6 * (600 / (60 + 10) + 1);
    let count: usize = takeovers.values().sum();
    assert!(count <= 2 * most_trials, "{count} moves: {takeovers:?}");
    let errors = a_errors.lock().unwrap().clone();
    assert!(
        errors.len() <= 6 && errors.iter().all(|kind| *kind == ErrorKind::Denied),
        "{errors:?}"
    );
    assert!(b_errors.lock().unwrap().is_empty());
    let status = b.status().await.unwrap();
    let failed = status.shards.values().filter(|shard| shard.state == ShardState::Failed).count();
    assert_eq!(failed, 0, "expected no failure of another process in the status: {status:?}");
    // The permission is granted again.
    fleet.kinesis.on_call(|_| Outcome::Served);
    sleep(900 * SECOND).await;
    fleet.assert_shares(&[("a", 3), ("b", 3)]).await;
}

#[tokio::test(start_paused = true)]
async fn shard_that_fails_for_all_workers_moves_rarely() {
    let fleet = Fleet::new(4);
    let _puts = fleet.put_continuously(Duration::from_millis(200));
    let workers = ["a", "b", "c"].map(|name| fleet.start_signed(name));
    sleep(30 * SECOND).await;
    fleet.kinesis.on_call(|call| {
        if call.operation != "ListShards" && call.shard_id.as_ref() == Some(&id(0)) {
            return Outcome::failed(400, "ResourceNotFoundException", "no");
        }
        Outcome::Served
    });
    sleep(300 * SECOND).await;
    let takeovers = fleet.takeovers(600 * SECOND).await;
    // Each of the three workers acquires it at most once in 10 s, with a growing back-off.
    assert!(takeovers[&id(0)] <= 60, "{takeovers:?}");
    assert!(
        takeovers.iter().filter(|(shard, _)| **shard != id(0)).all(|(_, count)| *count <= 4),
        "{takeovers:?}"
    );
    for (_, errors) in &workers {
        let errors = errors.lock().unwrap();
        assert!(errors.iter().all(|kind| *kind == ErrorKind::NotFound), "{errors:?}");
        assert!(errors.len() <= 1, "{errors:?}");
    }
    let (crashed, _) = &workers[2];
    crashed.close().await.unwrap();
    sleep(RENEWAL + SECOND).await;
    let owned = fleet.table().await.leases.values().filter(|lease| lease.owner.is_some()).count();
    assert!(owned >= 3, "expected the other workers to own the healthy shards");
    fleet.kinesis.on_call(|_| Outcome::Served);
    let since = Instant::now();
    sleep(330 * SECOND).await;
    let read: usize = ["a", "b"].map(|worker| fleet.seen_by(worker, since).len()).iter().sum();
    assert!(read >= 4, "expected the failed shard to be read again");
}

/// The caller handles the error for longer than failures must last before a shard is released.
#[tokio::test(start_paused = true)]
async fn failures_before_and_after_a_pause_of_the_caller_release_no_shard() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let failed = failures(&consumer);
    let mut records = consumer.records();
    let denied = crate::denied();
    kinesis.next_calls("GetRecords", 2, denied);
    orders.shard(0).put("0");
    assert_eq!(records.next().await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
    sleep(70 * SECOND).await;
    assert_eq!(number(&next(&mut records).await), 0);
    assert!(failed.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn alternating_failure_kinds_are_reported_once_each() {
    let (kinesis, _orders) = orders(1);
    crate::refuse_in_turn(&kinesis, "GetRecords");
    let mut records = consumer(&kinesis).build().unwrap().records();
    for kind in [ErrorKind::Rejected, ErrorKind::Denied] {
        assert_eq!(records.next().await.unwrap().unwrap_err().kind(), kind);
    }
    let quiet = timeout(1800 * SECOND, records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
