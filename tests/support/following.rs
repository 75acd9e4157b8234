//! What it takes to follow shards that have nothing new.

use std::time::Duration;

use cpu_time::ProcessTime;
use futures::StreamExt;
use kinestream::ConsumerBuilder;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The start is over by then.
const START: Duration = Duration::from_secs(5);

/// Seconds of CPU in a second, by the crate.
pub(crate) async fn by_crate(builder: ConsumerBuilder, time: Duration) -> f64 {
    let mut records = builder.build().unwrap().records();
    let _nothing = timeout(START, records.next()).await;
    let cpu = ProcessTime::now();
    let nothing = timeout(time, records.next()).await;
    assert!(nothing.is_err());
    cpu.elapsed().as_secs_f64() / time.as_secs_f64()
}

/// Seconds of CPU in a second, by a task for each shard.
pub(crate) async fn by_tasks(
    tasks: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>,
    time: Duration,
) -> f64 {
    let _tasks: JoinSet<()> = tasks.collect();
    sleep(START).await;
    let cpu = ProcessTime::now();
    sleep(time).await;
    cpu.elapsed().as_secs_f64() / time.as_secs_f64()
}
