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
    DynamoDb(DynamoDbServer),
}

impl Server {
    pub(super) fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            #[cfg(feature = "testing")]
            Self::Postgres(server) => server.url(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server) => server.url(),
        }
    }

    pub(super) fn kill(&mut self) {
        match self {
            Self::Redis(server) => server.kill(),
            #[cfg(feature = "testing")]
            Self::Postgres(server) => server.kill(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server) => server.kill(),
        }
    }

    pub(super) fn restart(&mut self) {
        match self {
            Self::Redis(server) => server.restart(),
            #[cfg(feature = "testing")]
            Self::Postgres(server) => server.restart(),
            #[cfg(feature = "dynamodb")]
            Self::DynamoDb(server) => server.restart(),
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
            let client = dynamodb_server::client_of(url);
            return Some(Arc::new(DynamoDbStore::new(client, TABLE)));
        }
        Some(Arc::new(RedisStore::connect(url).await.ok()?))
    }
}
