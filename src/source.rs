//! Fetches the records of one shard, batch by batch.
//!
//! A source is a stream of `Result<Fetched>`. It fetches only while it is polled, and keeps its own
//! position: that of the last record *fetched*. Dropping a source cancels the fetch in progress and
//! loses nothing else. A new source continues from a checkpoint.

mod absent_listings;
mod aggregation;
mod batch;
mod client_region;
mod connections;
mod demand;
mod ending;
mod failure_streak;
mod fan_out;
mod fetch_limit;
mod fetch_state;
mod field_scanner;
mod get_records;
mod hash_range;
mod kinesis;
mod listing;
mod listing_cache;
mod loss;
mod memory_budget;
mod metered_body;
mod oldest_record;
mod overtaking;
mod polling;
mod position;
mod registered_consumer;
mod response;
mod retention;
mod retention_period;
mod sdk_call;
mod spare_buffers;
mod subscription;
mod unproven_end;
mod wire_format;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_stream::stream;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::pacing::{Pace, SHORTEST_PAUSE};
use crate::record::{AckSink, KnownShard, SequenceNumber};
use crate::telemetry::ShardTelemetry;

pub(crate) use absent_listings::AbsentListings;
pub(crate) use batch::Batch;
pub(crate) use client_region::other_region;
pub(crate) use demand::Demand;
pub(crate) use ending::Ending;
pub use ending::EndingPosition;
use fan_out::FanOutFetcher;
pub(crate) use kinesis::{MAX_CLOCK_SKEW, StreamClient};
pub(crate) use listing::{ListedShard, Listing, first_hole, start_mismatch, unusable_listing};
pub use memory_budget::MemoryBudget;
use polling::PollingFetcher;
pub use position::OnTrimmed;
pub(crate) use position::Position;

use fetch_state::{FetchProgress, FetchState, FetchedResponse, Interrupt};
pub(crate) use registered_consumer::RegisteredConsumer;
pub use wire_format::WireFormat;

/// The parameters of a source.
pub(crate) struct SourceConfig {
    pub(crate) kinesis: StreamClient,
    pub(crate) telemetry: ShardTelemetry,
    /// The epoch of the lease under which the shard is read.
    pub(crate) epoch: u64,
    pub(crate) position: Position,
    /// If the shard was never read: the time from which the application must read every record.
    pub(crate) added: Option<SystemTime>,
    pub(crate) ending: Ending,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) discovery_interval: Duration,
    /// The start time that the caller has set for the shard.
    pub(crate) start_time: Option<SystemTime>,
    /// True if the user records of an aggregated record are delivered one by one.
    pub(crate) deaggregate: bool,
    pub(crate) memory_budget: MemoryBudget,
    pub(crate) ack_sink: Arc<dyn AckSink>,
    pub(crate) interval: Duration,
    pub(crate) limit: u32,
    /// The registered consumer for enhanced fan-out. Without one, the shard is polled.
    pub(crate) fan_out: Option<Arc<RegisteredConsumer>>,
}

impl SourceConfig {
    /// Creates the source. It makes no call until it is polled.
    pub(crate) fn into_source(self) -> Source {
        let Self { interval, limit, .. } = self;
        let memory = self.memory_budget.shard();
        let failed = self.telemetry.known_failures();
        let progress = FetchState {
            kinesis: self.kinesis,
            telemetry: self.telemetry,
            epoch: self.epoch,
            position: self.position,
            ending: self.ending,
            on_trimmed: self.on_trimmed,
            discovery_interval: self.discovery_interval,
            start_time: self.start_time,
            deaggregate: self.deaggregate,
            ack_sink: self.ack_sink,
            pace: Pace::new(if self.fan_out.is_some() { SHORTEST_PAUSE } else { interval }),
            state: FetchProgress::new(failed, self.added),
        };
        match self.fan_out {
            Some(registered_consumer) => {
                Source::new(FanOutFetcher::new(progress, registered_consumer, memory))
            }
            None => Source::new(PollingFetcher::new(progress, limit, memory)),
        }
    }
}

/// An item of a source.
pub(crate) enum Fetched {
    /// At least one record.
    Records(Batch),
    /// The position of a quiet shard: no further record exists up to and including `after`, and
    /// none had arrived by `until`.
    Quiet { after: Option<SequenceNumber>, until: SystemTime },
    /// The end of a closed shard, with its children if the server names them. Nothing follows.
    End(Vec<KnownShard>),
    /// The ending position, before the end of the shard. Nothing follows.
    Reached,
    /// An error that ends the source. Nothing follows.
    Failed(Error),
}

