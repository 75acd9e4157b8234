//! Acts: short scenarios after the main one, each for one kind of fault that needs a separate
//! stream, start or caller.
//!
//! A second generator draws them, so that the main scenario stays the same. The store of an act
//! keeps leases and does not fail.

mod approaches;
mod bounded_reads;
mod child_at_latest;
mod horizon;
mod idle_shards;
mod large_records;
mod loss_checks;
mod lost_ends;
mod lost_stores;
mod merged_shards;
mod missing_shards;
mod overtaken_reader;
mod partial_listings;
mod reader;
mod recreated_stream;
mod shared_refusals;
mod stalls;
mod start_at_latest;
mod start_at_timestamp;
mod trimmed_positions;
mod uneven_polling;
mod waiting_children;

use std::fmt;
use std::ops::Range;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use kinestream::testing::{Kinesis, Shard, Stream};
use kinestream::{MemoryStore, OnTrimmed};
use tokio::time::Instant;

use crate::plan::Plan;
use crate::truth::{Promise, Truth};
use crate::wire::without_altering;
use crate::world::BEGINNING;

/// Mixed with the seed for the generator of an act.
const ACTS: u64 = 0x0061_6374_7321;

/// Mixed with the seed for features that were added to acts later.
const LATER_FEATURES: u64 = 0x77_726f_6e67_7321;

/// The time within which everything is read after the faults: a back-off, the rest of an attempt
/// under way, and a registration.
const PATIENCE: Duration = Duration::from_secs(120);

const POLICIES: [OnTrimmed; 3] = [OnTrimmed::Fail, OnTrimmed::TrimHorizon, OnTrimmed::Latest];

/// A record of the act.
#[derive(Debug, Clone, Copy)]
struct Put {
    shard: usize,
    at: Instant,
}

/// The state of an act.
struct Act {
    rng: Rng,
    /// Draws features that were added later, so that the acts of existing seeds stay the same.
    later_rng: Rng,
    plan: Plan,
    truth: Truth,
    kinesis: Kinesis,
    orders: Stream,
    store: MemoryStore,
    /// The records, indexed by the number in their payloads.
    puts: Vec<Put>,
    /// The time at which the stream was recreated.
    recreated_at: Instant,
}

/// Mixed with the seed for the act of named starts.
const NAMED_STARTS: u64 = 0x006e_616d_6564;

/// Mixed with the seed for the acts that were added later, such as those of retention.
const LATER_ACTS: u64 = 0x6c61_7465_7221;

/// The number of choices for [`LATER_ACTS`].
const LATER: u8 = 5;

/// Mixed with the seed for the act of shared calls.
const SHARED_CALLS: u64 = 0x0073_6861_7265;

/// Mixed with the seed for the act of large records.
const LARGE_RECORDS: u64 = 0x6c_6172_6765;

/// Mixed with the seed for the act of idle shards.
const IDLE_SHARDS: u64 = 0x6964_6c65_2173;

/// Mixed with the seed for the act of shard ends behind lost records.
const LOST_ENDS: u64 = 0x656e_6465_6421;

/// Mixed with the seed for the act of readers that restart before long approaches.
const APPROACHES: u64 = 0x61_7070_726f_6163;

/// Mixed with the seed for the act of bounded reads.
const BOUNDED_READS: u64 = 0x0062_6f75_6e64_6564;

