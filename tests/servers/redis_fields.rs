//! Unreadable fields in Redis. Each affects only its shard, its worker, or the generation.

use std::sync::Arc;
use std::time::Duration;

use kinestream::store::CheckpointStore;
use kinestream::store::lease::{
    AdminEdit, Change, EditOutcome, FencedCheckpoint, HeartbeatRequest, IfLeased, Lease,
    LeaseTable, Membership, SaveOutcome,
};
use kinestream::{ErrorKind, RedisStore};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::lease_access::LeaseAccess;
use crate::redis_server::RedisServer;
use crate::redis_store::{after, raw, scope, shard};

fn key(name: &str) -> String {
    format!("kinestream:{{billing:orders}}:{name}")
}

async fn connected() -> (RedisServer, RedisStore, MultiplexedConnection) {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let raw = raw(&server).await;
    (server, store, raw)
}

async fn exchange(
    store: &RedisStore,
    worker: &str,
    changes: Vec<Change>,
) -> (Membership, LeaseTable) {
    exchange_with(store, worker, Duration::from_secs(10), changes).await
}

async fn exchange_with(
    store: &RedisStore,
    worker: &str,
    lease_duration: Duration,
    changes: Vec<Change>,
) -> (Membership, LeaseTable) {
    let mut request = HeartbeatRequest::new(worker, 7, lease_duration);
    (request.capacity, request.changes) = (7, changes);
    let answer = store.heartbeat(&scope(), &request).await.unwrap();
    (answer.membership, LeaseTable::clone(&answer.table.unwrap()))
}

fn add(index: u32) -> Change {
    let checkpoint = Some(after(1));
    Change::Add { shard: shard(index), parents: vec![shard(9)], start: None, checkpoint }
}

fn assign(index: u32, to: &str) -> Change {
    Change::Assign { shard: shard(index), to: to.into() }
}

/// Assigns two shards to worker `a`, the first in an epoch that is ahead of the clock.
async fn two_leases(store: &RedisStore) -> LeaseTable {
    let changes = vec![add(0), add(1), assign(0, "a"), assign(1, "a")];
    let mut lease = exchange(store, "a", changes).await.1.leases[&shard(0)].clone();
    lease.epoch += 1_000_000;
    exchange(store, "a", vec![Change::Restore { shard: shard(0), incarnation: 7, lease }]).await.1
}

/// Returns every change that a worker may request for a shard.
fn every_change(lease: &Lease) -> Vec<Change> {
    let (shard, epoch) = (shard(0), lease.epoch);
    let start = Some("1".parse().unwrap());
    let (parents, checkpoint) = (Vec::new(), Some(after(5)));
    let id = || shard.clone();
    vec![
        Change::Add { shard: id(), parents: parents.clone(), start: start.clone(), checkpoint },
        Change::Identify { shard: id(), start },
        Change::Replace { shard: id(), parents, start: "2".parse().unwrap(), checkpoint: after(0) },
        assign(0, "a"),
        Change::Offer { shard: id(), to: "a".into() },
        Change::Release { shard: id(), epoch },
        Change::Finish { shard: id(), epoch },
        Change::MarkExpired { shard: id() },
        Change::Forget { shard: id() },
        Change::Restore { shard: id(), incarnation: 7, lease: lease.clone() },
    ]
}

/// Invalid checkpoints and leases, each damaged in another way.
const DAMAGED: [(&str, &[u8]); 14] = [
    ("checkpoints", b"yesterday"),
    ("checkpoints", b"\xff\xfe"),
    ("checkpoints", b""),
    ("checkpoints", b"AFTER_SEQUENCE_NUMBER:-1"),
    ("checkpoints", b"AFTER_SEQUENCE_NUMBER:007"),
    ("checkpoints", b"AFTER_SEQUENCE_NUMBER:7:99999999999999999999"),
    ("checkpoints", b"AT_TIMESTAMP:99999999999999999999"),
    ("leases", b"1 - - 1 -"),
    ("leases", b"1 - - 1 - GONE"),
    ("leases", b"-1 - - 1 - -"),
    ("leases", b"99999999999999999999 - - 1 - -"),
    ("leases", b"1 - - 1 not/a/shard -"),
    ("leases", b"1 - - 1 - - x"),
    ("leases", b"1 - - \xff - -"),
];

