//! Comparison of the scripts of `RedisStore` with the in-memory table: both must respond alike to
//! the same operations.
//!
//! Their clocks differ, so values that follow a clock are compared by their order, and operations
//! give epochs relative to those in the store. A worker that expires has a lease duration of 0.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinestream::store::lease::{
    AdminEdit, Change, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, Lease, LeaseStore,
    LeaseTable, WorkerEntry,
};
use kinestream::store::{CheckpointStore, Scope};
use kinestream::{Checkpoint, MemoryStore, RedisStore, SequenceNumber, ShardId};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

use crate::redis_server::RedisServer;
use crate::redis_store::{raw, shard};

/// An epoch or an origin, relative to a stored value.
#[derive(Debug, Clone, Copy)]
enum Near {
    /// The value in the lease plus this difference.
    Own(i64),
    /// The epoch of the last clearing, or the generation for an origin, plus this difference.
    Cleared(i64),
    None,
    Huge,
}

#[derive(Debug, Clone)]
enum Ask {
    Begin(u64),
    Add(u32, Vec<u32>, Option<u8>, Option<Checkpoint>),
    Identify(u32, Option<u8>),
    Replace(u32, Vec<u32>, u8, Checkpoint),
    Assign(u32, usize),
    Offer(u32, usize),
    Release(u32, Near),
    Finish(u32, Near),
    MarkExpired(u32),
    Forget(u32),
    /// A worker and its incarnation. The first flag makes it join after all others instead of
    /// before them, and the second makes it live.
    ReviveWorker(usize, u64, bool, bool),
    Restore(u32, Known),
}

#[derive(Debug, Clone)]
struct Known {
    epoch: Near,
    origin: Near,
    owner: Option<usize>,
    incarnation: u64,
    next_owner: Option<usize>,
    has_parents: bool,
    is_shard_expired: bool,
    start: Option<u8>,
    unlisted: Option<u64>,
    added: Option<u64>,
    checkpoint: Option<Checkpoint>,
}

#[derive(Debug, Clone, Copy)]
enum Seen {
    Nothing,
    Current,
    Older,
    OtherGeneration,
}

#[derive(Debug, Clone)]
enum Operation {
    Exchange {
        worker: usize,
        incarnation: u64,
        lives: bool,
        capacity: u32,
        leaving: bool,
        seen: Seen,
        only_if_unchanged: bool,
        asks: Vec<Ask>,
    },
    SaveFenced(Vec<(u32, Near, Checkpoint)>),
    Save(u32, Checkpoint),
    Set(u32, Checkpoint, bool),
    Clear(bool),
    /// Replaces a text by an invalid one: that of a lease if true, or else that of a checkpoint.
    Damage(u32, bool),
}

/// Worker names: a plain one, the text that encodes an absent owner, and one with characters that
/// are escaped.
const WORKERS: [&str; 3] = ["one", "-", "50% %25"];

fn any_near() -> impl Strategy<Value = Near> {
    prop_oneof![
        6 => Just(Near::Own(0)),
        // The last offset is ahead of the clock.
        2 => prop_oneof![Just(1), Just(-1), Just(1_000_000)].prop_map(Near::Own),
        1 => (-1..2_i64).prop_map(Near::Cleared),
        1 => Just(Near::None),
        1 => Just(Near::Huge),
    ]
}

/// Like [`any_near`], but without `Huge`, after which the store has no higher number.
fn any_kept() -> impl Strategy<Value = Near> {
    any_near().prop_map(|near| if matches!(near, Near::Huge) { Near::Own(1) } else { near })
}

fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
    let place = "AFTER_SEQUENCE_NUMBER:[1-9][0-9]?(:[0-9])?";
    prop_oneof![
        1 => Just("TRIM_HORIZON".to_owned()),
        1 => Just("AT_TIMESTAMP:1000".to_owned()),
        5 => place,
        2 => "CAUGHT_UP:[1-9][0-9]?(:[1-9][0-9]?)?",
        1 => Just("SHARD_END".to_owned()),
    ]
    .prop_map(|text| text.parse().unwrap())
}

