//! Stores that are used on another tokio runtime than the one that connected them.

use std::time::Duration;

use kinestream::RedisStore;
use kinestream::store::CheckpointStore;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::proxy::Mode;
use crate::redis_connection::{ALL, ConnectBy, ProxiedStore, until_saved};
use crate::redis_store::{after, scope, shard};

/// The default lease duration.
const LEASE: Duration = Duration::from_secs(10);

/// Returns a runtime that runs its tasks only inside `block_on`.
fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Starts a store behind a proxy. Returns it with the runtime that runs the proxy.
fn behind(by: ConnectBy) -> (Runtime, ProxiedStore) {
    let outer = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let behind = outer.block_on(ProxiedStore::started(by));
    (outer, behind)
}

/// Checks that a save on a new runtime succeeds within a lease duration.
fn assert_saves_on_new_runtime(by: ConnectBy, store: &RedisStore, number: u32) {
    let saved = async { timeout(LEASE, until_saved(store, number)).await };
    let saved = current_thread().block_on(saved);
    saved.unwrap_or_else(|_| panic!("{by:?}: expected a save on another runtime"));
}

/// Starts a save, and drops it after 200 ms without a response.
fn drop_unanswered_save(runtime: &Runtime, store: &RedisStore) {
    let saved = [(shard(0), after(2))];
    let scope = scope();
    let saved = async { timeout(Duration::from_millis(200), store.save(&scope, &saved)).await };
    runtime.block_on(saved).expect_err("expected no response");
}

/// Returns a store that has started to reconnect without a response, and the runtime of that
/// attempt.
fn reconnecting(behind: &ProxiedStore) -> (Runtime, RedisStore) {
    let first = current_thread();
    let store = first.block_on(behind.connect("")).unwrap();
    behind.proxy.set_mode(Mode::Swallow);
    drop_unanswered_save(&first, &store);
    // Reconnects in a task that makes no progress unless this runtime is used.
    drop_unanswered_save(&first, &store);
    (first, store)
}

#[test]
fn store_outlives_the_runtime_of_its_connection() {
    for by in ALL {
        let (_outer, behind) = behind(*by);
        let first = current_thread();
        let store = first.block_on(behind.connect("")).unwrap();
        drop(first);
        assert_saves_on_new_runtime(*by, &store, 2);
    }
}

#[test]
fn store_outlives_the_runtime_that_reconnects() {
    for by in ALL {
        let (_outer, behind) = behind(*by);
        let (first, store) = reconnecting(&behind);
        drop(first);
        behind.proxy.set_mode(Mode::Pass);
        assert_saves_on_new_runtime(*by, &store, 3);
    }
}

#[test]
fn idle_runtime_that_reconnects_blocks_no_other() {
    for by in ALL {
        let (_outer, behind) = behind(*by);
        let (first, store) = reconnecting(&behind);
        behind.proxy.set_mode(Mode::Pass);
        assert_saves_on_new_runtime(*by, &store, 3);
        first.block_on(async { timeout(LEASE, until_saved(&store, 4)).await }).unwrap();
    }
}
