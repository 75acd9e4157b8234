//! The applications that a Redis holds keys of.

use serde::Serialize;

use crate::arguments::{ReportFormat, StatusArguments};
use crate::failure::Outcome;
use crate::output::{Paint, escape, json_line, write_out, write_report};
use crate::store::keys;
use crate::stream_arn::StreamArn;
use crate::table::Table;

/// The end of the keys that every application has. `kinestream::store` documents the layout.
const SUFFIX: &str = "}:format";
const PREFIX: &str = "kinestream:{";

/// An application and the stream that it reads, as the store names it: of an ARN
/// `account:region:name`. The names of the fields are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Application {
    application: String,
    stream: String,
}

/// The applications of a store.
#[derive(Debug, Serialize)]
struct Listing {
    applications: Vec<Application>,
}

/// Lists the applications, of all streams or of one.
pub(super) async fn run(arguments: &StatusArguments) -> Outcome<()> {
    let found = keys::matching(&arguments.store, &format!("{PREFIX}*{SUFFIX}")).await?;
    let mut applications: Vec<_> = found.iter().filter_map(|key| parse(key)).collect();
    applications.sort_unstable();
    if let Some(stream) = &arguments.stream {
        let name = store_name(stream);
        applications.retain(|application| application.stream == name);
    }
    let listing = Listing { applications };
    let written = match arguments.output {
        ReportFormat::Text => write_report(&shown(&listing, Paint::stdout())),
        ReportFormat::Json => write_out(json_line(&listing)?.as_bytes()),
    };
    written.map(drop)
}

/// Parses the key of an application's format.
fn parse(key: &str) -> Option<Application> {
    let scope = key.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (application, stream) = scope.split_once(':')?;
    let application = application.replace("%3A", ":").replace("%25", "%");
    Some(Application { application, stream: stream.to_owned() })
}

/// Returns the name under which the store keeps a stream: of an ARN `account:region:name`.
fn store_name(stream: &str) -> String {
    StreamArn::parse(stream).map_or_else(
        || stream.to_owned(),
        |arn| format!("{}:{}:{}", arn.account, arn.region, arn.name),
    )
}

fn shown(listing: &Listing, paint: Paint) -> String {
    let mut table = Table::new(&["APPLICATION", "STREAM"]);
    for Application { application, stream } in &listing.applications {
        table.push(vec![paint.name(&escape(application.as_bytes())), escape(stream.as_bytes())]);
    }
    if table.is_empty() { "no applications in this store\n".to_owned() } else { table.shown(paint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_the_application_and_the_stream() {
        let pair = |application: &str, stream: &str| {
            Some(Application { application: application.to_owned(), stream: stream.to_owned() })
        };
        assert_eq!(parse("kinestream:{billing:orders}:format"), pair("billing", "orders"));
        assert_eq!(
            parse("kinestream:{a%3Ab%253A:123456789012:eu-west-1:orders}:format"),
            pair("a:b%3A", "123456789012:eu-west-1:orders")
        );
        assert_eq!(parse("kinestream:{billing}:format"), None);
        assert_eq!(parse("other:{billing:orders}:format"), None);
    }

    #[test]
    fn stream_of_an_arn_has_the_name_of_the_store() {
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        assert_eq!(store_name(arn), "123456789012:eu-west-1:orders");
        assert_eq!(store_name("orders"), "orders");
    }
}