/// Fetches the records of one shard from Kinesis.
trait ShardFetcher: Send + 'static {
    fn fetch_state(&mut self) -> &mut FetchState;

    fn demand(&self) -> &Demand;

    /// Waits until the caller permits the next item. Enhanced fan-out drops a subscription that it
    /// keeps for long.
    ///
    /// Cancel safe: a permit that was not taken remains available.
    fn permit(&mut self) -> impl Future<Output = ()> + Send {
        self.demand().permit()
    }

    /// Drops the user records of `batch` that belong to another shard.
    fn retain_own(
        &mut self,
        batch: &mut Batch,
    ) -> impl Future<Output = Result<(), Interrupt>> + Send {
        self.fetch_state().retain_own(batch)
    }

    /// Waits until a call is both allowed and permitted, and makes one. Returns `None` if it has
    /// brought nothing.
    fn fetch_once(
        &mut self,
    ) -> impl Future<Output = Result<Option<FetchedResponse>, Interrupt>> + Send;
}

/// Returns a stream that fetches until the shard ends, its ending position is reached or an error is
/// final. Each item takes a permit. A fetch has taken the permit of its first item.
fn batches(mut source: impl ShardFetcher) -> BoxStream<'static, Result<Fetched>> {
    let batches = stream! {
        source.fetch_state().emit_started();
        if source.fetch_state().starts_after_ending() {
            source.permit().await;
            yield Ok(Fetched::Reached);
            return;
        }
        loop {
            let response = match source.fetch_once().await {
                Ok(Some(response)) => response,
                Ok(None) => continue,
                Err(interrupt) => {
                    let (item, is_over) = interrupt.into_item();
                    yield item;
                    if is_over {
                        return;
                    }
                    continue;
                }
            };
            let FetchedResponse { error, mut batch, passed, end, is_reached } = response;
            if let Some(error) = error {
                yield Err(error);
                source.permit().await;
            }
            while let Err(interrupt) = source.retain_own(&mut batch).await {
                let (item, is_over) = interrupt.into_item();
                if matches!(item, Ok(Fetched::End(_))) && batch.len() > 0 {
                    // The shard is gone, and nothing else tells which of its records are its own.
                    yield Ok(Fetched::Records(batch));
                    source.permit().await;
                    yield item;
                    return;
                }
                yield item;
                if is_over {
                    return;
                }
                source.permit().await;
            }
            let is_empty = batch.len() == 0;
            if is_empty {
                // Releases the memory of records that are not delivered.
                drop(batch);
            } else {
                yield Ok(Fetched::Records(batch));
            }
            if is_reached {
                source.permit().await;
                yield Ok(Fetched::Reached);
                return;
            }
            if let Some(children) = end {
                source.permit().await;
                yield Ok(Fetched::End(children));
                return;
            }
            let passed = passed.filter(|_| is_empty);
            let position = passed.and_then(|passed| source.fetch_state().due_position(passed));
            if let Some(position) = position {
                yield Ok(position);
            }
        }
    };
    batches.boxed()
}

/// The records of one shard. The stream continues after an error, unless the error is final.
pub(crate) struct Source {
    batches: BoxStream<'static, Result<Fetched>>,
    demand: Demand,
}

impl Source {
    /// Creates a source. It makes no call until it is polled.
    fn new(fetcher: impl ShardFetcher) -> Self {
        let demand = fetcher.demand().clone();
        Self { batches: batches(fetcher), demand }
    }

    pub(crate) async fn next(&mut self) -> Option<Result<Fetched>> {
        self.batches.next().await
    }

    /// Returns the demand, which states how urgently the caller wants the next batch.
    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }
}

/// Entry point for the fuzz target in the separate `fuzz` crate.
#[cfg(fuzzing)]
pub fn fuzz_aggregate(message: &[u8]) {
    aggregation::fuzz(message);
}

/// Entry point for a fuzz target.
#[cfg(fuzzing)]
pub fn fuzz_cbor(body: &[u8]) {
    response::fuzz_cbor(body);
}

/// Entry point for a fuzz target.
#[cfg(fuzzing)]
pub fn fuzz_json(body: &[u8]) {
    response::fuzz_json(body);
}
