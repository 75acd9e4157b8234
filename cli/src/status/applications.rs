//! The applications that a Redis holds keys of.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::arguments::{ReportFormat, StatusArguments};
use crate::failure::Outcome;
use crate::output::{Paint, escape, json_line, write_out, write_report};
use crate::store::keys;
use crate::stream_arn::{StreamArn, of_store_name};
use crate::table::Table;

/// The keys of an application. `kinestream::store` documents the layout.
const PREFIX: &str = "kinestream:{";
/// The ends of those that `reset` deletes; an application of which only others are left is reset.
const SUFFIXES: [&str; 3] = ["}:checkpoints", "}:leases", "}:workers"];

/// An application and the stream that it reads, by the name or the ARN that commands accept. The names
/// of the fields are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Application {
    application: String,
    stream: String,
}

/// An ARN, for advice.
const OTHER: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";

/// The applications of a store.
#[derive(Debug, Serialize)]
struct Listing {
    applications: Vec<Application>,
}

/// Lists the applications, of all streams or of one.
pub(super) async fn run(arguments: &StatusArguments) -> Outcome<()> {
    let found = keys::matching(&arguments.store, &format!("{PREFIX}*")).await?;
    // An application has several keys.
    let mut applications: BTreeSet<_> = found.iter().filter_map(|key| parse(key)).collect();
    let stream = arguments.stream.as_deref();
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

/// Parses a key of an application that holds positions or workers.
fn parse(key: &str) -> Option<Application> {
    let key = key.strip_prefix(PREFIX)?;
    let scope = SUFFIXES.iter().find_map(|suffix| key.strip_suffix(suffix))?;
    let (application, stream) = scope.split_once(':')?;
    let application = application.replace("%3A", ":").replace("%25", "%");
    Some(Application { application, stream: of_store_name(stream) })
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
    let mut table = Table::new(&["APPLICATION", "STREAM"]);
    for Application { application, stream } in &listing.applications {
        table.push(vec![paint.name(&escape(application.as_bytes())), escape(stream.as_bytes())]);
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

    #[test]
    fn keys_name_the_application_and_the_stream() {
        let pair = |application: &str, stream: &str| {
            Some(Application { application: application.to_owned(), stream: stream.to_owned() })
        };
        for key in ["checkpoints", "leases", "workers"] {
            let key = format!("kinestream:{{billing:orders}}:{key}");
            assert_eq!(parse(&key), pair("billing", "orders"));
        }
        assert_eq!(
            parse("kinestream:{a%3Ab%253A:123456789012:eu-west-1:orders}:leases"),
            pair("a:b%3A", "arn:aws:kinesis:eu-west-1:123456789012:stream/orders")
        );
        for key in ["kinestream:{billing}:leases", "other:{a:b}:leases", "kinestream:{a:b}:format"]
        {
            assert_eq!(parse(key), None, "{key}");
        }
    }

    #[test]
    fn stream_of_an_arn_has_the_name_of_the_store() {
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        assert_eq!(store_name(arn), "123456789012:eu-west-1:orders");
        assert_eq!(store_name("orders"), "orders");
    }
}
