//! Comparison of the scripts of `RedisStore` with `MemoryStore`: both must answer alike to the same
//! requests.
//!
//! Their clocks differ, so versions are compared by what they show, and workers expire at once or
//! not at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kinestream::store::Scope;
use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedSave, Heartbeats, LastHeartbeat, LeaseStore,
    Renewal, Step,
};
use kinestream::{MemoryStore, RedisStore};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::redis_server::RedisServer;
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
    Save(Vec<(u32, u64, Named, u8)>),
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
    let save = (0..3_u32, 0..4_u64, any_named(), 0..4_u8);
    let saves = prop::collection::vec(save, 1..4).prop_map(Operation::Save);
    prop_oneof![4 => exchange, 1 => saves]
}

/// A store, and what the test knows of it.
struct Tested<S> {
    store: S,
    scope: Scope,
    texts: BTreeMap<EntryKey, Arc<str>>,
    marks: BTreeMap<Arc<str>, Arc<str>>,
    versions: Vec<u64>,
}

impl<S: LeaseStore> Tested<S> {
    fn new(store: S, scope: Scope) -> Self {
        let (texts, marks) = (BTreeMap::new(), BTreeMap::new());
        Self { store, scope, texts, marks, versions: vec![0] }
    }

    fn named(&self, key: &EntryKey, named: Named) -> Option<Arc<str>> {
        match named {
            Named::Present => self.texts.get(key).cloned(),
            Named::Nothing => None,
            Named::Text(number) => Some(text(key, number)),
        }
    }

    async fn ask(&self, exchange: &Exchange) -> Exchanged {
        self.store.exchange(&self.scope, exchange).await.unwrap()
    }

    /// Applies an operation, and describes the answer and the content of the store after it.
    async fn carry_out(&mut self, operation: &Operation) -> String {
        let answer = match operation {
            Operation::Exchange { entries, version, silent, renewals, known } => {
                let mut exchange = Exchange::default();
                let last = *self.versions.last().unwrap();
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
                exchange.known = known.map(|age| {
                    let version = self.versions.iter().rev().nth(age);
                    version.copied().filter(|version| *version > 0).unwrap_or(1)
                });
                let answer = self.ask(&exchange).await;
                let is_same = answer.version == last;
                if !is_same {
                    self.versions.push(answer.version);
                }
                let entries: BTreeMap<_, _> = answer.entries.iter().cloned().collect();
                let expired = expired(&answer);
                format!(
                    "{} {} {is_same} {:?} {entries:?}",
                    answer.is_made,
                    answer.is_whole,
                    expired.keys().collect::<Vec<_>>(),
                )
            }
            Operation::Save(saves) => {
                let saves = saves.iter().map(|(index, epoch, expected, number)| {
                    let key = EntryKey::Position(shard(*index));
                    let expected = self.named(&key, *expected);
                    FencedSave::new(shard(*index), *epoch, expected, text(&key, *number))
                });
                let saves: Vec<_> = saves.collect();
                format!("{:?}", self.store.save_fenced(&self.scope, &saves).await.unwrap())
            }
        };
        let whole = self.ask(&Exchange::default()).await;
        self.marks = expired(&whole);
        let present =
            |(key, text): &(EntryKey, Option<Arc<str>>)| Some((key.clone(), text.clone()?));
        self.texts = whole.entries.iter().filter_map(present).collect();
        format!("{answer}; {:?} {:?}", self.texts, self.marks.keys())
    }
}

/// Returns the marks of the workers that have expired.
fn expired(answer: &Exchanged) -> BTreeMap<Arc<str>, Arc<str>> {
    let Heartbeats::Expired(heartbeats) = &answer.heartbeats else { panic!("{answer:?}") };
    heartbeats.iter().map(|last| (last.worker.clone(), last.mark.clone())).collect()
}

#[test]
fn scripts_answer_like_the_memory_store() {
    let server = RedisServer::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let in_redis = runtime.block_on(RedisStore::connect(&server.url())).unwrap();
    let in_memory = MemoryStore::new();
    let cases = std::cell::Cell::new(0);
    let operations = prop::collection::vec(any_operation(), 1..30);
    TestRunner::new(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })
        .run(&operations, |operations| {
            cases.set(cases.get() + 1);
            let scope = Scope::new(format!("case-{}", cases.get()), "orders");
            let mut found = Tested::new(in_redis.clone(), scope.clone());
            let mut expected = Tested::new(in_memory.clone(), scope);
            for operation in &operations {
                let expected = runtime.block_on(expected.carry_out(operation));
                let found = runtime.block_on(found.carry_out(operation));
                prop_assert_eq!(found, expected, "after {:?}", operation);
            }
            Ok(())
        })
        .unwrap();
}
