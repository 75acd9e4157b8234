//! A PostgreSQL server, and its faults.

use std::sync::Arc;
use std::time::Duration;

use kinestream::store::{CheckpointStore, Leased};
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

use super::servers::PROXIES;
use crate::postgres::PostgresStore;
use crate::postgres_server::{self, PostgresServer};
use crate::proxy::Proxy;

/// The sessions of other clients.
const OTHERS: &str = "FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";

pub(super) struct Postgres {
    server: PostgresServer,
}

impl Postgres {
    pub(super) fn start() -> Self {
        Self { server: PostgresServer::start() }
    }

    /// Connects a store through a new proxy.
    pub(super) async fn connect(&self) -> (Vec<Proxy>, Arc<dyn CheckpointStore>) {
        let proxy = Proxy::start(self.server.port()).await;
        proxy.connect_from(PROXIES);
        let store = PostgresStore::connect(&postgres_server::url(proxy.port())).await.unwrap();
        (vec![proxy], Arc::new(Leased::new(store)))
    }

    /// Connects another client, which uses no proxy.
    async fn client(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Returns true if the server has connections of workers, and all of them use proxies.
    pub(super) async fn serves_proxies_alone(&self) -> bool {
        let counts =
            format!("SELECT count(*), count(*) FILTER (WHERE client_addr = '{PROXIES}') {OTHERS}");
        let counts = self.client().await.query_one(&counts, &[]).await.unwrap();
        let [all, of_proxies] = [0, 1].map(|column| counts.get::<_, i64>(column));
        all > 0 && all == of_proxies
    }

    pub(super) async fn close_connections(&self) {
        let close = format!("SELECT pg_terminate_backend(pid) {OTHERS}");
        self.client().await.query(&close, &[]).await.unwrap();
    }

    pub(super) async fn suspend(&self, time: Duration) {
        self.server.signal_all("-STOP");
        sleep(time).await;
        self.server.signal_all("-CONT");
    }

    pub(super) async fn restart(&mut self, time: Duration) {
        self.server.kill();
        sleep(time).await;
        self.server.restart();
    }

    /// Locks the table from another client for this time.
    pub(super) async fn keep_busy(&self, time: Duration) {
        let mut client = self.client().await;
        let locking = client.transaction().await.unwrap();
        locking.batch_execute("LOCK TABLE kinestream IN ACCESS EXCLUSIVE MODE").await.unwrap();
        sleep(time).await;
        locking.commit().await.unwrap();
    }

    /// Makes a backup, and restores it after this time.
    pub(super) async fn restore(&self, behind: Duration) {
        let client = self.client().await;
        let back_up =
            "DROP TABLE IF EXISTS backup; CREATE TABLE backup AS SELECT * FROM kinestream";
        client.batch_execute(back_up).await.unwrap();
        sleep(behind).await;
        let restore = "BEGIN; LOCK TABLE kinestream IN ACCESS EXCLUSIVE MODE;
            DELETE FROM kinestream; INSERT INTO kinestream SELECT * FROM backup; COMMIT";
        client.batch_execute(restore).await.unwrap();
    }

    pub(super) async fn lose_all(&self) {
        self.client().await.batch_execute("TRUNCATE kinestream").await.unwrap();
    }
}
