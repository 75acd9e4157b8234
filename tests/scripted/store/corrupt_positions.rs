//! Stored positions and leases that cannot be parsed: each stops only its shard.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::{
    Checkpoint, CheckpointStore, Error, ErrorKind, IfLeased, MemoryStore, Records, Result, ShardId,
    ShardState,
};
use tokio::time::{sleep, timeout};

use crate::{assert_silent, consumer, next, number, orders, read_first};

fn scope() -> Scope {
    Scope::new("default", "orders")
}

fn shard(index: usize) -> ShardId {
    format!("shardId-{index:012}").parse().unwrap()
}

async fn next_error(records: &mut Records) -> Error {
    let next = timeout(Duration::from_secs(600), records.next()).await;
    next.expect("an error within ten minutes").unwrap().expect_err("an error before any record")
}

#[tokio::test(start_paused = true)]
async fn damaged_field_stops_its_shard_and_no_other() {
    for is_lease in [false, true] {
        let (kinesis, orders) = orders(2);
        let store = MemoryStore::new();
        let (consumer, mut records) = read_first(&kinesis, &orders, &store).await;

        store.damage(&scope(), &shard(0), is_lease);
        orders.shard(0).split();
        let error = next_error(&mut records).await;
        assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
        assert_eq!(error.shard_id(), Some(&shard(0)));
        orders.shard(1).put("1");
        assert_eq!(number(&next(&mut records).await), 1, "expected the other shard to be read");
        orders.shard(2).put("2");
        orders.shard(3).put("3");
        // The children of the damaged shard wait, and the error is yielded once.
        assert_silent(&mut records).await;
        let status = consumer.status().await.unwrap();
        assert_eq!(status.shards[&shard(0)].state, ShardState::Unreadable);

        consumer.set_position(&shard(0), Checkpoint::TrimHorizon, IfLeased::Refuse).await.unwrap();
        let mut read = Vec::new();
        for _ in 0..3 {
            read.push(number(&next(&mut records).await));
        }
        read.sort_unstable();
        assert_eq!(
            read,
            [0, 2, 3],
            "expected the shard from the set position on, and its children"
        );
        consumer.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn corrected_field_resumes_its_shard() {
    for is_lease in [false, true] {
        let (kinesis, orders) = orders(2);
        let store = MemoryStore::new();
        let (consumer, records) = read_first(&kinesis, &orders, &store).await;
        drop(records);
        store.damage(&scope(), &shard(0), is_lease);
        let mut records = consumer.records();
        orders.shard(0).put("1");
        assert_eq!(next_error(&mut records).await.kind(), ErrorKind::StoreCorrupt);
        assert_silent(&mut records).await;
        store.repair(&scope(), &shard(0));
        assert_eq!(
            number(&next(&mut records).await),
            1,
            "expected no redelivered and no lost record"
        );
        consumer.close().await.unwrap();
    }
}

/// A store of texts without leases. While it is damaged, the text of shard 0 is not a checkpoint.
#[derive(Debug, Clone, Default)]
struct Texts {
    stored: MemoryStore,
    is_damaged: Arc<AtomicBool>,
}

impl Texts {
    fn refuses(&self, checkpoints: &[(ShardId, Checkpoint)]) -> bool {
        self.is_damaged.load(Ordering::SeqCst) && checkpoints.iter().any(|(of, _)| *of == shard(0))
    }
}

impl CheckpointStore for Texts {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            self.load_each(scope).await?.into_iter().map(|(id, found)| Ok((id, found?))).collect()
        }
        .boxed()
    }

    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        async move {
            let mut found = self.stored.load_each(scope).await?;
            if self.is_damaged.load(Ordering::SeqCst) {
                found.insert(shard(0), "yesterday".parse());
            }
            Ok(found)
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            if self.refuses(checkpoints) {
                return Err(Error::new(
                    ErrorKind::StoreCorrupt,
                    "\"yesterday\" is not a checkpoint",
                ));
            }
            self.stored.save(scope, checkpoints).await
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_text_in_a_plain_store_stops_only_its_shard() {
    let (kinesis, orders) = orders(2);
    let store = Texts::default();
    store.is_damaged.store(true, Ordering::SeqCst);
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = consumer.records();
    orders.shard(0).put("0");
    orders.shard(1).put("1");
    let error = next_error(&mut records).await;
    assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
    assert_eq!(error.shard_id(), Some(&shard(0)));
    assert_eq!(number(&next(&mut records).await), 1);
    assert_silent(&mut records).await;
    store.is_damaged.store(false, Ordering::SeqCst);
    assert_eq!(
        number(&next(&mut records).await),
        0,
        "expected the record after the text was corrected"
    );
    consumer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rejected_save_of_one_shard_in_a_plain_store_stops_no_other() {
    let (kinesis, orders) = orders(2);
    let store = Texts::default();
    let consumer = consumer(&kinesis)
        .store(store.clone())
        .max_unflushed(Duration::from_secs(2))
        .build()
        .unwrap();
    let mut records = consumer.records();
    assert_silent(&mut records).await;
    store.is_damaged.store(true, Ordering::SeqCst);
    for round in 0..10 {
        orders.shard(0).put("0");
        orders.shard(1).put((round + 1).to_string());
    }
    let (mut read, mut errors) = (Vec::new(), 0);
    while !read.contains(&11) {
        match timeout(Duration::from_secs(600), records.next()).await.unwrap().unwrap() {
            Ok(record) if number(&record) == 0 => {}
            Ok(record) => read.push(number(&record)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
                errors += 1;
            }
        }
        if read.contains(&10) && errors > 0 {
            // Longer than `max_unflushed`.
            sleep(Duration::from_secs(5)).await;
            orders.shard(1).put("11");
        }
    }
    assert_eq!(read, (1..=11).collect::<Vec<_>>(), "expected the other shard to be read");
    assert_eq!(errors, 1, "expected one error");
    drop(records);
    consumer.close().await.unwrap();
    let saved = store.stored.load(&scope()).await.unwrap();
    assert!(matches!(saved[&shard(1)], Checkpoint::AfterSequenceNumber { .. }), "{saved:?}");
}
