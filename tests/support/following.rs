//! The CPU time that following idle shards takes.

use std::time::Duration;

use cpu_time::ProcessTime;
use futures::StreamExt;
use kinestream::ConsumerBuilder;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The start-up time that is excluded from the measurement.
const START: Duration = Duration::from_secs(5);

/// Returns the CPU seconds per second that the crate uses.
pub(crate) async fn by_crate(builder: ConsumerBuilder, time: Duration) -> f64 {
    let mut records = builder.build().unwrap().records();
    let _nothing = timeout(START, records.next()).await;
    let cpu = ProcessTime::now();
    let nothing = timeout(time, records.next()).await;
    assert!(nothing.is_err());
    cpu.elapsed().as_secs_f64() / time.as_secs_f64()
}

/// Returns the CPU seconds per second that one task per shard uses.
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
