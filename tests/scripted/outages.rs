//! A store of leases that is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::ready;
use futures::{FutureExt, StreamExt};
use kinestream::{Error, ErrorKind};
use tokio::time::{Instant, sleep, timeout};

use crate::fleets::{Fleet, RENEWAL};
use crate::gated::{Asked, Gated};
use crate::{next, number};

/// It is asked again with a back-off, also where it is to be told something; and who reads is told
/// when it has held everything up for too long.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_ever_more_rarely() {
    let fleet = Fleet::new(2);
    let (is_down, exchanges) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // It fails at once while it is down.
    let store = Gated::new(fleet.store.clone(), {
        let (is_down, exchanges) = (Arc::clone(&is_down), Arc::clone(&exchanges));
        move |asked| {
            exchanges.fetch_add(usize::from(asked == Asked::Exchange), Ordering::SeqCst);
            let is_down = is_down.load(Ordering::SeqCst);
            let refusal = || Error::store_unavailable("the store is down", "by order");
            ready(if is_down { Err(refusal()) } else { Ok(()) }).boxed()
        }
    });
    let builder = fleet.builder("a").store(store.clone());
    let consumer = builder.max_unflushed(Duration::from_secs(30)).build().unwrap();
    let other = fleet.builder("b").store(store.clone()).build().unwrap();
    let (mut records, mut others) = (consumer.records(), other.records());
    let others = tokio::spawn(async move { while others.next().await.is_some() {} });
    fleet.orders.shard(0).put("0");
    next_of(&mut records, &fleet).await;
    sleep(2 * RENEWAL).await;
    is_down.store(true, Ordering::SeqCst);
    let before = exchanges.load(Ordering::SeqCst);
    let began = Instant::now();
    for shard in fleet.orders.open_shards() {
        // The end of a shard is something to be told.
        shard.split();
    }
    let error =
        timeout(Duration::from_secs(60), records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(36), "{waited:?}");
    let quiet = timeout(Duration::from_secs(60), records.next()).await;
    assert!(quiet.is_err(), "it is told once: {quiet:?}");
    let asked = exchanges.load(Ordering::SeqCst) - before;
    assert!((40..150).contains(&asked), "{asked} times by two workers in a minute and a half");
    is_down.store(false, Ordering::SeqCst);
    for shard in fleet.orders.open_shards() {
        shard.put("1");
    }
    assert_eq!(number(&next(&mut records).await), 1, "and goes on");
    others.abort();
}

/// The next record, put again and again until one is this worker's.
async fn next_of(records: &mut kinestream::Records, fleet: &Fleet) {
    loop {
        match timeout(Duration::from_secs(2), records.next()).await {
            Ok(record) => return drop(record.unwrap().unwrap()),
            Err(_none) => fleet.orders.open_shards().iter().for_each(|shard| {
                shard.put("0");
            }),
        }
    }
}
