//! The consumer against servers that speak Kinesis over HTTP: ferrokinesis in this process, and
//! kinesis-local where it is installed. Each goes through the same stories.
// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../../examples/support/mod.rs"]
mod ferrokinesis_server;
#[path = "../support/free_port.rs"]
mod free_port;
mod http2;
mod kinesis_local;
mod stories;

use aws_sdk_kinesis::Client;
use stories::By;

mod ferrokinesis {
    use super::stories::By;
    use super::{Client, ferrokinesis_server, stories};

    async fn client() -> Client {
        ferrokinesis_server::start_kinesis().await.expect("a free port on 127.0.0.1").0
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn reads_splits_merges_and_restarts() {
        stories::reads_splits_merges_and_restarts(&client().await, By::Polling).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn is_pushed_over_splits_merges_and_restarts() {
        stories::reads_splits_merges_and_restarts(&client().await, By::FanOut).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn latest_begins_with_what_comes_after() {
        stories::latest_begins_with_what_comes_after(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn latest_after_a_split_leaves_the_parent_alone() {
        stories::latest_after_a_split_leaves_the_parent_alone(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_position_begins_where_it_says() {
        stories::every_position_begins_where_it_says(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_unknown_stream_is_told_and_ends() {
        stories::an_unknown_stream_is_told_and_ends(&client().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_task_for_each_shard_reads_all() {
        stories::a_task_for_each_shard_reads_all(&client().await).await;
    }
}

/// One server for all of them, one after another: it takes its time to start.
#[tokio::test(flavor = "multi_thread")]
async fn kinesis_local_goes_through_the_same_stories() {
    let server = kinesis_local::KinesisLocal::start().await;
    let client = server.client();
    stories::reads_splits_merges_and_restarts(&client, By::Polling).await;
    stories::latest_begins_with_what_comes_after(&client).await;
    stories::every_position_begins_where_it_says(&client).await;
    stories::an_unknown_stream_is_told_and_ends(&client).await;
    stories::a_task_for_each_shard_reads_all(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_told() {
    stories::a_refused_connection_is_told(&ferrokinesis_server::client_of(1)).await;
}
