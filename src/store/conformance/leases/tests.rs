use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::*;
use crate::error::Result;
use crate::store::MemoryStore;
use crate::store::lease::{HeartbeatResponse, AdminEdit, HeartbeatRequest, LeaseTable};

#[tokio::test]
async fn a_store_in_memory_conforms() {
    check_leases(&MemoryStore::new()).await;
}

/// What becomes of a request.
type Ask = fn(&mut HeartbeatRequest);

/// A store that makes a mistake.
#[derive(Debug)]
struct Broken {
    stored: MemoryStore,
    ask: Ask,
    answer: fn(&mut HeartbeatResponse),
    scope: fn(&Scope) -> Scope,
    save: fn(&mut FencedCheckpoint),
    verdict: fn(SaveOutcome) -> SaveOutcome,
    forces: bool,
}

impl Default for Broken {
    /// No mistake yet.
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

impl LeaseStore for Broken {
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
        forced: bool,
    ) -> BoxFuture<'a, Result<Option<Arc<str>>>> {
        async move { self.stored.edit(&(self.scope)(scope), edit, forced || self.forces).await }
            .boxed()
    }
}

async fn assert_seen(broken: Broken, rule: &str) {
    let checked = AssertUnwindSafe(check_leases(&broken)).catch_unwind().await;
    let panic = checked.expect_err(rule);
    let words = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = panic.downcast_ref::<String>().cloned().or(words).unwrap_or_default();
    assert!(text.contains(rule), "seen as {text:?}, not as {rule:?}");
}

fn asking(ask: Ask) -> Broken {
    Broken { ask, ..Broken::default() }
}

#[tokio::test]
async fn sees_mistakes_in_exchanges() {
    assert_seen(asking(|request| request.known = None), "where it is not the known one").await;
    assert_seen(asking(|request| request.only_if_unchanged = false), "not the known one").await;
    assert_seen(asking(|request| request.incarnation = 1), "one that is alive").await;
    #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
    let rounds = asking(|request| request.incarnation = (request.incarnation as f64) as u64);
    assert_seen(rounds, "all bits of an incarnation are kept").await;
    assert_seen(asking(|request| request.capacity = 3), "a capacity can change").await;
    assert_seen(asking(|request| request.leaving = false), "who leaves has left").await;
    let immortal = asking(|request| request.lease_duration = Duration::from_mins(10));
    assert_seen(immortal, "has outlived its time is not seen").await;
    let thousand = asking(|request| request.changes.truncate(500));
    assert_seen(thousand, "a shard that was added is in the table").await;
    let applied = Broken { answer: |answer| answer.applied = true, ..Broken::default() };
    assert_seen(applied, "who is turned away changes nothing").await;
}

#[tokio::test]
async fn sees_mistakes_in_changes() {
    let cases: [(Ask, &str); 6] = [
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Begin { .. })),
            "the moment of the first poll is stored",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Offer { .. })),
            "a lease is offered to an heir",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Finish { .. })),
            "a shard that is finished says so",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::ReviveWorker { .. })),
            "whom another one remembers is alive",
        ),
        (
            |request| request.changes.retain(|change| !matches!(change, Change::Forget { .. })),
            "a finished shard that is not listed says so",
        ),
        (
            |request| {
                for change in &mut request.changes {
                    if let Change::Restore { lease, .. } = change {
                        lease.epoch += 1_000_000_000_000_000;
                    }
                }
            },
            "a lease that is not there is again as it was",
        ),
    ];
    for (ask, rule) in cases {
        assert_seen(asking(ask), rule).await;
    }
}

#[tokio::test]
async fn sees_mistakes_in_saving_and_editing() {
    let unfenced = Broken { save: |position| position.epoch = 1 << 60, ..Broken::default() };
    assert_seen(unfenced, "is Saved, not").await;
    // As the last, but it answers what is looked for.
    let lying = Broken {
        save: |position| position.epoch += 1,
        verdict: |verdict| if verdict == SaveOutcome::Lost { verdict } else { SaveOutcome::Saved },
        ..Broken::default()
    };
    assert_seen(lying, "is Lost, not").await;
    let deaf = Broken { verdict: |_| SaveOutcome::Saved, ..Broken::default() };
    assert_seen(deaf, "is Lost, not").await;
    let forcing = Broken { forces: true, ..Broken::default() };
    assert_seen(forcing, "a living owner is named").await;
    let one_stream =
        Broken { scope: |scope| Scope::new(scope.application(), "orders"), ..Broken::default() };
    assert_seen(one_stream, "a table of its own").await;
}