/// Plays acts for some seeds.
pub(crate) async fn play(seed: u64, plan: Plan, truth: Truth) {
    let mut rng = Rng::with_seed(seed ^ ACTS);
    let which = rng.u8(..64);
    if which <= 10 {
        let mut act = Act::new(rng, seed, plan.clone(), truth.clone());
        match which {
            0..=2 => act.recreate_stream().await,
            3 => act.start_at_latest().await,
            4 | 5 => act.omit_shard().await,
            6 | 7 => act.stall().await,
            8 => act.poll_unevenly().await,
            _ => act.start_at_timestamp().await,
        }
    }
    // One in `worlds` seeds plays the act.
    let begin = |salt: u64, worlds: u8| {
        let mut rng = Rng::with_seed(seed ^ salt);
        let is_played = rng.u8(..worlds) == 0 && !truth.is_broken();
        is_played.then(|| Act::new(rng, seed, plan.clone(), truth.clone()))
    };
    if let Some(mut act) = begin(NAMED_STARTS, 24) {
        act.start_child_at_latest().await;
    }
    let mut rng = Rng::with_seed(seed ^ LATER_ACTS);
    let which = rng.u8(..50);
    if which < LATER && !truth.is_broken() {
        let mut act = Act::new(rng, seed, plan.clone(), truth.clone());
        act.kinesis.set_event_records(act.rng.usize(1..4));
        match which {
            0 => act.overtake_reader().await,
            1 if act.rng.u8(..3) == 0 => act.omit_from_some_listings().await,
            1 => act.lose_positions().await,
            2 => act.wait_past_retention().await,
            3 => act.merge_shards().await,
            _ => act.lose_store().await,
        }
    }
    if let Some(mut act) = begin(SHARED_CALLS, 64) {
        act.refuse_shared_calls().await;
    }
    if let Some(mut act) = begin(LARGE_RECORDS, 128) {
        act.read_large().await;
    }
    if let Some(mut act) = begin(IDLE_SHARDS, 100) {
        act.keep_idle().await;
    }
    if let Some(mut act) = begin(LOST_ENDS, 100) {
        act.lose_ends().await;
    }
    if let Some(mut act) = begin(APPROACHES, 100) {
        act.restart_before_approach().await;
    }
    if let Some(mut act) = begin(BOUNDED_READS, 12) {
        act.read_bounded().await;
    }
}

impl Act {
    fn new(mut rng: Rng, seed: u64, plan: Plan, truth: Truth) -> Self {
        let kinesis = Kinesis::at(UNIX_EPOCH + BEGINNING);
        kinesis.set_latency(plan.latency);
        kinesis.set_child_shards(plan.child_shards);
        kinesis.set_cbor(plan.cbor);
        let orders = kinesis.create_stream("orders", rng.usize(1..4));
        let store = MemoryStore::at(UNIX_EPOCH + BEGINNING);
        let (puts, recreated_at) = (Vec::new(), Instant::now());
        let later_rng = Rng::with_seed(seed ^ LATER_FEATURES);
        Self { rng, later_rng, plan, truth, kinesis, orders, store, puts, recreated_at }
    }

    /// Sets the retention period of the stream. Its server alters no values.
    fn set_retention(&self, period: Duration) {
        self.kinesis.set_retention(period);
        self.kinesis.set_cbor(without_altering(self.plan.cbor));
    }

    /// Returns the time by which everything is read after the faults, new shards included.
    fn deadline(&self) -> Instant {
        Instant::now() + PATIENCE + 4 * self.plan.discovery_interval
    }

    fn time(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    /// Puts a random number of records into open shards.
    fn put_some(&mut self, count: Range<usize>) {
        let open = self.orders.open_shards();
        for _ in 0..self.rng.usize(count) {
            let shard = &open[self.rng.usize(..open.len())];
            self.put_into(shard);
        }
    }

    fn put_each(&mut self) {
        for shard in self.orders.open_shards() {
            self.put_into(&shard);
        }
    }

    fn put_into(&mut self, shard: &Shard) {
        let number = self.puts.len();
        shard.put(number.to_string());
        self.truth.log(format_args!("put: {number} into shard {}", shard.index()));
        self.puts.push(Put { shard: shard.index(), at: Instant::now() });
    }

    /// Splits or merges shards, and returns one that is closed by it.
    fn reshard(&mut self) -> Shard {
        let open = self.orders.open_shards();
        let low = self.rng.usize(..open.len());
        match open.get(low + 1) {
            Some(high) if self.rng.bool() => drop(open[low].merge(high)),
            _ => drop(open[low].split()),
        }
        self.truth.log(format_args!("reshard: shard {} is closed", open[low].index()));
        open[low].clone()
    }

    /// Reports a broken promise, after adding all calls so far to the trace.
    fn breaks(&self, promise: Promise, detail: fmt::Arguments<'_>) {
        let mut facts = self.truth.lock();
        for call in self.kinesis.calls() {
            let shard = call.shard_id.map_or_else(String::new, |shard| format!(" of {shard}"));
            facts.log_at(
                call.at,
                format_args!(
                    "call: {}{shard}: {:?}, {}",
                    call.operation, call.status, call.records
                ),
            );
        }
        facts.breaks(promise, detail);
    }
}
