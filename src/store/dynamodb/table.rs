//! Creation of the table.

use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus,
};
use tokio::time::{Instant, sleep};

use super::DynamoDbStore;
use super::errors::Call;
use super::layout::{PK, SK};
use super::requests::single_attempt;
use crate::error::{ErrorKind, Result};

/// The time for a new table to become active. DynamoDB needs seconds.
const CREATION: Duration = Duration::from_secs(120);

/// The pause between two looks at a new table.
const LOOK: Duration = Duration::from_secs(1);

impl DynamoDbStore {
    /// Creates the table in the on-demand capacity mode, unless it exists, and waits until it is
    /// active. Several programs may call this at the same time.
    ///
    /// Needs the IAM actions `dynamodb:CreateTable` and `dynamodb:DescribeTable`. A table of your own
    /// infrastructure tools serves as well: see the guide page
    /// [`dynamodb`](crate::guide::dynamodb#the-table).
    ///
    /// # Errors
    ///
    /// [`Denied`](ErrorKind::Denied) without the permissions,
    /// [`Configuration`](ErrorKind::Configuration) if the table exists with another key, and
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable) if it is not active within 2 minutes.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have created the table. It may be called again.
    pub async fn create_table(&self) -> Result<()> {
        let call = Call { operation: "CreateTable", table: &self.table };
        let key = [(PK, KeyType::Hash), (SK, KeyType::Range)];
        let mut request = self.client.create_table().table_name(&*self.table);
        request = request.billing_mode(BillingMode::PayPerRequest);
        for (name, kind) in key {
            let element = KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
            let attribute = AttributeDefinition::builder().attribute_name(name);
            let attribute = attribute.attribute_type(ScalarAttributeType::S).build();
            request = request
                .key_schema(element.map_err(|error| call.unbuilt(error))?)
                .attribute_definitions(attribute.map_err(|error| call.unbuilt(error))?);
        }
        let created = request.customize().config_override(single_attempt()).send().await;
        if let Err(error) = created {
            let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
            if code != Some("ResourceInUseException") {
                let (_reaction, classified) = call.classify(&error, &[]);
                return Err(classified.with_source(error));
            }
        }
        self.active().await
    }

    /// Waits until the table is active, and checks its key.
    async fn active(&self) -> Result<()> {
        let call = Call { operation: "DescribeTable", table: &self.table };
        let begun = Instant::now();
        loop {
            let request = self.client.describe_table().table_name(&*self.table);
            let described = request.customize().config_override(single_attempt()).send().await;
            let table = match described {
                Ok(described) => described.table,
                // A new table is not known at once.
                Err(SdkError::ServiceError(answer))
                    if answer.err().is_resource_not_found_exception() =>
                {
                    None
                }
                Err(error) => {
                    let (_reaction, classified) = call.classify(&error, &[]);
                    return Err(classified.with_source(error));
                }
            };
            if let Some(table) = table
                && table.table_status == Some(TableStatus::Active)
            {
                let key = table.key_schema.unwrap_or_default();
                let key: Vec<_> =
                    key.iter().map(|it| (&*it.attribute_name, &it.key_type)).collect();
                if key == [(PK, &KeyType::Hash), (SK, &KeyType::Range)] {
                    return Ok(());
                }
                let why = format!(
                    "the table exists with another key; use another table, or delete it: the \
                     partition key must be {PK} and the sort key {SK}"
                );
                return Err(call.failed(ErrorKind::Configuration, &why));
            }
            if begun.elapsed() >= CREATION {
                let why = "the new table is not active yet; call create_table again";
                return Err(call.failed(ErrorKind::StoreUnavailable, why));
            }
            sleep(LOOK).await;
        }
    }
}
