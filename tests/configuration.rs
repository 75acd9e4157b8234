//! Invalid options, and the error text of each.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Region};
use futures::stream;
use kinestream::{
    Checkpoint, Consumer, ConsumerBuilder, ErrorKind, MemoryBudget, RecordStreamExt, Result,
    ShardPosition, StartingPosition,
};

fn client() -> Client {
    Client::from_conf(Config::builder().behavior_version(BehaviorVersion::latest()).build())
}

/// Returns the error text of `build` with these options.
fn refused(options: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder) -> String {
    let error = options(Consumer::builder(client(), "orders")).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert_eq!(error.stream(), Some("orders"));
    assert!(!error.is_temporary());
    error.to_string()
}

#[test]
fn default_options_are_valid() {
    Consumer::builder(client(), "orders").build().unwrap();
}

#[test]
fn limit_out_of_range_is_rejected() {
    assert_eq!(
        refused(|builder| builder.limit(0)),
        "stream orders: limit is 0, but must be 1 to 10000 records per call"
    );
    assert_eq!(
        refused(|builder| builder.limit(10_001)),
        "stream orders: limit is 10001, but must be 1 to 10000 records per call"
    );
}

#[test]
fn empty_set_of_shards_is_rejected() {
    assert_eq!(
        refused(|builder| builder.only_shards([])),
        "stream orders: only_shards is empty, but must name at least one shard"
    );
}

#[test]
fn times_out_of_range_are_rejected() {
    assert_eq!(
        refused(|builder| builder.interval(Duration::ZERO)),
        "stream orders: interval is 0ns, but must be at least 200ms and at most a year"
    );
    assert_eq!(
        refused(|builder| builder.interval(Duration::from_millis(199))),
        "stream orders: interval is 199ms, but must be at least 200ms and at most a year"
    );
    assert!(
        refused(|builder| builder.checkpoint_interval(Duration::MAX))
            .contains("checkpoint_interval is")
    );
    assert!(refused(|builder| builder.max_unflushed(Duration::MAX)).contains("max_unflushed is"));
    assert_eq!(
        refused(|builder| builder.discovery_interval(Duration::ZERO)),
        "stream orders: discovery_interval is 0ns, but must be at least 1s and at most a year"
    );
}

#[test]
fn invalid_application_name_is_rejected() {
    assert_eq!(
        refused(|builder| builder.application("")),
        "stream orders: application is empty, but must be a name"
    );
    for name in ["a{b", "a}b", "a\nb"] {
        assert_eq!(
            refused(|builder| builder.application(name)),
            format!(
                "stream orders: application is {name:?}, but must have no braces and no control \
                 characters"
            )
        );
    }
}

#[test]
fn counts_out_of_range_are_rejected() {
    assert_eq!(
        refused(|builder| builder.max_in_flight(0)),
        "stream orders: max_in_flight is 0, but must be at least 1 record"
    );
    assert_eq!(
        refused(|builder| builder.max_in_flight_bytes(0)),
        "stream orders: max_in_flight_bytes is 0, but must be at least 1 byte"
    );
    let budget = MemoryBudget::new(1 << 20);
    assert_eq!(
        refused(|builder| builder.max_buffered_bytes(1).memory_budget(&budget)),
        "stream orders: max_buffered_bytes and memory_budget are both set; set the size of the shared \
         budget with MemoryBudget::new"
    );
    assert_eq!(
        refused(|builder| builder.max_buffered_bytes(0)),
        "stream orders: max_buffered_bytes is 0, but must be at least 1 byte"
    );
    let empty = MemoryBudget::new(0);
    assert_eq!(
        refused(|builder| builder.memory_budget(&empty)),
        "stream orders: memory_budget is 0, but must be at least 1 byte"
    );
    assert_eq!(
        refused(|builder| builder.prefetch(1001)),
        "stream orders: prefetch is 1001, but must be 0 to 1000 batches"
    );
}

