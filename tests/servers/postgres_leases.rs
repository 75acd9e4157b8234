//! Tests of the store of `examples/postgres_store.rs` against a real server.

use std::sync::Arc;
use std::time::Duration;

use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, Heartbeats, LeaseStore, Renewal, Step,
};
use kinestream::store::{CheckpointStore, Leased, Scope, conformance};
use kinestream::{Error, ErrorKind};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

use crate::alike;
use crate::postgres::{PostgresStore, two_workers};
use crate::postgres_server::{self, PostgresServer};
use crate::proxy::{Mode, Proxy};
use crate::redis_store::shard;

/// The entry of a worker.
const WORKER: &str = "7 1 10000 3";

/// A lease duration that does not end during a test.
const LONG: Duration = Duration::from_mins(10);

async fn connected() -> (PostgresServer, PostgresStore) {
    let server = PostgresServer::start();
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    (server, store)
}

/// Connects another client.
async fn raw(server: &PostgresServer) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn scope() -> Scope {
    Scope::new("billing", "orders")
}

/// Returns a request that changes entries to these texts.
fn request<'a>(
    known: Option<u64>,
    changes: impl IntoIterator<Item = (EntryKey, Option<&'a str>, Option<&'a str>)>,
) -> Exchange {
    let mut step = Step::default();
    for (key, expected, text) in changes {
        let change = EntryChange::new(key, expected.map(Into::into), text.map(Into::into));
        step.entries.push(change);
    }
    let mut exchange = Exchange::default();
    exchange.known = known;
    exchange.step = (!step.entries.is_empty()).then_some(step);
    exchange
}

fn lease(index: u32) -> EntryKey {
    EntryKey::Lease(shard(index))
}

async fn made(store: &PostgresStore, exchange: Exchange) -> Exchanged {
    let answer = store.exchange(&scope(), &exchange).await.unwrap();
    assert!(answer.is_made, "{answer:?}");
    answer
}

#[tokio::test]
async fn postgres_store_conforms() {
    let (_server, store) = connected().await;
    conformance::check_leases(&store).await;
    let store: Arc<dyn CheckpointStore> = Arc::new(Leased::new(store));
    conformance::check(&store).await;
    assert!(store.leases().is_some());
}

#[test]
fn postgres_store_answers_like_memory_store() {
    let server = PostgresServer::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(PostgresStore::connect(&server.url())).unwrap();
    alike::answers_like_memory_store(&runtime, &store, 100);
}

#[tokio::test]
async fn two_workers_of_the_example_share_a_stream() {
    let (_server, store) = connected().await;
    two_workers::read(Leased::new(store)).await.unwrap();
}

#[tokio::test]
async fn restored_backup_is_returned_as_a_whole_under_later_versions() {
    let (server, store) = connected().await;
    let raw = raw(&server).await;
    let old = made(&store, request(None, [(lease(0), None, Some("1 a"))])).await.version;
    raw.batch_execute("CREATE TABLE backup AS SELECT * FROM kinestream").await.unwrap();
    let lost = made(&store, request(Some(old), [(lease(1), None, Some("2 a"))])).await.version;
    let restore = "DELETE FROM kinestream; INSERT INTO kinestream SELECT * FROM backup";
    raw.batch_execute(restore).await.unwrap();

    let answer = made(&store, request(Some(lost), [])).await;
    assert!(answer.is_whole, "expected the whole table, since version {lost} is lost");
    assert_eq!(answer.version, old);
    let later = made(&store, request(None, [(lease(2), None, Some("3 a"))])).await.version;
    assert!(later > lost, "expected a version later than the lost {lost}, got {later}");
    let answer = made(&store, request(Some(lost), [])).await;
    assert!(answer.is_whole, "expected the whole table after another step too");
    assert!(answer.entries.iter().all(|(key, _)| *key != lease(1)), "{answer:?}");
    let answer = made(&store, request(Some(old), [])).await;
    assert!(!answer.is_whole, "expected the changes since a version that was restored");
    assert_eq!(answer.entries, [(lease(2), Some("3 a".into()))]);
}

#[tokio::test]
async fn deleted_entries_are_forgotten_after_ten_minutes() {
    let (server, store) = connected().await;
    let raw = raw(&server).await;
    let rows = async || -> i64 {
        raw.query_one("SELECT count(*) FROM kinestream", &[]).await.unwrap().get(0)
    };
    let first = made(&store, request(None, [(lease(0), None, Some("1 a"))])).await.version;
    made(&store, request(None, [(lease(0), Some("1 a"), None)])).await;
    assert_eq!(rows().await, 3, "expected two steps and a deleted lease");
    let age = "UPDATE kinestream SET version = version - 600 * 1000000";
    raw.batch_execute(age).await.unwrap();
    let answer = made(&store, request(Some(first - 600_000_000), [])).await;
    assert_eq!(answer.entries, [(lease(0), None)]);
    made(&store, request(None, [(lease(1), None, Some("2 a"))])).await;
    assert_eq!(rows().await, 2, "expected one step and one lease");
    let answer = made(&store, request(Some(first - 600_000_000), [])).await;
    assert!(answer.is_whole, "expected the whole table after deleted entries were forgotten");
}

