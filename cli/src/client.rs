//! The configuration of the clients, the client of Kinesis, and the calls that commands share.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{Credentials, Region};
use aws_sdk_kinesis::types::StreamSummary;

use crate::arguments::Aws;
use crate::failure::{Failure, Outcome};
use crate::nearest::nearest;
use crate::profile;
use crate::stream_arn::StreamArn;

/// The limit of one attempt of a call, without which a server that does not answer is waited for
/// without an end.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The calls of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Each attempt ends after 30 s.
    Short,
    /// Subscriptions are among the calls. The crate limits the time of each call itself.
    Following,
}

/// Creates a client from the usual AWS sources and the options, for the region of the ARN if the stream
/// is given by one.
pub(crate) async fn connect(aws: &Aws, stream: Option<&str>, calls: Calls) -> Outcome<Client> {
    let endpoint = aws.endpoint_url.as_deref();
    Ok(Client::new(&config(aws, region(aws, stream), endpoint, calls).await?))
}

/// Loads the configuration of a service that has this endpoint, or that of its region.
pub(crate) async fn config(
    aws: &Aws,
    region: Option<&str>,
    endpoint: Option<&str>,
    calls: Calls,
) -> Outcome<SdkConfig> {
    let is_local = endpoint.is_some_and(is_local);
    // A local server needs no profile.
    if !is_local || aws.profile.is_some() {
        profile::check(aws.profile.as_deref()).await?;
    }
    let mut loader = aws_config::defaults(BehaviorVersion::latest());
    if calls == Calls::Short {
        let limit = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT);
        loader = loader.timeout_config(limit.build());
    }
    if let Some(profile) = &aws.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    if let Some(url) = endpoint {
        loader = loader.endpoint_url(url);
        let is_set = |name: &str| std::env::var_os(name).is_some();
        // Local servers check no credentials.
        if is_local && aws.profile.is_none() && !is_set("AWS_ACCESS_KEY_ID") {
            loader = loader
                .credentials_provider(Credentials::new("local", "local", None, None, "local"));
        }
    }
    let config = loader.load().await;
    if config.region().is_some() {
        return Ok(config);
    }
    // A local server has one region, but the signature of a call needs a name.
    if !is_local {
        return Err(Failure::no_region());
    }
    Ok(config.into_builder().region(Region::new("us-east-1")).build())
}

/// Returns the region that the option names, or that of the stream's ARN. The arguments check that the
/// two are one.
pub(crate) fn region<'a>(aws: &'a Aws, stream: Option<&'a str>) -> Option<&'a str> {
    let arn = stream.and_then(StreamArn::parse);
    aws.region.as_deref().or(arn.map(|arn| arn.region))
}

/// Returns true for the URL of a server on this machine.
pub(crate) fn is_local(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|local| {
        host.strip_prefix(local).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

/// Sets the name or the ARN of a stream on a call.
macro_rules! of_stream {
    ($call:expr, $stream:expr) => {{
        let (call, stream): (_, &str) = ($call, $stream);
        if stream.starts_with("arn:") { call.stream_arn(stream) } else { call.stream_name(stream) }
    }};
}
pub(crate) use of_stream;

/// Lists the streams of the account and region, in the order of their names.
pub(crate) async fn list_streams(client: &Client) -> Outcome<Vec<StreamSummary>> {
    let (mut streams, mut names) = (Vec::new(), Vec::<String>::new());
    let mut token: Option<String> = None;
    loop {
        let call = match &token {
            Some(token) => client.list_streams().next_token(token),
            // A server without page tokens continues after a name.
            None => client.list_streams().set_exclusive_start_stream_name(names.last().cloned()),
        };
        let page =
            call.send().await.map_err(|error| Failure::of_call("ListStreams", None, &error))?;
        let before = names.len();
        names.extend(page.stream_names);
        streams.extend(page.stream_summaries.unwrap_or_default());
        token = page.next_token;
        // A page without names would be listed again and again.
        if !page.has_more_streams || names.len() == before {
            break;
        }
    }
    // Some local servers return names only.
    let known: std::collections::HashSet<String> =
        streams.iter().map(|stream| stream.stream_name.clone()).collect();
    let unknown = names.into_iter().filter(|name| !known.contains(name));
    let unknown: Vec<_> = unknown.filter_map(|name| unsummarized(&name)).collect();
    streams.extend(unknown);
    Ok(streams)
}

/// The status of a stream of which the server returns the name only.
pub(crate) const UNKNOWN: &str = "-";

fn unsummarized(name: &str) -> Option<StreamSummary> {
    let summary =
        StreamSummary::builder().stream_name(name).stream_arn("").stream_status(UNKNOWN.into());
    summary.build().ok()
}

/// Adds the nearest names to the failure of a stream that does not exist.
pub(crate) async fn suggest_names(client: &Client, stream: &str, failure: Failure) -> Failure {
    if !failure.is_unknown_stream() {
        return failure;
    }
    let region = client.config().region().map_or_else(|| "-".to_owned(), ToString::to_string);
    let failure = failure.advise(match StreamArn::parse(stream) {
        Some(_) => format!("The region is {region}, which the ARN names."),
        None => format!("The region is {region}; --region selects another one."),
    });
    // The permission to list may be missing: the failure is complete without.
    let Ok(streams) = list_streams(client).await else { return failure };
    let names: Vec<_> = streams.iter().map(|stream| stream.stream_name.as_str()).collect();
    let name = StreamArn::parse(stream).map_or(stream, |arn| arn.name);
    if names.contains(&name) {
        return failure.advise(format!(
            "A stream {name} exists in the account of the credentials; its ARN is another one."
        ));
    }
    match &nearest(name, &names)[..] {
        [] if names.is_empty() => {
            failure.advise("There are no streams in this account and region.")
        }
        [] => failure.advise("`kinestream streams` lists the streams that exist."),
        near => failure.advise(format!("Did you mean {}?", near.join(" or "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_is_that_of_the_option_or_of_the_arn() {
        let arn = Some("arn:aws:kinesis:eu-west-1:123456789012:stream/orders");
        let of = |option: Option<&str>, stream| {
            let aws = Aws { region: option.map(str::to_owned), ..Aws::default() };
            region(&aws, stream).map(str::to_owned)
        };
        assert_eq!(of(None, Some("orders")), None);
        assert_eq!(of(None, arn), Some("eu-west-1".to_owned()));
        assert_eq!(of(Some("local"), arn), Some("local".to_owned()));
    }

    #[tokio::test]
    async fn attempt_ends_after_30_s_but_a_subscription() {
        let url = Some("http://127.0.0.1:4567".to_owned());
        let aws = Aws { endpoint_url: url, ..Aws::default() };
        for (calls, expected) in [(Calls::Short, Some(ATTEMPT)), (Calls::Following, None)] {
            let client = connect(&aws, None, calls).await.unwrap();
            let limits = client.config().timeout_config().expect("expected limits");
            assert_eq!(limits.operation_attempt_timeout(), expected, "{calls:?}");
        }
    }

    #[test]
    fn only_hosts_of_this_machine_are_local() {
        for url in
            ["http://127.0.0.1:4567", "http://localhost", "https://localhost/x", "http://[::1]:1"]
        {
            assert!(is_local(url), "{url}");
        }
        for url in [
            "https://kinesis.eu-west-1.amazonaws.com",
            "http://127.0.0.1.example.com",
            "http://localhost.evil",
        ] {
            assert!(!is_local(url), "{url}");
        }
    }
}
