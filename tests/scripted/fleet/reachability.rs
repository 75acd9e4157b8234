//! Workers that cannot reach Kinesis: one of them, or all.

use std::time::Duration;

use kinestream::testing::{Call, Outcome};
use tokio::time::{Instant, sleep};

use crate::fleet::fleets::{Fleet, LEASE, RENEWAL};

const SECOND: Duration = Duration::from_secs(1);

/// The time until a worker notices that it cannot reach Kinesis: three lease durations and at least
/// 30 s. A fetch begins to fail up to 1 s after the outage begins, failures are up to 25.6 s apart,
/// and the worker checks at every renewal.
const NOTICED: Duration = Duration::from_secs(30 + 1 + 26 + 3);

/// The time until another worker has seen the declaration, has given the others time to declare the
/// same, and owns the shards.
const MOVED: Duration = Duration::from_secs(3 + 9 + 3 * 3 + 5);

fn is_of(call: &Call, worker: &str) -> bool {
    call.access_key_id.as_deref() == Some(worker)
}

#[tokio::test(start_paused = true)]
async fn worker_that_cannot_reach_kinesis_hands_over_its_leases_until_it_recovers() {
    assert_eq!((LEASE, RENEWAL), (9 * SECOND, 3 * SECOND));
    let denied = Outcome::failed(400, "ExpiredTokenException", "no");
    for outcome in [Outcome::Refused, Outcome::failed(500, "InternalFailure", ""), denied] {
        let fleet = Fleet::new(6);
        let _puts = fleet.put_continuously(Duration::from_millis(200));
        let _a = fleet.start_signed("a");
        sleep(SECOND).await;
        let _b = fleet.start_signed("b");
        sleep(90 * SECOND).await;
        fleet.assert_shares(&[("a", 3), ("b", 3)]).await;
        // The first worker to join lists the shards for all.
        let fails = outcome.clone();
        fleet.kinesis.on_call(
            move |call| {
                if is_of(call, "a") { fails.clone() } else { Outcome::Served }
            },
        );
        sleep(NOTICED + MOVED).await;
        fleet.assert_shares(&[("b", 6)]).await;
        let (since, version) = (Instant::now(), fleet.table().await.version);
        let calls = fleet.kinesis.call_count();
        sleep(300 * SECOND).await;
        assert_eq!(fleet.table().await.version, version, "expected no lease to move");
        assert_eq!(fleet.seen_by("b", since).len(), 6, "expected b to read all shards");
        let calls = fleet.kinesis.calls_from(calls);
        let lists = |worker: &str| {
            let of = |call: &&Call| call.operation == "ListShards" && is_of(call, worker);
            calls.iter().filter(of).count()
        };
        assert!(
            (9..=11).contains(&lists("b")),
            "expected b to list every 30 s: {} listings",
            lists("b")
        );
        assert!(
            (8..=60).contains(&lists("a")),
            "expected a to retry its listings: {} listings",
            lists("a")
        );
        fleet.kinesis.on_call(|_| Outcome::Served);
        // A denied shard is not tried again for up to 5 min, and returns after a trial.
        sleep(900 * SECOND).await;
        fleet.assert_shares(&[("a", 3), ("b", 3)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn outage_for_all_workers_moves_no_lease() {
    for outcome in
        [Outcome::Refused, Outcome::Hangs, Outcome::failed(503, "ServiceUnavailable", "")]
    {
        // One of the workers has no shard and makes no calls.
        let fleet = Fleet::new(2);
        let _puts = fleet.put_continuously(Duration::from_millis(200));
        let _workers = ["a", "b", "c"].map(|name| fleet.start_signed(name));
        sleep(90 * SECOND).await;
        let takeovers = {
            let fleet = fleet.clone();
            tokio::spawn(async move { fleet.takeovers(900 * SECOND).await })
        };
        sleep(30 * SECOND).await;
        let fails = outcome.clone();
        fleet.kinesis.on_call(move |_| fails.clone());
        sleep(600 * SECOND).await;
        fleet.kinesis.on_call(|_| Outcome::Served);
        let takeovers = takeovers.await.unwrap();
        assert!(takeovers.values().all(|count| *count == 0), "{outcome:?}: {takeovers:?}");
        let since = Instant::now();
        sleep(30 * SECOND).await;
        let read: usize = ["a", "b", "c"].map(|name| fleet.seen_by(name, since).len()).iter().sum();
        assert_eq!(read, 2, "expected both shards to be read again");
    }
}

#[tokio::test(start_paused = true)]
async fn sole_worker_that_cannot_reach_kinesis_keeps_its_leases() {
    let fleet = Fleet::new(2);
    let _puts = fleet.put_continuously(Duration::from_millis(200));
    let _a = fleet.start_signed("a");
    sleep(30 * SECOND).await;
    fleet.kinesis.on_call(|_| Outcome::Refused);
    let takeovers = fleet.takeovers(300 * SECOND).await;
    fleet.kinesis.on_call(|_| Outcome::Served);
    assert!(takeovers.values().all(|count| *count == 0), "{takeovers:?}");
    let since = Instant::now();
    sleep(60 * SECOND).await;
    assert_eq!(fleet.seen_by("a", since).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn worker_that_is_throttled_or_denied_to_list_keeps_its_leases() {
    type Rule = fn(&Call) -> Outcome;
    let throttled: Rule = |call| {
        if is_of(call, "a") { Outcome::throttled() } else { Outcome::Served }
    };
    let denied: Rule = |call| {
        if is_of(call, "a") && call.operation == "ListShards" {
            return crate::denied();
        }
        Outcome::Served
    };
    for rule in [throttled, denied] {
        let fleet = Fleet::new(4);
        let _puts = fleet.put_continuously(Duration::from_millis(200));
        let _a = fleet.start_signed("a");
        sleep(SECOND).await;
        let _b = fleet.start_signed("b");
        sleep(60 * SECOND).await;
        fleet.kinesis.on_call(rule);
        let takeovers = fleet.takeovers(300 * SECOND).await;
        assert!(takeovers.values().all(|count| *count == 0), "{takeovers:?}");
        fleet.assert_shares(&[("a", 2), ("b", 2)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn worker_with_intermittent_access_to_kinesis_moves_few_leases() {
    let fleet = Fleet::new(4);
    let _puts = fleet.put_continuously(Duration::from_millis(200));
    let _workers = ["a", "b"].map(|name| fleet.start_signed(name));
    sleep(60 * SECOND).await;
    let began = Instant::now();
    // Kinesis is out of reach for 50 s of each minute.
    fleet.kinesis.on_call(move |call| {
        let is_away = began.elapsed().as_secs() % 60 < 50;
        if is_away && is_of(call, "a") { Outcome::Refused } else { Outcome::Served }
    });
    let takeovers = fleet.takeovers(600 * SECOND).await;
    let count: usize = takeovers.values().sum();
    assert!(
        count <= 2 * 4 * 10,
        "expected at most two moves a minute of each of 4 shards: {takeovers:?}"
    );
    let since = Instant::now();
    sleep(120 * SECOND).await;
    let read = fleet.seen_by("b", since);
    assert!(!read.is_empty(), "{read:?}");
}
