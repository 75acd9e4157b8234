//! Tests of the fence of `DynamoDbStore`: which saves succeed while steps change the leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, Step,
};
use kinestream::store::{CheckpointStore, Scope};
use kinestream::{Checkpoint, DynamoDbStore};
use tokio::time::timeout;

use crate::dynamodb_faults::{adding, asking, lease, position, text_of};
use crate::dynamodb_link::{Fault, Link};
use crate::dynamodb_server::{DynamoDbServer, TABLE};
use crate::redis_store::{after, scope, shard};

/// Returns a step that moves leases to the next epoch, and some positions as well.
fn moving(shards: u32, from: u64, to: Option<&str>) -> Step {
    let leases = (0..shards).map(|index| {
        let texts = [from, from + 1].map(|epoch| Some(lease(index, epoch).1.into()));
        let [before, after] = texts;
        EntryChange::new(EntryKey::Lease(shard(index)), before, after)
    });
    let positions = (0..shards).filter_map(|index| {
        let key = EntryKey::Position(shard(index));
        let mut change = EntryChange::new(key, None, Some(to?.into()));
        change.is_forced = true;
        Some(change)
    });
    let mut step = Step::default();
    step.entries = leases.chain(positions).collect();
    step
}

async fn made(store: &DynamoDbStore, step: Step) -> Exchanged {
    let answer = store.exchange(&scope(), &asking(Some(step), None)).await.unwrap();
    assert!(answer.is_made, "{answer:?}");
    answer
}

async fn read(store: &DynamoDbStore) -> Exchanged {
    store.exchange(&scope(), &Exchange::default()).await.unwrap()
}

async fn save(
    store: &DynamoDbStore,
    index: u32,
    epoch: u64,
    expected: Option<&str>,
    text: &str,
) -> FencedOutcome {
    let save = FencedSave::new(shard(index), epoch, expected.map(Into::into), text);
    store.save_fenced(&scope(), &[save]).await.unwrap().remove(0)
}

/// Returns a server with these shards, each in epoch 7 at `first`.
async fn filled(shards: u32) -> (DynamoDbServer, DynamoDbStore) {
    let (server, store) = DynamoDbServer::with_table().await;
    let entries = (0..shards).flat_map(|index| [lease(index, 7), position(index, "first")]);
    made(&store, adding(entries)).await;
    (server, store)
}

#[tokio::test]
async fn save_in_an_earlier_epoch_is_refused_after_a_step_of_any_size() {
    for shards in [1, 40, 300] {
        let (_server, store) = filled(shards).await;
        made(&store, moving(shards, 7, None)).await;
        for index in BTreeSet::from([0, shards - 1]) {
            let refused = save(&store, index, 7, Some("first"), "stale").await;
            let expected =
                FencedOutcome::new(false, Some(lease(index, 8).1.into()), Some("first".into()));
            assert_eq!(refused, expected, "{shards} shards");
            assert!(save(&store, index, 8, Some("first"), "second").await.is_saved);
        }
    }
}

#[tokio::test]
async fn moved_position_replaces_the_saved_one_in_a_step_of_any_size() {
    for shards in [1, 40, 300] {
        let (_server, store) = filled(shards).await;
        assert!(save(&store, 0, 7, Some("first"), "second").await.is_saved);
        let answer = made(&store, moving(shards, 7, Some("moved"))).await;
        for index in [0, shards - 1] {
            let found = text_of(&answer, &EntryKey::Position(shard(index)));
            assert_eq!(found.as_deref(), Some("moved"), "{shards} shards");
        }
        assert!(!save(&store, 0, 8, Some("second"), "third").await.is_saved);
        assert!(save(&store, 0, 8, Some("moved"), "third").await.is_saved);
    }
}

