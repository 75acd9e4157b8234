//! Classifies failed calls to Kinesis: one table maps each error code to a retry action.

use std::error::Error as StdError;
use std::time::SystemTime;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::primitives::{DateTime, DateTimeFormat};
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;

use super::{Error, ErrorKind, Panic, TOLERATED_PANICS};

/// The reaction to a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryAction {
    /// Back off and reduce the call rate. The iterator is kept.
    SlowDown,
    /// Back off and repeat the call.
    Retry,
    /// Like `Retry`, and report the error if the failure lasts: the response is unusable.
    RetryThenReport,
    /// Like `Retry`: a shared call is in its back-off after it failed for another reader. The error
    /// contains that failure.
    CoolDown,
    /// Get a new iterator after the last fetched record.
    RestartIterator,
    /// Restart the listing from its first page. The error is reported if that fails for long.
    RestartListing,
    /// Apply the `on_trimmed` policy: the sequence number is no longer valid in this shard.
    Trimmed,
    /// Wait until another holder of the resource releases it.
    WaitForOther,
    /// The stream or the shard does not exist.
    Gone,
    /// Report the error and retry slowly: the crate cannot fix the cause.
    Report,
}

impl RetryAction {
    /// Returns true if a retry may never succeed.
    pub(crate) fn lasts(self) -> bool {
        use RetryAction::{Gone, Report, RestartListing, RetryThenReport};
        matches!(self, Report | RetryThenReport | RestartListing | Gone)
    }
}

/// A failed call: the action to take, and the error to report if the action does not help.
#[derive(Debug)]
pub(crate) struct ClassifiedError {
    pub(crate) action: RetryAction,
    pub(crate) error: Error,
    /// The time of the response by the server's clock, in whole seconds.
    pub(crate) answered: Option<SystemTime>,
}

impl ClassifiedError {
    /// Classifies the error of the call `operation`, such as `"GetRecords"`.
    pub(crate) fn of<E>(operation: &'static str, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let (action, kind, message) = classify(operation, &error);
        let answered = error.raw_response().and_then(date_of);
        Self { action, error: Error::new(kind, message).with_source(error), answered }
    }

    /// Classifies an error that a subscription received instead of an event. The SDK does not find
    /// the error code of such an error, but parses it into the right variant.
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
                    // The error ended an open subscription. If it lasts, the next subscription
                    // fails with it.
                    _ => (500, pushed.code().unwrap_or("InternalFailureException")),
                };
                classify_response(operation, status, code, pushed.message().unwrap_or_default())
            }
            SdkError::ResponseError(_) => unparsable_response(operation),
            _ => retry(operation, "the subscription's connection was lost"),
        };
        Self { action, error: Error::new(kind, message).with_source(error), answered: None }
    }

    /// Creates the error of a call in which user code panicked, such as an interceptor.
    pub(crate) fn panicked(operation: &'static str, panic: Panic) -> Self {
        let message = format!(
            "{operation} panicked in the client's HTTP client, interceptor or credentials provider; \
             fix that code: {panic}"
        );
        let error = Error::new(ErrorKind::Panicked, message).with_source(panic);
        Self { action: RetryAction::Retry, error, answered: None }
    }

    /// Returns the action, and updates `panics`, the number of consecutive panics. A repeated panic
    /// is reported. The panics of shared calls are counted by their
    /// [`Cooldown`](crate::cooldown::Cooldown).
    pub(crate) fn action_after(&self, panics: &mut u32) -> RetryAction {
        if self.action == RetryAction::CoolDown || self.error.is_shared() {
            return self.action;
        }
        if self.error.kind() != ErrorKind::Panicked {
            *panics = 0;
            return self.action;
        }
        *panics = panics.saturating_add(1);
        if *panics > TOLERATED_PANICS { RetryAction::Report } else { self.action }
    }

    /// Creates the error of a response that lacks the requested field `what`.
    pub(crate) fn missing_field(operation: &str, what: &str) -> Self {
        Self {
            action: RetryAction::RetryThenReport,
            error: Error::new(
                ErrorKind::Unavailable,
                format!("{operation} failed: the response has no {what}"),
            ),
            answered: None,
        }
    }

    /// Creates the error of a call that got no response in time.
    pub(crate) fn timed_out(operation: &'static str, seconds: u64) -> Self {
        Self {
            action: RetryAction::Retry,
            error: Error::new(
                ErrorKind::Unavailable,
                format!("{operation} failed: no response within {seconds} s"),
            ),
            answered: None,
        }
    }
}

