//! The one table that says what each answer of Kinesis other than success asks for.

use std::error::Error as StdError;
use std::time::SystemTime;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::primitives::{DateTime, DateTimeFormat};
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;

use super::{Error, ErrorKind, Panic, TOLERATED};

/// What a failed call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryAction {
    /// Fewer calls: back off, keep the iterator.
    SlowDown,
    /// The same call again, after a back-off.
    Retry,
    /// The same, and a report to the caller where it lasts: the answer is of no use.
    RetryThenReport,
    /// The same: another caller of a shared call has failed a moment ago, and its failure says the rest.
    CoolDown,
    /// A new iterator after the last record fetched.
    RestartIterator,
    /// The listing again from its first page. The caller gets the error if that fails for long.
    RestartListing,
    /// The sequence number is not one of this shard's any more: the policy decides.
    Trimmed,
    /// Somebody else has what is asked for, and will let it go.
    WaitForOther,
    /// The stream or the shard is not there.
    Gone,
    /// Nothing that this crate can cure: tell the caller, try again slowly.
    Report,
}

impl RetryAction {
    /// Returns true if a retry may never succeed.
    pub(crate) fn lasts(self) -> bool {
        use RetryAction::{Gone, Report, RestartListing, RetryThenReport};
        matches!(self, Report | RetryThenReport | RestartListing | Gone)
    }
}

/// A failed call: what to do about it, and what to tell the caller where that is not enough.
#[derive(Debug)]
pub(crate) struct ClassifiedError {
    pub(crate) action: RetryAction,
    pub(crate) error: Error,
    /// When it was answered, by the server's clock, in whole seconds.
    pub(crate) answered: Option<SystemTime>,
}

impl ClassifiedError {
    /// Sorts the error of the call `operation`, such as `"GetRecords"`.
    pub(crate) fn of<E>(operation: &'static str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (action, kind, message) = sort(operation, &error);
        let answered = error.raw_response().and_then(date_of);
        Self { action, error: Error::new(kind, message).with_source(error), answered }
    }

    /// Sorts an error that was pushed instead of an event. Its name stands where the SDK does not look
    /// for it, but it has made of it what it is.
    pub(crate) fn of_event<R>(
        operation: &'static str,
        error: SdkError<SubscribeToShardEventStreamError, R>,
    ) -> Self
    where
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        use SubscribeToShardEventStreamError as Pushed;
        let (action, kind, message) = match &error {
            SdkError::ServiceError(pushed) => {
                let pushed = pushed.err();
                let (status, code) = match pushed {
                    Pushed::ResourceNotFoundException(_) => (400, "ResourceNotFoundException"),
                    Pushed::ResourceInUseException(_) => (400, "ResourceInUseException"),
                    Pushed::KmsDisabledException(_) => (400, "KMSDisabledException"),
                    Pushed::KmsInvalidStateException(_) => (400, "KMSInvalidStateException"),
                    Pushed::KmsAccessDeniedException(_) => (400, "KMSAccessDeniedException"),
                    Pushed::KmsNotFoundException(_) => (400, "KMSNotFoundException"),
                    Pushed::KmsOptInRequired(_) => (400, "KMSOptInRequired"),
                    Pushed::KmsThrottlingException(_) => (400, "KMSThrottlingException"),
                    // It has ended a subscription that was there: whatever it is, asking again shows.
                    _ => (500, pushed.code().unwrap_or("InternalFailureException")),
                };
                sort_answer(operation, status, code, pushed.message().unwrap_or_default())
            }
            SdkError::ResponseError(_) => unreadable(operation),
            _ => retry(operation, "the subscription was lost"),
        };
        Self { action, error: Error::new(kind, message).with_source(error), answered: None }
    }

    /// A call in which code of the caller panicked: an interceptor, say.
    pub(crate) fn panicked(operation: &'static str, panic: Panic) -> Self {
        let message = format!(
            "{operation} panicked in the client's own code (HTTP client, interceptor or credentials \
             provider), which is to be fixed: {panic}"
        );
        let error = Error::new(ErrorKind::Panicked, message).with_source(panic);
        Self { action: RetryAction::Retry, error, answered: None }
    }

    /// What to do after so many panics in a row, which this failure continues or ends: one that
    /// repeats is reported. Those of shared calls are counted by their [`Cooldown`](crate::cooldown::Cooldown).
    pub(crate) fn action_after(&self, panics: &mut u32) -> RetryAction {
        if self.action == RetryAction::CoolDown || self.error.is_shared() {
            return self.action;
        }
        if self.error.kind() != ErrorKind::Panicked {
            *panics = 0;
            return self.action;
        }
        *panics = panics.saturating_add(1);
        if *panics > TOLERATED { RetryAction::Report } else { self.action }
    }

    /// An answer without what was asked for.
    pub(crate) fn without(operation: &str, what: &str) -> Self {
        Self {
            action: RetryAction::RetryThenReport,
            error: Error::new(ErrorKind::Unavailable, format!("{operation} gave no {what}")),
            answered: None,
        }
    }

    /// A call that gave no answer in time.
    pub(crate) fn timed_out(operation: &'static str, seconds: u64) -> Self {
        Self {
            action: RetryAction::Retry,
            error: Error::new(
                ErrorKind::Unavailable,
                format!("Kinesis did not answer {operation} within {seconds} s"),
            ),
            answered: None,
        }
    }
}

