//! A service for Kubernetes: probes, metrics, and a graceful shutdown on SIGTERM. Kinesis runs in
//! this process.
//!
//!     cargo run --features metrics --example kubernetes [-- ADDRESS]
//!
//! Serves `/livez`, `/readyz` and `/metrics` on the address, by default on a free local port, until
//! SIGTERM. Then it completes the records in progress and closes the consumer. In your own program,
//! replace the client and the stream, and add a store. The page `guide::probes` has the manifests.

mod support;

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures::{StreamExt, TryStreamExt, future};
use kinestream::{CheckpointOn, Consumer, Health, Record, StartingPosition};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

const STREAM: &str = "orders";
const ORDERS: usize = 1000;
/// The longest time for one record. `terminationGracePeriodSeconds` is 40 s more.
const LONGEST_HANDLING: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("http://{}/readyz", listener.local_addr()?);
    // Installed before the consumer is built, which looks the recorder up.
    let metrics = PrometheusBuilder::new().install_recorder()?;

    run(&consumer().await?, listener, metrics).await
}

/// Returns a consumer of a stream with orders, on a Kinesis in this process.
async fn consumer() -> anyhow::Result<Consumer> {
    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 2).await?;
    support::put_numbers(&client, STREAM, 0..ORDERS).await?;
    let builder = Consumer::builder(client, STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .checkpoint_on(CheckpointOn::Ack)
        .handoff_timeout(LONGEST_HANDLING);
    Ok(builder.build()?)
}

/// Serves the probes and processes records until SIGTERM.
async fn run(
    consumer: &Consumer,
    listener: TcpListener,
    metrics: PrometheusHandle,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let app = app(consumer, metrics);
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    println!("worker {}", consumer.worker_id());

    consumer
        .records()
        // Ends the stream on SIGTERM. The handlers in progress complete.
        .take_until(terminate.recv())
        // An error concerns one shard, and the other shards are read. A failing call is retried.
        .filter_map(|record| future::ready(record.inspect_err(|error| eprintln!("{error}")).ok()))
        .map(anyhow::Ok)
        .try_for_each_concurrent(64, |record| async move {
            timeout(LONGEST_HANDLING, bill(&record)).await.context("the order took too long")??;
            record.ack();
            Ok(())
        })
        .await?;
    consumer.close().await?;
    println!("closed");
    // Serves the probes up to here: the pod is live and not ready while it shuts down.
    serving.abort();
    Ok(())
}

fn app(consumer: &Consumer, metrics: PrometheusHandle) -> Router {
    let (live, ready) = (consumer.clone(), consumer.clone());
    Router::new()
        .route("/livez", get(async move || probe(&live, Health::is_live)))
        .route("/readyz", get(async move || probe(&ready, Health::is_ready)))
        .route("/metrics", get(async move || metrics.render()))
}

fn probe(consumer: &Consumer, is_well: fn(&Health) -> bool) -> (StatusCode, String) {
    let health = consumer.health();
    let status = if is_well(&health) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}: {health:?}\n", consumer.worker_id()))
}

/// Processes an order, which takes 20 ms.
async fn bill(record: &Record) -> anyhow::Result<()> {
    sleep(Duration::from_millis(20)).await;
    std::str::from_utf8(record.data())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::process::Command;

    use kinestream::Checkpoint;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Sends a GET request, and returns the response.
    async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
        let mut socket = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        socket.read_to_string(&mut response).await?;
        Ok(response)
    }

    /// Waits until the response to a GET request contains `text`.
    async fn wait_for(address: SocketAddr, path: &str, text: &str) -> anyhow::Result<()> {
        timeout(Duration::from_secs(60), async {
            while !get(address, path).await?.contains(text) {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
        .await
        .with_context(|| format!("expected {path} to return {text:?}"))?
    }

    /// Waits until every shard has a checkpoint behind a record.
    async fn wait_until_saved(consumer: &Consumer) -> anyhow::Result<()> {
        let is_saved = |position: &Option<Checkpoint>| {
            matches!(position, Some(Checkpoint::AfterSequenceNumber { .. }))
        };
        let saved = timeout(Duration::from_secs(60), async {
            while !consumer.status().await?.shards.values().all(|shard| is_saved(&shard.position)) {
                sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        });
        saved.await.context("expected a checkpoint of each shard")?
    }

    #[tokio::test]
    async fn service_answers_probes_and_shuts_down_on_sigterm() -> anyhow::Result<()> {
        let metrics = PrometheusBuilder::new().install_recorder()?;
        let consumer = consumer().await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let not_ready = probe(&consumer, Health::is_ready).0;
        assert_eq!(not_ready, StatusCode::SERVICE_UNAVAILABLE, "before the first poll");
        let service = tokio::spawn({
            let consumer = consumer.clone();
            async move { run(&consumer, listener, metrics).await }
        });
        wait_for(address, "/readyz", "200 OK").await?;
        wait_for(address, "/livez", "200 OK").await?;
        wait_for(address, "/livez", consumer.worker_id()).await?;
        wait_for(address, "/metrics", "kinestream_millis_behind_latest{").await?;
        wait_until_saved(&consumer).await?;

        let pid = std::process::id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status()?.success());
        timeout(Duration::from_secs(60), service).await.context("a shutdown")???;
        let status = consumer.status().await?;
        assert_eq!(status.workers.len(), 0, "expected the worker to have left: {status:?}");
        assert!(status.shards.values().all(|shard| shard.owner.is_none()), "{status:?}");
        Ok(())
    }
}
