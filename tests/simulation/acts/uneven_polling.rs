//! Callers that poll some streams of a consumer and not the others for minutes, while all streams
//! share the memory budget.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kinestream::testing::{Shard, Stream};
use kinestream::{
    CheckpointOn, Consumer, MemoryBudget, Record, Result, ShardStream, StartingPosition,
};
use tokio::time::{Instant, timeout_at};

use super::Act;
use crate::plan::ReadMethod;
use crate::seeds::pick;
use crate::simulated_clock::consumer_of;
use crate::truth::Promise;
use crate::world::PROGRESS_WITHIN;

const SECOND: Duration = Duration::from_secs(1);

/// The default of `max_buffered_bytes`.
const DEFAULT_BUDGET: usize = 64 << 20;

/// The size of records with which a response reaches 10 MiB, and of records that fit into the
/// reserve of a shard.
const LARGE: usize = 700_000;
const SMALL: usize = 100;

/// The stream of one shard.
struct Lane {
    name: String,
    shard: Shard,
    stream: ShardStream,
    put: usize,
    delivered: usize,
    is_polled: bool,
    /// The time since which the caller has waited for the next record.
    waits_since: Instant,
}

impl Act {
    pub(super) async fn poll_unevenly(&mut self) {
        self.plan.read_method = ReadMethod::Shards;
        let bytes = pick(&mut self.rng, &[DEFAULT_BUDGET, DEFAULT_BUDGET, 2 << 20, 1]);
        let (budget, is_shared) = (MemoryBudget::new(bytes), self.rng.bool());
        self.plan.max_buffered_bytes = bytes;
        self.truth
            .log(format_args!("some streams are not polled: {bytes} bytes, shared: {is_shared}"));
        let shards = self.rng.usize(3..7);
        self.orders = self.kinesis.create_stream("lanes", shards);
        let mut streams = vec![self.orders.clone()];
        if is_shared {
            let shards = self.rng.usize(1..4);
            streams.push(self.kinesis.create_stream("others", shards));
        }
        let (mut lanes, mut consumers) = (Vec::new(), Vec::new());
        for (stream, name) in streams.iter().zip(["lanes", "others"]) {
            let consumer = self.begin_lanes(name, is_shared.then_some(&budget));
            self.open_lanes(&consumer, name, stream, &mut lanes).await;
            consumers.push(consumer);
        }
        for _ in 0..self.rng.usize(1..4) {
            self.choose(&mut lanes);
            for _ in 0..self.rng.u64(20..150) {
                if self.rng.u8(..12) == 0 {
                    let lane = self.rng.usize(..lanes.len());
                    self.fill(&mut lanes[lane]);
                }
                self.read_lanes(&mut lanes, SECOND).await;
                if self.truth.is_broken() {
                    return;
                }
            }
        }
        self.read_the_rest(&mut lanes).await;
        drop(lanes);
        for consumer in consumers {
            consumer.close().await.expect("the store of an act does not fail");
        }
        for violation in self.kinesis.violations() {
            self.breaks(Promise::CallLimits, format_args!("{violation}"));
        }
    }

    fn begin_lanes(&self, name: &str, memory_budget: Option<&MemoryBudget>) -> Consumer {
        let builder = consumer_of(&self.kinesis, self.kinesis.client(), name);
        let builder = builder.store(self.store.clone());
        let builder = match memory_budget {
            Some(budget) => self.plan.apply_to_shared(builder).memory_budget(budget),
            None => self.plan.apply(builder),
        };
        let builder = builder.starting_position(StartingPosition::TrimHorizon);
        builder.build().expect("the plan's options are valid")
    }

    /// Opens each shard, and takes up to two records from it. Prefetching starts with the second
    /// one.
    async fn open_lanes(
        &mut self,
        consumer: &Consumer,
        name: &str,
        stream: &Stream,
        lanes: &mut Vec<Lane>,
    ) {
        let shards = stream.shards();
        let opened = consumer.shards().take(shards.len()).try_collect::<Vec<ShardStream>>();
        for stream in opened.await.expect("no call fails") {
            let shard = shards.iter().find(|shard| shard.id() == *stream.shard_id());
            let shard = shard.expect("the stream of a known shard").clone();
            let name = format!("{name} {}", shard.index());
            let (is_polled, waits_since) = (true, Instant::now());
            let mut lane =
                Lane { name, shard, stream, put: 0, delivered: 0, is_polled, waits_since };
            (0..self.rng.usize(1..4)).for_each(|_| self.fill(&mut lane));
            let taken = self.rng.usize(..3).min(lane.put);
            while lane.delivered < taken && !self.truth.is_broken() {
                self.read_lanes(std::slice::from_mut(&mut lane), SECOND).await;
            }
            lanes.push(lane);
        }
    }

