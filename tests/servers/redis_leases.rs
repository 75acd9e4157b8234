//! Tests of the leases in `RedisStore` against a real server.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use kinestream::store::lease::{
    AdminEdit, Change, EditOutcome, FencedCheckpoint, HeartbeatRequest, IfLeased, LeaseTable,
    Membership, SaveOutcome, WorkerEntry, WorkerLoad,
};
use kinestream::store::{CheckpointStore, conformance};
use kinestream::{Checkpoint, Error, ErrorKind, RedisStore};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::alike;
use crate::lease_access::LeaseAccess;
use crate::redis_server::RedisServer;
use crate::redis_store::{after, raw, scope, shard, whole_text};

const PREFIX: &str = "kinestream:{billing:orders}";

fn key(name: &str) -> String {
    format!("{PREFIX}:{name}")
}

async fn connected() -> (RedisServer, RedisStore, MultiplexedConnection) {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let raw = raw(&server).await;
    (server, store, raw)
}

/// Returns a request of the worker that knows the table `known`.
fn request(worker: &str, known: &LeaseTable, changes: Vec<Change>) -> HeartbeatRequest {
    let mut request = HeartbeatRequest::new(worker, u64::MAX, Duration::from_secs(10));
    request.capacity = 7;
    request.known = Some((known.generation, known.version));
    request.changes = changes;
    request
}

/// Requests these changes, and returns the resulting table.
async fn changed(store: &RedisStore, known: &LeaseTable, changes: Vec<Change>) -> LeaseTable {
    let answer = store.heartbeat(&scope(), &request("a", known, changes)).await.unwrap();
    answer.table.map_or_else(|| known.clone(), |table| LeaseTable::clone(&table))
}

fn add(index: u32) -> Change {
    Change::Add { shard: shard(index), parents: Vec::new(), start: None, checkpoint: None }
}

fn assign(index: u32) -> Change {
    Change::Assign { shard: shard(index), to: "a".into() }
}

#[tokio::test]
async fn redis_store_conforms_as_lease_store() {
    let (_server, store, _raw) = connected().await;
    conformance::check_leases(&store).await;
    let store: Arc<dyn CheckpointStore> = Arc::new(store);
    assert!(store.leases().is_some());
}

#[test]
fn scripts_answer_like_memory_store() {
    let server = RedisServer::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(RedisStore::connect(&server.url())).unwrap();
    alike::answers_like_memory_store(&runtime, &store, 500);
}

#[tokio::test]
async fn lease_keys_are_laid_out_as_documented() {
    let (_server, store, mut raw) = connected().await;
    let parents = vec![shard(7), shard(8)];
    let checkpoint = Some(Checkpoint::TrimHorizon);
    let child = Change::Add { shard: shard(1), parents, start: None, checkpoint };
    let mut b = WorkerEntry::new(1, 2, Duration::from_secs(3));
    b.capacity = 4;
    b.size = NonZeroU32::new(150);
    b.load = Some(WorkerLoad::of([(shard(0), 12)]));
    let table = changed(
        &store,
        &LeaseTable::default(),
        vec![
            add(0),
            child,
            assign(0),
            Change::MarkExpired { shard: shard(1) },
            Change::ReviveWorker { worker: "b c".into(), member: b },
            Change::Offer { shard: shard(0), to: "b c".into() },
        ],
    )
    .await;
    let mut keys: Vec<String> = raw.keys("*").await.unwrap();
    keys.sort();
    let names = ["checkpoints", "fleet", "format", "leases", "steps", "workers"];
    assert_eq!(keys, names.map(key));
    assert_eq!(raw.get::<_, String>(key("format")).await.unwrap(), "1");

    let LeaseTable { generation, version, .. } = table;
    let added = |index| table.leases[&shard(index)].added.unwrap();
    let lease: String = raw.hget(key("leases"), shard(0).as_str()).await.unwrap();
    let (epoch, when) = (table.leases[&shard(0)].epoch, added(0));
    assert_eq!(lease, format!("{epoch} a b%20c {generation} - - - - {when}"));
    let lease: String = raw.hget(key("leases"), shard(1).as_str()).await.unwrap();
    let (left, right, added) = (shard(7), shard(8), added(1));
    assert_eq!(lease, format!("0 - - {generation} {left},{right} LOST - - {added}"));
    let worker: String = raw.hget(key("workers"), "a").await.unwrap();
    let joined = table.workers["a"].joined;
    assert!(worker.starts_with(&format!("{} {joined} 10000 ", u64::MAX)), "{worker}");
    assert!(worker.ends_with(" 7 - -"), "{worker}");
    let worker: String = raw.hget(key("workers"), "b%20c").await.unwrap();
    assert!(
        worker.starts_with("1 2 3000 ") && worker.ends_with(&format!(" 4 150 0:0,{}:12", shard(0))),
        "{worker}"
    );
    let fields = ["generation", "version", "cleared", "keys"];
    let fleet: Vec<String> = raw.hmget(key("fleet"), &fields).await.unwrap();
    let keys = "format checkpoints leases workers";
    assert_eq!(fleet, [&*generation.to_string(), &*version.to_string(), "0", keys]);

    assert_eq!(
        store.edit(&scope(), &AdminEdit::Clear, IfLeased::Force).await.unwrap(),
        EditOutcome::Applied
    );
    let mut keys: Vec<String> = raw.keys("*").await.unwrap();
    keys.sort();
    assert_eq!(
        keys,
        ["fleet", "format", "steps"].map(key),
        "expected clearing to keep the fleet, the format and the steps"
    );
}

