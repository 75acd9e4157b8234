//! Failures of DynamoDB: of the crate's store, and of a call of this program.

use std::error::Error as StdError;

use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use kinestream::ErrorKind;

use super::{Endpoint, Failure, cause, code, is_denial, is_rejected_credential};

/// The endpoint of DynamoDB, for advice.
const ENDPOINT: Endpoint =
    Endpoint { service: "DynamoDB", option: "--dynamodb-endpoint-url", local: 8000 };

impl Failure {
    /// Describes a failed call, such as `Scan`.
    pub(crate) fn of_dynamodb_call<E, R>(
        operation: &str,
        table: &str,
        error: &SdkError<E, R>,
    ) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
        R: std::fmt::Debug + 'static,
    {
        let SdkError::ServiceError(response) = error else {
            return Self::of_unanswered(operation, ENDPOINT, error);
        };
        let code = response.err().code().unwrap_or("no error code");
        let detail = response.err().message().unwrap_or_default();
        match code {
            "ResourceNotFoundException" => Self::unknown_table(table),
            _ if is_denial(code) => {
                Self::denied_table(operation, table, &format!("dynamodb:{operation}"), detail)
            }
            _ if is_rejected_credential(code) => Self::rejected_credentials(code),
            _ => {
                Self::new(format!("{operation} of DynamoDB table {table} failed: {code}: {detail}"))
            }
        }
    }

    /// Describes an error of the crate's store in DynamoDB; `None` for another error. The texts of the
    /// crate name the methods of its store: these are options here.
    pub(super) fn of_dynamodb_store(error: &kinestream::Error) -> Option<Self> {
        let text = error.to_string();
        if let Some((kcl_table, _why)) = named(&text, "KCL table ") {
            let is_missing = text.contains("there is no such table");
            return is_missing.then(|| Self::unknown_kcl_table(kcl_table));
        }
        let (table, why) = named(&text, "DynamoDB table ")?;
        let is_about = |part: &str| why.contains(part);
        let operation = why.split(' ').next().unwrap_or_default();
        match error.kind() {
            ErrorKind::Denied if is_about("no AWS credentials") => {
                Some(Self::no_credentials(ENDPOINT).because(&cause(error)))
            }
            ErrorKind::Denied if code(why).is_some_and(is_rejected_credential) => {
                code(why).map(Self::rejected_credentials)
            }
            ErrorKind::Denied => {
                let (_, granted) = why.split_once("access denied; grant ")?;
                let (actions, rest) = granted.split_once(" on the table")?;
                let detail = rest.split_once("Exception: ").map_or("", |(_, detail)| detail);
                Some(Self::denied_table(operation, table, actions, detail.trim_end_matches(')')))
            }
            ErrorKind::Configuration if is_about("there is no such table") => {
                Some(Self::unknown_table(table))
            }
            ErrorKind::Configuration if is_about("partition key pk and the sort key sk") => {
                Some(Self::other_table(table))
            }
            ErrorKind::Configuration if is_about("build the store with kcl_table") => {
                let kcl_table = why.split('"').nth(1)?;
                let message = format!(
                    "the positions of the application are in the lease table {kcl_table} of a KCL"
                );
                Some(Self::new(message).advise(format!("Add --kcl-table {kcl_table}.")))
            }
            ErrorKind::Configuration if is_about("without kcl_table") => {
                let message = format!(
                    "the positions of the application are in DynamoDB table {table}, and not in that \
                     of a KCL"
                );
                Some(Self::new(message).advise("Leave --kcl-table out, or check --application."))
            }
            ErrorKind::StoreUnavailable if is_about("no connection") => {
                Some(Self::new(text).advise(ENDPOINT.advice()))
            }
            _ => None,
        }
    }

    /// Creates the failure of a table whose items have another key.
    pub(crate) fn other_table(table: &str) -> Self {
        Self::new(format!("DynamoDB table {table} is of another kind: its key is not pk and sk"))
            .advise(
                "--dynamodb is the table of the store. The lease table of a KCL is named by \
                 --kcl-table.",
            )
    }

    fn unknown_table(table: &str) -> Self {
        Self::new(format!("DynamoDB table {table} does not exist in this account and region"))
            .advise(
                "Check its name, --profile, and the region: that of --region, of the stream's ARN, \
                 or of the table if --dynamodb is its ARN.",
            )
            .advise(
                "The application creates it, by DynamoDbStore::create_table, or your \
                     infrastructure tools do.",
            )
    }

    fn unknown_kcl_table(table: &str) -> Self {
        Self::new(format!("KCL table {table} does not exist in this account and region"))
            .advise("The lease table has the name of the KCL application by default.")
    }

    fn denied_table(operation: &str, table: &str, actions: &str, detail: &str) -> Self {
        Self::new(format!("access denied: {operation} of DynamoDB table {table}"))
            .advise(format!("Grant {actions} on the table to this user or role."))
            .says(detail)
    }
}

/// Returns the table that follows `before` in a text of the crate, and the rest. An ARN has colons.
fn named<'a>(text: &'a str, before: &str) -> Option<(&'a str, &'a str)> {
    let (_, rest) = text.split_once(before)?;
    let end = rest.find([' ', ',']).unwrap_or(rest.len());
    let (table, why) = rest.split_at(end);
    Some((table.trim_end_matches(':'), why.trim_start_matches([' ', ','])))
}

#[cfg(test)]
mod tests {
    use kinestream::Error;

    use super::*;
    use crate::output::Paint;

    fn shown(kind: ErrorKind, text: &str) -> String {
        Failure::from(Error::new(kind, text)).shown(Paint::plain())
    }

    #[test]
    fn denied_call_of_the_store_names_the_table_and_the_actions() {
        let table = "arn:aws:dynamodb:eu-west-1:123456789012:table/leases";
        let text = format!(
            "stream orders: DynamoDB table {table}: TransactWriteItems failed: access denied; grant \
             dynamodb:UpdateItem, dynamodb:DeleteItem and dynamodb:ConditionCheckItem on the table \
             (400 AccessDeniedException: User: x is not authorized)"
        );
        assert_eq!(
            shown(ErrorKind::Denied, &text),
            format!(
                "error: access denied: TransactWriteItems of DynamoDB table {table}\n  Grant \
                 dynamodb:UpdateItem, dynamodb:DeleteItem and dynamodb:ConditionCheckItem on the \
                 table to this user or role.\n  AWS says: User: x is not authorized"
            )
        );
    }

    #[test]
    fn rejected_credentials_have_their_code() {
        let text = "DynamoDB table leases: Query failed: the credentials are invalid (400 \
                    UnrecognizedClientException: The security token is invalid)";
        let shown = shown(ErrorKind::Denied, text);
        let expected = "error: AWS rejected the credentials (UnrecognizedClientException)\n";
        assert!(shown.starts_with(expected), "{shown}");
    }

    #[test]
    fn other_errors_keep_the_text_of_the_crate() {
        for (kind, text) in [
            (ErrorKind::StoreUnavailable, "DynamoDB table leases: Query failed: throttled"),
            (ErrorKind::StoreCorrupt, "KCL table leases, lease of shardId-000000000000: damaged"),
        ] {
            assert_eq!(shown(kind, text), format!("error: {text}"));
        }
    }
}
