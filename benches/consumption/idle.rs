//! What it takes to follow many shards that have nothing new: a process that does that for a while.

use std::time::Duration;

use cpu_time::ProcessTime;
use futures::StreamExt;
use kinestream::{Consumer, StartingPosition};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::bare;
use crate::canned::Contents;
use crate::ferrokinesis_server::client_of;
use crate::subject::peak_bytes;

pub(crate) const SHARDS: usize = 1000;

/// The start is over by then.
const START: Duration = Duration::from_secs(5);
const TIME: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Following {
    /// By the crate, or by a loop of the SDK for each shard.
    pub(crate) by_crate: bool,
    pub(crate) kinesis: u16,
    pub(crate) round: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// Seconds of CPU in a second.
    pub(crate) cores: f64,
    pub(crate) peak_bytes: u64,
}

/// Asks each shard each second, on one thread.
pub(crate) fn measure(following: &Following) -> Effort {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client_of(following.kinesis);
        let contents = Contents { shards: SHARDS, record_bytes: 100, answers: 0 };
        let stream = contents.stream(2 * following.round + u32::from(following.by_crate));
        let builder = Consumer::builder(client.clone(), &stream)
            .starting_position(StartingPosition::TrimHorizon);
        let mut records = builder.build().unwrap().records();
        let mut loops = JoinSet::new();
        let cpu = if following.by_crate {
            let _nothing = timeout(START, records.next()).await;
            let cpu = ProcessTime::now();
            let nothing = timeout(TIME, records.next()).await;
            assert!(nothing.is_err());
            cpu
        } else {
            for shard in 0..SHARDS {
                loops.spawn(bare::follow(client.clone(), stream.clone(), shard));
            }
            sleep(START).await;
            let cpu = ProcessTime::now();
            sleep(TIME).await;
            cpu
        };
        Effort { cores: cpu.elapsed().as_secs_f64() / TIME.as_secs_f64(), peak_bytes: peak_bytes() }
    })
}