/// Returns the server's INFO, which counts the calls of each command, and the number of sent bytes.
async fn statistics(raw: &mut MultiplexedConnection) -> (String, u64) {
    let all: String = redis::cmd("INFO").arg("all").query_async(raw).await.unwrap();
    let sent = all.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    (all.clone(), sent.unwrap().trim().parse().unwrap())
}

#[tokio::test]
async fn unchanged_exchange_is_one_command_that_reads_no_shard() {
    let (_server, store, mut raw) = connected().await;
    let all = (0..1000).flat_map(|index| [add(index), assign(index)]).collect();
    let table = changed(&store, &LeaseTable::default(), all).await;
    assert_eq!(table.leases.len(), 1000);
    let epoch = table.leases[&shard(0)].epoch;
    let position = FencedCheckpoint::new(shard(0), epoch, after(1));
    let leases = store.leases_of(&scope());
    leases.save_fenced(&[position]).await.unwrap();
    leases.exchange(&request("a", &table, Vec::new())).await.unwrap();
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut raw).await.unwrap();
    let (_, before) = statistics(&mut raw).await;
    let (_, between) = statistics(&mut raw).await;
    let answer = leases.exchange(&request("a", &table, Vec::new())).await.unwrap();
    assert_eq!((answer.membership, answer.table), (Membership::Renewed, None));
    let (counts, after) = statistics(&mut raw).await;
    let calls = |command: &str| {
        let line = format!("cmdstat_{command}:calls=");
        let count = counts.lines().find_map(|text| text.strip_prefix(&*line));
        count.map_or(0, |count| count.split(',').next().unwrap().parse::<u32>().unwrap())
    };
    assert_eq!((calls("evalsha"), calls("eval")), (1, 0), "{counts}");
    // Expected: a read of the fleet and of the workers, and one write of a worker.
    assert_eq!((calls("hgetall"), calls("hmget"), calls("hget")), (2, 0, 0), "{counts}");
    assert_eq!((calls("hset"), calls("set"), calls("get")), (1, 0, 0), "{counts}");
    assert_eq!((calls("exists"), calls("time")), (1, 1), "{counts}");
    // The size of an INFO response hardly changes, so it can be subtracted.
    let answered = (after - between).saturating_sub(between - before);
    assert!(answered < 2000, "expected a response below 2000 bytes, got {answered}");
}

/// Renews, and returns the worker's table if it differs from the known one.
async fn renewed(store: &RedisStore, worker: &str, known: &LeaseTable) -> Option<LeaseTable> {
    let answer = store.heartbeat(&scope(), &request(worker, known, Vec::new())).await.unwrap();
    answer.table.map(|table| LeaseTable::clone(&table))
}