fn any_known() -> impl Strategy<Value = Known> {
    let of_workers = || prop::option::of(0..WORKERS.len());
    let checkpoint = prop::option::of(any_checkpoint());
    let owner = (of_workers(), any_incarnation());
    let flags = any::<(bool, bool, bool, bool, bool)>();
    let numbers = (any_kept(), any_kept(), any_start());
    (numbers, owner, of_workers(), flags, checkpoint).prop_map(
        |((epoch, origin, start), (owner, incarnation), next_owner, flags, checkpoint)| {
            let (any, other, is_shard_expired, is_unlisted, is_added) = flags;
            Known {
                epoch,
                origin,
                owner,
                incarnation,
                next_owner,
                has_parents: any || other,
                is_shard_expired,
                start,
                unlisted: is_unlisted.then_some(1),
                added: is_added.then_some(2),
                checkpoint,
            }
        },
    )
}

fn any_start() -> impl Strategy<Value = Option<u8>> {
    prop::option::of(4..6_u8)
}

/// Chooses between two consecutive numbers, both too large for an exact Lua number.
fn any_incarnation() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(u64::MAX), 1 => Just(u64::MAX - 1)]
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let (shard, worker) = (0..2_u32, 0..WORKERS.len());
    let checkpoint = prop::option::of(any_checkpoint());
    let parents = || prop::collection::vec(7..9_u32, 0..3);
    prop_oneof![
        1 => (1..3_u64).prop_map(Ask::Begin),
        3 => (shard.clone(), parents(), any_start(), checkpoint)
            .prop_map(|(shard, parents, start, place)| Ask::Add(shard, parents, start, place)),
        1 => (shard.clone(), any_start()).prop_map(|(shard, start)| Ask::Identify(shard, start)),
        1 => (shard.clone(), parents(), 4..6_u8, any_checkpoint())
            .prop_map(|(shard, parents, start, place)| Ask::Replace(shard, parents, start, place)),
        4 => (shard.clone(), worker.clone()).prop_map(|(shard, to)| Ask::Assign(shard, to)),
        3 => (shard.clone(), worker.clone()).prop_map(|(shard, to)| Ask::Offer(shard, to)),
        3 => (shard.clone(), any_near()).prop_map(|(shard, near)| Ask::Release(shard, near)),
        1 => (shard.clone(), any_near()).prop_map(|(shard, near)| Ask::Finish(shard, near)),
        1 => shard.clone().prop_map(Ask::MarkExpired),
        1 => shard.clone().prop_map(Ask::Forget),
        2 => (worker, any_incarnation(), any::<bool>(), any::<bool>())
            .prop_map(|(worker, life, late, lives)| Ask::ReviveWorker(worker, life, late, lives)),
        4 => (shard, any_known()).prop_map(|(shard, known)| Ask::Restore(shard, known)),
    ]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let seen = prop_oneof![
        Just(Seen::Nothing),
        Just(Seen::Current),
        Just(Seen::Current),
        Just(Seen::Older),
        Just(Seen::OtherGeneration),
    ];
    let worker = (0..WORKERS.len(), any_incarnation(), prop::bool::weighted(0.8), 4..6_u32);
    let asks = prop::collection::vec(any_ask(), 0..4);
    let fenced = prop::collection::vec((0..2_u32, any_near(), any_checkpoint()), 1..4);
    prop_oneof![
        12 => (worker, prop::bool::weighted(0.2), seen, prop::bool::weighted(0.3), asks).prop_map(
            |((worker, incarnation, lives, capacity), leaving, seen, only_if_unchanged, asks)| {
                Operation::Exchange {
                    worker,
                    incarnation,
                    lives,
                    capacity,
                    leaving,
                    seen,
                    only_if_unchanged,
                    asks,
                }
            },
        ),
        4 => fenced.prop_map(Operation::SaveFenced),
        1 => (0..2_u32, any_checkpoint()).prop_map(|(shard, place)| Operation::Save(shard, place)),
        1 => (0..2_u32, any_checkpoint(), any::<bool>())
            .prop_map(|(shard, place, forced)| Operation::Set(shard, place, forced)),
        1 => prop::bool::weighted(0.3).prop_map(Operation::Clear),
        1 => (0..2_u32, any::<bool>())
            .prop_map(|(shard, is_lease)| Operation::Damage(shard, is_lease)),
    ]
}