    /// Puts enough records to fill a response, a single large record, or many small ones.
    fn fill(&mut self, lane: &mut Lane) {
        let (records, size) = pick(&mut self.rng, &[(16, LARGE), (1, LARGE), (40, SMALL)]);
        self.truth.log(format_args!("put: {records} records of {size} bytes into {}", lane.name));
        if lane.put == lane.delivered {
            lane.waits_since = Instant::now();
        }
        for _ in 0..records {
            let mut payload = lane.put.to_string().into_bytes();
            payload.resize(size, b' ');
            lane.shard.put(payload);
            lane.put += 1;
        }
    }

    /// Chooses the streams that are polled from now on: at least one is, and at least one is not.
    fn choose(&mut self, lanes: &mut [Lane]) {
        for lane in &mut *lanes {
            (lane.is_polled, lane.waits_since) = (self.rng.bool(), Instant::now());
        }
        let one = self.rng.usize(..lanes.len());
        lanes[one].is_polled = true;
        lanes[(one + 1) % lanes.len()].is_polled = false;
        let polled: Vec<&str> = polled(lanes).map(|lane| lane.name.as_str()).collect();
        self.truth.log(format_args!("streams that are polled: {polled:?}"));
    }

    /// Reads the streams that are polled for this time.
    async fn read_lanes(&self, lanes: &mut [Lane], time: Duration) {
        let (end, mut turn) = (Instant::now() + time, 0);
        while !self.truth.is_broken() {
            turn += 1;
            let Ok((lane, next)) = timeout_at(end, next_of(lanes, turn)).await else { break };
            match next {
                Some(Ok(record)) => self.take(&mut lanes[lane], &record),
                Some(Err(error)) => self.breaks(Promise::FewErrors, format_args!("{error}")),
                None => {
                    let name = &lanes[lane].name;
                    self.breaks(
                        Promise::Progress,
                        format_args!("the stream of {name} ends although the shard is open"),
                    );
                }
            }
            self.check_progress(lanes);
        }
        self.check_progress(lanes);
    }

    fn take(&self, lane: &mut Lane, record: &Record) {
        let number: usize = std::str::from_utf8(record.data())
            .unwrap()
            .trim_end()
            .parse()
            .expect("the payload is a number");
        if number != lane.delivered {
            self.breaks(
                Promise::Order,
                format_args!(
                    "{}: record {number} is delivered, expected {}",
                    lane.name, lane.delivered
                ),
            );
        }
        lane.delivered = number + 1;
        lane.waits_since = Instant::now();
        if self.plan.mode == CheckpointOn::Ack {
            record.ack();
        }
    }

    fn check_progress(&self, lanes: &[Lane]) {
        for lane in polled(lanes).filter(|lane| lane.delivered < lane.put) {
            if lane.waits_since.elapsed() > PROGRESS_WITHIN {
                self.breaks(
                    Promise::Progress,
                    format_args!(
                        "{} has not delivered record {} for {PROGRESS_WITHIN:?}",
                        lane.name, lane.delivered
                    ),
                );
            }
        }
    }

    /// Polls all streams until every record is delivered.
    async fn read_the_rest(&mut self, lanes: &mut [Lane]) {
        self.truth.log(format_args!("all streams are polled"));
        for lane in &mut *lanes {
            (lane.is_polled, lane.waits_since) = (true, Instant::now());
        }
        let is_unread = |lanes: &[Lane]| lanes.iter().any(|lane| lane.delivered < lane.put);
        while is_unread(lanes) && !self.truth.is_broken() {
            self.read_lanes(lanes, PROGRESS_WITHIN).await;
        }
    }
}

fn polled(lanes: &[Lane]) -> impl Iterator<Item = &Lane> {
    lanes.iter().filter(|lane| lane.is_polled)
}

/// Returns the next item of a stream that is polled. The streams are polled in turn.
async fn next_of(lanes: &mut [Lane], turn: usize) -> (usize, Option<Result<Record>>) {
    poll_fn(|context| {
        for place in 0..lanes.len() {
            let place = (place + turn) % lanes.len();
            let lane = &mut lanes[place];
            if lane.is_polled
                && let Poll::Ready(next) = lane.stream.poll_next_unpin(context)
            {
                return Poll::Ready((place, next));
            }
        }
        Poll::Pending
    })
    .await
}