/// Returns the time at which the server sent a response: its `Date` header, which the SDK does not
/// pass on.
pub(crate) fn date_of(answer: &HttpResponse) -> Option<SystemTime> {
    let date = DateTime::from_str(answer.headers().get("date")?, DateTimeFormat::HttpDate).ok()?;
    date.try_into().ok()
}

fn classify<E>(
    operation: &str,
    error: &SdkError<E, HttpResponse>,
) -> (RetryAction, ErrorKind, String)
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status();
            let code = answer.err().code().unwrap_or_default();
            let message = answer.err().message().unwrap_or_default();
            classify_response(operation, status.as_u16(), code, message)
        }
        // The response was cut short, or comes from a proxy.
        SdkError::ResponseError(_) => unparsable_response(operation),
        SdkError::TimeoutError(_) => retry(operation, "no response in time"),
        SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => retry(
            operation,
            "no connection to Kinesis; check the endpoint, the region and the network",
        ),
        _ => classify_unsent(operation, error),
    }
}

/// Classifies an error of a request that was never sent: credentials, region, endpoint.
fn classify_unsent(
    operation: &str,
    error: &(dyn StdError + 'static),
) -> (RetryAction, ErrorKind, String) {
    match missing_setting(error) {
        Some((kind, advice)) => {
            (RetryAction::Report, kind, format!("{operation} was not sent: {advice}"))
        }
        None => retry(operation, "the request could not be sent"),
    }
}

/// Returns the kind and the advice for a request that was never sent because of the client's
/// settings.
pub(crate) fn missing_setting(
    error: &(dyn StdError + 'static),
) -> Option<(ErrorKind, &'static str)> {
    let causes = std::iter::successors(Some(error), |error| (**error).source())
        .map(|error| error.to_string().to_lowercase())
        .collect::<Vec<_>>()
        .join(": ");
    if causes.contains("credential") || causes.contains("identity") {
        let advice = "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a \
                      profile or a role, and build the client from aws_config";
        Some((ErrorKind::Denied, advice))
    } else if causes.contains("region") {
        let advice = "no AWS region; set AWS_REGION or the client's region";
        Some((ErrorKind::Configuration, advice))
    } else {
        None
    }
}

/// Returns the advice for an error code of missing permissions, credentials or keys.
#[cfg(feature = "dynamodb")]
pub(crate) fn denial_advice(code: &str) -> Option<&'static str> {
    classify_denial(code).map(|(_action, _kind, advice)| advice)
}

/// Classifies the error codes that the API reference of each operation lists, and those of
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html>.
fn classify_response(
    operation: &str,
    status: u16,
    code: &str,
    message: &str,
) -> (RetryAction, ErrorKind, String) {
    let about = |subject: &str| message.to_lowercase().contains(subject);
    let common = classify_denial(code).or_else(|| classify_common_failure(code));
    let (action, kind, advice) = common.unwrap_or_else(|| match code {
        "InvalidArgumentException" if operation == "ListShards" && !about("token") => (
            RetryAction::Report,
            ErrorKind::Rejected,
            "the shard filter was rejected; check that the starting position is not in the future",
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
            (RetryAction::SlowDown, ErrorKind::Throttled, "throttled by Kinesis")
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
            "the position is older than the stream's retention, or belongs to an earlier stream \
             of the same name",
        ),
        // The timestamp is ahead of the server's clock, which catches up.
        "InvalidArgumentException" if about("timestamp") => (
            RetryAction::Retry,
            ErrorKind::Rejected,
            "the timestamp was rejected; it may be ahead of the server's clock",
        ),
        "ResourceInUseException" => (
            RetryAction::WaitForOther,
            ErrorKind::Unavailable,
            "the resource is still in use, for example by another subscription to the shard",
        ),
        "ResourceNotFoundException" => (
            RetryAction::Gone,
            ErrorKind::NotFound,
            "no such stream or shard; check the stream's name, the region and the account",
        ),
        _ if status >= 500 || status == 408 => {
            (RetryAction::Retry, ErrorKind::Unavailable, "temporary Kinesis failure")
        }
        _ if status == 429 => (RetryAction::SlowDown, ErrorKind::Throttled, "throttled by Kinesis"),
        _ => (RetryAction::Report, ErrorKind::Rejected, "request rejected by Kinesis"),
    });
    let code = if code.is_empty() { "no error code" } else { code };
    let detail = if message.is_empty() { String::new() } else { format!(": {message}") };
    (action, kind, format!("{operation} failed: {advice} ({status} {code}{detail})"))
}

type Classification = (RetryAction, ErrorKind, &'static str);

/// Classifies the codes of missing permissions, credentials or keys.
fn classify_denial(code: &str) -> Option<Classification> {
    Some(match code {
        "AccessDeniedException"
        | "AccessDenied"
        | "NotAuthorized"
        | "NotAuthorizedException"
        | "KMSAccessDeniedException" => (
            RetryAction::Report,
            ErrorKind::Denied,
            "access denied; grant the IAM actions of the guide page `permissions`",
        ),
        "KMSDisabledException"
        | "KMSInvalidStateException"
        | "KMSNotFoundException"
        | "KMSOptInRequired" => (
            RetryAction::Report,
            ErrorKind::Denied,
            "the stream's KMS key cannot be used; check that the key exists, is enabled and allows \
             kms:Decrypt",
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
            "credentials rejected; check that they are valid, not expired and for this account \
             and region",
        ),
        _ => return None,
    })
}

/// Classifies the codes of failures that any operation may have: invalid requests and server
/// errors.
fn classify_common_failure(code: &str) -> Option<Classification> {
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
            (RetryAction::Retry, ErrorKind::Unavailable, "temporary Kinesis failure")
        }
        "InvalidAction" | "MissingAction" | "UnknownOperationException" => (
            RetryAction::Report,
            ErrorKind::Rejected,
            "the endpoint does not support the operation; check the client's endpoint and region",
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
    (RetryAction::Retry, ErrorKind::Unavailable, format!("{operation} failed: {why}"))
}

fn unparsable_response(operation: &str) -> (RetryAction, ErrorKind, String) {
    let message = format!(
        "{operation} failed: the response cannot be parsed; check the client's endpoint and the \
         proxies in front of it"
    );
    (RetryAction::RetryThenReport, ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The current and the former codes of
    /// <https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html>.
    #[test]
    fn common_error_codes_have_their_action_and_kind() {
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
            let sorted = classify_response("GetRecords", status, code, "");
            assert_eq!((sorted.0, sorted.1), (action, kind), "{code}");
        }
    }

    /// Proxies and load balancers respond without an AWS error code.
    #[test]
    fn status_without_error_code_has_its_action_and_kind() {
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
            let (sorted, of_kind, text) = classify_response("GetRecords", status, "", "");
            assert_eq!((sorted, of_kind), (action, kind), "{status}");
            assert!(text.contains(&format!("({status} no error code)")), "{text}");
        }
    }

    #[test]
    fn refused_shard_filter_is_reported() {
        let filter = "Timestamp in the shard filter is invalid";
        let sorted = classify_response("ListShards", 400, "InvalidArgumentException", filter);
        assert_eq!((sorted.0, sorted.1), (RetryAction::Report, ErrorKind::Rejected));
    }
}
