//! Comparison of a store with `MemoryStore`: both must answer alike to the same random requests.
//!
//! Their clocks differ, so versions are compared by what they show, and workers expire at once or
//! not at all. A store without a clock shows the heartbeats of all workers, of which those count that
//! have expired in the `MemoryStore`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kinestream::MemoryStore;
use kinestream::store::Scope;
use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats,
    LastHeartbeat, LeaseStore, Renewal, Step,
};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::redis_store::shard;

/// A text that a request names.
#[derive(Debug, Clone, Copy)]
enum Named {
    /// The present text, or none.
    Present,
    Nothing,
    /// The text of this number.
    Text(u8),
}

#[derive(Debug, Clone)]
enum Operation {
    Exchange {
        /// Each entry with its expected and its new text.
        entries: BTreeMap<usize, (Named, Option<u8>)>,
        /// The version of the step: none, the present one, or another.
        version: Option<bool>,
        /// Each worker whose mark must be the present one, or another.
        silent: Vec<(usize, bool)>,
        /// Each worker that renews, the text of its entry, and whether it lives.
        renewals: Vec<(usize, Named, bool)>,
        /// The known version: none, or the one of this age, which may be unknown.
        known: Option<usize>,
    },
    /// Each shard with the epoch of the save, and the expected and the new text.
    Save(BTreeMap<u32, (u64, Named, u8)>),
}

const WORKERS: [&str; 3] = ["one", "-", "50% %25"];

/// The keys: the head, three workers, three leases and three positions.
fn key(index: usize) -> EntryKey {
    match index {
        0 => EntryKey::Head,
        1..4 => EntryKey::Worker(WORKERS[index - 1].into()),
        4..7 => EntryKey::Lease(shard(u32::try_from(index).unwrap() - 4)),
        _ => EntryKey::Position(shard(u32::try_from(index).unwrap() - 7)),
    }
}

/// Returns the text of a number for an entry: one that is valid for the head and for workers.
fn text(key: &EntryKey, number: u8) -> Arc<str> {
    match key {
        EntryKey::Head => format!("{number} 0 7 0"),
        EntryKey::Worker(_) => format!("{} {number} 10000 3", u64::MAX),
        EntryKey::Lease(_) => format!("{number} one - 5 - - - - -"),
        _ => format!("AFTER_SEQUENCE_NUMBER:{number}"),
    }
    .into()
}

fn any_named() -> impl Strategy<Value = Named> {
    prop_oneof![
        6 => Just(Named::Present),
        1 => Just(Named::Nothing),
        1 => (0..4_u8).prop_map(Named::Text),
    ]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    // The head is never deleted.
    let text = |key: usize| {
        let number = prop::option::weighted(0.7, 0..4_u8);
        number.prop_map(move |number| if key == 0 { number.or(Some(0)) } else { number })
    };
    let entry = (0..10_usize).prop_flat_map(move |key| (Just(key), (any_named(), text(key))));
    let entries = prop::collection::vec(entry, 0..5).prop_map(|it| it.into_iter().collect());
    let silent = prop::collection::vec((0..3_usize, prop::bool::weighted(0.8)), 0..2);
    let renewals = prop::collection::vec((0..3_usize, any_named(), any::<bool>()), 0..3);
    let version = prop::option::of(prop::bool::weighted(0.8));
    let known = prop::option::weighted(0.9, 0..8_usize);
    let exchange = (entries, version, silent, renewals, known).prop_map(
        |(entries, version, silent, renewals, known)| Operation::Exchange {
            entries,
            version,
            silent,
            renewals,
            known,
        },
    );
    let save = (0..4_u64, any_named(), 0..4_u8);
    let saves = prop::collection::btree_map(0..3_u32, save, 1..4).prop_map(Operation::Save);
    prop_oneof![4 => exchange, 1 => saves]
}

/// A store, and what the test knows of it.
struct Tested<'a> {
    store: &'a dyn LeaseStore,
    scope: Scope,
    marks: BTreeMap<Arc<str>, Arc<str>>,
    /// The workers that had expired before the last operation and after it, by the `MemoryStore`.
    expired: [BTreeSet<Arc<str>>; 2],
    /// The versions, each with the texts of all entries when it was last the present one.
    versions: Vec<(u64, Texts)>,
}

