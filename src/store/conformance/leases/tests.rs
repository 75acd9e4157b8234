use std::panic::AssertUnwindSafe;

use futures::future::BoxFuture;

use super::*;
use crate::error::Result;
use crate::store::MemoryStore;
use crate::store::lease::{
    AdminEdit, EditOutcome, HeartbeatRequest, HeartbeatResponse, IfLeased, LeaseTable,
};

#[tokio::test]
async fn memory_store_conforms() {
    check_leases(&MemoryStore::new()).await;
}

/// A change to each request.
type Ask = fn(&mut HeartbeatRequest);

/// A store that makes one mistake.
#[derive(Debug)]
struct FaultyLeaseStore {
    stored: MemoryStore,
    ask: Ask,
    answer: fn(&mut HeartbeatResponse),
    scope: fn(&Scope) -> Scope,
    save: fn(&mut FencedCheckpoint),
    verdict: fn(SaveOutcome) -> SaveOutcome,
    forces: bool,
}

impl Default for FaultyLeaseStore {
    /// A store without a mistake.
    fn default() -> Self {
        Self {
            stored: MemoryStore::new(),
            ask: |_| (),
            answer: |_| (),
            scope: Scope::clone,
            save: |_| (),
            verdict: |verdict| verdict,
            forces: false,
        }
    }
}

impl LeaseStore for FaultyLeaseStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        let mut request = request.clone();
        (self.ask)(&mut request);
        async move {
            let mut answer = self.stored.exchange(&(self.scope)(scope), &request).await?;
            (self.answer)(&mut answer);
            Ok(answer)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        let mut positions = positions.to_vec();
        positions.iter_mut().for_each(self.save);
        async move {
            let verdicts = self.stored.save_fenced(&(self.scope)(scope), &positions).await?;
            Ok(verdicts.into_iter().map(self.verdict).collect())
        }
        .boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        async move { self.stored.table(&(self.scope)(scope)).await }.boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        let if_leased = if self.forces { IfLeased::Force } else { if_leased };
        async move { self.stored.edit(&(self.scope)(scope), edit, if_leased).await }.boxed()
    }
}

async fn assert_detected(broken: FaultyLeaseStore, rule: &str) {
    let checked = AssertUnwindSafe(check_leases(&broken)).catch_unwind().await;
    let panic = checked.expect_err(rule);
    let words = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = panic.downcast_ref::<String>().cloned().or(words).unwrap_or_default();
    assert!(text.contains(rule), "the suite reports the rule {rule:?}, not {text:?}");
}

fn asking(ask: Ask) -> FaultyLeaseStore {
    FaultyLeaseStore { ask, ..FaultyLeaseStore::default() }
}

#[tokio::test]
async fn suite_detects_mistakes_in_exchanges() {
    assert_detected(
        asking(|request| request.known = None),
        "returned only if it is not the known one",
    )
    .await;
    assert_detected(
        asking(|request| request.only_if_unchanged = false),
        "that is not the known one is not changed",
    )
    .await;
    assert_detected(
        asking(|request| request.incarnation = 1),
        "the name of a live worker is occupied",
    )
    .await;
    #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
    let rounds = asking(|request| request.incarnation = (request.incarnation as f64) as u64);
    assert_detected(rounds, "all bits of an incarnation are stored").await;
    assert_detected(asking(|request| request.capacity = 3), "a changed capacity is stored").await;
    assert_detected(asking(|request| request.leaving = false), "a leaving worker has left").await;
    let immortal = asking(|request| request.lease_duration = Duration::from_mins(10));
    assert_detected(immortal, "an expired worker is not in the table").await;
    let thousand = asking(|request| request.changes.truncate(500));
    assert_detected(thousand, "an added shard is in the table").await;
    let applied =
        FaultyLeaseStore { answer: |answer| answer.applied = true, ..FaultyLeaseStore::default() };
    assert_detected(applied, "a worker with an occupied name changes nothing").await;
}

#[tokio::test]
async fn suite_detects_mistakes_in_changes() {
    let cases: [(Ask, &str); 6] = [
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Begin { .. })),
            "the time of the first poll is stored",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Offer { .. })),
            "an offer sets the next owner",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Finish { .. })),
            "a finished shard is marked as finished",
        ),
        (
            |request| {
                request.changes.retain(|change| !matches!(change, Change::ReviveWorker { .. }));
            },
            "a restored worker is alive",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Forget { .. })),
            "a finished shard that is not listed has the time of that",
        ),
        (
            |request| {
                for change in &mut request.changes {
                    if let Change::Restore { lease, .. } = change {
                        lease.epoch += 1_000_000_000_000_000;
                    }
                }
            },
            "a missing lease is restored",
        ),
    ];
    for (ask, rule) in cases {
        assert_detected(asking(ask), rule).await;
    }
}

#[tokio::test]
async fn suite_detects_mistakes_in_saves_and_edits() {
    let unfenced = FaultyLeaseStore {
        save: |position| position.epoch = 1 << 60,
        ..FaultyLeaseStore::default()
    };
    assert_detected(unfenced, "returns Saved, not").await;
    // Like `unfenced`, but with the expected outcome.
    let lying = FaultyLeaseStore {
        save: |position| position.epoch += 1,
        verdict: |verdict| if verdict == SaveOutcome::Lost { verdict } else { SaveOutcome::Saved },
        ..FaultyLeaseStore::default()
    };
    assert_detected(lying, "returns Lost, not").await;
    let deaf = FaultyLeaseStore { verdict: |_| SaveOutcome::Saved, ..FaultyLeaseStore::default() };
    assert_detected(deaf, "returns Lost, not").await;
    let forcing = FaultyLeaseStore { forces: true, ..FaultyLeaseStore::default() };
    assert_detected(forcing, "a live owner is named").await;
    let one_stream = FaultyLeaseStore {
        scope: |scope| Scope::new(scope.application(), "orders"),
        ..FaultyLeaseStore::default()
    };
    assert_detected(one_stream, "has a separate table").await;
}
