//! Clients of another region than that of the stream's ARN.

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{Builder, Region};
use kinestream::{Consumer, ErrorKind};

use crate::orders;

const ARN: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/orders";

/// Builds a consumer of the ARN with a client of the in-memory Kinesis, outside of a runtime. Returns
/// the error and the number of calls that Kinesis has received.
fn build(options: impl FnOnce(Builder) -> Builder) -> (Option<kinestream::Error>, usize) {
    let (kinesis, _orders) = orders(1);
    let config = kinesis.client().config().to_builder();
    let mut config = config.region(Region::new("eu-west-1"));
    config.set_endpoint_url(None);
    let client = Client::from_conf(options(config).build());
    let error = Consumer::builder(client, ARN).build().err();
    (error, kinesis.call_count())
}

#[test]
fn client_of_another_region_than_that_of_the_arn_is_refused() {
    let (error, calls) = build(|config| config);
    let error = error.expect("an error");
    assert_eq!(error.kind(), ErrorKind::Configuration);
    let text = error.to_string();
    for part in ["stream orders", "region us-east-1", "region eu-west-1", "build the client with"] {
        assert!(text.contains(part), "expected {part:?} in {text:?}");
    }
    assert_eq!(calls, 0, "expected no call");
}

#[test]
fn client_of_the_region_of_the_arn_is_accepted() {
    let (error, calls) = build(|config| config.region(Region::new("us-east-1")));
    assert!(error.is_none() && calls == 0, "{error:?}");
}

#[test]
fn client_with_an_endpoint_of_its_own_is_accepted() {
    for url in ["http://localhost:4566", "https://kinesis.us-east-1.amazonaws.com"] {
        let (error, calls) = build(|config| config.endpoint_url(url));
        assert!(error.is_none() && calls == 0, "{url}: {error:?}");
    }
}
