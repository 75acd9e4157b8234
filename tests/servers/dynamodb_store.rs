//! Tests of `DynamoDbStore` against a server.

use std::sync::Arc;

use kinestream::store::{CheckpointStore, conformance};

use crate::dynamodb_server::DynamoDbServer;

#[tokio::test]
async fn dynamodb_store_conforms() {
    let (_server, store) = DynamoDbServer::with_table().await;
    conformance::check(&store).await;
}

#[tokio::test]
async fn dynamodb_store_conforms_as_lease_store() {
    let (_server, store) = DynamoDbServer::with_table().await;
    conformance::check_leases(&store).await;
    let store: Arc<dyn CheckpointStore> = Arc::new(store);
    assert!(store.leases().is_some());
}
