//! A store with leases in PostgreSQL 14 or newer, and two workers that share a stream through it.
//!
//!     cargo run --features testing --example postgres_store -- postgres://user:password@host/database

#[path = "support/two_workers.rs"]
pub(crate) mod two_workers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Client, GenericClient, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Transaction,
};
use futures::future::{BoxFuture, FutureExt};
use kinestream::store::lease::{
    EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats, LastHeartbeat, Renewal,
};
use kinestream::store::{LeaseStore, Leased, Scope, lease::Step};
use kinestream::{Error, ErrorKind, Result};
use tokio_postgres::{Config, NoTls, Row, error::DbError, types::ToSql};

/// A row is an entry with its last version and the heartbeat of a worker, or a step. Deleted entries
/// and steps have no content, and stay for ten minutes. Times are microseconds of PostgreSQL's clock.
const TABLE: &str = "
SELECT pg_advisory_xact_lock(hashtextextended('kinestream', 0));
CREATE OR REPLACE FUNCTION kinestream_now() RETURNS bigint VOLATILE LANGUAGE sql AS
    'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint';
CREATE TABLE IF NOT EXISTS kinestream (scope text[], kind text, name text, content text,
    version bigint NOT NULL, expiry bigint, lease_duration bigint, PRIMARY KEY (scope, kind, name));
CREATE INDEX IF NOT EXISTS kinestream_version ON kinestream (scope, version)";

/// The steps of a table run one after another, so that their versions appear in order.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1::text[]::text, 0))";

/// The time, the version, and whether the table has had the version `$2`: a table that was restored
/// from a backup has lost its last steps.
const VERSION: &str = "
SELECT kinestream_now(), version, coalesce(version = $2 OR EXISTS (SELECT FROM kinestream
    WHERE scope = $1 AND version = $2 AND kind = 'step'), false)
FROM (SELECT coalesce(max(version), 0) AS version FROM kinestream WHERE scope = $1) AS present";

/// After the clock was set back, a worker expires at most one lease duration later.
const EXPIRED: &str = "
WITH corrected AS (UPDATE kinestream SET expiry = kinestream_now() + lease_duration
    WHERE scope = $1 AND kind = 'worker' AND expiry > kinestream_now() + lease_duration)
SELECT name, coalesce(expiry::text, '') FROM kinestream WHERE scope = $1 AND kind = 'worker'
    AND content IS NOT NULL AND (expiry IS NULL OR expiry <= kinestream_now())";

const RENEW: &str = "
UPDATE kinestream SET expiry = kinestream_now() + $4, lease_duration = $4
WHERE scope = $1 AND kind = 'worker' AND name = $2 AND content = $3";

/// The entries that have changed since the version `$2`, and the positions of changed leases.
const CHANGED: &str = "
WITH changed AS (SELECT kind, name FROM kinestream
    WHERE scope = $1 AND version > $2 AND (content IS NOT NULL OR $2 >= 0))
SELECT kind, name, content, '' FROM kinestream WHERE scope = $1 AND (kind, name) IN
    (SELECT * FROM changed UNION SELECT 'position', name FROM changed WHERE kind = 'lease')";

/// Locks entries, each position with its lease, in one order for all calls.
const READ: &str = "
WITH read AS (SELECT * FROM unnest($2::text[], $3::text[]) AS read (kind, name))
SELECT kind, name, content, coalesce(expiry::text, '') FROM kinestream WHERE scope = $1
    AND (kind, name) IN (SELECT * FROM read UNION SELECT 'lease', name FROM read WHERE kind = 'position')
ORDER BY kind, name FOR UPDATE";

const WRITE: &str = "
INSERT INTO kinestream AS stored (scope, kind, name, content, version)
SELECT $1, kind, name, content, coalesce($5::bigint, 0)
FROM unnest($2::text[], $3::text[], $4::text[]) AS new (kind, name, content)
ON CONFLICT (scope, kind, name) DO UPDATE
SET content = excluded.content, version = coalesce($5, stored.version),
    expiry = CASE WHEN excluded.content IS NOT NULL THEN stored.expiry END";

const FORGET: &str = "
DELETE FROM kinestream WHERE scope = $1 AND content IS NULL AND version < $2::bigint - 600000000";

/// Keeps leases and positions in PostgreSQL.
#[derive(Debug, Clone)]
pub(crate) struct PostgresStore(Pool);

