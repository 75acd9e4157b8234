//! Failures as the user reads them: a message and advice.

mod dynamodb;

use std::error::Error as StdError;

use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use kinestream::ErrorKind;

use crate::output::Paint;

/// A result of a command. A failure ends the program with exit code 1.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// A failure: one line on the cause, and lines of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    message: String,
    advice: Vec<String>,
    kind: FailureKind,
}

/// The endpoint of a service, for advice.
#[derive(Debug, Clone, Copy)]
struct Endpoint {
    service: &'static str,
    option: &'static str,
    /// The usual port of a local server.
    local: u16,
}

const KINESIS: Endpoint = Endpoint { service: "Kinesis", option: "--endpoint-url", local: 4567 };

impl Endpoint {
    fn advice(self) -> String {
        format!("Check the network, the region, and the endpoint ({}).", self.option)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    /// The stream does not exist: the names of other streams help.
    UnknownStream,
    /// The same command may succeed later.
    Temporary,
    Other,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), advice: Vec::new(), kind: FailureKind::Other }
    }

    /// Creates the failure of a stream that does not exist.
    pub(crate) fn unknown_stream(stream: &str) -> Self {
        let message = format!("stream {stream} does not exist in this account and region");
        Self { kind: FailureKind::UnknownStream, ..Self::new(message) }
    }

    /// Adds a line of advice.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }

    /// Returns the message, without advice.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn is_unknown_stream(&self) -> bool {
        self.kind == FailureKind::UnknownStream
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.kind == FailureKind::Temporary
    }

    /// Returns the text for stderr, without a line end.
    pub(crate) fn shown(&self, paint: Paint) -> String {
        let mut text = format!("{} {}", paint.bad("error:"), self.message);
        for advice in &self.advice {
            text += "\n  ";
            text += advice;
        }
        text
    }

    /// Describes a failed call of Kinesis, such as `ListShards`.
    pub(crate) fn of_call<E, R>(
        operation: &str,
        stream: Option<&str>,
        error: &SdkError<E, R>,
    ) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
        R: std::fmt::Debug + 'static,
    {
        let SdkError::ServiceError(response) = error else {
            return Self::of_unanswered(operation, KINESIS, error);
        };
        let code = response.err().code().unwrap_or("no error code");
        let detail = response.err().message().unwrap_or_default();
        match (code, stream) {
            ("ResourceNotFoundException", Some(stream)) => Self::unknown_stream(stream),
            ("KMSAccessDeniedException", _) => Self::denied_key(operation, detail),
            _ if is_denial(code) => Self::denied(operation, detail),
            _ if is_rejected_credential(code) => Self::rejected_credentials(code),
            _ if detail.is_empty() => Self::new(format!("{operation} failed: {code}")),
            _ => Self::new(format!("{operation} failed: {code}: {detail}")),
        }
    }

    /// Describes a call that got no answer: the request was not sent, or the connection failed.
    fn of_unanswered(
        operation: &str,
        endpoint: Endpoint,
        error: &(dyn StdError + 'static),
    ) -> Self {
        let causes = causes(error);
        let words = causes.to_lowercase();
        if words.contains("credential") || words.contains("identity") {
            return Self::no_credentials(endpoint).because(&causes);
        }
        if words.contains("region") {
            return Self::no_region().because(&causes);
        }
        let service = endpoint.service;
        Self::new(format!("{operation} failed: no connection to {service} ({causes})"))
            .advise(endpoint.advice())
    }

    pub(crate) fn no_region() -> Self {
        Self::new("no AWS region is set").advise(
            "Pass --region, such as --region eu-west-1, set AWS_REGION, or add a region to the \
                 profile.",
        )
    }

    fn rejected_credentials(code: &str) -> Self {
        Self::new(format!("AWS rejected the credentials ({code})"))
            .advise("Check that they are not expired, and are of this account and region.")
            .advise("Run `aws sso login`, or pass another --profile.")
    }

    fn no_credentials(Endpoint { option, local, .. }: Endpoint) -> Self {
        Self::new("no AWS credentials were found")
            .advise(
                "Pass --profile, run `aws sso login`, or set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY.",
            )
            .advise(format!("A local server needs none: pass {option} http://127.0.0.1:{local}."))
    }

    fn denied(operation: &str, detail: &str) -> Self {
        Self::new(format!("access denied: {operation}"))
            .advise(format!("Grant the IAM action kinesis:{operation} to this user or role."))
            .says(detail)
    }

    fn denied_key(operation: &str, detail: &str) -> Self {
        Self::new(format!("access denied to the KMS key of the stream: {operation}"))
            .advise(
                "Grant kms:Decrypt to read, and kms:GenerateDataKey to put, on the key that \
                 encrypts the stream.",
            )
            .says(detail)
    }

    /// Adds the message of AWS, which may be empty.
    fn says(self, detail: &str) -> Self {
        if detail.is_empty() { self } else { self.advise(format!("AWS says: {detail}")) }
    }

    /// Adds the cause, such as an expired SSO token.
    fn because(self, cause: &str) -> Self {
        self.advise(format!("The cause: {cause}"))
    }

    fn of_consumer(error: &kinestream::Error) -> Self {
        if let Some(failure) = Self::of_dynamodb_store(error) {
            return failure;
        }
        let text = error.to_string();
        match error.kind() {
            ErrorKind::NotFound => match (error.stream(), error.shard_id()) {
                (Some(stream), Some(shard)) => Self::unknown_shard(stream, shard.as_str()),
                (Some(stream), None) => Self::unknown_stream(stream),
                _ => Self::new(text),
            },
            ErrorKind::Denied if text.contains("no AWS credentials") => {
                Self::no_credentials(KINESIS).because(&cause(error))
            }
            ErrorKind::Denied if text.contains("KMSAccessDeniedException") => {
                let (call, detail) = text.split_once(" failed: ").unwrap_or(("the call", &text));
                Self::denied_key(call.rsplit(' ').next().unwrap_or(call), detail)
            }
            // The text of the crate names the call: `GetRecords failed: access denied; …`.
            ErrorKind::Denied => match text.split_once(" failed: access denied") {
                Some((before, after)) => {
                    let operation = before.rsplit(' ').next().unwrap_or_default();
                    let detail = after.split_once("Exception: ").map(|(_, detail)| detail);
                    Self::denied(operation, detail.unwrap_or_default().trim_end_matches(')'))
                }
                None => code(&text)
                    .filter(|code| is_rejected_credential(code))
                    .map_or_else(|| Self::new(&*text), Self::rejected_credentials),
            },
            ErrorKind::Configuration if text.contains("no AWS region") => {
                Self::no_region().because(&causes(error))
            }
            _ => Self::new(text),
        }
    }

    fn unknown_shard(stream: &str, shard: &str) -> Self {
        Self::new(format!("stream {stream} has no shard {shard}"))
            .advise(format!("`kinestream describe {stream}` lists its shards."))
            .advise("A closed shard is gone when its last record has left retention.")
    }
}