#[test]
fn invalid_worker_id_and_times_are_rejected() {
    for name in ["", "-", "a b", "a{b}", "a,b", "a\nb", &"é".repeat(201)] {
        assert_eq!(
            refused(|builder| builder.worker_id(name)),
            format!(
                "stream orders: worker_id is {name:?}, but must have 1 to 200 characters, without \
                 spaces, braces, commas and control characters"
            )
        );
    }
    for duration in [Duration::from_millis(1999), Duration::from_secs(24 * 60 * 60 + 1)] {
        assert_eq!(
            refused(|builder| builder.lease_duration(duration)),
            format!(
                "stream orders: lease_duration is {duration:?}, but must be at least 2s and at most \
                 a day"
            )
        );
    }
    let long = Duration::from_secs(366 * 24 * 60 * 60);
    assert!(refused(|builder| builder.handoff_timeout(long)).contains("handoff_timeout is"));
    let short = Some(Duration::from_millis(999));
    assert!(refused(|builder| builder.poll_timeout(short)).contains("poll_timeout is 999ms"));
}

#[test]
fn starting_position_in_the_future_is_rejected() {
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    assert_eq!(
        refused(|builder| builder.starting_position(StartingPosition::AtTimestamp(tomorrow))),
        "stream orders: starting_position is in the future; pass a time in the past"
    );
    let shard = "shardId-000000000000".parse().unwrap();
    let position = ShardPosition::AtTimestamp(tomorrow);
    assert_eq!(
        refused(|builder| builder.starting_position_for(shard, position)),
        "stream orders: starting_position_for(shardId-000000000000) is in the future; pass a time in \
         the past"
    );
}

#[test]
fn starting_position_for_accepts_each_kind_of_position() {
    let shard = || "shardId-000000000000".parse().unwrap();
    Consumer::builder(client(), "orders")
        .starting_position_for(shard(), StartingPosition::Latest)
        .starting_position_for(shard(), ShardPosition::TrimHorizon)
        .starting_position_for(shard(), Checkpoint::ShardEnd)
        .build()
        .unwrap();
}

#[test]
fn invalid_stream_name_is_rejected_and_an_arn_is_accepted() {
    for stream in ["", "no spaces", "arn:aws:kinesis:eu-west-1:123456789012:orders"] {
        let error = Consumer::builder(client(), stream).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        let text = error.to_string();
        let start = format!("stream is {stream:?}, but must be a name");
        assert!(text.starts_with(&start), "expected no such stream as context: {text}");
    }
    Consumer::builder(client(), ARN).build().unwrap();
}

const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";

fn client_in(region: &'static str) -> aws_sdk_kinesis::config::Builder {
    Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new(region))
}

#[test]
fn client_of_another_region_than_that_of_the_arn_is_rejected() {
    let client = Client::from_conf(client_in("us-east-1").build());
    let error = Consumer::builder(client.clone(), ARN).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert_eq!(
        error.to_string(),
        "stream orders: stream is an ARN of region eu-west-1, but the client calls region us-east-1; \
         build the client with region eu-west-1"
    );
    let fan_out = format!("{ARN}/consumer/billing:1767225600");
    let error = Consumer::builder(client, "orders").fan_out(fan_out).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "stream orders: fan_out is an ARN of region eu-west-1, but the client calls region us-east-1; \
         build the client with region eu-west-1"
    );
}

#[test]
fn client_of_the_region_of_the_arn_or_with_a_custom_endpoint_is_accepted() {
    let client = Client::from_conf(client_in("eu-west-1").build());
    Consumer::builder(client, ARN).build().unwrap();
    let local = client_in("us-east-1").endpoint_url("http://localhost:4566").build();
    Consumer::builder(Client::from_conf(local), ARN).build().unwrap();
}

/// The limits of the adapters are checked by a panic, which names the line of the caller.
#[test]
fn adapter_without_room_panics_at_the_line_of_the_caller() {
    let files = Arc::new(Mutex::new(Vec::new()));
    let panicked = Arc::clone(&files);
    set_hook(Box::new(move |panic| {
        panicked.lock().unwrap().push(panic.location().unwrap().file().to_owned());
    }));
    let records = || stream::empty::<Result<kinestream::Record>>();
    let second = Duration::from_secs(1);
    let _panic = catch_unwind(AssertUnwindSafe(|| drop(records().batches(0, second)))).unwrap_err();
    let by_key = || drop(records().buffer_by_key(0, async |_| Ok::<_, kinestream::Error>(())));
    let _panic = catch_unwind(AssertUnwindSafe(by_key)).unwrap_err();
    let _hook = take_hook();
    assert_eq!(*files.lock().unwrap(), [file!(), file!()]);
}
