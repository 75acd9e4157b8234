//! The status of an application in a store without a clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kinestream::store::lease::{
    Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats, LastHeartbeat, LeaseStore,
};
use kinestream::store::{Leased, Scope};
use kinestream::{MemoryStore, Result};
use tokio::time::timeout;

use crate::{consumer, orders};

/// A store that counts the heartbeats of each worker, and has no clock.
#[derive(Debug, Default)]
struct ClocklessStore {
    stored: MemoryStore,
    counts: Mutex<BTreeMap<Arc<str>, u64>>,
}

impl LeaseStore for ClocklessStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            let mut answer = self.stored.exchange(scope, exchange).await?;
            let mut counts = self.counts.lock().unwrap();
            let before = counts
                .iter()
                .map(|(worker, count)| LastHeartbeat::new(Arc::clone(worker), count.to_string()));
            (answer.heartbeats, answer.time) = (Heartbeats::Last(before.collect()), None);
            for renewal in &exchange.renewals {
                *counts.entry(Arc::clone(&renewal.worker)).or_default() += 1;
            }
            Ok(answer)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        self.stored.save_fenced(scope, saves)
    }
}

#[tokio::test(start_paused = true)]
async fn worker_is_confirmed_once_another_heartbeat_of_it_is_seen() {
    let (kinesis, _orders) = orders(1);
    let store = Arc::new(Leased::new(ClocklessStore::default()));
    let of = |worker: &str| {
        consumer(&kinesis).store(Arc::clone(&store)).worker_id(worker).build().unwrap()
    };
    let (worker, operator) = (of("worker"), of("operator"));
    let mut records = worker.records();
    assert!(timeout(Duration::from_secs(1), records.next()).await.is_err());

    let first = operator.status().await.unwrap();
    assert_eq!((first.workers.len(), first.unconfirmed_workers.len()), (1, 1), "{first:?}");
    assert!(timeout(Duration::from_secs(5), records.next()).await.is_err());
    let second = operator.status().await.unwrap();
    assert_eq!((second.workers.len(), second.unconfirmed_workers.len()), (1, 0), "{second:?}");
    // A process that has just started has seen one heartbeat.
    assert_eq!(of("another").status().await.unwrap().unconfirmed_workers, ["worker"]);
}
