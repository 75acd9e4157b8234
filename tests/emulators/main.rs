//! The consumer against emulators of Kinesis over HTTP: ferrokinesis in this process, and
//! kinesis-local, which `./tests/run` installs. Both run the scenarios in `scenarios`.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../../examples/support/mod.rs"]
mod ferrokinesis_server;
mod formats;
#[path = "../support/free_port.rs"]
mod free_port;
mod http2;
mod kinesis_local;
mod scenarios;

use aws_sdk_kinesis::Client;
use scenarios::Source;

mod ferrokinesis {
    use super::scenarios::Source;
    use super::{Client, bounds, ferrokinesis_server, formats, scenarios};

    async fn client() -> Client {
        ferrokinesis_server::start_kinesis().await.expect("expected a free port on 127.0.0.1").0
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn resharded_stream_is_read_in_order_across_restarts() {
        scenarios::resharded_stream_is_read_in_order_across_restarts(
            &client().await,
            Source::Polling,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fan_out_reads_resharded_stream_in_order_across_restarts() {
        scenarios::resharded_stream_is_read_in_order_across_restarts(
            &client().await,
            Source::FanOut,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn latest_reads_only_later_records() {
        scenarios::latest_reads_only_later_records(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn latest_after_split_skips_parent() {
        scenarios::latest_after_split_skips_parent(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn starting_position_delivers_records_from_there() {
        scenarios::starting_position_delivers_records_from_there(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn unknown_stream_is_reported_and_ends() {
        scenarios::unknown_stream_is_reported_and_ends(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn task_per_shard_reads_all_records() {
        scenarios::task_per_shard_reads_all_records(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn jobs_end_over_reshards_and_repeat_nothing() {
        bounds::jobs_end_over_reshards_and_repeat_nothing(&client().await, Source::Polling).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fan_out_jobs_end_over_reshards_and_repeat_nothing() {
        bounds::jobs_end_over_reshards_and_repeat_nothing(&client().await, Source::FanOut).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn job_ends_at_a_time() {
        bounds::job_ends_at_a_time(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn named_shards_are_read_alone() {
        bounds::named_shards_are_read_alone(&client().await, Source::Polling).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fan_out_reads_named_shards_alone() {
        bounds::named_shards_are_read_alone(&client().await, Source::FanOut).await;
    }

    /// ferrokinesis writes times in seconds.
    #[tokio::test(flavor = "multi_thread")]
    async fn both_formats_read_equal_records() {
        formats::both_formats_read_equal_records(&client().await).await;
    }
}

/// Runs scenarios one after another on one server, because kinesis-local starts slowly.
#[tokio::test(flavor = "multi_thread")]
async fn kinesis_local_passes_shared_scenarios() {
    let server = kinesis_local::KinesisLocal::start().await;
    let client = server.client();
    scenarios::resharded_stream_is_read_in_order_across_restarts(&client, Source::Polling).await;
    scenarios::latest_reads_only_later_records(&client).await;
    scenarios::starting_position_delivers_records_from_there(&client).await;
    scenarios::unknown_stream_is_reported_and_ends(&client).await;
    scenarios::task_per_shard_reads_all_records(&client).await;
    bounds::jobs_end_over_reshards_and_repeat_nothing(&client, Source::Polling).await;
    bounds::job_ends_at_a_time(&client).await;
    bounds::named_shards_are_read_alone(&client, Source::Polling).await;
    // kinesis-local writes payloads as text in CBOR too.
    formats::both_formats_read_equal_records(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connection_is_reported_with_remedy() {
    scenarios::refused_connection_is_reported_with_remedy(&ferrokinesis_server::client_of(1)).await;
}