#[tokio::test]
async fn lost_key_is_seen_by_every_worker() {
    let (_server, store, mut raw) = connected().await;
    let names = ["format", "checkpoints", "leases", "workers", "fleet"];
    for name in names {
        for saves_first in [false, true] {
            raw.flushdb::<()>().await.unwrap();
            renewed(&store, "b", &LeaseTable::default()).await;
            let known =
                changed(&store, &LeaseTable::default(), vec![add(0), assign(0), add(1)]).await;
            let epoch = known.leases[&shard(0)].epoch;
            let position = |number| FencedCheckpoint::new(shard(0), epoch, after(number));
            store.save_positions(&scope(), &[position(1)]).await.unwrap();
            for worker in ["a", "b"] {
                assert_eq!(renewed(&store, worker, &known).await, None, "expected no change");
            }
            raw.del::<_, ()>(key(name)).await.unwrap();
            if saves_first {
                // The save may create the key again before the next renewal.
                store.save_positions(&scope(), &[position(2)]).await.unwrap();
            }
            for worker in ["a", "b"] {
                let seen = renewed(&store, worker, &known).await;
                let seen =
                    seen.unwrap_or_else(|| panic!("expected {worker} to see the loss of {name}"));
                assert!(seen.generation > known.generation, "{name}");
                assert_eq!(seen.cleared, known.cleared);
            }
            let there = renewed(&store, "a", &LeaseTable::default()).await.unwrap();
            let again = [renewed(&store, "a", &there).await, renewed(&store, "b", &there).await];
            assert_eq!(again, [None, None], "{name}: expected the loss to be reported once");
        }
    }
}

#[tokio::test]
async fn lost_checkpoints_drop_their_leases() {
    let (_server, store, mut raw) = connected().await;
    let known = changed(&store, &LeaseTable::default(), vec![add(0), assign(0), add(1)]).await;
    let epoch = known.leases[&shard(0)].epoch;
    let position = FencedCheckpoint::new(shard(0), epoch, after(1));
    store.save_positions(&scope(), std::slice::from_ref(&position)).await.unwrap();
    raw.del::<_, ()>(key("checkpoints")).await.unwrap();
    // A new worker finds no leases, rather than leases without a checkpoint, which it would read
    // from the start.
    let seen = renewed(&store, "new", &LeaseTable::default()).await.unwrap();
    assert!(seen.leases.is_empty(), "{seen:?}");
    assert_eq!(
        store.save_positions(&scope(), &[position]).await.unwrap(),
        [SaveOutcome::Forgotten]
    );
}

