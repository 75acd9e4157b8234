//! A store that has lost data, and the leases that workers restore in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::MemoryStore;
use kinestream::store::Scope;
use kinestream::store::lease::{EntryChange, EntryKey, Exchange, LeaseStore, Renewal, Step};
use tokio::time::{sleep, timeout};

use crate::gated::{Gated, GatedCall};
use crate::{consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);
const LEASE_DURATION: Duration = Duration::from_secs(10);

/// Creates a store with the live workers of another one, in a new generation and without leases.
async fn without_leases(store: &MemoryStore, scope: &Scope) -> MemoryStore {
    let answer = store.exchange(scope, &Exchange::default()).await.unwrap();
    let mut renewals = Vec::new();
    let entries = answer.entries.into_iter().filter_map(|(key, text)| {
        let text = text?;
        let text = match &key {
            EntryKey::Head => {
                let (generation, rest) = text.split_once(' ').unwrap();
                let generation = generation.parse::<u64>().unwrap() + 1;
                format!("{generation} {rest}").into()
            }
            EntryKey::Worker(worker) => {
                renewals.push(Renewal::new(Arc::clone(worker), Arc::clone(&text), LEASE_DURATION));
                text
            }
            _ => return None,
        };
        Some(EntryChange::new(key, None, Some(text)))
    });
    let mut step = Step::default();
    step.entries = entries.collect();
    let left = MemoryStore::new();
    let mut exchange = Exchange::default();
    exchange.step = Some(step);
    assert!(left.exchange(scope, &exchange).await.unwrap().is_made);
    let mut exchange = Exchange::default();
    exchange.renewals = renewals;
    left.exchange(scope, &exchange).await.unwrap();
    left
}

/// Another worker may acquire the lease first, and read the shard.
#[tokio::test(start_paused = true)]
async fn no_record_is_delivered_until_a_lost_lease_is_restored() {
    let (kinesis, orders) = orders(1);
    let (store, passing) = (MemoryStore::new(), Arc::new(AtomicUsize::new(usize::MAX)));
    let gated = Gated::new(store.clone(), {
        let passing = Arc::clone(&passing);
        move |call| {
            let passing = Arc::clone(&passing);
            async move {
                while call == GatedCall::Exchange && passing.load(Ordering::SeqCst) == 0 {
                    sleep(SECOND / 100).await;
                }
                if call == GatedCall::Exchange {
                    passing.fetch_sub(1, Ordering::SeqCst);
                }
                Ok(())
            }
            .boxed()
        }
    });
    let mut records = consumer(&kinesis).store(gated).build().unwrap().records();
    orders.shard(0).put("0");
    next(&mut records).await;
    // The position is stored, so that no refused save reveals the loss.
    assert!(timeout(5 * SECOND, records.next()).await.is_err());
    let left = without_leases(&store, &Scope::new("default", "orders")).await;
    store.replace_with_copy_of(&left);
    // The next renewal shows the loss, and the restoring step waits.
    passing.store(1, Ordering::SeqCst);
    while passing.load(Ordering::SeqCst) > 0 {
        assert!(timeout(SECOND / 10, records.next()).await.is_err());
    }
    orders.shard(0).put("1");
    let early = timeout(3 * SECOND, records.next()).await;
    assert!(early.is_err(), "expected no record before the lease is restored: {early:?}");
    passing.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(number(&next(&mut records).await), 1);
}