fn start_number(start: u8) -> SequenceNumber {
    start.to_string().parse().unwrap()
}

fn worker(index: usize) -> Arc<str> {
    WORKERS[index].into()
}

fn lease_duration(lives: bool) -> Duration {
    Duration::from_secs(if lives { 1000 } else { 0 })
}

fn millis_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_millis().try_into().unwrap()
}

fn epoch(near: Near, table: &LeaseTable, shard: &ShardId) -> u64 {
    let own = table.leases.get(shard).map_or(0, |lease| lease.epoch);
    let near = match near {
        // An earlier change of the same request may raise the epoch by one or to the current time.
        // The clocks do not agree which of them, unless the epoch is ahead of both.
        Near::Own(1) if own < millis_now() + 100_000 => Near::Own(1_000_000),
        near => near,
    };
    number(near, own, table.cleared)
}

fn number(near: Near, own: u64, other: u64) -> u64 {
    match near {
        Near::Own(delta) => own.saturating_add_signed(delta),
        Near::Cleared(delta) => other.saturating_add_signed(delta),
        Near::None => 0,
        Near::Huge => u64::MAX,
    }
}

/// Returns the change for a store with this table.
fn change(ask: &Ask, table: &LeaseTable) -> Change {
    match ask.clone() {
        Ask::Begin(first_poll) => Change::Begin { first_poll },
        Ask::Add(index, parents, start, checkpoint) => Change::Add {
            shard: shard(index),
            parents: parents.into_iter().map(shard).collect(),
            start: start.map(start_number),
            checkpoint,
        },
        Ask::Identify(index, start) => {
            Change::Identify { shard: shard(index), start: start.map(start_number) }
        }
        Ask::Replace(index, parents, start, checkpoint) => Change::Replace {
            shard: shard(index),
            parents: parents.into_iter().map(shard).collect(),
            start: start_number(start),
            checkpoint,
        },
        Ask::Assign(index, to) => Change::Assign { shard: shard(index), to: worker(to) },
        Ask::Offer(index, to) => Change::Offer { shard: shard(index), to: worker(to) },
        Ask::Release(index, near) => {
            Change::Release { shard: shard(index), epoch: epoch(near, table, &shard(index)) }
        }
        Ask::Finish(index, near) => {
            Change::Finish { shard: shard(index), epoch: epoch(near, table, &shard(index)) }
        }
        Ask::MarkExpired(index) => Change::MarkExpired { shard: shard(index) },
        Ask::Forget(index) => Change::Forget { shard: shard(index) },
        Ask::ReviveWorker(name, incarnation, late, lives) => {
            let last = table.workers.values().map(|member| member.joined).max();
            let joined = if late { last.unwrap_or(0) + 1_000_000_000_000 } else { 5 };
            let lease_duration = lease_duration(lives);
            let member = WorkerEntry { incarnation, joined, lease_duration, capacity: 3 };
            Change::ReviveWorker { worker: worker(name), member }
        }
        Ask::Restore(index, known) => {
            let shard = shard(index);
            let own = table.leases.get(&shard).cloned().unwrap_or_default();
            let lease = Lease {
                epoch: epoch(known.epoch, table, &shard),
                owner: known.owner.map(worker),
                next_owner: known.next_owner.map(worker),
                origin: number(known.origin, own.origin, table.generation),
                parents: known.has_parents.then(|| own.parents.unwrap_or_default()),
                is_shard_expired: known.is_shard_expired,
                start: known.start.map(start_number),
                // Both times are in the distant past.
                unlisted: known.unlisted,
                added: known.added,
                checkpoint: known.checkpoint,
                unreadable: None,
            };
            Change::Restore { shard, incarnation: known.incarnation, lease }
        }
    }
}

