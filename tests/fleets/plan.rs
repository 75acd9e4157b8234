//! The parameters that a seed determines: the options of the workers, and the rates of faults.

use std::time::Duration;

use fastrand::Rng;
use kinestream::testing::CborSupport;
use kinestream::{
    CheckpointOn, ConsumerBuilder, EndingPosition, ShardOrdering, StartingPosition, WireFormat,
};

use crate::seeds::pick;

/// The method of the consumer that yields the records: `records()` or `shards()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadMethod {
    Records,
    Shards,
}

/// The options of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) read_method: ReadMethod,
    pub(crate) mode: CheckpointOn,
    pub(crate) fan_out: bool,
    pub(crate) ordering: ShardOrdering,
    pub(crate) limit: u32,
    pub(crate) interval: Duration,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_unflushed: Duration,
    pub(crate) prefetch: usize,
    pub(crate) discovery_interval: Duration,
    pub(crate) lease_duration: Duration,
    pub(crate) handoff_timeout: Duration,
    pub(crate) poll_timeout: Option<Duration>,
    pub(crate) wire_format: WireFormat,
    pub(crate) ending: EndingPosition,
    /// The maximum time that the caller works on a record, in milliseconds.
    pub(crate) work: u64,
}

/// The parameters of a fleet and its environment.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is drawn independently")]
pub(crate) struct Scene {
    pub(crate) shards: usize,
    pub(crate) workers: usize,
    pub(crate) ordering: ShardOrdering,
    pub(crate) discovery_interval: Duration,
    /// The lease duration of all workers; `None` if each worker has its own.
    pub(crate) lease_duration: Option<Duration>,
    /// True if records are read by enhanced fan-out.
    pub(crate) fan_out: bool,
    /// True if the end of a shard names the child shards.
    pub(crate) child_shards: bool,
    pub(crate) latency: Duration,
    pub(crate) wire_format: WireFormat,
    /// The ending position of the workers that start from now on.
    pub(crate) ending: EndingPosition,
    /// The CBOR of the server at the beginning.
    pub(crate) cbor: CborSupport,
    pub(crate) steps: usize,
    /// The percentages of steps in which calls to Kinesis, connections and the store fail.
    pub(crate) faults: u8,
    pub(crate) link_faults: u8,
    pub(crate) store_faults: u8,
    /// True if the store loses data. If its clock moved back as well, the same epoch could occur
    /// twice, so a scenario has at most one of the two.
    pub(crate) loses_data: bool,
    pub(crate) clock_jumps: bool,
}

impl Scene {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        let lease_duration = lease_duration(rng);
        let loses_data = rng.u8(..4) == 0;
        let clock_jumps = !loses_data && rng.u8(..4) == 0;
        let store_faults: &[u8] =
            if loses_data || clock_jumps { &[15, 30] } else { &[0, 5, 15, 30] };
        Self {
            shards: rng.usize(1..7),
            workers: if rng.u8(..4) == 0 { rng.usize(2..9) } else { rng.usize(2..4) },
            ordering: if rng.u8(..6) == 0 {
                ShardOrdering::Unordered
            } else {
                ShardOrdering::ParentFirst
            },
            discovery_interval: Duration::from_millis(pick(rng, &[1000, 5000, 30_000])),
            lease_duration: (rng.u8(..3) > 0).then_some(lease_duration),
            fan_out: rng.u8(..4) == 0,
            child_shards: rng.u8(..4) != 0,
            latency: Duration::from_millis(pick(rng, &[0, 0, 5, 80])),
            wire_format: WireFormat::Auto,
            ending: EndingPosition::Never,
            cbor: CborSupport::Amazon,
            steps: rng.usize(5..50),
            faults: pick(rng, &[0, 0, 5, 15]),
            link_faults: pick(rng, &[0, 15, 30, 45]),
            store_faults: pick(rng, store_faults),
            loses_data,
            clock_jumps,
        }
    }

    /// Draws the options of the next worker.
    pub(crate) fn plan(&self, rng: &mut Rng) -> Plan {
        let milliseconds = Duration::from_millis;
        Plan {
            read_method: if rng.u8(..4) == 0 { ReadMethod::Shards } else { ReadMethod::Records },
            mode: if rng.bool() { CheckpointOn::Pull } else { CheckpointOn::Ack },
            fan_out: self.fan_out,
            ordering: self.ordering,
            limit: pick(rng, &[1, 3, 10_000, 10_000]),
            interval: milliseconds(pick(rng, &[500, 1000, 3000, 3000])),
            checkpoint_interval: milliseconds(pick(rng, &[0, 100, 1000, 1000, 5000])),
            max_in_flight: pick(rng, &[1, 3, 10_000]),
            max_unflushed: milliseconds(pick(rng, &[0, 2000, 60_000])),
            prefetch: pick(rng, &[0, 1, 1, 3]),
            discovery_interval: self.discovery_interval,
            lease_duration: self.lease_duration.unwrap_or_else(|| lease_duration(rng)),
            handoff_timeout: milliseconds(pick(rng, &[0, 1000, 5000, 30_000])),
            poll_timeout: (rng.u8(..4) == 0).then(|| milliseconds(rng.u64(1000..10_000))),
            wire_format: self.wire_format,
            ending: self.ending,
            work: pick(rng, &[1, 1, 200, 3000, 40_000]),
        }
    }
}

fn lease_duration(rng: &mut Rng) -> Duration {
    Duration::from_millis(if rng.bool() { rng.u64(2000..8000) } else { rng.u64(2000..30_001) })
}

impl Plan {
    pub(crate) fn apply(&self, builder: ConsumerBuilder) -> ConsumerBuilder {
        let builder = if self.fan_out { builder.fan_out("billing") } else { builder };
        builder
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoint_on(self.mode)
            .ordering(self.ordering)
            .limit(self.limit)
            .interval(self.interval)
            .checkpoint_interval(self.checkpoint_interval)
            .max_in_flight(self.max_in_flight)
            .max_unflushed(self.max_unflushed)
            .prefetch(self.prefetch)
            .wire_format(self.wire_format)
            .ending_position(self.ending)
            .discovery_interval(self.discovery_interval)
            .lease_duration(self.lease_duration)
            .handoff_timeout(self.handoff_timeout)
            .poll_timeout(self.poll_timeout)
    }

    /// Returns the interval between renewals.
    pub(crate) fn renewal(&self) -> Duration {
        self.lease_duration / 3
    }
}