/// Returns a store that makes one step, and hangs before it settles the positions.
fn hanging_after_one_transaction(server: &DynamoDbServer) -> DynamoDbStore {
    let calls = AtomicUsize::new(0);
    let link = Link::new(server, move |operation, _| {
        let is_later =
            operation == "TransactWriteItems" && calls.fetch_add(1, Ordering::Relaxed) > 0;
        if is_later { Fault::Hang } else { Fault::None }
    });
    link.store().postponing()
}

/// The step is made, and its worker dies before the positions are fenced.
#[tokio::test]
async fn crash_before_the_fence_leaves_it_to_the_next_reader() {
    for to in [None, Some("moved")] {
        let (server, store) = filled(2).await;
        let (dying, place) = (hanging_after_one_transaction(&server), scope());
        let exchange = asking(Some(moving(2, 7, to)), None);
        let call = dying.exchange(&place, &exchange);
        assert!(timeout(Duration::from_millis(500), call).await.is_err(), "it hangs");
        // No worker has seen the step, so this save comes before it.
        assert!(save(&store, 0, 7, Some("first"), "last").await.is_saved);
        let shown = read(&store).await;
        assert_eq!(text_of(&shown, &EntryKey::Lease(shard(0))).as_deref(), Some(&*lease(0, 8).1));
        let stands = to.unwrap_or("last");
        assert_eq!(text_of(&shown, &EntryKey::Position(shard(0))).as_deref(), Some(stands));
        let refused = save(&store, 0, 7, Some(stands), "stale").await;
        assert!(!refused.is_saved, "the step was shown: {refused:?}");
        assert!(save(&store, 0, 8, Some(stands), "next").await.is_saved);
        assert_eq!(
            server
                .client()
                .scan()
                .table_name(TABLE)
                .send()
                .await
                .unwrap()
                .items()
                .iter()
                .filter(|item| item.contains_key("pending"))
                .count(),
            0,
            "nothing is left pending"
        );
    }
}

/// A save in the new epoch by a worker that has not read the table again settles it as well.
#[tokio::test]
async fn save_settles_its_pending_fence() {
    let (server, store) = filled(1).await;
    let (dying, place) = (hanging_after_one_transaction(&server), scope());
    let exchange = asking(Some(moving(1, 7, None)), None);
    let call = dying.exchange(&place, &exchange);
    assert!(timeout(Duration::from_millis(500), call).await.is_err(), "it hangs");
    assert!(save(&store, 0, 8, Some("first"), "second").await.is_saved);
    assert!(!save(&store, 0, 7, Some("second"), "stale").await.is_saved);
    let loaded = CheckpointStore::load_each(&store, &scope()).await.unwrap();
    assert_eq!(loaded.len(), 1);
}

/// The pending position replaces the one that a save expects.
#[tokio::test]
async fn save_meets_a_pending_move() {
    let (server, store) = filled(1).await;
    let (dying, place) = (hanging_after_one_transaction(&server), scope());
    let exchange = asking(Some(moving(1, 7, Some("moved"))), None);
    let call = dying.exchange(&place, &exchange);
    assert!(timeout(Duration::from_millis(500), call).await.is_err(), "it hangs");
    let refused = save(&store, 0, 8, Some("first"), "second").await;
    let expected = FencedOutcome::new(false, Some(lease(0, 8).1.into()), Some("moved".into()));
    assert_eq!(refused, expected);
}

/// An item of a position that was deleted by hand has no fence.
#[tokio::test]
async fn missing_fence_is_restored_from_the_lease() {
    let (server, store) = filled(1).await;
    let key = [("pk", "billing:orders".to_owned()), ("sk", format!("position:{}", shard(0)))];
    let mut deletion = server.client().delete_item().table_name(TABLE);
    for (name, value) in key {
        deletion = deletion.key(name, AttributeValue::S(value));
    }
    deletion.send().await.unwrap();
    assert!(!save(&store, 0, 6, None, "stale").await.is_saved);
    assert!(save(&store, 0, 7, None, "second").await.is_saved);
    assert_eq!(save(&store, 1, 7, None, "none").await, FencedOutcome::new(false, None, None));
}

