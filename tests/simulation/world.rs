//! A simulated environment and the scenario in it, step by step, as determined by a seed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use kinestream::testing::{CborSupport, Kinesis, Outcome, Shard, Stream, aggregate};
use kinestream::{Checkpoint, CheckpointOn, StartingPosition};
use tokio::time::{Instant, sleep};

use crate::database::Databases;
use crate::distortions::Distortions;
use crate::panics::Panics;
use crate::plan::Plan;
use crate::reader::Reader;
use crate::retention::Losses;
use crate::seeds::SeedResult;
use crate::store::SimulatedStore;
use crate::truth::{Content, Promise, Truth, index_of};
use crate::wire::Wire;

/// 2026-01-01. A fixed date makes runs independent of the current date.
pub(crate) const BEGINNING: Duration = Duration::from_secs(1_767_225_600);

/// Longer than any back-off plus the rest of an attempt under way.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest duration of a save, and the longest back-off after a save that failed.
pub(crate) const STORE_RECOVERY: Duration = Duration::from_secs(16);

const MAX_SHARDS: usize = 10;

/// A record that takes longer than this is held back by the in-flight limits: the time exceeds that
/// of a 10 MiB response, a back-off and a subscription.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The time within which a polled shard delivers a new record, whatever other shards hold. It
/// covers a poll interval, responses that are discarded but count against the throughput limit, and
/// a new subscription.
pub(crate) const PROGRESS_WITHIN: Duration = Duration::from_secs(30);

/// The age of the stream when the scenario begins. It exceeds the error of arrival times, so that a
/// listing by time shows the shards that were open before the start.
pub(crate) const STREAM_AGE: Duration = Duration::from_secs(6 * 60);

/// Mixed with the seed for the generators of features that were added later, so that existing seeds
/// keep their scenarios.
const STARVATION: u64 = 0x5354_4152_5645;
const DRAWN_LATER: u64 = 0x0042_5954_4553;

/// The way in which a reader ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The streams are dropped, and the consumer is closed.
    DropAndClose,
    /// The consumer is closed, and the streams are read to their end.
    CloseAndRead,
    /// Everything is dropped.
    Drop,
    /// The process is killed.
    Kill,
}

/// The outcomes of the next calls to an operation; `None` means any operation.
pub(crate) type Faults = Arc<Mutex<VecDeque<(Option<&'static str>, Outcome)>>>;

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    seed: u64,
    pub(crate) kinesis: Kinesis,
    pub(crate) orders: Stream,
    pub(crate) truth: Truth,
    pub(crate) store: SimulatedStore,
    pub(crate) faults: Faults,
    /// The number of calls that the trace already contains.
    pub(crate) traced_calls: usize,
    pub(crate) panics: Panics,
    /// Chooses when and where a panic occurs.
    panic_rng: Rng,
    pub(crate) distortions: Distortions,
    pub(crate) databases: Databases,
    pub(crate) losses: Losses,
    pub(crate) wire: Wire,
}

impl World {
    pub(crate) fn new(seed: u64, panics: Panics, panic_rng: Rng) -> Self {
        let mut rng = Rng::with_seed(seed);
        // Seeds the generator that the crate itself uses.
        fastrand::seed(rng.u64(..));
        let mut plan = Plan::new(&mut rng);
        let distortions = Distortions::new(seed);
        plan.distorted = distortions.is_possible();
        plan.draw_later(&mut Rng::with_seed(seed ^ DRAWN_LATER));
        let databases = Databases::new(seed, &plan);
        let losses = Losses::new(seed);
        plan.on_trimmed = losses.policy();
        let wire = Wire::new(seed);
        (plan.wire_format, plan.cbor) = (wire.format, wire.support);
        let kinesis = Kinesis::at(UNIX_EPOCH + BEGINNING);
        let orders = kinesis.create_stream("orders", plan.shards);
        // Sequence numbers then grow from one digit to two and three.
        orders.number_from(8);
        kinesis.set_latency(plan.latency);
        kinesis.set_jitter(plan.jitter);
        kinesis.set_cbor(plan.cbor);
        kinesis.set_chunked(plan.chunked);
        if let Some(records) = plan.event_records {
            kinesis.set_event_records(records);
        }
        kinesis.set_child_shards(plan.child_shards);
        kinesis.set_trimmed_numbers_accepted(losses.are_accepted);
        let faults = Faults::default();
        kinesis.on_call({
            let faults = Arc::clone(&faults);
            move |call| {
                let mut faults = faults.lock().unwrap();
                let applies = |(operation, _): &(Option<&'static str>, Outcome)| {
                    operation.is_none_or(|operation| operation == call.operation)
                };
                let next = faults.iter().position(applies);
                next.and_then(|next| faults.remove(next))
                    .map_or(Outcome::Served, |(_, outcome)| outcome)
            }
        });
        let truth = Truth::new(plan.shards);
        truth.log(format_args!("{plan:?}"));
        let store = SimulatedStore::new(truth.clone(), panics.clone());
        Self {
            plan,
            rng,
            seed,
            kinesis,
            orders,
            truth,
            store,
            faults,
            traced_calls: 0,
            panics,
            panic_rng,
            distortions,
            databases,
            losses,
            wire,
        }
    }