#[tokio::test]
async fn damaged_field_makes_only_its_shard_unreadable() {
    let (_server, store, mut raw) = connected().await;
    for (name, damaged) in DAMAGED {
        redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
        let before = two_leases(&store).await;
        let lease = before.leases[&shard(0)].clone();
        let field = shard(0).to_string();
        raw.hset::<_, _, _, ()>(key(name), &field, damaged).await.unwrap();
        let what = if name == "leases" { "a lease" } else { "a checkpoint" };
        let text = format!(
            "the Redis key {} does not hold {what} in field {field:?}; correct the field, or set the \
             shard's position with Consumer::set_position",
            key(name)
        );
        let case = format!("{name} {}", String::from_utf8_lossy(damaged));

        let mut unreadable = Lease::default();
        unreadable.unreadable = Some(text.as_str().into());
        let (membership, table) = exchange(&store, "a", every_change(&lease)).await;
        assert_eq!(membership, Membership::Renewed, "{case}: expected a renewal");
        assert_eq!(table.leases[&shard(0)], unreadable, "{case}");
        assert_eq!(table.leases[&shard(1)], before.leases[&shard(1)], "{case}");
        assert_eq!(store.table(&scope()).await.unwrap().leases, table.leases, "{case}");
        let position = |index| FencedCheckpoint::new(shard(index), lease.epoch, after(9));
        let mut positions = [position(0), position(1)];
        positions[1].epoch = before.leases[&shard(1)].epoch;
        let verdicts = store.save_positions(&scope(), &positions).await.unwrap();
        assert_eq!(verdicts, [SaveOutcome::Unreadable, SaveOutcome::Saved], "{case}");
        // The owner expires, and its leases are free.
        let (_, table) = exchange_with(&store, "a", Duration::ZERO, Vec::new()).await;
        assert_eq!(table.leases[&shard(0)], unreadable, "{case}");
        let (_, table) = exchange(&store, "b", vec![assign(0, "b"), assign(1, "b")]).await;
        assert_eq!(table.leases[&shard(0)], unreadable, "{case}");
        assert_eq!(table.leases[&shard(1)].owner.as_deref(), Some("b"), "{case}");
        assert_eq!(table.leases[&shard(1)].checkpoint, Some(after(9)), "{case}");
        let stored: Vec<u8> = raw.hget(key(name), &field).await.unwrap();
        assert_eq!(stored, damaged, "{case}: expected an unchanged field");

        let set = AdminEdit::Set { positions: vec![(shard(0), after(3))] };
        assert_eq!(
            store.edit(&scope(), &set, IfLeased::Refuse).await.unwrap(),
            EditOutcome::Applied,
            "{case}"
        );
        let corrected = store.table(&scope()).await.unwrap().leases[&shard(0)].clone();
        assert_eq!((corrected.unreadable, corrected.checkpoint), (None, Some(after(3))), "{case}");
        assert!(
            corrected.epoch > lease.epoch,
            "{case}: expected an epoch that fences the last owner"
        );
        let parents = (name == "checkpoints").then(|| vec![shard(9)]);
        assert_eq!(corrected.parents, parents, "{case}");
        let (_, table) = exchange(&store, "b", vec![add(0), assign(0, "b")]).await;
        let corrected = &table.leases[&shard(0)];
        assert_eq!(
            corrected.parents,
            Some(vec![shard(9)]),
            "{case}: expected the parents of the listing"
        );
        assert_eq!(corrected.owner.as_deref(), Some("b"), "{case}");
        assert_eq!(corrected.checkpoint, Some(after(3)), "{case}");
    }
}