#[tokio::test]
async fn position_without_a_lease_is_saved_and_loaded() {
    let (_server, store) = DynamoDbServer::with_table().await;
    CheckpointStore::save(&store, &scope(), &[(shard(0), after(5))]).await.unwrap();
    let shown = read(&store).await;
    assert_eq!(shown.version, 0, "no step was made");
    assert_eq!(
        text_of(&shown, &EntryKey::Position(shard(0))).as_deref(),
        Some(&*after(5).to_string())
    );
    made(&store, adding([lease(0, 7)])).await;
    assert_eq!(store.load(&scope()).await.unwrap()[&shard(0)], after(5), "it is kept");
    CheckpointStore::save(&store, &scope(), &[(shard(0), Checkpoint::ShardEnd)]).await.unwrap();
    assert_eq!(store.load(&scope()).await.unwrap()[&shard(0)], Checkpoint::ShardEnd);
}

/// A dropped exchange is made as a whole or not at all, whatever its last request was.
#[tokio::test]
async fn exchange_dropped_at_any_request_is_made_whole_or_not() {
    let (server, store) = DynamoDbServer::with_table().await;
    let mut outcomes = BTreeSet::new();
    for last in 0..12 {
        let scope = Scope::new(format!("dropped-{last}"), "orders");
        let entries = (0..5).flat_map(|index| [lease(index, 7), position(index, "first")]);
        store.exchange(&scope, &asking(Some(adding(entries)), None)).await.unwrap();
        let calls = AtomicUsize::new(0);
        let link = Link::new(&server, move |_, _| {
            let is_over = calls.fetch_add(1, Ordering::Relaxed) >= last;
            if is_over { Fault::Hang } else { Fault::None }
        });
        let exchange = asking(Some(moving(5, 7, Some("moved"))), None);
        let dying = link.store().postponing();
        let is_ready =
            timeout(Duration::from_millis(200), dying.exchange(&scope, &exchange)).await.is_ok();
        let shown = store.exchange(&scope, &Exchange::default()).await.unwrap();
        let texts: BTreeMap<_, _> = shown.entries.into_iter().collect();
        let epochs: BTreeSet<_> = (0..5)
            .map(|index| {
                let [lease, position] = [
                    &texts[&EntryKey::Lease(shard(index))],
                    &texts[&EntryKey::Position(shard(index))],
                ];
                let epoch = lease.as_ref().unwrap().split(' ').next().unwrap().to_owned();
                (epoch, position.as_ref().unwrap().to_string())
            })
            .collect();
        let shown = [("7", "first"), ("8", "moved")]
            .map(|(epoch, text)| BTreeSet::from([(epoch.to_owned(), text.to_owned())]));
        assert!(shown.contains(&epochs), "after {last} requests: {epochs:?}");
        outcomes.insert((epochs == shown[1], is_ready));
    }
    let all = BTreeSet::from([(false, false), (true, false), (true, true)]);
    assert_eq!(outcomes, all, "the drops cover each part of the exchange");
}

/// The state that the workers of [`saves_follow_the_epochs_that_were_shown`] share.
struct Race {
    store: DynamoDbStore,
    /// The highest epoch of each shard that an answer has shown.
    shown: Vec<AtomicU64>,
    /// The steps and the saves that were made.
    steps: AtomicUsize,
    saves: AtomicUsize,
    is_over: AtomicBool,
}

impl Race {
    fn new(store: DynamoDbStore, shown: Vec<AtomicU64>) -> Self {
        let (steps, saves) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { store, shown, steps, saves, is_over: AtomicBool::new(false) }
    }

    fn note(&self, answer: &Exchanged) {
        for (key, text) in &answer.entries {
            if let (EntryKey::Lease(shard), Some(text)) = (key, text) {
                let index: usize = shard.as_str()[8..].parse().unwrap();
                let epoch = text.split(' ').next().unwrap().parse().unwrap();
                self.shown[index].fetch_max(epoch, Ordering::SeqCst);
            }
        }
    }