    pub(crate) async fn run(&mut self) {
        sleep(STREAM_AGE).await;
        self.before_the_start().await;
        let mut steps = self.plan.steps;
        loop {
            let mut reader = self.reader().await;
            let mut end = None;
            while end.is_none() && steps > 0 && !self.truth.is_broken() {
                steps -= 1;
                end = self.step(&mut reader).await;
                reader.process_events();
                reader.check_panics();
                self.trace_calls();
                self.check_memory(&reader);
            }
            if steps == 0 && end.is_none() {
                self.heal();
                self.check_starvation(&mut reader).await;
                self.read_everything(&mut reader).await;
                end = Some(if reader.forgot() { End::DropAndClose } else { End::CloseAndRead });
            }
            if self.truth.is_broken() {
                return;
            }
            self.end(reader, end.unwrap_or(End::Drop)).await;
            self.lose_records().await;
            if self.truth.is_broken() || steps == 0 && self.truth.lock().all_finished() {
                return;
            }
        }
    }

    /// Puts records, and sometimes splits a shard, before the first reader starts.
    async fn before_the_start(&mut self) {
        let latest = self.plan.start == StartingPosition::Latest;
        self.truth.lock().too_early = latest;
        self.truth.lock().started = !latest;
        let most = if self.plan.large { 16 } else { 6 };
        for _ in 0..self.rng.usize(..most) {
            self.put();
        }
        if self.rng.u8(..4) == 0 {
            self.reshard();
            self.put();
        }
        self.truth.lock().too_early = false;
        // A start at `Latest` is accurate to one second.
        sleep(Duration::from_secs(2)).await;
    }

    async fn reader(&mut self) -> Reader {
        let is_store_empty = self.store.positions().await.is_empty();
        let database = self.databases.next(&self.truth.lock(), is_store_empty);
        if let Some(database) = &database {
            self.truth.log(format_args!("the store is empty; the reader starts with {database:?}"));
            self.store = self.store.emptied();
        }
        if let Some(support) = self.wire.change_between() {
            self.set_cbor(support);
        }
        let store = self.store.for_another();
        let (truth, plan) = (self.truth.clone(), self.plan.clone());
        let (kinesis, panics) = (&self.kinesis, self.panics.clone());
        let mut reader =
            Reader::begin(kinesis, store, truth, plan, panics, database.as_ref()).await;
        reader.was_altered = self.wire.support == CborSupport::Altered;
        if database.is_some() {
            self.truth.lock().forget_stored();
        }
        reader
    }

    /// Runs one step of the scenario.
    async fn step(&mut self, reader: &mut Reader) -> Option<End> {
        if reader.ended {
            return Some(End::DropAndClose);
        }
        if let Some((part, times)) = self.panics.arm(&mut self.panic_rng) {
            self.truth.log(format_args!("{part:?} panics {times} times"));
        }
        self.distort();
        if let Some(support) = self.wire.change() {
            self.set_cbor(support);
            reader.was_altered |= support == CborSupport::Altered;
        }
        let chance = self.rng.u8(..100);
        if chance < self.plan.faults {
            self.fail_calls();
            return None;
        }
        if chance < self.plan.faults + self.plan.store_faults {
            self.fail_store().await;
            return None;
        }
        match self.rng.u8(..40) {
            0..=9 => (0..self.rng.usize(1..5)).for_each(|_| self.put()),
            10 | 11 => self.reshard(),
            12 => self.leave_retention().await,
            13..=15 => sleep(self.time(5000)).await,
            // Exceeds the lifetime of a shard iterator.
            16 => sleep(Duration::from_secs(310)).await,
            17..=20 => {
                for _ in 0..self.rng.usize(1..20) {
                    reader.poll_once();
                    tokio::task::yield_now().await;
                }
            }
            21..=31 => {
                for _ in 0..self.rng.usize(1..8) {
                    if !reader.read(self.time(3000)).await {
                        break;
                    }
                    if self.rng.bool() {
                        reader.ack(&mut self.rng);
                    }
                }
            }
            32..=35 => (0..self.rng.usize(1..6)).for_each(|_| reader.ack(&mut self.rng)),
            36 if self.rng.u8(..3) == 0 => reader.forget(&mut self.rng),
            37 | 38 => {
                let ends = [End::DropAndClose, End::CloseAndRead, End::Drop, End::Kill];
                return Some(ends[self.rng.usize(..ends.len())]);
            }
            _ => reader.ack_all(&mut self.rng),
        }
        None
    }