/// Returns the causes of an error of the crate, whose own text has advice for programs.
fn cause(error: &kinestream::Error) -> String {
    StdError::source(error).map_or_else(|| error.to_string(), causes)
}

/// Returns the error and its causes as one line.
pub(crate) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for error in std::iter::successors(Some(error), |error| (**error).source()) {
        let text = error.to_string();
        // Some errors repeat the text of their cause.
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

/// Returns the error code in a text of the crate: `… (400 AccessDeniedException: …)`.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(" (4")?;
    rest.split([' ', ':', ')']).nth(1)
}

fn is_denial(code: &str) -> bool {
    code.contains("AccessDenied") || code.contains("NotAuthorized")
}

fn is_rejected_credential(code: &str) -> bool {
    matches!(
        code,
        "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "IncompleteSignatureException"
            | "MissingAuthenticationTokenException"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "ExpiredTokenException"
    )
}

impl From<kinestream::Error> for Failure {
    fn from(error: kinestream::Error) -> Self {
        let mut failure = Self::of_consumer(&error);
        if error.is_temporary() {
            failure.kind = FailureKind::Temporary;
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use kinestream::Error;

    use super::*;

    fn shown(failure: &Failure) -> String {
        failure.shown(Paint::plain())
    }

    #[test]
    fn denied_call_of_the_consumer_names_its_iam_action() {
        let text = "GetRecords failed: access denied; grant the IAM actions of the guide page \
                    `permissions` (400 AccessDeniedException: User: x is not authorized)";
        let failure = Failure::from(Error::new(ErrorKind::Denied, text));
        assert_eq!(
            shown(&failure),
            "error: access denied: GetRecords\n  Grant the IAM action kinesis:GetRecords to this \
             user or role.\n  AWS says: User: x is not authorized"
        );
    }

    #[test]
    fn missing_credentials_name_the_ways_to_set_them() {
        let text = "ListShards was not sent: no AWS credentials; set AWS_ACCESS_KEY_ID";
        let failure = Failure::from(Error::new(ErrorKind::Denied, text));
        assert!(
            shown(&failure).starts_with("error: no AWS credentials were found\n  Pass --profile")
        );
    }

    #[test]
    fn denied_key_names_the_actions_of_kms() {
        let text = "GetRecords failed: access denied; grant the IAM actions of the guide page \
                    `permissions` (400 KMSAccessDeniedException: no)";
        let failure = Failure::from(Error::new(ErrorKind::Denied, text));
        let shown = shown(&failure);
        assert!(shown.starts_with("error: access denied to the KMS key of the stream: GetRecords"));
        assert!(shown.contains("kms:Decrypt"), "{shown}");
    }

    #[test]
    fn repeated_cause_is_shown_once() {
        let inner = std::io::Error::other("connection refused");
        let outer = std::io::Error::other(inner);
        assert_eq!(causes(&outer), "connection refused");
    }
}
