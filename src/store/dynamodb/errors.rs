//! Classification of failed calls to DynamoDB.
//!
//! The error codes are those of
//! <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html> and,
//! for a cancelled transaction, of
//! <https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html>.

use std::error::Error as StdError;

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use super::layout::{PK, SK};
use crate::error::{Error, ErrorKind, denial_advice, missing_setting};

/// The reaction to a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// A condition does not hold: an outcome, not an error.
    Refuse,
    /// A retry may succeed.
    Retry,
    /// A retry does not help.
    Report,
}

/// The reason for which a call has failed: the code and the message of DynamoDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reason<'a> {
    pub(super) code: &'a str,
    pub(super) message: &'a str,
}

/// A call, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) table: &'a str,
}

impl Call<'_> {
    /// Returns an error of this call.
    pub(super) fn failed(self, kind: ErrorKind, why: &str) -> Error {
        let Self { operation, table } = self;
        Error::new(kind, format!("DynamoDB table {table}: {operation} failed: {why}"))
    }

    /// Returns the error of a request that lacks a field. The store sets all of them.
    pub(super) fn unbuilt(self, error: impl StdError + Send + Sync + 'static) -> Error {
        self.failed(ErrorKind::Rejected, "the request cannot be built").with_source(error)
    }

    /// Classifies the error of this call. `reasons` are those of the items of a cancelled transaction.
    pub(super) fn classify<E>(
        self,
        error: &SdkError<E, HttpResponse>,
        reasons: &[Reason<'_>],
    ) -> (Reaction, Error)
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let (reaction, kind, why) = match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let (code, message) = (answer.err().code(), answer.err().message());
                let own =
                    Reason { code: code.unwrap_or_default(), message: message.unwrap_or_default() };
                let reasons = if reasons.is_empty() { &[own] } else { reasons };
                let (reaction, kind, why) = classify(self, status, reasons);
                let mut details =
                    vec![if own.code.is_empty() { "no error code" } else { own.code }];
                details.extend(Some(own.message).filter(|message| !message.is_empty()));
                // The message of a cancelled transaction does not include those of its items.
                let of_items = reasons.iter().map(|reason| reason.message);
                details.extend(of_items.filter(|it| !it.is_empty() && *it != own.message).take(1));
                (reaction, kind, format!("{why} ({status} {})", details.join(": ")))
            }
            SdkError::TimeoutError(_) => unavailable(NO_ANSWER),
            SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
                unavailable("no connection; check the endpoint, the region and the network")
            }
            SdkError::ResponseError(_) => unavailable(
                "the answer cannot be parsed; check the client's endpoint and the proxies in front \
                 of it",
            ),
            _ => match missing_setting(error) {
                Some((kind, advice)) => (Reaction::Report, kind, advice.to_owned()),
                None => unavailable("the request could not be sent"),
            },
        };
        (reaction, self.failed(kind, &why))
    }
}

/// The cause of a failed call that has no answer.
pub(super) const NO_ANSWER: &str = "no answer in time";

fn unavailable(why: &str) -> (Reaction, ErrorKind, String) {
    (Reaction::Retry, ErrorKind::StoreUnavailable, why.to_owned())
}

/// Classifies an answer. A cancelled transaction has one reason for each item that kept it from being
/// made: a condition that does not hold counts more than a conflict with another request.
fn classify(call: Call<'_>, status: u16, reasons: &[Reason<'_>]) -> (Reaction, ErrorKind, String) {
    let by_code = reasons.iter().map(|it| classify_code(call, it.code, it.message));
    let mut found: Vec<_> = by_code.flatten().collect();
    found.sort_by_key(|(reaction, ..)| match reaction {
        Reaction::Report => 0,
        Reaction::Refuse => 1,
        Reaction::Retry => 2,
    });
    if let Some(first) = found.into_iter().next() {
        return first;
    }
    match status {
        500.. | 408 => unavailable("temporary failure of DynamoDB"),
        429 => unavailable("throttled by DynamoDB"),
        _ => (Reaction::Report, ErrorKind::Rejected, "request rejected by DynamoDB".to_owned()),
    }
}

