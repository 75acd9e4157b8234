//! The applications of a store.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::arguments::{Aws, ReportFormat, StatusArguments, Store};
use crate::failure::Outcome;
use crate::output::{Paint, escape, json_line, write_out, write_report};
use crate::store::{dynamodb, redis};
use crate::stream_arn::{StreamArn, of_store_name};
use crate::table::Table;

/// The keys of an application in Redis. `kinestream::store` documents the layout.
const PREFIX: &str = "kinestream:{";
/// The ends of those that `reset` deletes; an application of which only others are left is reset.
const SUFFIXES: [&str; 3] = ["}:checkpoints", "}:leases", "}:workers"];

/// An application and the stream that it reads, by the name or the ARN that commands accept. The names
/// of the fields are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(clippy::struct_field_names, reason = "the name of a field of JSON")]
struct Application {
    application: String,
    stream: String,
    /// The lease table of a KCL that has the positions.
    kcl_table: Option<String>,
}

/// An ARN, for advice.
const OTHER: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";

/// The applications of a store.
#[derive(Debug, Serialize)]
struct Listing {
    applications: Vec<Application>,
}

/// Lists the applications, of all streams or of one.
pub(super) async fn run(arguments: &StatusArguments, aws: &Aws) -> Outcome<()> {
    let stream = arguments.stream.as_deref();
    let mut applications = found(&arguments.store, aws, stream).await?;
    if let Some(stream) = stream {
        let name = of_store_name(&store_name(stream));
        applications.retain(|application| application.stream == name);
    }
    let listing = Listing { applications: applications.into_iter().collect() };
    let written = match arguments.output {
        ReportFormat::Text => write_report(&shown(&listing, stream, Paint::stdout())),
        ReportFormat::Json => write_out(json_line(&listing)?.as_bytes()),
    };
    written.map(drop)
}

async fn found(store: &Store, aws: &Aws, stream: Option<&str>) -> Outcome<BTreeSet<Application>> {
    match store {
        Store::Redis(store) => {
            let keys = redis::matching(store, &format!("{PREFIX}*")).await?;
            // An application has several keys.
            let scopes = keys.iter().filter_map(|key| scope_of_key(key));
            Ok(scopes.filter_map(|scope| parse(scope, None)).collect())
        }
        Store::DynamoDb(table) => {
            let client = dynamodb::connect(table, aws, stream).await?;
            let scopes = dynamodb::applications(&client, &table.table).await?.into_iter();
            Ok(scopes.filter_map(|(scope, kcl_table)| parse(&scope, kcl_table)).collect())
        }
    }
}

/// Returns the scope in a key of Redis that holds positions or workers.
fn scope_of_key(key: &str) -> Option<&str> {
    let key = key.strip_prefix(PREFIX)?;
    SUFFIXES.iter().find_map(|suffix| key.strip_suffix(suffix))
}

/// Parses the scope `application:stream`.
fn parse(scope: &str, kcl_table: Option<String>) -> Option<Application> {
    let (application, stream) = scope.split_once(':')?;
    let application = application.replace("%3A", ":").replace("%25", "%");
    Some(Application { application, stream: of_store_name(stream), kcl_table })
}

/// Returns the name under which the store keeps a stream: of an ARN `account:region:name`.
fn store_name(stream: &str) -> String {
    StreamArn::parse(stream).map_or_else(
        || stream.to_owned(),
        |arn| format!("{}:{}:{}", arn.account, arn.region, arn.name),
    )
}

/// Returns the listing for people: of one stream, or of all.
fn shown(listing: &Listing, stream: Option<&str>, paint: Paint) -> String {
    let has_kcl = listing.applications.iter().any(|application| application.kcl_table.is_some());
    let columns = ["APPLICATION", "STREAM", "KCL TABLE"];
    let columns = &columns[..if has_kcl { 3 } else { 2 }];
    let mut table = Table::new(columns);
    for Application { application, stream, kcl_table } in &listing.applications {
        let kcl_table = kcl_table.as_deref().unwrap_or("-");
        let mut row = vec![
            paint.name(&escape(application.as_bytes())),
            escape(stream.as_bytes()),
            escape(kcl_table.as_bytes()),
        ];
        row.truncate(columns.len());
        table.push(row);
    }
    match stream {
        _ if !table.is_empty() => table.shown(paint),
        None => "no applications in this store\n".to_owned(),
        Some(stream) => format!(
            "no applications of stream {stream} in this store\n  An application is listed for the \
             name or the ARN by which its workers name the stream, such as {OTHER}.\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(application: &str, stream: &str, kcl_table: Option<&str>) -> Application {
        Application {
            application: application.to_owned(),
            stream: stream.to_owned(),
            kcl_table: kcl_table.map(str::to_owned),
        }
    }

    #[test]
    fn keys_name_the_application_and_the_stream() {
        let parsed = |key: &str| scope_of_key(key).and_then(|scope| parse(scope, None));
        for key in ["checkpoints", "leases", "workers"] {
            let key = format!("kinestream:{{billing:orders}}:{key}");
            assert_eq!(parsed(&key), Some(application("billing", "orders", None)));
        }
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        assert_eq!(
            parsed("kinestream:{a%3Ab%253A:123456789012:eu-west-1:orders}:leases"),
            Some(application("a:b%3A", arn, None))
        );
        for key in ["kinestream:{billing}:leases", "other:{a:b}:leases", "kinestream:{a:b}:format"]
        {
            assert_eq!(parsed(key), None, "{key}");
        }
    }

    #[test]
    fn table_of_a_kcl_is_shown_if_an_application_has_one() {
        let mut listing = Listing { applications: vec![application("billing", "orders", None)] };
        let of = |listing: &Listing| shown(listing, None, Paint::plain());
        assert_eq!(of(&listing), "APPLICATION  STREAM\nbilling      orders\n");
        listing.applications.push(application("mail", "orders", Some("leases")));
        assert_eq!(
            of(&listing),
            "APPLICATION  STREAM  KCL TABLE\nbilling      orders  -\nmail         orders  leases\n"
        );
    }

    #[test]
    fn stream_of_an_arn_has_the_name_of_the_store() {
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        assert_eq!(store_name(arn), "123456789012:eu-west-1:orders");
        assert_eq!(store_name("orders"), "orders");
    }
}