type Texts = BTreeMap<EntryKey, Arc<str>>;

/// The answer of a store.
enum Answer {
    /// The answer to an exchange, and the texts at the known version.
    Exchanged(Exchanged, Texts),
    Saved(Vec<FencedOutcome>),
}

impl<'a> Tested<'a> {
    fn new(store: &'a dyn LeaseStore, scope: Scope) -> Self {
        let (marks, expired) = (BTreeMap::new(), <_>::default());
        Self { store, scope, marks, expired, versions: vec![(0, Texts::new())] }
    }

    fn last(&self) -> &(u64, Texts) {
        self.versions.last().unwrap()
    }

    /// Returns the number of versions so far, the texts, and the workers that have expired.
    fn contents(&self) -> (usize, &Texts, Vec<&Arc<str>>) {
        (self.versions.len(), &self.last().1, self.marks.keys().collect())
    }

    fn named(&self, key: &EntryKey, named: Named) -> Option<Arc<str>> {
        match named {
            Named::Present => self.last().1.get(key).cloned(),
            Named::Nothing => None,
            Named::Text(number) => Some(text(key, number)),
        }
    }

    async fn ask(&self, exchange: &Exchange) -> Exchanged {
        self.store.exchange(&self.scope, exchange).await.unwrap()
    }

    async fn carry_out(&mut self, operation: &Operation) -> Answer {
        let answer = match operation {
            Operation::Exchange { entries, version, silent, renewals, known } => {
                let mut exchange = Exchange::default();
                let last = self.last().0;
                let mut step = Step::default();
                step.version = version.map(|is_present| if is_present { last } else { 1 });
                for (worker, is_present) in silent {
                    let worker: Arc<str> = WORKERS[*worker].into();
                    let mark = self.marks.get(&worker).filter(|_| *is_present).cloned();
                    step.silent.push(LastHeartbeat::new(worker, mark.unwrap_or_default()));
                }
                for (index, (expected, number)) in entries {
                    let key = key(*index);
                    let expected = self.named(&key, *expected);
                    let new = number.map(|number| text(&key, number));
                    step.entries.push(EntryChange::new(key, expected, new));
                }
                exchange.step = (!entries.is_empty() || version.is_some()).then_some(step);
                for (worker, entry, lives) in renewals {
                    let worker: Arc<str> = WORKERS[*worker].into();
                    let entry = self.named(&EntryKey::Worker(Arc::clone(&worker)), *entry);
                    let lease_duration = Duration::from_secs(if *lives { 600 } else { 0 });
                    let entry = entry.unwrap_or_default();
                    exchange.renewals.push(Renewal::new(worker, entry, lease_duration));
                }
                let unknown = (1, Texts::new());
                let known = known.map(|age| {
                    let known = self.versions.iter().rev().nth(age);
                    known.filter(|(version, _)| *version > 0).unwrap_or(&unknown).clone()
                });
                exchange.known = known.as_ref().map(|(version, _)| *version);
                let known = known.map(|(_, texts)| texts).unwrap_or_default();
                Answer::Exchanged(self.ask(&exchange).await, known)
            }
            Operation::Save(saves) => {
                let saves = saves.iter().map(|(index, (epoch, expected, number))| {
                    let key = EntryKey::Position(shard(*index));
                    let expected = self.named(&key, *expected);
                    FencedSave::new(shard(*index), *epoch, expected, text(&key, *number))
                });
                let saves: Vec<_> = saves.collect();
                Answer::Saved(self.store.save_fenced(&self.scope, &saves).await.unwrap())
            }
        };
        let whole = self.ask(&Exchange::default()).await;
        self.marks = marks(&whole, &self.expired[1]);
        let present =
            |(key, text): &(EntryKey, Option<Arc<str>>)| Some((key.clone(), text.clone()?));
        let texts = whole.entries.iter().filter_map(present).collect();
        if whole.version == self.last().0 {
            self.versions.pop();
        }
        self.versions.push((whole.version, texts));
        answer
    }
}

