//! Exports counters and gauges to Prometheus, from a reader of a Kinesis in this process.
//!
//!     cargo run --features metrics --example metrics [-- --seconds 10]
//!
//! Serves the metrics at `/metrics` on a free local port, until Ctrl-C or for the given number of
//! seconds, and prints them at the end. `dashboards/kinestream.json` shows them in Grafana. In your
//! own program, install a recorder of your choice before you build the consumer. Nothing else is
//! needed.

mod support;

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures::StreamExt;
use kinestream::{CheckpointOn, Consumer, StartingPosition};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::time::{interval, sleep};

const STREAM: &str = "orders";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}/metrics", listener.local_addr()?);
    let page = metrics.clone();
    let app = Router::new().route("/metrics", get(async move || page.render()));
    tokio::spawn(axum::serve(listener, app).into_future());

    let (client, _port) = support::start_kinesis().await?;
    support::create_stream(&client, STREAM, 3).await?;
    let consumer = Consumer::builder(client.clone(), STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .checkpoint_on(CheckpointOn::Ack)
        // The gauges are updated with each lease renewal, every third of the lease duration.
        .lease_duration(Duration::from_secs(3))
        .build()?;

    // Write 100 records per second. Each takes 20 ms to process.
    let writing = tokio::spawn(async move {
        let mut seconds = interval(Duration::from_secs(1));
        for begin in (0..).step_by(100) {
            seconds.tick().await;
            if let Err(error) = support::put_numbers(&client, STREAM, begin..begin + 100).await {
                eprintln!("{error}");
            }
        }
    });
    let reading = tokio::spawn({
        let records = consumer.records();
        records.for_each_concurrent(8, |record| async {
            sleep(Duration::from_millis(20)).await;
            match record {
                Ok(record) => record.ack(),
                Err(error) => eprintln!("{error}"),
            }
        })
    });

    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        () = sleep(seconds()?) => {}
    }
    writing.abort();
    print!("{}", metrics.render());
    consumer.close().await?;
    reading.await?;
    Ok(())
}

/// Returns the time to run: unlimited without `--seconds`.
fn seconds() -> Result<Duration, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => Ok(Duration::MAX),
        [option, seconds] if option == "--seconds" => Ok(Duration::from_secs(seconds.parse()?)),
        _ => Err(format!("unknown arguments {arguments:?}; try --seconds 10").into()),
    }
}
