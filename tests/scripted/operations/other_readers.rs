//! Edits of positions in a store that another client reads as well.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use kinestream::store::lease::{
    Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, OtherReader,
};
use kinestream::store::{Leased, Scope};
use kinestream::{
    Checkpoint, Consumer, ErrorKind, IfLeased, MemoryStore, Result, ShardId, StartingPosition,
};
use tokio::time::{Instant, timeout};

use crate::{consumer, orders, shards};

const LEASE: Duration = Duration::from_secs(10);

/// A store of which another client holds one shard.
#[derive(Debug)]
struct SharedStore {
    stored: MemoryStore,
    reader: OtherReader,
}

impl LeaseStore for SharedStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        self.stored.exchange(scope, exchange)
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        self.stored.save_fenced(scope, saves)
    }

    fn other_reader<'a>(
        &'a self,
        _scope: &'a Scope,
        shards: Option<&'a [ShardId]>,
        _lease_duration: Duration,
    ) -> BoxFuture<'a, Result<Option<OtherReader>>> {
        let is_held = shards.is_none_or(|shards| shards.contains(&self.reader.shard));
        ready(Ok(is_held.then(|| self.reader.clone()))).boxed()
    }
}

/// Returns an operator of two shards, and the shard that the other client holds. The client is alive,
/// or its state takes `undecided` to see.
fn operator(undecided: Option<Duration>) -> (Consumer, ShardId) {
    let (kinesis, orders) = orders(2);
    let held = orders.shard(1).id();
    let mut reader = OtherReader::new("kcl-7", held.clone());
    reader.undecided = undecided;
    let store = Arc::new(Leased::new(SharedStore { stored: MemoryStore::new(), reader }));
    (consumer(&kinesis).store(store).lease_duration(LEASE).build().unwrap(), held)
}

#[tokio::test(start_paused = true)]
async fn seek_is_refused_while_another_client_reads() {
    let (operator, held) = operator(None);
    let error = operator.seek(StartingPosition::TrimHorizon).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    let said = error.to_string();
    assert!(said.contains("kcl-7") && said.contains(held.as_str()), "{said}");
    assert!(!said.contains("IfLeased"), "a seek takes no such argument: {said}");
    assert!(shards(&operator).await.is_empty(), "expected no shard to be moved");
}

#[tokio::test(start_paused = true)]
async fn edit_counts_a_client_as_alive_after_two_lease_durations_of_doubt() {
    let (operator, held) = operator(Some(Duration::from_secs(1)));
    let began = Instant::now();
    let edit = operator.set_position(&held, Checkpoint::TrimHorizon, IfLeased::Refuse);
    let error = timeout(4 * LEASE, edit).await.expect("expected an end of the wait").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains("pass IfLeased::Force"), "{error}");
    assert!(began.elapsed() >= 2 * LEASE, "expected to wait, not {:?}", began.elapsed());
    operator.set_position(&held, Checkpoint::TrimHorizon, IfLeased::Force).await.unwrap();
}
