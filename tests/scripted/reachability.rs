//! Workers that cannot reach Kinesis, alone or all together.

use std::time::Duration;

use kinestream::testing::{Call, Outcome};
use tokio::time::{Instant, sleep};

use crate::fleets::{Fleet, LEASE, RENEWAL};

const SECOND: Duration = Duration::from_secs(1);

/// Three lease durations, at least 30 s; a fetch begins to fail up to 1 s later, failures are up to
/// 25.6 s apart, and the worker looks at every renewal.
const NOTICED: Duration = Duration::from_secs(30 + 1 + 26 + 3);

/// Until another worker has seen it, has given others the time to declare the same, and has the shards.
const MOVED: Duration = Duration::from_secs(3 + 9 + 3 * 3 + 5);

fn is_of(call: &Call, worker: &str) -> bool {
    call.access_key_id.as_deref() == Some(worker)
}

#[tokio::test(start_paused = true)]
async fn worker_that_cannot_reach_kinesis_hands_over_its_leases_until_it_can() {
    assert_eq!((LEASE, RENEWAL), (9 * SECOND, 3 * SECOND));
    let denied = Outcome::failed(400, "ExpiredTokenException", "no");
    for outcome in [Outcome::Refused, Outcome::failed(500, "InternalFailure", ""), denied] {
        let fleet = Fleet::new(6);
        let _puts = fleet.put_all_along(Duration::from_millis(200));
        let _a = fleet.start_signed("a");
        sleep(SECOND).await;
        let _b = fleet.start_signed("b");
        sleep(90 * SECOND).await;
        fleet.assert_shares(&[("a", 3), ("b", 3)]).await;
        // The first to join lists for all.
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
        assert_eq!(fleet.table().await.version, version, "no lease moves");
        assert_eq!(fleet.seen_by("b", since).len(), 6, "the other worker reads all shards");
        let calls = fleet.kinesis.calls_from(calls);
        let lists = |worker: &str| {
            let of = |call: &&Call| call.operation == "ListShards" && is_of(call, worker);
            calls.iter().filter(of).count()
        };
        assert!((9..=11).contains(&lists("b")), "it lists every 30 s: {}", lists("b"));
        assert!((8..=60).contains(&lists("a")), "the first retries: {}", lists("a"));
        fleet.kinesis.on_call(|_| Outcome::Served);
        // A shard that was denied rests for up to 5 min, and comes back after a trial.
        sleep(900 * SECOND).await;
        fleet.assert_shares(&[("a", 3), ("b", 3)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn outage_for_all_workers_moves_no_lease() {
    for outcome in
        [Outcome::Refused, Outcome::Hangs, Outcome::failed(503, "ServiceUnavailable", "")]
    {
        // One of the workers has no shard, and makes no calls by itself.
        let fleet = Fleet::new(2);
        let _puts = fleet.put_all_along(Duration::from_millis(200));
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
        assert_eq!(read, 2, "both shards are read again");
    }
}

#[tokio::test(start_paused = true)]
async fn sole_worker_that_cannot_reach_kinesis_keeps_its_leases() {
    let fleet = Fleet::new(2);
    let _puts = fleet.put_all_along(Duration::from_millis(200));
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
async fn worker_that_is_throttled_or_may_not_list_keeps_its_leases() {
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
        let _puts = fleet.put_all_along(Duration::from_millis(200));
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
async fn worker_that_reaches_kinesis_now_and_then_moves_few_leases() {
    let fleet = Fleet::new(4);
    let _puts = fleet.put_all_along(Duration::from_millis(200));
    let _workers = ["a", "b"].map(|name| fleet.start_signed(name));
    sleep(60 * SECOND).await;
    let began = Instant::now();
    // Away for 50 s, and back for 10 s.
    fleet.kinesis.on_call(move |call| {
        let is_away = began.elapsed().as_secs() % 60 < 50;
        if is_away && is_of(call, "a") { Outcome::Refused } else { Outcome::Served }
    });
    let takeovers = fleet.takeovers(600 * SECOND).await;
    let count: usize = takeovers.values().sum();
    assert!(count <= 2 * 4 * 10, "each of 4 shards moves twice a minute at most: {takeovers:?}");
    let since = Instant::now();
    sleep(120 * SECOND).await;
    let read = fleet.seen_by("b", since);
    assert!(!read.is_empty(), "{read:?}");
}