fn classify_code(
    call: Call<'_>,
    code: &str,
    message: &str,
) -> Option<(Reaction, ErrorKind, String)> {
    let about = |subject: &str| message.to_lowercase().contains(subject);
    let Call { operation, table } = call;
    Some(match code {
        "ConditionalCheckFailedException" | "ConditionalCheckFailed" => {
            (Reaction::Refuse, ErrorKind::StoreUnavailable, "a condition does not hold".to_owned())
        }
        "TransactionConflictException"
        | "TransactionConflict"
        | "TransactionInProgressException" => {
            unavailable("another request changes the same item at the same time")
        }
        // Without the reasons of its items.
        "TransactionCanceledException" => unavailable("the transaction was cancelled"),
        "ProvisionedThroughputExceededException" | "ProvisionedThroughputExceeded" => unavailable(
            "throttled by DynamoDB; raise the table's provisioned throughput, or use the on-demand \
             capacity mode",
        ),
        "ThrottlingException"
        | "ThrottlingError"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "LimitExceededException"
        | "RequestLimitExceeded" => unavailable(
            "throttled by DynamoDB; if it lasts, raise the quotas of the table or of the account",
        ),
        "InternalServerError"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestTimeout"
        | "RequestTimeoutException" => unavailable("temporary failure of DynamoDB"),
        "ResourceNotFoundException" => (
            Reaction::Report,
            ErrorKind::Configuration,
            "there is no such table, or it is not active yet; create it, for example with \
             DynamoDbStore::create_table, and check the region and the account of the client"
                .to_owned(),
        ),
        "AccessDeniedException" | "AccessDenied" => (
            Reaction::Report,
            ErrorKind::Denied,
            format!("access denied; grant dynamodb:{} on the table", action(operation)),
        ),
        "ValidationException" | "ValidationError" if about("key") || about("schema") => (
            Reaction::Report,
            ErrorKind::Configuration,
            format!(
                "the table has another key; create a table for this crate, with the partition key \
                 {PK} and the sort key {SK}, both strings"
            ),
        ),
        "ValidationException" | "ValidationError" if about("size") || about("limit") => (
            Reaction::Report,
            ErrorKind::Rejected,
            format!(
                "an item or a transaction of table {table} would exceed the limits of DynamoDB: \
                 the stream has too many shards for one application"
            ),
        ),
        _ => (Reaction::Report, ErrorKind::Denied, denial_advice(code)?.to_owned()),
    })
}

/// Returns the IAM action that an operation needs.
fn action(operation: &str) -> &str {
    match operation {
        "TransactWriteItems" => "UpdateItem, dynamodb:DeleteItem and dynamodb:ConditionCheckItem",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'_> = Call { operation: "UpdateItem", table: "leases" };

    #[test]
    fn error_codes_have_their_reaction_and_kind() {
        use ErrorKind::{Configuration, Denied, Rejected, StoreUnavailable};
        let table = [
            (400, "TransactionConflictException", Reaction::Retry, StoreUnavailable),
            (400, "TransactionInProgressException", Reaction::Retry, StoreUnavailable),
            (400, "ProvisionedThroughputExceededException", Reaction::Retry, StoreUnavailable),
            (400, "ThrottlingException", Reaction::Retry, StoreUnavailable),
            (400, "RequestLimitExceeded", Reaction::Retry, StoreUnavailable),
            (500, "InternalServerError", Reaction::Retry, StoreUnavailable),
            (503, "", Reaction::Retry, StoreUnavailable),
            (429, "", Reaction::Retry, StoreUnavailable),
            (400, "ResourceNotFoundException", Reaction::Report, Configuration),
            (400, "AccessDeniedException", Reaction::Report, Denied),
            (400, "UnrecognizedClientException", Reaction::Report, Denied),
            (400, "ExpiredTokenException", Reaction::Report, Denied),
            (400, "ValidationException", Reaction::Report, Rejected),
            (400, "ItemCollectionSizeLimitExceededException", Reaction::Report, Rejected),
            (413, "", Reaction::Report, Rejected),
        ];
        for (status, code, reaction, kind) in table {
            let found = classify(CALL, status, &[Reason { code, message: "" }]);
            assert_eq!((found.0, found.1), (reaction, kind), "{status} {code}");
        }
    }

    #[test]
    fn reasons_of_a_cancelled_transaction_are_ranked() {
        let cases: [(&[&str], Reaction); 5] = [
            (&["TransactionConflict"], Reaction::Retry),
            (&["ThrottlingError", "TransactionConflict"], Reaction::Retry),
            (&["TransactionConflict", "ConditionalCheckFailed"], Reaction::Refuse),
            (&["ProvisionedThroughputExceeded"], Reaction::Retry),
            (&["ConditionalCheckFailed", "ValidationError"], Reaction::Report),
        ];
        for (codes, reaction) in cases {
            let message = "the item size is over the limit";
            let reasons: Vec<_> = codes.iter().map(|code| Reason { code, message }).collect();
            let found = classify(CALL, 400, &reasons);
            assert_eq!(found.0, reaction, "{codes:?}");
        }
    }

    #[test]
    fn message_says_what_to_do() {
        let advice = |code, message| classify(CALL, 400, &[Reason { code, message }]).2;
        let denied = advice("AccessDeniedException", "");
        assert!(denied.contains("grant dynamodb:UpdateItem"), "{denied}");
        let missing = advice("ResourceNotFoundException", "");
        assert!(missing.contains("create_table"), "{missing}");
        let schema = "The provided key element does not match the schema";
        let other = advice("ValidationException", schema);
        assert!(other.contains("partition key pk and the sort key sk"), "{other}");
    }
}
