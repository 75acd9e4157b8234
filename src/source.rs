//! What yields the records of one shard, batch by batch.
//!
//! A source is a `Stream<Item = Result<Fetched>>`: it fetches when it is polled and keeps its own
//! position, that of the last record *fetched*. Dropping it drops what it was about to fetch and
//! nothing else; whoever needs the rest makes a new source from a checkpoint.

mod aggregation;
mod batch;
mod budget;
mod hash_range;
mod kinesis;
mod polling;
mod position;
mod progress;
mod room;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;

use crate::error::Result;
use crate::record::{Finish, ShardId};

pub(crate) use batch::Batch;
pub(crate) use budget::{Budget, Space};
pub(crate) use kinesis::{Kinesis, KnownShard, Listing};
use polling::Polling;
pub use position::OnTrimmed;
pub(crate) use position::Position;

use progress::Progress;

/// What it takes to read one shard.
pub(crate) struct Subject {
    pub(crate) kinesis: Kinesis,
    pub(crate) shard_id: ShardId,
    /// Of the lease under which it is read.
    pub(crate) epoch: u64,
    pub(crate) position: Position,
    pub(crate) on_trimmed: OnTrimmed,
    /// Whether records that a producer has packed into one are handed out one by one.
    pub(crate) deaggregate: bool,
    pub(crate) budget: Budget,
    pub(crate) finish: Arc<dyn Finish>,
    pub(crate) interval: Duration,
    pub(crate) limit: u32,
}

impl Subject {
    /// The source. It asks for nothing until it is polled.
    pub(crate) fn into_source(self) -> Source {
        let Self { interval, limit, budget, .. } = self;
        let progress = Progress {
            kinesis: self.kinesis,
            shard_id: self.shard_id,
            epoch: self.epoch,
            position: self.position,
            on_trimmed: self.on_trimmed,
            deaggregate: self.deaggregate,
            finish: self.finish,
            again: false,
            told: None,
        };
        Polling { progress, interval, limit, budget }.into_source()
    }
}

/// What a source yields.
pub(crate) enum Fetched {
    /// At least one record, and the memory that they were granted.
    Records(Batch, Space),
    /// The shard is closed and read to its end. The children are known where the server names
    /// them; nothing follows.
    End(Vec<KnownShard>),
}

/// The records of one shard. After an error it goes on, unless it ends.
pub(crate) type Source = BoxStream<'static, Result<Fetched>>;

/// What is fuzzed, by a crate of its own.
#[cfg(fuzzing)]
pub fn fuzz_aggregate(message: &[u8]) {
    aggregation::fuzz(message);
}
