//! The requests to DynamoDB about one application and stream, each with its retries.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    ConditionCheck, Delete, KeysAndAttributes, ReturnValuesOnConditionCheckFailure,
    TransactWriteItem, Update,
};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout};

use super::errors::{Call, NO_ANSWER, Reaction, Reason};
use super::expressions::{Expressions, Item, text};
use super::kcl::Kcl;
use super::layout::{self, Range};
use crate::backoff::{Backoff, DYNAMODB_CALLS};
use crate::error::{Error, ErrorKind, Result};

/// The attempts of one call. The callers of the store back off and repeat it as well, and a worker
/// waits at most a third of its lease duration for an exchange.
const ATTEMPTS: u32 = 5;

/// The time for an answer, after which the connection counts as lost. DynamoDB answers within
/// milliseconds; a page of 1 MiB takes 0.3 s at 30 Mbit/s.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// The keys of one `BatchGetItem`
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html>).
pub(super) const BATCH: usize = 100;

/// The items of one transaction
/// (<https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html>).
pub(super) const TRANSACTION: usize = 100;

/// The requests of one call of the store that are sent at the same time.
pub(super) const PARALLEL: usize = 32;

/// The items of one application and stream.
#[derive(Debug, Clone)]
pub(super) struct Partition<'a> {
    pub(super) client: &'a Client,
    pub(super) table: &'a str,
    pub(super) key: String,
    /// True if each step leaves its positions pending.
    pub(super) postpones: bool,
    /// The rows that have the positions, if these are in the table of a KCL.
    pub(super) kcl: Option<Kcl<'a>>,
}

/// The outcome of a conditional update of one item.
#[derive(Debug)]
pub(super) enum Updated {
    Done,
    /// The condition does not hold for this item, which may not exist.
    Refused(Option<Item>),
}

/// The outcome of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transacted {
    Done,
    /// The condition of an item does not hold.
    Refused,
}