#[tokio::test]
async fn clock_set_back_expires_no_worker_and_version_still_rises() {
    let (server, store) = connected().await;
    let raw = raw(&server).await;
    let worker = EntryKey::Worker("a".into());
    let mut join = request(None, [(worker, None, Some(WORKER))]);
    let renewal = |duration| Renewal::new("a", WORKER, duration);
    let expired = |answer: &Exchanged| match &answer.heartbeats {
        Heartbeats::Expired(expired) => expired.len(),
        heartbeats => panic!("expected the expired workers, got {heartbeats:?}"),
    };
    join.renewals.push(renewal(Duration::from_secs(1)));
    let version = made(&store, join).await.version;
    let set_back = "CREATE OR REPLACE FUNCTION kinestream_now() RETURNS bigint LANGUAGE sql AS
        'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - 3600000000'";
    raw.batch_execute(set_back).await.unwrap();
    let answer = made(&store, request(Some(version), [])).await;
    assert_eq!(expired(&answer), 0, "expected the worker to live on");
    let later = made(&store, request(None, [(lease(0), None, Some("1 a"))])).await.version;
    assert_eq!(later, version + 1);
    sleep(Duration::from_millis(1100)).await;
    let answer = made(&store, request(Some(later), [])).await;
    assert_eq!(expired(&answer), 1, "expected the worker to expire after its lease duration");
}

/// Returns the number of sessions in a transaction, apart from that of the client.
async fn open_transactions(raw: &Client) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity
        WHERE xact_start IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    raw.query_one(count, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn dropped_call_leaves_no_transaction_open() {
    let (server, store) = connected().await;
    let mut raw_lock = raw(&server).await;
    let raw = raw(&server).await;
    let held = raw_lock.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE kinestream IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for index in 0..20 {
        let add = request(None, [(lease(index), None, Some("1 a"))]);
        let scope = scope();
        let dropped = timeout(Duration::from_millis(20), store.exchange(&scope, &add)).await;
        assert!(dropped.is_err(), "expected the call to wait for the lock");
    }
    held.commit().await.unwrap();
    // Each of these waits until a connection has finished its dropped call.
    let calls = (0..8).map(|_| made(&store, request(None, [])));
    futures::future::join_all(calls).await;
    assert_eq!(open_transactions(&raw).await, 0, "expected no open transaction");
}

#[tokio::test]
async fn suspended_client_in_a_transaction_delays_others_by_a_second() {
    let (server, store) = connected().await;
    let proxy = Proxy::start(server.port()).await;
    let suspended = PostgresStore::connect(&postgres_server::url(proxy.port())).await.unwrap();
    made(&store, request(None, [(lease(0), None, Some("1 a"))])).await;
    // Delays every answer, so that the bytes are dropped while the transaction holds its locks.
    proxy.set_mode(Mode::Delay(Duration::from_millis(200)));
    let raw = raw(&server).await;
    let step = tokio::spawn(async move {
        let change = request(None, [(lease(0), Some("1 a"), Some("2 a"))]);
        suspended.exchange(&scope(), &change).await
    });
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    let holds_lock = async {
        while raw.query_one(locks, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), holds_lock).await.expect("expected the step to hold the lock");
    proxy.set_mode(Mode::Swallow);
    let began = tokio::time::Instant::now();
    let other = request(None, [(lease(1), None, Some("1 b"))]);
    let made = timeout(Duration::from_secs(3), made(&store, other)).await;
    assert!(made.is_ok(), "expected a step within 3 s, waited {:?}", began.elapsed());
    step.abort();
}

#[tokio::test]
async fn lost_connections_are_replaced() {
    let (mut server, store) = connected().await;
    let proxy = Proxy::start(server.port()).await;
    let behind = PostgresStore::connect(&postgres_server::url(proxy.port())).await.unwrap();
    let version = made(&behind, request(None, [(lease(0), None, Some("1 a"))])).await.version;
    for lose in [Proxy::cut, Proxy::freeze] {
        lose(&proxy);
        let answer = timeout(Duration::from_secs(3), made(&behind, request(None, []))).await;
        assert_eq!(answer.expect("expected another connection").version, version);
    }
    server.kill();
    let error = store.exchange(&scope(), &Exchange::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    server.restart();
    assert_eq!(made(&store, request(None, [])).await.version, version);
}

#[tokio::test]
async fn refused_statement_is_reported_with_its_reason() {
    let (server, store) = connected().await;
    let raw = raw(&server).await;
    let error =
        async || -> Error { store.exchange(&scope(), &Exchange::default()).await.unwrap_err() };
    raw.batch_execute("DROP TABLE kinestream").await.unwrap();
    let missing = error().await;
    assert_eq!(missing.kind(), ErrorKind::Configuration, "{missing}");
    assert!(missing.to_string().contains("relation \"kinestream\" does not exist"), "{missing}");
    let other = PostgresStore::connect(&format!("{}x", server.url())).await.unwrap_err();
    assert!(other.to_string().contains("database \"postgresx\" does not exist"), "{other}");
}

#[tokio::test]
async fn renewal_waits_for_no_step() {
    let (server, store) = connected().await;
    let mut raw = raw(&server).await;
    let worker = EntryKey::Worker("a".into());
    let version = made(&store, request(None, [(worker, None, Some(WORKER))])).await.version;
    let step = raw.transaction().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('{billing,orders}', 0))";
    step.batch_execute(lock).await.unwrap();
    let mut renew = request(Some(version), []);
    renew.renewals.push(Renewal::new("a", WORKER, LONG));
    let renewed = timeout(Duration::from_secs(2), made(&store, renew)).await;
    assert!(renewed.is_ok(), "expected a renewal during a step of another worker");
}