/// Describes the part of a clock-based number that must agree in both stores.
fn order(new: u64, old: u64) -> String {
    format!(
        "{}{}",
        if new == 0 { "none " } else { "" },
        match new.cmp(&old) {
            Ordering::Less => "fell",
            Ordering::Equal => "stayed",
            Ordering::Greater => "rose",
        }
    )
}

/// Describes the parts of a table that must agree in both stores, one line per part.
fn shape(table: &LeaseTable, before: &LeaseTable) -> Vec<String> {
    let rank = |all: BTreeSet<u64>, of: u64| all.range(..of).count();
    let joined = || table.workers.values().map(|member| member.joined).collect();
    let origins = || {
        let origins = table.leases.values().map(|lease| lease.origin);
        origins.chain([0, table.generation]).collect()
    };
    let mut lines = vec![
        format!("generation {}", order(table.generation, before.generation)),
        format!("version {}", order(table.version, before.version)),
        format!("cleared {}", order(table.cleared, before.cleared)),
        format!("first poll {}", table.first_poll),
    ];
    for (name, member) in &table.workers {
        let joined = rank(joined(), member.joined);
        lines
            .push(format!("{name}: {:?}", WorkerEntry { joined: joined as u64, ..member.clone() }));
    }
    for (shard, lease) in &table.leases {
        let old = before.leases.get(shard).map_or(0, |lease| lease.epoch);
        let (since, to_cleared) = (order(lease.epoch, old), lease.epoch.cmp(&table.cleared));
        let origin = rank(origins(), lease.origin) as u64;
        // Either the constant given in `change`, or the current time of the store.
        let unlisted = lease.unlisted.map(|since| u64::from(since > 1));
        let added = lease.added.map(|since| u64::from(since > 2));
        let unreadable = lease.unreadable.as_ref().map(|_why| "".into());
        let lease = Lease { epoch: 0, origin, unlisted, added, unreadable, ..lease.clone() };
        lines.push(format!("{shard}: epoch {since}, {to_cleared:?} cleared, {lease:?}"));
    }
    lines
}

fn answer_shape(answer: &HeartbeatResponse, before: &LeaseTable) -> Vec<String> {
    let mut lines = vec![format!("{:?}, applied: {}", answer.standing, answer.applied)];
    match &answer.table {
        Some(table) => lines.extend(shape(table, before)),
        None => lines.push("no table".to_owned()),
    }
    lines
}

/// Damages the stored lease or checkpoint of a shard.
trait Damage {
    async fn damage(&self, scope: &Scope, shard: &ShardId, is_lease: bool);
}

impl Damage for MemoryStore {
    async fn damage(&self, scope: &Scope, shard: &ShardId, is_lease: bool) {
        Self::damage(self, scope, shard, is_lease);
    }
}

impl Damage for MultiplexedConnection {
    async fn damage(&self, scope: &Scope, shard: &ShardId, is_lease: bool) {
        let part = if is_lease { "leases" } else { "checkpoints" };
        let key = format!("kinestream:{{{}:{}}}:{part}", scope.application(), scope.stream());
        let mut raw = self.clone();
        if raw.hexists(&key, shard.as_str()).await.unwrap() {
            raw.hset::<_, _, _, ()>(&key, shard.as_str(), "damaged").await.unwrap();
        }
    }
}