impl PostgresStore {
    /// Connects to a database, and creates the table. Across a network, replace `NoTls`.
    pub(crate) async fn connect(url: &str) -> std::result::Result<Self, two_workers::Failure> {
        let mut config: Config = url.parse()?;
        // A worker that is suspended in a transaction, or is gone, keeps its locks for one second.
        let limits = "-c statement_timeout=5s -c idle_in_transaction_session_timeout=1s \
             -c client_connection_check_interval=1s -c default_transaction_isolation=read\\ committed";
        config.options(limits);
        // A dropped call may leave a connection that hangs. A check replaces it.
        let verified = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let [connect, check] = [1000, 500].map(|millis| Some(Duration::from_millis(millis)));
        let pool = Pool::builder(Manager::from_config(config, NoTls, verified)).max_size(8);
        let pool = pool.create_timeout(connect).recycle_timeout(check);
        let store = Self(pool.runtime(deadpool_postgres::Runtime::Tokio1).build()?);
        store.0.get().await.map_err(failure)?.batch_execute(TABLE).await.map_err(failure)?;
        Ok(store)
    }
}

impl LeaseStore for PostgresStore {
    fn exchange<'a>(&'a self, scope: &'a Scope, exchange: &'a Exchange) -> Call<'a, Exchanged> {
        limited(async move {
            let mut client = self.0.get().await.map_err(failure)?;
            let expired = query(&client, EXPIRED, scope, &[]).await?;
            let last = |row: &Row| LastHeartbeat::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
            let heartbeats = Heartbeats::Expired(expired.iter().map(last).collect());
            let refused = make(&mut client, scope, exchange.step.as_ref()).await?;
            for Renewal { worker, entry, lease_duration, .. } in &exchange.renewals {
                let micros = i64::try_from(lease_duration.as_micros().min(1 << 60)).unwrap_or(0);
                query(&client, RENEW, scope, &[&&**worker, &&**entry, &micros]).await?;
            }
            let known = exchange.known.and_then(|known| i64::try_from(known).ok());
            let row = query(&client, VERSION, scope, &[&known]).await?.remove(0);
            let known = known.filter(|_| row.get(2));
            let changed = query(&client, CHANGED, scope, &[&known.unwrap_or(-1)]).await?;
            let mut answer = Exchanged::new(row.get::<_, i64>(1).unsigned_abs(), heartbeats);
            (answer.is_made, answer.is_whole) = (refused.is_none(), known.is_none());
            answer.time = Some(Duration::from_micros(row.get::<_, i64>(0).unsigned_abs()));
            // What was read last counts. The whole table shows a refused step's entries anyway.
            let mut shown = refused.filter(|_| known.is_some()).unwrap_or_default();
            shown.extend(entries(&changed));
            answer.entries = shown.into_iter().map(|(key, (text, _))| (key, text)).collect();
            Ok(answer)
        })
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> Call<'a, Vec<FencedOutcome>> {
        limited(async move {
            let mut client = self.0.get().await.map_err(failure)?;
            let transaction = client.transaction().await.map_err(failure)?;
            let keys = saves.iter().map(|save| EntryKey::Position(save.shard.clone()));
            let mut stored = read(&transaction, scope, keys.collect()).await?;
            let (mut outcomes, mut rows) = (Vec::new(), Vec::new());
            for save in saves {
                let keys = [EntryKey::Lease, EntryKey::Position].map(|key| key(save.shard.clone()));
                let [lease, position] = keys.map(|key| stored.remove(&key)?.0);
                let is_saved = save.is_met(lease.as_deref(), position.as_deref());
                let position = if is_saved { Some(save.text.clone()) } else { position };
                let change = (("position", save.shard.as_str()), Some(&*save.text));
                rows.extend(is_saved.then_some(change));
                outcomes.push(FencedOutcome::new(is_saved, lease, position));
            }
            write(transaction, scope, None, rows).await?;
            Ok(outcomes)
        })
    }
}

type Call<'a, T> = BoxFuture<'a, Result<T>>;
type Stored = HashMap<EntryKey, (Option<Arc<str>>, String)>;

