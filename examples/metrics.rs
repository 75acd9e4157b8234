//! Counters and gauges for Prometheus, from a reader of a Kinesis in this process.
//!
//!     cargo run --features metrics --example metrics [-- --seconds 10]
//!
//! Serves them at `/metrics` on a free port of this machine until Ctrl-C, or for so many seconds, and
//! prints them at the end. `dashboards/kinestream.json` shows them in Grafana. In your own program,
//! install the recorder of your choice before the consumer is built; the rest happens by itself.

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
        // It measures at each renewal, every third of it.
        .lease_duration(Duration::from_secs(3))
        .build()?;

    // Some records a second, each of which takes a moment.
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

/// How long to run: without `--seconds`, for ever.
fn seconds() -> Result<Duration, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => Ok(Duration::MAX),
        [option, seconds] if option == "--seconds" => Ok(Duration::from_secs(seconds.parse()?)),
        _ => Err(format!("unknown arguments {arguments:?}; try --seconds 10").into()),
    }
}
