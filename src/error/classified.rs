//! Failed calls to Kinesis, each with the action to take and the error to report.

use std::error::Error as StdError;
use std::time::SystemTime;

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::primitives::{DateTime, DateTimeFormat};
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;

use super::retry_action::{RetryAction, classify_response};
use super::{Error, ErrorKind, Panic, TOLERATED_PANICS};

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