/// Limits the time of a call, which a connection that hangs would never end.
fn limited<'a, T: 'a>(call: impl Future<Output = Result<T>> + Send + 'a) -> Call<'a, T> {
    let late = |_| Err(Error::new(ErrorKind::StoreUnavailable, "PostgreSQL: no answer in 3 s"));
    let call = tokio::time::timeout(Duration::from_secs(3), call);
    call.map(move |answer| answer.unwrap_or_else(late)).boxed()
}

/// Makes a step. If a condition does not hold, returns the present entries.
async fn make(client: &mut Client, scope: &Scope, step: Option<&Step>) -> Result<Option<Stored>> {
    let Some(step) = step else { return Ok(None) };
    let transaction = client.transaction().await.map_err(failure)?;
    query(&transaction, LOCK, scope, &[]).await?;
    let row = query(&transaction, VERSION, scope, &[&None::<i64>]).await?.remove(0);
    let (now, version): (i64, i64) = (row.get(0), row.get(1));
    let silent = step.silent.iter().map(|last| EntryKey::Worker(last.worker.clone()));
    let keys = step.entries.iter().map(|change| change.key.clone()).chain(silent);
    let stored = read(&transaction, scope, keys.collect()).await?;
    let mark = |worker: &Arc<str>| &*stored[&EntryKey::Worker(worker.clone())].1;
    if !step.is_met(version.unsigned_abs(), |key| stored[key].0.as_deref(), mark) {
        return Ok(Some(stored));
    }
    let version = now.max(version + 1);
    let step_name = version.to_string();
    let mut rows: Vec<_> = step.changes().map(|it| (it.key.parts(), it.text.as_deref())).collect();
    if !rows.is_empty() {
        rows.push((("step", &step_name), None));
        query(&transaction, FORGET, scope, &[&version]).await?;
        write(transaction, scope, Some(version), rows).await?;
    }
    Ok(None)
}

async fn read(transaction: &Transaction<'_>, scope: &Scope, keys: Vec<EntryKey>) -> Result<Stored> {
    let (kinds, names): (Vec<_>, Vec<_>) = keys.iter().map(EntryKey::parts).unzip();
    // The first read waits for locks. The second one shows what was inserted during that wait.
    query(transaction, READ, scope, &[&kinds, &names]).await?;
    let rows = query(transaction, READ, scope, &[&kinds, &names]).await?;
    Ok(keys.into_iter().map(|key| (key, (None, String::new()))).chain(entries(&rows)).collect())
}

async fn write(
    transaction: Transaction<'_>,
    scope: &Scope,
    version: Option<i64>,
    rows: Vec<((&str, &str), Option<&str>)>,
) -> Result<()> {
    let (keys, texts): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (kinds, names): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    query(&transaction, WRITE, scope, &[&kinds, &names, &texts, &version]).await?;
    transaction.commit().await.map_err(failure)
}

fn entries(rows: &[Row]) -> impl Iterator<Item = (EntryKey, (Option<Arc<str>>, String))> {
    rows.iter().filter_map(|row| {
        let text: Option<String> = row.get(2);
        Some((EntryKey::from_parts(row.get(0), row.get(1))?, (text.map(Into::into), row.get(3))))
    })
}

async fn query(
    client: &impl GenericClient,
    sql: &str,
    scope: &Scope,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>> {
    let statement = client.prepare_cached(sql).await.map_err(failure)?;
    let scope = vec![scope.application(), scope.stream()];
    let parameters = [&[&scope as &(dyn ToSql + Sync)], parameters].concat();
    client.query(&statement, &parameters).await.map_err(failure)
}

fn failure(error: impl Into<PoolError>) -> Error {
    let error = error.into();
    let cause = std::iter::successors(std::error::Error::source(&error), |it| it.source()).last();
    let message = cause.map_or_else(|| error.to_string(), ToString::to_string);
    // A user, database or table is wrong: reported at once. All else is retried.
    let refusal = cause.and_then(|cause| cause.downcast_ref::<DbError>());
    let code = refusal.map_or("", |refusal| refusal.code().code());
    let is_lasting = ["28", "3D", "42"].iter().any(|class| code.starts_with(class));
    let kind = if is_lasting { ErrorKind::Configuration } else { ErrorKind::StoreUnavailable };
    Error::new(kind, format!("PostgreSQL: {message}")).with_source(error)
}

#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).unwrap_or_default();
    let read = async { two_workers::read(Leased::new(PostgresStore::connect(&url).await?)).await };
    if let Err(error) = read.await {
        eprintln!("{error}\n\nusage: postgres_store postgres://USER:PASSWORD@HOST/DATABASE");
        eprintln!("to try it: docker run --rm -p 5432:5432 -e POSTGRES_PASSWORD=secret postgres");
        std::process::exit(1);
    }
}
