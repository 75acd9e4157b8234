//! The parameters that a seed determines: the options of the readers and the rates of faults.

use std::time::Duration;

use fastrand::Rng;
use kinestream::testing::CborSupport;
use kinestream::{
    CheckpointOn, ConsumerBuilder, OnTrimmed, ShardOrdering, StartingPosition, WireFormat,
};

use crate::seeds::pick;

/// The method of the consumer that yields the records: `records()` or `shards()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadMethod {
    Records,
    Shards,
}

/// The maximum jitter. The crate leaves a margin of 50 ms over six consecutive calls, part of which
/// the scheduler needs.
const MAX_JITTER: Duration = Duration::from_millis(45);

#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is drawn independently")]
pub(crate) struct Plan {
    pub(crate) shards: usize,
    pub(crate) read_method: ReadMethod,
    pub(crate) mode: CheckpointOn,
    pub(crate) start: StartingPosition,
    pub(crate) ordering: ShardOrdering,
    pub(crate) limit: u32,
    pub(crate) interval: Duration,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_in_flight_bytes: usize,
    /// The consumer shares its memory budget with another consumer that is no longer polled.
    pub(crate) has_neighbour: bool,
    /// Responses have no Content-Length header.
    pub(crate) chunked: bool,
    pub(crate) jitter: Duration,
    /// The maximum number of records per pushed event.
    pub(crate) event_records: Option<usize>,
    pub(crate) max_unflushed: Duration,
    pub(crate) prefetch: usize,
    pub(crate) max_buffered_bytes: usize,
    pub(crate) discovery_interval: Duration,
    /// True if the end of a shard names the child shards.
    pub(crate) child_shards: bool,
    pub(crate) latency: Duration,
    /// Uses few records, of up to 4 MB each.
    pub(crate) large: bool,
    /// Records are read by enhanced fan-out.
    pub(crate) fan_out: bool,
    /// Some user records are aggregated into one record.
    pub(crate) packs: bool,
    pub(crate) steps: usize,
    /// The policy for records that were trimmed before they were read.
    pub(crate) on_trimmed: OnTrimmed,
    /// True if Kinesis may return well-formed but wrong responses.
    pub(crate) distorted: bool,
    pub(crate) wire_format: WireFormat,
    /// The CBOR of the server at the beginning.
    pub(crate) cbor: CborSupport,
    /// The percentage of steps in which calls to Kinesis fail, and in which the store fails.
    pub(crate) faults: u8,
    pub(crate) store_faults: u8,
}

impl Plan {
    /// Returns the operation that reads records.
    pub(crate) fn read_call(&self) -> &'static str {
        if self.fan_out { "SubscribeToShard" } else { "GetRecords" }
    }

    /// Returns the operation that places a reader at its position.
    pub(crate) fn placement_call(&self) -> &'static str {
        if self.fan_out { "SubscribeToShard" } else { "GetShardIterator" }
    }

    pub(crate) fn new(rng: &mut Rng) -> Self {
        let milliseconds = Duration::from_millis;
        let large = rng.u8(..10) == 0;
        let read_method = if rng.u8(..4) == 0 { ReadMethod::Shards } else { ReadMethod::Records };
        Self {
            shards: if large { rng.usize(3..7) } else { rng.usize(1..4) },
            read_method,
            mode: if rng.bool() { CheckpointOn::Pull } else { CheckpointOn::Ack },
            start: match rng.u8(..3) {
                0 => StartingPosition::Latest,
                _ => StartingPosition::TrimHorizon,
            },
            ordering: if rng.u8(..6) == 0 {
                ShardOrdering::Unordered
            } else {
                ShardOrdering::ParentFirst
            },
            limit: pick(rng, &[1, 2, 3, 10_000]),
            interval: milliseconds(pick(rng, &[200, 500, 1000, 1000, 3000])),
            checkpoint_interval: milliseconds(pick(rng, &[0, 100, 1000, 1000, 5000])),
            max_in_flight: pick(rng, &[1, 2, 5, 10_000]),
            max_in_flight_bytes: 64 << 20,
            has_neighbour: false,
            chunked: false,
            jitter: Duration::ZERO,
            event_records: None,
            max_unflushed: milliseconds(pick(rng, &[0, 2000, 20_000, 60_000])),
            prefetch: pick(rng, &[0, 1, 1, 3]),
            max_buffered_bytes: if large { pick(rng, &[1, 4 << 20, 12 << 20]) } else { 64 << 20 },
            discovery_interval: milliseconds(pick(rng, &[1000, 5000, 30_000])),
            child_shards: rng.u8(..4) != 0,
            latency: milliseconds(pick(rng, &[0, 0, 5, 80])),
            large,
            fan_out: rng.u8(..3) == 0,
            packs: !large && rng.u8(..3) == 0,
            on_trimmed: OnTrimmed::Fail,
            distorted: false,
            wire_format: WireFormat::Auto,
            cbor: CborSupport::Amazon,
            steps: rng.usize(5..50),
            faults: pick(rng, &[0, 5, 15, 30]),
            store_faults: pick(rng, &[0, 0, 5, 15]),
        }
    }

    /// Draws the options of memory and network. `rng` is a second generator, so that most seeds
    /// keep their scenarios.
    pub(crate) fn draw_later(&mut self, rng: &mut Rng) {
        if rng.u8(..3) == 0 {
            let limit = if self.large { rng.usize(1..8 << 20) } else { rng.usize(1..40) };
            self.max_in_flight_bytes = limit;
        }
        self.chunked = rng.u8(..4) == 0;
        if rng.u8(..6) == 0 {
            self.jitter = MAX_JITTER;
        }
        if self.large && self.fan_out && rng.bool() {
            (self.event_records, self.prefetch, self.max_buffered_bytes) = (Some(2), 3, 1);
        }
        if !self.large && !self.packs && rng.u8(..8) == 0 {
            self.has_neighbour = true;
            self.max_buffered_bytes = pick(rng, &[1, 1, 300_000]);
            if rng.u8(..4) != 0 {
                (self.limit, self.max_in_flight) = (10_000, 10_000);
                self.max_in_flight_bytes = 64 << 20;
            }
        }
    }

    pub(crate) fn apply(&self, builder: ConsumerBuilder) -> ConsumerBuilder {
        self.apply_to_shared(builder).max_buffered_bytes(self.max_buffered_bytes)
    }

    /// Sets the options of a consumer that shares a memory budget.
    pub(crate) fn apply_to_shared(&self, builder: ConsumerBuilder) -> ConsumerBuilder {
        let builder = if self.fan_out { builder.fan_out("billing") } else { builder };
        builder
            .starting_position(self.start)
            .on_trimmed(self.on_trimmed)
            .checkpoint_on(self.mode)
            .ordering(self.ordering)
            .limit(self.limit)
            .interval(self.interval)
            .checkpoint_interval(self.checkpoint_interval)
            .max_in_flight(self.max_in_flight)
            .max_in_flight_bytes(self.max_in_flight_bytes)
            .max_unflushed(self.max_unflushed)
            .prefetch(self.prefetch)
            .wire_format(self.wire_format)
            .discovery_interval(self.discovery_interval)
    }
}