    /// Moves random leases to their next epochs.
    async fn change(&self) {
        let mut known = None;
        let mut texts = BTreeMap::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let changes = texts.iter().filter(|_| fastrand::bool());
            let changes = changes.map(|(key, text): (&EntryKey, &Arc<str>)| {
                let epoch: u64 = text.split(' ').next().unwrap().parse().unwrap();
                let next = lease(0, epoch + 1).1;
                EntryChange::new(key.clone(), Some(Arc::clone(text)), Some(next.into()))
            });
            let mut step = Step::default();
            step.entries = changes.collect();
            let answer = self.store.exchange(&scope(), &asking(Some(step), known)).await.unwrap();
            self.note(&answer);
            self.steps.fetch_add(usize::from(answer.is_made), Ordering::Relaxed);
            known = Some(answer.version);
            for (key, text) in answer.entries {
                if let (EntryKey::Lease(_), Some(text)) = (&key, text) {
                    texts.insert(key, text);
                }
            }
        }
    }

    /// Saves positions in the last epochs that were shown, and in those before. Returns the saves
    /// that were made: the expected and the new text of each.
    async fn save(&self, name: usize) -> Vec<(u32, String, String)> {
        let mut made = Vec::new();
        let mut known: Vec<Option<Arc<str>>> = vec![None; self.shown.len()];
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let index = fastrand::u32(..u32::try_from(self.shown.len()).unwrap());
            let slot = index as usize;
            let shown = self.shown[slot].load(Ordering::SeqCst);
            let epoch = shown - u64::from(fastrand::bool());
            let text = format!("{name}-{number}");
            let outcome = save(&self.store, index, epoch, known[slot].as_deref(), &text).await;
            if outcome.is_saved {
                assert!(epoch >= shown, "epoch {epoch} was saved after {shown} was shown");
                let expected = known[slot].as_deref().unwrap_or_default().to_owned();
                made.push((index, expected, text));
                self.saves.fetch_add(1, Ordering::Relaxed);
            }
            known[slot] = outcome.position;
        }
        made
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saves_follow_the_epochs_that_were_shown() {
    let (_server, store) = DynamoDbServer::with_table().await;
    for store in [store.clone(), store.postponing()] {
        let entries = (0..3).map(|index| lease(index, 7));
        let mut clear = adding(entries);
        clear.entries.iter_mut().for_each(|change| change.is_forced = true);
        let gone = (0..3).map(|index| {
            let key = EntryKey::Position(shard(index));
            let mut change = EntryChange::new(key, None, None);
            change.is_forced = true;
            change
        });
        clear.entries.extend(gone);
        made(&store, clear).await;
        let shown = (0..3).map(|_| AtomicU64::new(7)).collect();
        let race = Arc::new(Race::new(store, shown));
        let changers: Vec<_> = (0..2)
            .map(|_| {
                let race = Arc::clone(&race);
                tokio::spawn(async move { race.change().await })
            })
            .collect();
        let savers: Vec<_> = (0..4)
            .map(|name| {
                let race = Arc::clone(&race);
                tokio::spawn(async move { race.save(name).await })
            })
            .collect();
        let is_enough =
            || race.steps.load(Ordering::Relaxed) > 40 && race.saves.load(Ordering::Relaxed) > 150;
        let began = tokio::time::Instant::now();
        while !is_enough() {
            assert!(began.elapsed() < Duration::from_secs(60), "expected steps and saves");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        race.is_over.store(true, Ordering::Relaxed);
        for changer in changers {
            changer.await.unwrap();
        }
        let mut next = BTreeMap::new();
        for saver in savers {
            for (shard, expected, text) in saver.await.unwrap() {
                let other = next.insert((shard, expected.clone()), text.clone());
                assert_eq!(other, None, "two saves have replaced {expected:?} of shard {shard}");
            }
        }
    }
}
