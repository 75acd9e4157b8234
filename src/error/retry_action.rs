//! Maps each error code of Kinesis to a retry action, in one table.

use super::ErrorKind;

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

/// Returns the advice for an error code of missing permissions, credentials or keys.
#[cfg(feature = "dynamodb")]
pub(crate) fn denial_advice(code: &str) -> Option<&'static str> {
    classify_denial(code).map(|(_action, _kind, advice)| advice)
}

/// Classifies the error codes that the API reference of each operation lists, and those of
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html>.
pub(super) fn classify_response(
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
