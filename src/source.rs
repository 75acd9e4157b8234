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
mod room;

use futures::stream::BoxStream;

use crate::error::Result;

pub(crate) use batch::Batch;
pub(crate) use budget::{Budget, Space};
pub(crate) use kinesis::{Kinesis, KnownShard, Listing};
pub(crate) use polling::Polling;
pub use position::OnTrimmed;
pub(crate) use position::Position;

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
