//! Comparison of `DynamoDbStore` with `MemoryStore`.

use crate::alike::answers_like_memory_store;
use crate::dynamodb_server::DynamoDbServer;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn dynamodb_store_answers_like_the_memory_store() {
    let runtime = runtime();
    let (_server, store) = runtime.block_on(DynamoDbServer::with_table());
    answers_like_memory_store(&runtime, &store, 100);
}

/// Each step leaves its positions pending, as a step of more than 100 items does.
#[cfg(feature = "testing")]
#[test]
fn dynamodb_store_with_pending_positions_answers_like_the_memory_store() {
    let runtime = runtime();
    let (_server, store) = runtime.block_on(DynamoDbServer::with_table());
    answers_like_memory_store(&runtime, &store.postponing(), 100);
}
