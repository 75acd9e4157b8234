//! Creation of the table.

use std::time::Duration;

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::describe_table::DescribeTableOutput;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus,
};
use tokio::time::{Instant, sleep, timeout};

use super::DynamoDbStore;
use super::errors::{Call, NO_ANSWER, Reaction};
use super::layout::{PK, SK};
use super::requests::{ATTEMPT_TIMEOUT, single_attempt};
use crate::error::{Error, ErrorKind, Result};

/// The time for a new table to become active. DynamoDB needs seconds.
const CREATION: Duration = Duration::from_secs(120);

/// The pause between two looks at a new table.
const LOOK: Duration = Duration::from_secs(1);

impl DynamoDbStore {
    /// Creates the table in the on-demand capacity mode, unless it exists, and waits until it is
    /// active. Several programs may call this at the same time. Temporary failures are retried.
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
        let begun = Instant::now();
        loop {
            match self.create().await {
                Ok(()) => return self.active(begun).await,
                Err((Reaction::Retry, _)) if begun.elapsed() < CREATION => sleep(LOOK).await,
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// Asks for the table, which may exist.
    async fn create(&self) -> Result<(), (Reaction, Error)> {
        let call = Call { operation: "CreateTable", table: &self.table };
        let unbuilt = |error| (Reaction::Report, call.unbuilt(error));
        let mut request = self.client.create_table().table_name(&*self.table);
        request = request.billing_mode(BillingMode::PayPerRequest);
        for (name, kind) in [(PK, KeyType::Hash), (SK, KeyType::Range)] {
            let element = KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
            let attribute = AttributeDefinition::builder().attribute_name(name);
            let attribute = attribute.attribute_type(ScalarAttributeType::S).build();
            request = request
                .key_schema(element.map_err(unbuilt)?)
                .attribute_definitions(attribute.map_err(unbuilt)?);
        }
        match attempt(call, request.customize().config_override(single_attempt()).send()).await {
            Ok(_) => Ok(()),
            Err((code, ..)) if code == "ResourceInUseException" => Ok(()),
            Err((_, reaction, error)) => Err((reaction, error)),
        }
    }

    /// Waits until the table is active, and checks its key.
    async fn active(&self, begun: Instant) -> Result<()> {
        let call = Call { operation: "DescribeTable", table: &self.table };
        loop {
            let request = self.client.describe_table().table_name(&*self.table);
            let sent = request.customize().config_override(single_attempt()).send();
            let why = match attempt(call, sent).await {
                Ok(DescribeTableOutput { table: Some(table), .. })
                    if table.table_status == Some(TableStatus::Active) =>
                {
                    return self.has_key(&table.key_schema.unwrap_or_default());
                }
                Ok(_) => "the new table is not active yet; call create_table again".to_owned(),
                // A new table is not known at once.
                Err((code, _, error)) if code == "ResourceNotFoundException" => error.to_string(),
                Err((_, Reaction::Retry, error)) if begun.elapsed() < CREATION => error.to_string(),
                Err((.., error)) => return Err(error),
            };
            if begun.elapsed() >= CREATION {
                return Err(call.failed(ErrorKind::StoreUnavailable, &why));
            }
            sleep(LOOK).await;
        }
    }

    fn has_key(&self, key: &[KeySchemaElement]) -> Result<()> {
        let key: Vec<_> = key.iter().map(|it| (&*it.attribute_name, &it.key_type)).collect();
        if key == [(PK, &KeyType::Hash), (SK, &KeyType::Range)] {
            return Ok(());
        }
        let why = format!(
            "the table exists with another key; use another table, or delete it: the partition key \
             must be {PK} and the sort key {SK}"
        );
        let call = Call { operation: "DescribeTable", table: &self.table };
        Err(call.failed(ErrorKind::Configuration, &why))
    }
}

/// Makes one attempt of a call. Returns the error code, which may be empty, with an error.
async fn attempt<T, E>(
    call: Call<'_>,
    sent: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, (String, Reaction, Error)>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match timeout(ATTEMPT_TIMEOUT, sent).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
            let code = code.unwrap_or_default().to_owned();
            let (reaction, classified) = call.classify(&error, &[]);
            Err((code, reaction, classified.with_source(error)))
        }
        Err(elapsed) => {
            let error = call.failed(ErrorKind::StoreUnavailable, NO_ANSWER);
            Err((String::new(), Reaction::Retry, error.with_source(elapsed)))
        }
    }
}