impl Partition<'_> {
    /// Returns the items of a range, as consistent reads of one page after the other.
    pub(super) async fn query(&self, range: Range) -> Result<Vec<Item>> {
        let (first, last) = range.bounds();
        let mut items = Vec::new();
        let mut start = None;
        loop {
            let attempt = || {
                self.client
                    .query()
                    .table_name(self.table)
                    .consistent_read(true)
                    .key_condition_expression("#p = :p AND #s BETWEEN :f AND :l")
                    .expression_attribute_names("#p", layout::PK)
                    .expression_attribute_names("#s", layout::SK)
                    .expression_attribute_values(":p", text(&*self.key))
                    .expression_attribute_values(":f", text(first))
                    .expression_attribute_values(":l", text(last))
                    .set_exclusive_start_key(start.clone())
                    .customize()
                    .config_override(single_attempt())
                    .send()
            };
            let page = self.call("Query", attempt).await?;
            items.extend(page.items.unwrap_or_default());
            start = page.last_evaluated_key;
            if start.as_ref().is_none_or(Item::is_empty) {
                return Ok(items);
            }
        }
    }

    /// Returns all items of the table, as consistent reads of one page after the other.
    pub(super) async fn scan(&self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut next = None;
        loop {
            let attempt = || {
                self.client
                    .scan()
                    .table_name(self.table)
                    .consistent_read(true)
                    .set_exclusive_start_key(next.clone())
                    .customize()
                    .config_override(single_attempt())
                    .send()
            };
            let page = self.call("Scan", attempt).await?;
            items.extend(page.items.unwrap_or_default());
            next = page.last_evaluated_key;
            if next.as_ref().is_none_or(Item::is_empty) {
                return Ok(items);
            }
        }
    }

    /// Returns the items of these keys that exist, in any order, as consistent reads. No key occurs
    /// twice: DynamoDB rejects such a request.
    pub(super) async fn items(&self, keys: Vec<Item>) -> Result<Vec<Item>> {
        let batches = keys.chunks(BATCH).map(|batch| self.batch(batch.to_vec()));
        let batches: Vec<_> = batches.collect();
        let found: Vec<Vec<Item>> =
            stream::iter(batches).buffer_unordered(PARALLEL).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Reads at most [`BATCH`] items. DynamoDB answers a part of the keys if it is throttled, or if
    /// the items have more than 16 MB.
    async fn batch(&self, mut keys: Vec<Item>) -> Result<Vec<Item>> {
        let call = Call { operation: "BatchGetItem", table: self.table };
        let mut found = Vec::new();
        let mut backoff = Backoff::new(DYNAMODB_CALLS);
        let mut failed = 0;
        while !keys.is_empty() {
            let count = keys.len();
            let request = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true);
            let request = request.build().map_err(|error| call.unbuilt(error))?;
            let attempt = || {
                self.client
                    .batch_get_item()
                    .request_items(self.table, request.clone())
                    .customize()
                    .config_override(single_attempt())
                    .send()
            };
            let answer = self.call("BatchGetItem", attempt).await?;
            // The answer is about this table only, which it may name by its ARN or its name.
            let items = answer.responses.into_iter().flat_map(HashMap::into_values);
            let items: Vec<Item> = items.flatten().collect();
            let rest = answer.unprocessed_keys.into_iter().flat_map(HashMap::into_values);
            keys = rest.flat_map(|rest| rest.keys).collect();
            failed = if keys.len() < count { 0 } else { failed + 1 };
            found.extend(items);
            if !keys.is_empty() {
                if failed >= ATTEMPTS {
                    let why = "throttled by DynamoDB; if it lasts, raise the quotas of the table";
                    return Err(call.failed(ErrorKind::StoreUnavailable, why));
                }
                sleep(backoff.failed()).await;
            }
        }
        Ok(found)
    }

    /// Updates one item if its conditions hold.
    ///
    /// A repeated attempt finds the change of an earlier one whose answer was lost, and is refused.
    /// The caller recognizes its change in the returned item.
    pub(super) async fn update(&self, key: &Item, change: &Expressions) -> Result<Updated> {
        let attempt = || {
            self.client
                .update_item()
                .table_name(self.table)
                .set_key(Some(key.clone()))
                .set_condition_expression(change.condition())
                .set_update_expression(change.update())
                .set_expression_attribute_names(change.names())
                .set_expression_attribute_values(change.values())
                .return_values_on_condition_check_failure(
                    ReturnValuesOnConditionCheckFailure::AllOld,
                )
                .customize()
                .config_override(single_attempt())
                .send()
        };
        match self.repeat("UpdateItem", attempt, |_| Vec::new()).await? {
            Ok(_) => Ok(Updated::Done),
            Err(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                Ok(Updated::Refused(refused.item))
            }
            Err(_) => Ok(Updated::Refused(None)),
        }
    }

    /// Makes all of these writes, or none. A repeated attempt has the same token, by which DynamoDB
    /// recognizes a transaction that was made.
    pub(super) async fn transact(&self, items: Vec<TransactWriteItem>) -> Result<Transacted> {
        let token = format!("{:032x}", fastrand::u128(..));
        let attempt = || {
            self.client
                .transact_write_items()
                .set_transact_items(Some(items.clone()))
                .client_request_token(&token)
                .customize()
                .config_override(single_attempt())
                .send()
        };
        let made = self.repeat("TransactWriteItems", attempt, reasons).await?;
        Ok(if made.is_ok() { Transacted::Done } else { Transacted::Refused })
    }

    /// Makes a call that has no conditions.
    async fn call<T, E, F>(&self, operation: &'static str, attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.repeat(operation, attempt, |_| Vec::new()).await?.map_err(|refused| {
            let message = format!("DynamoDB table {}: {operation} failed", self.table);
            Error::new(ErrorKind::Rejected, message).with_source(refused)
        })
    }

    /// Makes a call, and repeats it with back-off while it fails for a temporary reason. Returns the
    /// error of a condition that does not hold. `reasons` returns those of a cancelled transaction.
    async fn repeat<T, E, F>(
        &self,
        operation: &'static str,
        mut attempt: impl FnMut() -> F,
        reasons: fn(&E) -> Vec<Reason<'_>>,
    ) -> Result<Result<T, E>>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let call = Call { operation, table: self.table };
        let mut backoff = Backoff::new(DYNAMODB_CALLS);
        let mut failed = 0;
        loop {
            let (reaction, error) = match timeout(ATTEMPT_TIMEOUT, attempt()).await {
                Ok(Ok(answer)) => return Ok(Ok(answer)),
                Ok(Err(error)) => {
                    let of_items = error.as_service_error().map(reasons).unwrap_or_default();
                    let (reaction, classified) = call.classify(&error, &of_items);
                    let error = match (reaction, error) {
                        (Reaction::Refuse, SdkError::ServiceError(refused)) => {
                            return Ok(Err(refused.into_err()));
                        }
                        (_, error) => error,
                    };
                    (reaction, classified.with_source(error))
                }
                Err(elapsed) => {
                    let error = call.failed(ErrorKind::StoreUnavailable, NO_ANSWER);
                    (Reaction::Retry, error.with_source(elapsed))
                }
            };
            failed += 1;
            if reaction == Reaction::Report || failed >= ATTEMPTS {
                return Err(error);
            }
            sleep(backoff.failed()).await;
        }
    }

    /// Returns the update of an item for a transaction.
    pub(super) fn write(&self, key: Item, change: &Expressions) -> Result<TransactWriteItem> {
        let transaction = self.transaction();
        let update = Update::builder()
            .table_name(self.table)
            .set_key(Some(key))
            .set_condition_expression(change.condition())
            .set_update_expression(change.update())
            .set_expression_attribute_names(change.names())
            .set_expression_attribute_values(change.values())
            .build()
            .map_err(|error| transaction.unbuilt(error))?;
        Ok(TransactWriteItem::builder().update(update).build())
    }

    /// Returns the deletion of an item for a transaction.
    pub(super) fn delete(&self, key: Item, conditions: &Expressions) -> Result<TransactWriteItem> {
        let transaction = self.transaction();
        let delete = Delete::builder()
            .table_name(self.table)
            .set_key(Some(key))
            .set_condition_expression(conditions.condition())
            .set_expression_attribute_names(conditions.names())
            .set_expression_attribute_values(conditions.values())
            .build()
            .map_err(|error| transaction.unbuilt(error))?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }

    /// Returns the check of an item for a transaction.
    pub(super) fn check(&self, key: Item, conditions: &Expressions) -> Result<TransactWriteItem> {
        let transaction = self.transaction();
        let check = ConditionCheck::builder()
            .table_name(self.table)
            .set_key(Some(key))
            .set_condition_expression(conditions.condition())
            .set_expression_attribute_names(conditions.names())
            .set_expression_attribute_values(conditions.values())
            .build()
            .map_err(|error| transaction.unbuilt(error))?;
        Ok(TransactWriteItem::builder().condition_check(check).build())
    }

    fn transaction(&self) -> Call<'_> {
        Call { operation: "TransactWriteItems", table: self.table }
    }

    /// Returns the key of an item of this application and stream.
    pub(super) fn key(&self, sort: &str) -> Item {
        layout::key(&self.key, sort)
    }
}

/// Returns why the items of a cancelled transaction kept it from being made.
fn reasons(error: &TransactWriteItemsError) -> Vec<Reason<'_>> {
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = error else {
        return Vec::new();
    };
    let reasons = cancelled.cancellation_reasons().iter().filter_map(|reason| {
        Some(Reason { code: reason.code()?, message: reason.message().unwrap_or_default() })
    });
    reasons.filter(|reason| reason.code != "None").collect()
}

/// Returns settings without the SDK's retries, which do not know the limits of the callers.
pub(super) fn single_attempt() -> Builder {
    Builder::new().retry_config(RetryConfig::disabled())
}