/// Applies an operation to a store, and describes the result.
async fn carry_out<S: CheckpointStore + LeaseStore>(
    store: &S,
    stored: &impl Damage,
    scope: &Scope,
    operation: &Operation,
) -> Vec<String> {
    let before = store.table(scope).await.unwrap();
    let mut lines = match operation.clone() {
        Operation::Exchange {
            worker: index,
            incarnation,
            lives,
            capacity,
            leaving,
            seen,
            only_if_unchanged,
            asks,
        } => {
            let request = HeartbeatRequest {
                worker: worker(index),
                incarnation,
                lease_duration: lease_duration(lives),
                capacity,
                leaving,
                known: match seen {
                    Seen::Nothing => None,
                    Seen::Current => Some((before.generation, before.version)),
                    Seen::Older => Some((before.generation, before.version.saturating_sub(1))),
                    Seen::OtherGeneration => Some((before.generation + 1, before.version)),
                },
                only_if_unchanged,
                changes: asks.iter().map(|ask| change(ask, &before)).collect(),
            };
            answer_shape(&store.exchange(scope, &request).await.unwrap(), &before)
        }
        Operation::SaveFenced(positions) => {
            let positions: Vec<_> = positions
                .into_iter()
                .map(|(index, near, checkpoint)| {
                    let shard = shard(index);
                    FencedCheckpoint { epoch: epoch(near, &before, &shard), shard, checkpoint }
                })
                .collect();
            vec![format!("{:?}", store.save_fenced(scope, &positions).await.unwrap())]
        }
        Operation::Save(index, checkpoint) => {
            let saved = store.save(scope, &[(shard(index), checkpoint)]).await;
            vec![format!("{:?}", saved.map_err(|error| error.kind()))]
        }
        Operation::Set(index, checkpoint, forced) => {
            // Also sets the position of the next shard, so that the owners of both are checked.
            let next = (shard(index + 1), checkpoint.clone());
            let edit = AdminEdit::Set { positions: vec![(shard(index), checkpoint), next] };
            vec![format!("{:?}", store.edit(scope, &edit, forced).await.unwrap())]
        }
        Operation::Clear(forced) => {
            vec![format!("{:?}", store.edit(scope, &AdminEdit::Clear, forced).await.unwrap())]
        }
        Operation::Damage(index, is_lease) => {
            stored.damage(scope, &shard(index), is_lease).await;
            Vec::new()
        }
    };
    lines.extend(shape(&store.table(scope).await.unwrap(), &before));
    let loaded = store.load_each(scope).await.unwrap().into_iter();
    let mut loaded: Vec<_> =
        loaded.map(|(shard, found)| (shard, found.map_err(|error| error.kind()))).collect();
    loaded.sort_by(|left, right| left.0.cmp(&right.0));
    lines.push(format!("{loaded:?}"));
    lines
}

#[test]
fn scripts_match_in_memory_table() {
    let server = RedisServer::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (in_redis, raw) = runtime.block_on(async {
        (RedisStore::connect(&server.url()).await.unwrap(), raw(&server).await)
    });
    let in_memory = MemoryStore::new();
    let cases = std::cell::Cell::new(0);
    let operations = prop::collection::vec(any_operation(), 1..30);
    TestRunner::new(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })
        .run(&operations, |operations| {
            cases.set(cases.get() + 1);
            let scope = Scope::new(format!("case-{}", cases.get()), "orders");
            runtime.block_on(async {
                for operation in operations {
                    let expected = carry_out(&in_memory, &in_memory, &scope, &operation).await;
                    let found = carry_out(&in_redis, &raw, &scope, &operation).await;
                    prop_assert_eq!(found, expected, "after {:?}", operation);
                    if matches!(operation, Operation::Clear(_)) {
                        // Keeps epochs near the last clearing away from the current time.
                        sleep(Duration::from_millis(20)).await;
                    }
                }
                Ok(())
            })
        })
        .unwrap();
}
