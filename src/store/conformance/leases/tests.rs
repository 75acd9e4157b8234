use std::panic::AssertUnwindSafe;

use futures::future::BoxFuture;

use super::*;
use crate::error::Result;
use crate::store::MemoryStore;

#[tokio::test(start_paused = true)]
async fn memory_store_conforms() {
    check_leases(&MemoryStore::new()).await;
}

/// A change to each request or answer.
type Mistake<T> = fn(&mut T);

/// A store that makes one mistake.
#[derive(Debug)]
struct FaultyLeaseStore {
    stored: MemoryStore,
    ask: Mistake<Exchange>,
    answer: Mistake<Exchanged>,
    save: Mistake<FencedSave>,
    outcome: Mistake<FencedOutcome>,
    scope: fn(&Scope) -> Scope,
}

impl Default for FaultyLeaseStore {
    /// A store without a mistake.
    fn default() -> Self {
        let stored = MemoryStore::new();
        Self {
            stored,
            ask: |_| (),
            answer: |_| (),
            save: |_| (),
            outcome: |_| (),
            scope: Scope::clone,
        }
    }
}

impl LeaseStore for FaultyLeaseStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        let mut exchange = exchange.clone();
        (self.ask)(&mut exchange);
        async move {
            let mut answer = self.stored.exchange(&(self.scope)(scope), &exchange).await?;
            (self.answer)(&mut answer);
            Ok(answer)
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        let mut saves = saves.to_vec();
        saves.iter_mut().for_each(self.save);
        async move {
            let mut outcomes = self.stored.save_fenced(&(self.scope)(scope), &saves).await?;
            outcomes.iter_mut().for_each(self.outcome);
            Ok(outcomes)
        }
        .boxed()
    }
}

async fn assert_detected(broken: FaultyLeaseStore, rule: &str) {
    let checked = AssertUnwindSafe(check_leases(&broken)).catch_unwind().await;
    let panic = checked.expect_err(rule);
    let words = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = panic.downcast_ref::<String>().cloned().or(words).unwrap_or_default();
    assert!(text.contains(rule), "the suite reports the rule {rule:?}, not {text:?}");
}

fn steps(exchange: &mut Exchange, change: impl FnOnce(&mut Step)) {
    if let Some(step) = &mut exchange.step {
        change(step);
    }
}

#[tokio::test(start_paused = true)]
async fn suite_detects_mistakes_in_requests() {
    let cases: [(Mistake<Exchange>, &str); 8] = [
        (|it| it.step = None, "a step whose conditions hold is made"),
        (|it| steps(it, |step| step.version = None), "at another version than it names"),
        (|it| steps(it, |step| step.silent.clear()), "is not made after its heartbeat"),
        (|it| it.renewals.clear(), "workers that have renewed have not expired"),
        (
            |it| it.renewals.iter_mut().for_each(|renewal| renewal.lease_duration = LONG),
            "so the worker stays silent",
        ),
        (
            |it| it.renewals.iter_mut().for_each(|renewal| renewal.entry = WORKER.into()),
            "so the worker stays silent",
        ),
        (
            |it| it.renewals.iter_mut().for_each(|renewal| renewal.lease_duration /= 2),
            "a worker does not expire before its lease duration",
        ),
        (|it| steps(it, |step| step.entries.truncate(500)), "1,000 positions are saved at once"),
    ];
    for (ask, rule) in cases {
        assert_detected(FaultyLeaseStore { ask, ..FaultyLeaseStore::default() }, rule).await;
    }
}

#[tokio::test(start_paused = true)]
async fn suite_detects_mistakes_in_answers() {
    let cases: [(Mistake<Exchanged>, &str); 7] = [
        (|it| it.is_made = true, "is not as expected if it must not exist"),
        (|it| it.is_whole = false, "the whole table is returned if none is known"),
        (|it| it.version = 7, "an unused scope has version 0"),
        (|it| it.entries.retain(|(_, text)| text.is_some()), "is shown as absent"),
        (
            |it| it.entries.retain(|(key, _)| !matches!(key, EntryKey::Position(_)) || it.is_whole),
            "the position of a changed lease is included",
        ),
        (|it| it.entries.extend(it.entries.first().cloned()), "an answer has each entry once"),
        (|it| it.heartbeats = Heartbeats::Expired(Vec::new()), "so the worker stays silent"),
    ];
    for (answer, rule) in cases {
        assert_detected(FaultyLeaseStore { answer, ..FaultyLeaseStore::default() }, rule).await;
    }
}

#[tokio::test(start_paused = true)]
async fn suite_detects_mistakes_in_saves() {
    let unfenced: Mistake<FencedSave> = |save| save.epoch = 7;
    let faulty = FaultyLeaseStore { save: unfenced, ..FaultyLeaseStore::default() };
    assert_detected(faulty, "an earlier epoch than that of the lease is refused").await;
    let outcome: Mistake<FencedOutcome> = |outcome| outcome.is_saved = true;
    let faulty = FaultyLeaseStore { outcome, ..FaultyLeaseStore::default() };
    assert_detected(faulty, "is refused").await;
    let one_stream = FaultyLeaseStore {
        scope: |scope| Scope::new(scope.application(), "orders"),
        ..FaultyLeaseStore::default()
    };
    assert_detected(one_stream, "has its own entries").await;
}