/// What an answer says of the time at which it was given: its `Date`, which the SDK does not pass
/// on.
pub(crate) fn date_of(answer: &HttpResponse) -> Option<SystemTime> {
    let date = DateTime::from_str(answer.headers().get("date")?, DateTimeFormat::HttpDate).ok()?;
    date.try_into().ok()
}

fn sort<E>(operation: &str, error: &SdkError<E, HttpResponse>) -> (RetryAction, ErrorKind, String)
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status();
            let code = answer.err().code().unwrap_or_default();
            let message = answer.err().message().unwrap_or_default();
            sort_answer(operation, status.as_u16(), code, message)
        }
        // The answer was cut short, or comes from something between us.
        SdkError::ResponseError(_) => unreadable(operation),
        SdkError::TimeoutError(_) => retry(operation, "it did not answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
            retry(operation, "no connection; check the endpoint, the region and the network")
        }
        _ => sort_unsent(operation, error),
    }
}

/// The request never left: credentials, region, endpoint.
fn sort_unsent(operation: &str, error: &(dyn StdError + 'static)) -> (RetryAction, ErrorKind, String) {
    let causes = std::iter::successors(Some(error), |error| (**error).source())
        .map(|error| error.to_string().to_lowercase())
        .collect::<Vec<_>>()
        .join(": ");
    let (kind, advice) = if causes.contains("credential") || causes.contains("identity") {
        (
            ErrorKind::Denied,
            "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a \
             role, and build the client from aws_config",
        )
    } else if causes.contains("region") {
        (ErrorKind::Configuration, "no AWS region; set AWS_REGION or the client's region")
    } else {
        return retry(operation, "the request could not be sent");
    };
    (RetryAction::Report, kind, format!("{operation} was not sent: {advice}"))
}

/// Error codes as the API reference of each operation lists them, and the general ones of
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html>.
fn sort_answer(
    operation: &str,
    status: u16,
    code: &str,
    message: &str,
) -> (RetryAction, ErrorKind, String) {
    let about = |subject: &str| message.to_lowercase().contains(subject);
    let common = cure_of_denial(code).or_else(|| cure_of_failure(code));
    let (action, kind, advice) = common.unwrap_or_else(|| match code {
        "InvalidArgumentException" if operation == "ListShards" && !about("token") => (
            RetryAction::Report,
            ErrorKind::Rejected,
            "the shard filter was refused; check that the starting position is not in the future",
        ),
        "ProvisionedThroughputExceededException"
        | "KMSThrottlingException"
        | "LimitExceededException"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded"
        | "RequestLimitExceeded" => {
            (RetryAction::SlowDown, ErrorKind::Throttled, "Kinesis asks for fewer calls")
        }
        "ExpiredIteratorException" => {
            (RetryAction::RestartIterator, ErrorKind::Unavailable, "the shard iterator has expired")
        }
        "ExpiredNextTokenException" => {
            (RetryAction::RestartListing, ErrorKind::Unavailable, "the page token has expired")
        }
        "InvalidArgumentException" if about("sequence") => (
            RetryAction::Trimmed,
            ErrorKind::Trimmed,
            "the position has left the stream's retention, or belongs to an earlier stream of \
             the same name",
        ),
        // A timestamp ahead of the server's clock: it will catch up.
        "InvalidArgumentException" if about("timestamp") => {
            (RetryAction::Retry, ErrorKind::Rejected, "the timestamp was refused")
        }
        "ResourceInUseException" => (
            RetryAction::WaitForOther,
            ErrorKind::Unavailable,
            "somebody else has it, or had it until a moment ago",
        ),
        "ResourceNotFoundException" => (
            RetryAction::Gone,
            ErrorKind::NotFound,
            "there is no such stream or shard; check the stream's name, the region and the \
             account",
        ),
        _ if status >= 500 || status == 408 => {
            (RetryAction::Retry, ErrorKind::Unavailable, "Kinesis failed")
        }
        _ if status == 429 => {
            (RetryAction::SlowDown, ErrorKind::Throttled, "Kinesis asks for fewer calls")
        }
        _ => (RetryAction::Report, ErrorKind::Rejected, "Kinesis refused the call"),
    });
    let code = if code.is_empty() { "no error code" } else { code };
    let detail = if message.is_empty() { String::new() } else { format!(": {message}") };
    (action, kind, format!("{operation}: {advice} ({status} {code}{detail})"))
}

type Cure = (RetryAction, ErrorKind, &'static str);

/// What needs other permissions, credentials or keys.
fn cure_of_denial(code: &str) -> Option<Cure> {
    Some(match code {
        "AccessDeniedException"
        | "AccessDenied"
        | "NotAuthorized"
        | "NotAuthorizedException"
        | "KMSAccessDeniedException" => (
            RetryAction::Report,
            ErrorKind::Denied,
            "access was denied; the README lists the IAM actions that are needed",
        ),
        "KMSDisabledException"
        | "KMSInvalidStateException"
        | "KMSNotFoundException"
        | "KMSOptInRequired" => (
            RetryAction::Report,
            ErrorKind::Denied,
            "the stream's KMS key cannot be used; check that it exists, is enabled and may be \
             used for kms:Decrypt",
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "IncompleteSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "OptInRequired" => (
            RetryAction::Report,
            ErrorKind::Denied,
            "the credentials were refused; check that they are valid, not expired and for this \
             account and region",
        ),
        _ => return None,
    })
}

/// What is wrong with the request, or on its way, whatever it asks for.
fn cure_of_failure(code: &str) -> Option<Cure> {
    Some(match code {
        "RequestExpired" | "RequestTimeTooSkewed" => (
            RetryAction::Report,
            ErrorKind::Denied,
            "the request reached Kinesis too long after it was signed; check the clock of this host",
        ),
        "InternalFailure"
        | "InternalFailureException"
        | "InternalServerError"
        | "RequestAbortedException"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => {
            (RetryAction::Retry, ErrorKind::Unavailable, "Kinesis failed")
        }
        "InvalidAction" | "MissingAction" | "UnknownOperationException" => (
            RetryAction::Report,
            ErrorKind::Rejected,
            "the endpoint does not know the call; check the client's endpoint and region",
        ),
        "RequestEntityTooLargeException" => (
            RetryAction::Report,
            ErrorKind::Rejected,
            "the request is too large; check the client's interceptors and proxies",
        ),
        _ => return None,
    })
}

fn retry(operation: &str, why: &str) -> (RetryAction, ErrorKind, String) {
    (RetryAction::Retry, ErrorKind::Unavailable, format!("{operation} cannot reach Kinesis: {why}"))
}

fn unreadable(operation: &str) -> (RetryAction, ErrorKind, String) {
    let message = format!(
        "{operation} failed: the answer cannot be parsed; check the client's endpoint and the proxies \
         on the way to it"
    );
    (RetryAction::RetryThenReport, ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of
    /// <https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html>, as it is and as
    /// it was, and what cures them.
    #[test]
    fn common_error_is_sorted_by_its_cure() {
        use ErrorKind::{Denied, Rejected, Throttled, Unavailable};
        let table = [
            (400, "AccessDeniedException", RetryAction::Report, Denied),
            (403, "ExpiredTokenException", RetryAction::Report, Denied),
            (403, "IncompleteSignature", RetryAction::Report, Denied),
            (500, "InternalFailure", RetryAction::Retry, Unavailable),
            (400, "MalformedHttpRequestException", RetryAction::Report, Rejected),
            (401, "NotAuthorized", RetryAction::Report, Denied),
            (403, "OptInRequired", RetryAction::Report, Denied),
            (400, "RequestAbortedException", RetryAction::Retry, Unavailable),
            (413, "RequestEntityTooLargeException", RetryAction::Report, Rejected),
            (400, "RequestExpired", RetryAction::Report, Denied),
            (408, "RequestTimeoutException", RetryAction::Retry, Unavailable),
            (503, "ServiceUnavailable", RetryAction::Retry, Unavailable),
            (400, "ThrottlingException", RetryAction::SlowDown, Throttled),
            (403, "UnrecognizedClientException", RetryAction::Report, Denied),
            (404, "UnknownOperationException", RetryAction::Report, Rejected),
            (400, "ValidationError", RetryAction::Report, Rejected),
            (400, "InvalidAction", RetryAction::Report, Rejected),
            (403, "InvalidClientTokenId", RetryAction::Report, Denied),
            (400, "InvalidParameterCombination", RetryAction::Report, Rejected),
            (400, "InvalidParameterValue", RetryAction::Report, Rejected),
            (400, "InvalidQueryParameter", RetryAction::Report, Rejected),
            (404, "MalformedQueryString", RetryAction::Report, Rejected),
            (400, "MissingAction", RetryAction::Report, Rejected),
            (403, "MissingAuthenticationToken", RetryAction::Report, Denied),
            (400, "MissingParameter", RetryAction::Report, Rejected),
        ];
        for (status, code, action, kind) in table {
            let sorted = sort_answer("GetRecords", status, code, "");
            assert_eq!((sorted.0, sorted.1), (action, kind), "{code}");
        }
    }

    /// Proxies and load balancers answer without a code of AWS.
    #[test]
    fn status_without_error_code_is_sorted_by_its_cure() {
        use ErrorKind::{Rejected, Throttled, Unavailable};
        let table = [
            (401, RetryAction::Report, Rejected),
            (403, RetryAction::Report, Rejected),
            (404, RetryAction::Report, Rejected),
            (407, RetryAction::Report, Rejected),
            (408, RetryAction::Retry, Unavailable),
            (413, RetryAction::Report, Rejected),
            (429, RetryAction::SlowDown, Throttled),
            (502, RetryAction::Retry, Unavailable),
            (503, RetryAction::Retry, Unavailable),
            (504, RetryAction::Retry, Unavailable),
        ];
        for (status, action, kind) in table {
            let (sorted, of_kind, text) = sort_answer("GetRecords", status, "", "");
            assert_eq!((sorted, of_kind), (action, kind), "{status}");
            assert!(text.contains(&format!("({status} no error code)")), "{text}");
        }
    }

    #[test]
    fn refused_shard_filter_is_reported() {
        let filter = "Timestamp in the shard filter is invalid";
        let sorted = sort_answer("ListShards", 400, "InvalidArgumentException", filter);
        assert_eq!((sorted.0, sorted.1), (RetryAction::Report, ErrorKind::Rejected));
    }
}