    /// Sets the CBOR of the server from the next response on.
    fn set_cbor(&self, support: CborSupport) {
        self.truth.log(format_args!("the server's CBOR: {support:?}"));
        self.kinesis.set_cbor(support);
    }

    pub(crate) fn time(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(..most))
    }

    pub(crate) fn seed_result(&self) -> SeedResult {
        self.truth.lock().end(self.kinesis.call_count())
    }

    fn put(&mut self) {
        let open = self.orders.open_shards();
        let shard = &open[self.rng.usize(..open.len())];
        if self.plan.packs && self.rng.bool() {
            return self.put_packed(shard);
        }
        let size = if self.plan.large { self.rng.usize(100_000..4_000_000) } else { 3 };
        let mut facts = self.truth.lock();
        let place = facts.shards[shard.index()].records.len();
        let content = Content::new(place, size);
        let number = shard.put(content.data());
        facts.log(format_args!("put: shard {} record {place} as {number}", shard.index()));
        facts.put(shard.index(), number, 0, content);
    }

    /// Puts an aggregated record. Some of its user records may belong to another shard.
    fn put_packed(&mut self, shard: &Shard) {
        let keys = (0..self.rng.usize(1..6)).map(|_| self.rng.u8(..).to_string());
        let keys: Vec<String> = keys.collect();
        let parts = keys.iter().enumerate();
        let parts = parts.map(|(part, key)| Content::with_key(key.clone(), part, 3));
        let parts: Vec<Content> = parts.collect();
        let number = shard.put(aggregate(parts.iter().map(|part| (part.key.clone(), part.data()))));
        let mut facts = self.truth.lock();
        facts.log(format_args!("put: shard {}, aggregated as {number}", shard.index()));
        let own = parts.into_iter().enumerate().filter(|(_, part)| shard.has_key(&part.key));
        for (part, content) in own {
            let place = facts.shards[shard.index()].records.len();
            let key = &content.key;
            facts.log(format_args!("     with key {key} as part {part}: record {place}"));
            facts.put(shard.index(), number.clone(), part as u64, content);
        }
    }

    fn reshard(&mut self) {
        let open = self.orders.open_shards();
        if self.orders.shards().len() + 2 > MAX_SHARDS {
            return;
        }
        let low = self.rng.usize(..open.len());
        if open.len() > 1 && low + 1 < open.len() && self.rng.bool() {
            open[low].merge(&open[low + 1]);
        } else {
            open[low].split();
        }
        let known = self.truth.lock().shards.len();
        for shard in &self.orders.shards()[known..] {
            let parents: Vec<usize> = shard.parents().iter().map(index_of).collect();
            let mut facts = self.truth.lock();
            facts.log(format_args!("reshard: shard {} of {parents:?}", shard.index()));
            facts.shards.push(crate::truth::Shard { parents, ..Default::default() });
        }
    }

    async fn read_everything(&mut self, reader: &mut Reader) {
        let mut quiet = Instant::now();
        while !self.truth.is_broken() {
            reader.ack_all(&mut self.rng);
            reader.process_events();
            let unfinished = self.unfinished_shards().await;
            if unfinished.is_empty() || reader.ended || reader.forgot() {
                return;
            }
            if reader.read(Duration::from_secs(10)).await {
                quiet = Instant::now();
            } else if quiet.elapsed() > PATIENCE {
                let finished = self.truth.lock().all_finished();
                let promise = if finished { Promise::EndsAreKept } else { Promise::Progress };
                self.truth.breaks(
                    promise,
                    format_args!("no record for {PATIENCE:?}; unfinished shards: {unfinished:?}"),
                );
            }
            self.trace_calls();
            self.check_memory(reader);
        }
    }

    /// Checks that a shard below its in-flight limit still delivers a new record within seconds
    /// while the caller holds as many records as the limits of the other shards allow.
    async fn check_starvation(&mut self, reader: &mut Reader) {
        // A separate generator keeps the scenarios of existing seeds.
        let mut rng = Rng::with_seed(self.seed ^ STARVATION);
        if self.plan.mode != CheckpointOn::Ack && !self.plan.has_neighbour || rng.u8(..4) == 0 {
            return;
        }
        let mut began = Instant::now();
        while !self.truth.is_broken() && !reader.ended && began.elapsed() < STUCK_AFTER {
            if reader.read(STUCK_AFTER).await {
                began = Instant::now();
            }
        }
        for shard in self.orders.open_shards() {
            if !reader.is_reading(shard.index()) || reader.is_full(shard.index()) {
                continue;
            }
            let place = self.put_burst(&shard, &mut rng);
            let by = Instant::now() + PROGRESS_WITHIN;
            while reader.next.get(&shard.index()).is_none_or(|next| *next <= place) {
                if self.truth.is_broken() || reader.ended {
                    return;
                }
                if reader.is_full(shard.index()) {
                    break;
                }
                if Instant::now() >= by {
                    return self.truth.breaks(
                        Promise::Progress,
                        format_args!(
                            "shard {} has delivered no record for {PROGRESS_WITHIN:?}",
                            shard.index()
                        ),
                    );
                }
                reader.read(Duration::from_secs(1)).await;
            }
            self.trace_calls();
            self.check_memory(reader);
        }
    }

    /// Puts records that a shard can read within seconds without memory from the budget: records
    /// that fit into its reserve, or a single record that does not. Returns the place of the last
    /// record.
    fn put_burst(&self, shard: &Shard, rng: &mut Rng) -> usize {
        let (records, size) = match rng.u8(..4) {
            0 if self.plan.has_neighbour => (1, 100_000),
            1..=3 if self.plan.has_neighbour && self.plan.limit == 10_000 => (300, 3),
            _ => (1, 3),
        };
        let (index, first) = (shard.index(), self.truth.lock().shards[shard.index()].records.len());
        self.truth.log(format_args!(
            "put: shard {index}, {records} records of {size} bytes from {first} on, with the \
             other shards blocked"
        ));
        for _ in 0..records {
            let content = Content::new(records, size);
            let number = shard.put(content.data());
            self.truth.lock().put(index, number, 0, content);
        }
        first + records - 1
    }

    /// Returns the shards with unfinished records, or with an end that is not stored.
    async fn unfinished_shards(&self) -> Vec<usize> {
        let positions = self.store.positions().await;
        let facts = self.truth.lock();
        let stored = |shard: &Shard| positions.get(&shard.id()) == Some(&Checkpoint::ShardEnd);
        let unfinished = |shard: &Shard| {
            let known = &facts.shards[shard.index()];
            let is_ended = shard.is_open() || known.expired || stored(shard);
            !known.is_finished() || known.lost.is_due || !is_ended
        };
        self.orders.shards().iter().filter(|shard| unfinished(shard)).map(Shard::index).collect()
    }

    async fn end(&mut self, mut reader: Reader, end: End) {
        self.truth.log(format_args!("{end:?}"));
        let interval = self.plan.checkpoint_interval + Duration::from_millis(50);
        let healthy = self.store.healthy_for();
        // The time for which a record must have been finished to be saved now.
        let saved_after = match end {
            End::DropAndClose | End::CloseAndRead => {
                let closed = if end == End::CloseAndRead {
                    reader.is_closed = true;
                    let first = reader.consumer.close().await;
                    while !reader.ended && reader.read(PATIENCE).await {}
                    if !reader.ended {
                        self.truth.breaks(
                            Promise::Progress,
                            format_args!("the stream of a closed consumer does not end"),
                        );
                    }
                    let last = reader.consumer.close().await;
                    drop(reader);
                    first.and(last)
                } else {
                    let consumer = reader.consumer.clone();
                    drop(reader);
                    consumer.close().await
                };
                match closed {
                    Ok(()) => Some(Duration::ZERO),
                    Err(error) => {
                        self.truth.log(format_args!("close: {error}"));
                        if self.store.healthy_for() > STORE_RECOVERY {
                            self.truth.breaks(Promise::FewErrors, format_args!("close: {error}"));
                        }
                        None
                    }
                }
            }
            End::Drop => {
                drop(reader);
                (healthy > STORE_RECOVERY).then_some(Duration::ZERO)
            }
            End::Kill => {
                reader.store.cut_off();
                drop(reader);
                (healthy > STORE_RECOVERY + interval).then_some(interval)
            }
        };
        let due: Option<Vec<usize>> = saved_after.map(|time| {
            let facts = self.truth.lock();
            (0..facts.shards.len()).map(|shard| facts.finished_for(shard, time)).collect()
        });
        // The call limits apply to all readers of a shard together, and a writer may still flush.
        sleep(Duration::from_secs(25)).await;
        self.trace_calls();
        self.check_saved(due.unwrap_or_default()).await;
        self.check_rest();
    }
}
