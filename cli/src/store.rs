//! The store that the arguments name.

pub(crate) mod dynamodb;
pub(crate) mod redis;

use std::sync::Arc;

use kinestream::DynamoDbStore;
use kinestream::store::CheckpointStore;

use crate::arguments::{Aws, Store};
use crate::failure::Outcome;

/// Connects to the store. A table of DynamoDB is not called yet.
pub(crate) async fn connect(
    store: &Store,
    aws: &Aws,
    stream: &str,
) -> Outcome<Arc<dyn CheckpointStore>> {
    Ok(match store {
        Store::Redis(redis) => Arc::new(redis::connect(redis).await?),
        Store::DynamoDb(table) => {
            let client = dynamodb::connect(table, aws, Some(stream)).await?;
            let store = DynamoDbStore::new(client, &*table.table);
            Arc::new(match &table.kcl_table {
                Some(kcl_table) => store.kcl_table(&**kcl_table),
                None => store,
            })
        }
    })
}
