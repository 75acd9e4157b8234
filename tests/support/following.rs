//! What it takes to follow shards that have nothing new.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use cpu_time::ProcessTime;
use futures::StreamExt;
use kinestream::{Consumer, StartingPosition};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bare;

/// The start is over by then.
const START: Duration = Duration::from_secs(5);

/// Seconds of CPU in a second of asking each shard each second, by the crate and by tasks that make
/// the same calls by the SDK alone.
pub(crate) async fn cores(
    client: Client,
    stream: &str,
    shards: usize,
    by_crate: bool,
    time: Duration,
) -> f64 {
    let builder =
        Consumer::builder(client.clone(), stream).starting_position(StartingPosition::TrimHorizon);
    let mut records = builder.build().unwrap().records();
    let mut loops = JoinSet::new();
    let cpu = if by_crate {
        let _nothing = timeout(START, records.next()).await;
        let cpu = ProcessTime::now();
        let nothing = timeout(time, records.next()).await;
        assert!(nothing.is_err());
        cpu
    } else {
        for shard in 0..shards {
            loops.spawn(bare::follow(client.clone(), stream.to_owned(), shard));
        }
        sleep(START).await;
        let cpu = ProcessTime::now();
        sleep(time).await;
        cpu
    };
    cpu.elapsed().as_secs_f64() / time.as_secs_f64()
}