/// Returns the marks of the workers that have expired: those that the answer names, or, in a store
/// without a clock, these.
fn marks(answer: &Exchanged, expired: &BTreeSet<Arc<str>>) -> BTreeMap<Arc<str>, Arc<str>> {
    let (heartbeats, has_clock) = match &answer.heartbeats {
        Heartbeats::Expired(heartbeats) => (heartbeats, true),
        Heartbeats::Last(heartbeats) => (heartbeats, false),
        other => panic!("unknown heartbeats: {other:?}"),
    };
    let counted = heartbeats.iter().filter(|last| has_clock || expired.contains(&last.worker));
    counted.map(|last| (last.worker.clone(), last.mark.clone())).collect()
}

/// Compares the answers of two stores with the same contents, of which the last one is correct.
/// `gone` are the workers that had expired before the request.
fn compare(
    found: &Answer,
    expected: &Answer,
    present: &Texts,
    gone: &BTreeSet<Arc<str>>,
) -> Result<(), TestCaseError> {
    let (found, (expected, known)) = match (found, expected) {
        (Answer::Saved(found), Answer::Saved(expected)) => {
            // A store may leave out the lease of a saved position.
            let shown = |outcomes: &[FencedOutcome]| -> Vec<FencedOutcome> {
                let shown = outcomes.iter().cloned().map(|mut outcome| {
                    outcome.lease = outcome.lease.filter(|_| !outcome.is_saved);
                    outcome
                });
                shown.collect()
            };
            prop_assert_eq!(shown(found), shown(expected));
            return Ok(());
        }
        (Answer::Exchanged(found, _), Answer::Exchanged(expected, known)) => {
            (found, (expected, known))
        }
        _ => unreachable!("both stores get the same request"),
    };
    let parts = |answer: &Exchanged| {
        let workers: Vec<_> = marks(answer, gone).into_keys().collect();
        (answer.is_made, answer.is_whole, workers)
    };
    prop_assert_eq!(parts(found), parts(expected));
    let entries = |answer: &Exchanged| -> BTreeMap<EntryKey, Option<Arc<str>>> {
        answer.entries.iter().cloned().collect()
    };
    let (found, shown) = (entries(found), entries(expected));
    for (key, text) in &found {
        prop_assert_eq!(
            text.as_ref(),
            present.get(key),
            "expected the present text of the {}",
            key
        );
        let is_due = expected.is_whole || !expected.is_made || shown.contains_key(key);
        prop_assert!(is_due, "expected the unchanged {} to be left out", key);
    }
    for (key, text) in &shown {
        // An entry that does not exist now and did not exist before need not be shown.
        let exists = text.is_some() || known.contains_key(key) && !expected.is_whole;
        // Nor need the position of a lease that a refused step names.
        let is_due = exists && (expected.is_made || !matches!(key, EntryKey::Position(_)));
        prop_assert!(!is_due || found.contains_key(key), "expected the {} to be shown", key);
    }
    Ok(())
}

/// Sends random requests to a store and to a `MemoryStore`, and compares the answers.
pub(crate) fn answers_like_memory_store(
    runtime: &tokio::runtime::Runtime,
    store: &dyn LeaseStore,
    cases: u32,
) {
    let _inside = runtime.enter();
    let in_memory = MemoryStore::new();
    let number = std::cell::Cell::new(0);
    let operations = prop::collection::vec(any_operation(), 1..30);
    TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..Default::default() })
        .run(&operations, |operations| {
            number.set(number.get() + 1);
            let case = format!("case-{}-{}", fastrand::u64(..), number.get());
            let scope = Scope::new(case, "orders");
            let mut found = Tested::new(store, scope.clone());
            let mut expected = Tested::new(&in_memory, scope);
            for operation in &operations {
                let gone: BTreeSet<_> = expected.marks.keys().cloned().collect();
                let right = runtime.block_on(expected.carry_out(operation));
                found.expired = [gone, expected.marks.keys().cloned().collect()];
                let answer = runtime.block_on(found.carry_out(operation));
                prop_assert_eq!(found.contents(), expected.contents(), "after {:?}", operation);
                compare(&answer, &right, &expected.last().1, &found.expired[0])?;
            }
            Ok(())
        })
        .unwrap();
}
