//! Conformance of `DynamoDbStore` with the positions in the lease table of a KCL.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use kinestream::store::lease::{Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore};
use kinestream::store::{CheckpointStore, Scope, conformance};
use kinestream::{Checkpoint, DynamoDbStore, Result, ShardId};
use tokio::sync::Mutex;

use crate::alike::answers_like_memory_store;
#[cfg(feature = "testing")]
use crate::dynamodb_faults::with_random_faults;
use crate::dynamodb_server::DynamoDbServer;

/// Creates a table with the key of a KCL's lease table.
pub(crate) async fn create_lease_table(client: &Client, name: &str) {
    let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash);
    let attribute = AttributeDefinition::builder().attribute_name("leaseKey");
    let attribute = attribute.attribute_type(ScalarAttributeType::S);
    let create = client.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
    let create = create.key_schema(key.build().unwrap());
    create.attribute_definitions(attribute.build().unwrap()).send().await.unwrap();
}

/// A store with a lease table for each scope: a lease table serves one application and stream, and
/// the suites use many.
#[derive(Clone, Debug)]
struct TablePerScope {
    store: DynamoDbStore,
    client: Client,
    stores: Arc<Mutex<HashMap<Scope, DynamoDbStore>>>,
}

impl TablePerScope {
    fn new(store: DynamoDbStore, client: Client) -> Self {
        Self { store, client, stores: Arc::default() }
    }

    async fn of(&self, scope: &Scope) -> DynamoDbStore {
        let mut stores = self.stores.lock().await;
        if let Some(store) = stores.get(scope) {
            return store.clone();
        }
        let table = format!("leases-{}", stores.len());
        create_lease_table(&self.client, &table).await;
        let store = self.store.clone().kcl_table(table);
        stores.insert(scope.clone(), store.clone());
        store
    }
}

impl CheckpointStore for TablePerScope {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move { self.of(scope).await.load(scope).await }.boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move { self.of(scope).await.save(scope, checkpoints).await }.boxed()
    }
}

impl LeaseStore for TablePerScope {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move { self.of(scope).await.exchange(scope, exchange).await }.boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move { self.of(scope).await.save_fenced(scope, saves).await }.boxed()
    }
}

async fn server() -> (DynamoDbServer, TablePerScope) {
    let (server, store) = DynamoDbServer::with_table().await;
    let client = server.client();
    (server, TablePerScope::new(store, client))
}

#[tokio::test]
async fn kcl_layout_conforms() {
    let (_server, store) = server().await;
    conformance::check(&store).await;
}

#[tokio::test]
async fn kcl_layout_conforms_as_lease_store() {
    let (_server, store) = server().await;
    conformance::check_leases(&store).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn kcl_layout_answers_like_the_memory_store() {
    let runtime = runtime();
    let (_server, store) = runtime.block_on(server());
    answers_like_memory_store(&runtime, &store, 100);
}

/// Each step leaves its positions pending, as a step of more than 100 items does.
#[cfg(feature = "testing")]
#[test]
fn kcl_layout_with_pending_positions_answers_like_the_memory_store() {
    let runtime = runtime();
    let (_server, store) = runtime.block_on(server());
    let store = TablePerScope { store: store.store.postponing(), ..store };
    answers_like_memory_store(&runtime, &store, 100);
}

#[cfg(feature = "testing")]
#[test]
fn kcl_layout_with_random_faults_answers_like_the_memory_store() {
    let runtime = runtime();
    let (server, _store) = runtime.block_on(server());
    let store = TablePerScope::new(with_random_faults(&server).store(), server.client());
    answers_like_memory_store(&runtime, &store, 15);
}
