//! What yields the records of one shard, batch by batch.
//!
//! A source is a `Stream<Item = Result<Fetched>>`: it fetches when it is polled and keeps its own
//! position, that of the last record *fetched*. Dropping it drops what it was about to fetch and
//! nothing else; whoever needs the rest makes a new source from a checkpoint.

mod absent_listings;
mod aggregation;
mod batch;
mod connections;
mod demand;
mod failure_streak;
mod fan_out;
mod fetch_limit;
mod fetch_state;
mod field_scanner;
mod hash_range;
mod kinesis;
mod listing;
mod listing_cache;
mod loss;
mod memory_budget;
mod oldest_record;
mod overtaking;
mod polling;
mod position;
mod registered_consumer;
mod response_memory;
mod retention;
mod retention_period;
mod subscription;
mod unproven_end;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_stream::stream;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::pacing::{Pace, SHORTEST_PAUSE};
use crate::record::{AckSink, SequenceNumber};
use crate::telemetry::ShardTelemetry;

pub(crate) use absent_listings::AbsentListings;
pub(crate) use batch::Batch;
pub(crate) use demand::Demand;
use fan_out::FanOutFetcher;
pub(crate) use kinesis::{Kinesis, KnownShard, MOST_CLOCK_SKEW};
pub(crate) use listing::{ListedShard, Listing, other_start, unusable};
pub use memory_budget::MemoryBudget;
pub(crate) use memory_budget::Reservation;
use polling::PollingFetcher;
pub use position::OnTrimmed;
pub(crate) use position::Position;

use fetch_state::{FetchState, State, StreamError};
pub(crate) use registered_consumer::RegisteredConsumer;

/// What it takes to read one shard.
pub(crate) struct SourceConfig {
    pub(crate) kinesis: Kinesis,
    pub(crate) telemetry: ShardTelemetry,
    /// Of the lease under which it is read.
    pub(crate) epoch: u64,
    pub(crate) position: Position,
    /// The time from which the application is to read every record of a shard that was never read.
    pub(crate) added: Option<SystemTime>,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) discovery_interval: Duration,
    /// The time that the caller names as the start of the shard.
    pub(crate) start_time: Option<SystemTime>,
    /// Whether records that a producer has packed into one are handed out one by one.
    pub(crate) deaggregate: bool,
    pub(crate) memory_budget: MemoryBudget,
    pub(crate) finish: Arc<dyn AckSink>,
    pub(crate) interval: Duration,
    pub(crate) limit: u32,
    /// The consumer by which it is pushed; without one it is polled.
    pub(crate) fan_out: Option<Arc<RegisteredConsumer>>,
}

impl SourceConfig {
    /// The source. It asks for nothing until it is polled.
    pub(crate) fn into_source(self) -> Source {
        let Self { interval, limit, .. } = self;
        let memory = self.memory_budget.shard();
        let failed = self.telemetry.known_failures();
        let progress = FetchState {
            kinesis: self.kinesis,
            telemetry: self.telemetry,
            epoch: self.epoch,
            position: self.position,
            on_trimmed: self.on_trimmed,
            discovery_interval: self.discovery_interval,
            start_time: self.start_time,
            deaggregate: self.deaggregate,
            finish: self.finish,
            pace: Pace::new(if self.fan_out.is_some() { SHORTEST_PAUSE } else { interval }),
            state: State::new(failed, self.added),
        };
        match self.fan_out {
            Some(registered_consumer) => FanOutFetcher::new(progress, registered_consumer, memory).into_source(),
            None => PollingFetcher::new(progress, limit, memory).into_source(),
        }
    }
}

/// What a source yields.
pub(crate) enum Fetched {
    /// At least one record, and the memory that they were granted.
    Records(Batch, Reservation),
    /// No other record comes up to `after`, or had arrived by `until`: a quiet shard is read so far.
    Passed { after: Option<SequenceNumber>, until: SystemTime },
    /// The shard is closed and read to its end. The children are known where the server names
    /// them; nothing follows.
    End(Vec<KnownShard>),
    /// The error ends the source; nothing follows.
    Failed(Error),
}

/// What asks Kinesis for the records of one shard.
trait ShardFetcher: Send + 'static {
    fn progress(&mut self) -> &mut FetchState;

    /// Waits for its turn and asks once. What comes of it, if anything, is the progress's to hand out.
    fn ask(&mut self) -> impl Future<Output = Result<(), StreamError>> + Send;
}

/// All that comes of asking, again and again.
fn batches(mut source: impl ShardFetcher) -> BoxStream<'static, Result<Fetched>> {
    let batches = stream! {
        source.progress().begins();
        loop {
            let fetched = match source.progress().hand_out().await {
                Ok(None) => source.ask().await.map(|()| None),
                fetched => fetched,
            };
            match fetched {
                Ok(None) => {}
                Ok(Some(fetched)) => {
                    let is_over = matches!(fetched, Fetched::End(_));
                    yield Ok(fetched);
                    if is_over {
                        return;
                    }
                }
                Err(failed) if failed.is_last => {
                    yield Ok(Fetched::Failed(failed.error));
                    return;
                }
                Err(failed) => yield Err(failed.error),
            }
        }
    };
    batches.boxed()
}

/// The records of one shard. After an error it goes on, unless it ends.
pub(crate) struct Source {
    batches: BoxStream<'static, Result<Fetched>>,
    demand: Demand,
    /// Lets go of what would be pushed.
    rest: Option<Box<dyn Fn() + Send>>,
}

impl Source {
    pub(crate) async fn next(&mut self) -> Option<Result<Fetched>> {
        self.batches.next().await
    }

    /// How urgently the caller wants the next batch.
    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Nobody has asked for more for a while: whatever would be pushed meanwhile is let go.
    pub(crate) fn rest(&mut self) {
        if let Some(rest) = &self.rest {
            rest();
        }
    }
}

/// What is fuzzed, by a crate of its own.
#[cfg(fuzzing)]
pub fn fuzz_aggregate(message: &[u8]) {
    aggregation::fuzz(message);
}
