//! The server of a fleet's store, and the connection of a worker to it.

use std::sync::Arc;

#[cfg(feature = "dynamodb")]
use kinestream::DynamoDbStore;
use kinestream::RedisStore;
use kinestream::store::CheckpointStore;
#[cfg(feature = "testing")]
use kinestream::store::Leased;

#[cfg(feature = "dynamodb")]
use crate::dynamodb_server::{self, DynamoDbServer, TABLE};
#[cfg(feature = "testing")]
use crate::postgres::PostgresStore;
#[cfg(feature = "testing")]
use crate::postgres_server::PostgresServer;
use crate::redis_server::RedisServer;

pub(super) enum Server {
    Redis(RedisServer),
    #[cfg(feature = "testing")]
    Postgres(PostgresServer),
    #[cfg(feature = "dynamodb")]
    DynamoDb(DynamoDbServer, Layout),
}

/// The place of the positions in DynamoDB.
#[cfg(feature = "dynamodb")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// The table of the store.
    Own,
    /// The lease table of a KCL, of this name.
    Kcl(&'static str),
}

/// The parameter of a URL that names the lease table of a KCL.
#[cfg(feature = "dynamodb")]
const KCL_TABLE: &str = "?kcl_table=";

impl Server {
    pub(super) fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            #[cfg(feature = "testing")]
            Self::Postgres(server) => server.url(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server, Layout::Own) => server.url(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server, Layout::Kcl(table)) => {
                format!("{}{KCL_TABLE}{table}", server.url())
            }
        }
    }

    pub(super) fn kill(&mut self) {
        match self {
            Self::Redis(server) => server.kill(),
            #[cfg(feature = "testing")]
            Self::Postgres(server) => server.kill(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server, _) => server.kill(),
        }
    }

    pub(super) fn restart(&mut self) {
        match self {
            Self::Redis(server) => server.restart(),
            #[cfg(feature = "testing")]
            Self::Postgres(server) => server.restart(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server, _) => server.restart(),
        }
    }

    /// Connects to the server at this URL; `None` while it is unreachable.
    pub(super) async fn connect(url: &str) -> Option<Arc<dyn CheckpointStore>> {
        #[cfg(feature = "testing")]
        if url.starts_with("postgres:") {
            let store = PostgresStore::connect(url).await.ok()?;
            return Some(Arc::new(Leased::new(store)));
        }
        #[cfg(feature = "dynamodb")]
        if url.starts_with("http:") {
            let (url, kcl_table) = match url.split_once(KCL_TABLE) {
                Some((url, table)) => (url, Some(table)),
                None => (url, None),
            };
            let store = DynamoDbStore::new(dynamodb_server::client_of(url), TABLE);
            return Some(match kcl_table {
                Some(table) => Arc::new(store.kcl_table(table)),
                None => Arc::new(store),
            });
        }
        Some(Arc::new(RedisStore::connect(url).await.ok()?))
    }
}
