//! Measures a process that follows many shards without new records.

use std::time::Duration;

use kinestream::{Consumer, StartingPosition};
use serde::{Deserialize, Serialize};

use crate::bare;
use crate::canned::Contents;
use crate::ferrokinesis_server::client_of;
use crate::following;
use crate::peak::peak_bytes;

pub(crate) const SHARDS: usize = 1000;

const TIME: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Following {
    /// True for the crate, false for one SDK loop per shard.
    pub(crate) by_crate: bool,
    pub(crate) kinesis: u16,
    pub(crate) round: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// Seconds of CPU per second.
    pub(crate) cores: f64,
    pub(crate) peak_bytes: u64,
}

/// Polls each shard once a second, on one thread.
pub(crate) fn measure(following: &Following) -> Effort {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client_of(following.kinesis);
        let contents = Contents {
            shards: SHARDS,
            record_bytes: 100,
            max_records: 0,
            answers: 0,
            is_packed: false,
        };
        let stream = contents.stream(2 * following.round + u32::from(following.by_crate));
        let cores = if following.by_crate {
            let start = StartingPosition::TrimHorizon;
            let builder = Consumer::builder(client, stream).starting_position(start);
            following::by_crate(builder, TIME).await
        } else {
            let task = |shard| bare::follow(client.clone(), stream.clone(), shard);
            following::by_tasks((0..SHARDS).map(task), TIME).await
        };
        Effort { cores, peak_bytes: peak_bytes() }
    })
}