#[tokio::test]
async fn damaged_worker_entry_keeps_its_leases_for_one_lease_duration() {
    let (_server, store, mut raw) = connected().await;
    let line = |line: &'static [u8]| line;
    let damaged = [
        line(b"1 2 3"),
        line(b"1 2 3 x 5"),
        line(b"1 2 3 4 99999999999"),
        line(b"99999999999999999999 2 3 4 5"),
        line(b"\xff"),
    ];
    for damaged in damaged {
        for is_alive in [true, false] {
            redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
            let epoch = two_leases(&store).await.leases[&shard(0)].epoch;
            raw.hset::<_, _, _, ()>(key("workers"), "a", damaged).await.unwrap();
            let lease_duration = Duration::from_millis(200);
            let (_, table) = exchange_with(&store, "b", lease_duration, vec![assign(0, "b")]).await;
            assert_eq!(
                table.leases[&shard(0)].owner.as_deref(),
                Some("a"),
                "expected the worker to keep its lease while it may renew"
            );
            assert_eq!(table.workers["a"].capacity, 0, "expected no capacity for other shards");
            if is_alive {
                let (membership, table) = exchange(&store, "a", Vec::new()).await;
                assert_eq!(membership, Membership::Renewed);
                assert_eq!(table.workers["a"].incarnation, 7);
                assert_eq!(table.leases[&shard(0)].epoch, epoch, "expected an unchanged epoch");
            }
            tokio::time::sleep(2 * lease_duration).await;
            let (_, table) = exchange_with(&store, "c", lease_duration, vec![assign(0, "c")]).await;
            let owner = if is_alive { "a" } else { "c" };
            assert_eq!(table.leases[&shard(0)].owner.as_deref(), Some(owner));
        }
    }
}

#[tokio::test]
async fn lease_of_unknown_worker_is_free_after_one_lease_duration() {
    let (_server, store, mut raw) = connected().await;
    two_leases(&store).await;
    raw.del::<_, ()>(key("workers")).await.unwrap();
    let lease_duration = Duration::from_millis(200);
    let (_, table) = exchange_with(&store, "b", lease_duration, vec![assign(0, "b")]).await;
    assert_eq!(
        table.leases[&shard(0)].owner.as_deref(),
        Some("a"),
        "expected the worker to keep its lease while it may renew"
    );
    assert!(table.workers.contains_key("a"), "expected the owner in the table");
    tokio::time::sleep(2 * lease_duration).await;
    let (_, table) = exchange_with(&store, "c", lease_duration, vec![assign(0, "c")]).await;
    assert_eq!(table.leases[&shard(0)].owner.as_deref(), Some("c"));
}

#[tokio::test]
async fn damaged_number_starts_new_generation() {
    let (_server, store, mut raw) = connected().await;
    for (field, damaged) in [("generation", "now"), ("version", "1e3"), ("cleared", "-1")] {
        redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
        let before = two_leases(&store).await;
        raw.hset::<_, _, _, ()>(key("fleet"), field, damaged).await.unwrap();
        assert_eq!(store.table(&scope()).await.unwrap().leases, before.leases, "{field}");
        let (membership, table) = exchange(&store, "a", Vec::new()).await;
        assert_eq!(membership, Membership::Renewed, "{field}");
        assert!(
            table.generation > before.generation,
            "{field}: expected a new generation, in which workers restore their leases"
        );
        assert!(table.version > before.version, "{field}");
        assert_eq!(table.leases, before.leases, "{field}");
    }
}

#[tokio::test]
async fn field_without_shard_id_is_left_unchanged() {
    let (_server, store, mut raw) = connected().await;
    let before = two_leases(&store).await;
    for name in ["leases", "checkpoints"] {
        let field: &[u8] = b"no shard \xff";
        raw.hset::<_, _, _, ()>(key(name), field, "1").await.unwrap();
        let (_, table) = exchange(&store, "a", Vec::new()).await;
        assert_eq!(table.leases, before.leases);
        assert_eq!(raw.hget::<_, _, String>(key(name), field).await.unwrap(), "1");
    }
    let store: Arc<dyn CheckpointStore> = Arc::new(store);
    assert_eq!(store.load(&scope()).await.unwrap().len(), 2);
    raw.hset::<_, _, _, ()>(key("checkpoints"), shard(0).as_str(), "1").await.unwrap();
    let error = store.load(&scope()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
}