#[tokio::test]
async fn server_without_data_starts_new_table() {
    let mut server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let known = changed(&store, &LeaseTable::default(), vec![add(0), assign(0)]).await;
    let lease = known.leases[&shard(0)].clone();
    server.kill();
    server.restart();
    let answer = loop {
        match store.heartbeat(&scope(), &request("a", &known, Vec::new())).await {
            Ok(answer) => break answer,
            Err(error) => assert!(error.is_temporary(), "{}", whole_text(&error)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(answer.membership, Membership::Joined);
    let table = answer.table.unwrap();
    assert!(table.generation > known.generation && table.version > known.version, "{table:?}");
    assert!(table.leases.is_empty());
    let position = FencedCheckpoint::new(shard(0), lease.epoch, after(1));
    let verdicts = store.save_positions(&scope(), &[position]).await.unwrap();
    assert_eq!(verdicts, [SaveOutcome::Forgotten]);
    let restored = Change::Restore {
        shard: shard(0),
        incarnation: request("a", &table, Vec::new()).incarnation,
        lease: lease.clone(),
    };
    let table = changed(&store, &table, vec![restored]).await;
    let mut expected = lease;
    expected.checkpoint = Some(after(1));
    assert_eq!(table.leases[&shard(0)], expected);
}

#[tokio::test]
async fn flushed_scripts_are_sent_again() {
    let (_server, store, mut raw) = connected().await;
    let mut flush = async || {
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw).await.unwrap();
    };
    changed(&store, &LeaseTable::default(), vec![add(0)]).await;
    flush().await;
    let table = changed(&store, &LeaseTable::default(), vec![assign(0)]).await;
    flush().await;
    let epoch = table.leases[&shard(0)].epoch;
    let position = FencedCheckpoint::new(shard(0), epoch, after(1));
    assert_eq!(store.save_positions(&scope(), &[position]).await.unwrap(), [SaveOutcome::Saved]);
    flush().await;
    assert_eq!(store.table(&scope()).await.unwrap().leases[&shard(0)].epoch, epoch);
    flush().await;
    let outcome = store.edit(&scope(), &AdminEdit::Clear, IfLeased::Refuse).await.unwrap();
    assert_eq!(outcome, EditOutcome::Refused { worker: "a".into() });
}

#[tokio::test]
async fn clock_set_back_shortens_lease_and_version_still_rises() {
    let (_server, store, mut raw) = connected().await;
    changed(&store, &LeaseTable::default(), Vec::new()).await;
    // Stores the values that a clock one hour ahead would have produced.
    let line: String = raw.hget(key("workers"), "a").await.unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let expiry: u64 = words[3].parse().unwrap();
    let ahead = (expiry + 3_600_000).to_string();
    let line = [words[0], words[1], "100", &ahead, words[4]].join(" ");
    raw.hset::<_, _, _, ()>(key("workers"), "a", line).await.unwrap();
    let known = LeaseTable::default();
    let version: u64 = raw.hget(key("fleet"), "version").await.unwrap();
    let version = version + 3_600_000_000;
    raw.hset::<_, _, _, ()>(key("fleet"), "version", version).await.unwrap();
    let answer = store.heartbeat(&scope(), &request("b", &known, Vec::new())).await.unwrap();
    assert_eq!(answer.table.unwrap().version, version + 1);
    let line: String = raw.hget(key("workers"), "a").await.unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let shortened: u64 = words[3].parse().unwrap();
    assert!(shortened < expiry, "{line}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answer = store.heartbeat(&scope(), &request("b", &known, Vec::new())).await.unwrap();
    assert_eq!(answer.table.unwrap().workers.keys().map(|name| &**name).collect::<Vec<_>>(), ["b"]);
}

async fn keys_of(raw: &mut MultiplexedConnection) -> usize {
    raw.keys::<_, Vec<String>>("*").await.unwrap().len()
}

/// Calls each operation of the store, and returns the error texts, or `done` for a success.
async fn refusals(store: &RedisStore) -> Vec<String> {
    let known = LeaseTable::default();
    let text = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::StoreCorrupt, "{}", whole_text(&error));
        assert!(!error.is_temporary());
        error.to_string()
    };
    let position = FencedCheckpoint::new(shard(0), 1 << 60, after(9));
    let set = AdminEdit::Set { positions: vec![(shard(0), after(9))] };
    vec![
        store.heartbeat(&scope(), &request("a", &known, vec![add(5)])).await.err().map(text),
        store.save_positions(&scope(), &[position]).await.err().map(text),
        store.table(&scope()).await.err().map(text),
        store.edit(&scope(), &set, IfLeased::Force).await.err().map(text),
    ]
    .into_iter()
    .map(|refused| refused.unwrap_or_else(|| "done".to_owned()))
    .collect()
}

#[tokio::test]
async fn foreign_key_is_an_error_and_stays_unchanged() {
    let (_server, store, mut raw) = connected().await;
    let others = [
        ("checkpoints", "checkpoints"),
        ("leases", "leases"),
        ("workers", "workers"),
        ("fleet", "the numbers of a table"),
    ];
    for (name, what) in others {
        redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
        raw.set::<_, _, ()>(key(name), "a string").await.unwrap();
        let expected = format!(
            "the Redis key {} does not hold {what}; delete it if it is a leftover, or use another \
             application",
            key(name)
        );
        let refused = refusals(&store).await;
        let seen = refused.iter().filter(|refused| **refused == expected).count();
        assert_eq!(seen, 4, "{name}: {refused:?}");
        assert_eq!(raw.get::<_, String>(key(name)).await.unwrap(), "a string");
    }

    redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
    raw.set::<_, _, ()>(key("format"), "2").await.unwrap();
    let expected = format!("the Redis key {} has format \"2\"", key("format"));
    for refused in refusals(&store).await {
        assert!(refused.starts_with(&expected), "{refused}");
    }
    assert_eq!(keys_of(&mut raw).await, 1, "expected no new key");

    // A table in use states its format twice, and so does another version that changes it.
    redis::cmd("FLUSHALL").exec_async(&mut raw).await.unwrap();
    changed(&store, &LeaseTable::default(), vec![add(5)]).await;
    assert_eq!(raw.hget::<_, _, String>(key("fleet"), "format").await.unwrap(), "1");
    raw.set::<_, _, ()>(key("format"), "2").await.unwrap();
    raw.hset::<_, _, _, ()>(key("fleet"), "format", "2").await.unwrap();
    for refused in refusals(&store).await {
        assert!(refused.starts_with(&expected), "{refused}");
    }
}
