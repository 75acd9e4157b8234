//! The applications that a Redis holds keys of.

use std::collections::BTreeSet;

use redis::AsyncCommands;

use crate::arguments::StatusArguments;
use crate::failure::{Failure, Outcome};
use crate::output::{Paint, escape, write_out};
use crate::table::Table;

/// The end of the keys that every application has. `kinestream::store` documents the layout.
const SUFFIX: &str = "}:format";
const PREFIX: &str = "kinestream:{";

/// Lists the applications, of all streams or of one.
pub(super) async fn run(arguments: &StatusArguments) -> Outcome<()> {
    let mut applications = applications(&arguments.redis).await?;
    if let Some(stream) = &arguments.stream {
        let name = store_name(stream);
        applications.retain(|(_, stream)| *stream == name);
    }
    write_out(shown(&applications, Paint::stdout()).as_bytes())?;
    Ok(())
}

/// Returns the applications and their streams.
async fn applications(url: &str) -> Outcome<BTreeSet<(String, String)>> {
    // The crate connects with time limits, and its errors give advice.
    kinestream::RedisStore::connect(url).await?;
    let client = redis::Client::open(url).map_err(|error| failed(&error))?;
    let mut connection =
        client.get_multiplexed_async_connection().await.map_err(|error| failed(&error))?;
    let pattern = format!("{PREFIX}*{SUFFIX}");
    let mut keys =
        connection.scan_match::<_, String>(pattern).await.map_err(|error| failed(&error))?;
    let mut found = BTreeSet::new();
    while let Some(key) = keys.next_item().await {
        found.extend(parse(&key.map_err(|error| failed(&error))?));
    }
    Ok(found)
}

fn failed(error: &redis::RedisError) -> Failure {
    // The code alone: the text may hold parts of the URL.
    let code = error.code().unwrap_or("the connection failed");
    Failure::new(format!("cannot list the keys of Redis: {code}"))
        .advise("The user needs the permission for SCAN.")
}

/// Parses the key of an application's format.
fn parse(key: &str) -> Option<(String, String)> {
    let scope = key.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let (application, stream) = scope.split_once(':')?;
    let application = application.replace("%3A", ":").replace("%25", "%");
    Some((application, stream.to_owned()))
}

/// Returns the name under which the store keeps a stream: of an ARN `account:region:name`.
fn store_name(stream: &str) -> String {
    let parts: Vec<&str> = stream.split(':').collect();
    match parts[..] {
        ["arn", _, "kinesis", region, account, name] => {
            format!("{account}:{region}:{}", name.trim_start_matches("stream/"))
        }
        _ => stream.to_owned(),
    }
}

fn shown(applications: &BTreeSet<(String, String)>, paint: Paint) -> String {
    let mut table = Table::new(&["APPLICATION", "STREAM"]);
    for (application, stream) in applications {
        table.push(vec![paint.name(&escape(application.as_bytes())), escape(stream.as_bytes())]);
    }
    if table.is_empty() { "no applications in this store\n".to_owned() } else { table.shown(paint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_the_application_and_the_stream() {
        let pair =
            |application: &str, stream: &str| Some((application.to_owned(), stream.to_owned()));
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
