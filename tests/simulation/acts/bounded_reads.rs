//! Jobs that read up to an ending position, over reshards, faults and restarts, with one worker or
//! several.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kinestream::testing::{Outcome, WrongListing};
use kinestream::{
    CheckpointOn, Consumer, ConsumerBuilder, EndingPosition, OnTrimmed, ShardPosition,
    StartingPosition,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::Act;
use crate::merged::Merged;
use crate::seeds::pick;
use crate::simulated_clock::consumer_of;
use crate::truth::Promise;
use crate::wire::without_altering;

/// The time within which a job ends after the faults: the difference of two clocks, which a quiet
/// shard waits for, the pauses of a shard that has failed, a new subscription, and listings.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The options of a job.
#[derive(Debug, Clone, Copy)]
struct Job {
    workers: usize,
    ending: EndingPosition,
    /// The caller has set the first shard to its end, so that only a listing shows its children.
    skips_first: bool,
}

/// A worker of a job.
struct JobWorker {
    consumer: Consumer,
    stream: Merged,
    has_ended: bool,
}

/// The records that a job has delivered, by their numbers.
type Delivered = BTreeSet<usize>;

impl Act {
    pub(super) async fn read_bounded(&mut self) {
        self.kinesis.set_cbor(without_altering(self.plan.cbor));
        self.plan.discovery_interval = pick(&mut self.rng, &[1, 5, 30]) * Duration::from_secs(1);
        let workers = pick(&mut self.rng, &[1, 1, 2, 3]);
        let responses = pick(&mut self.later_rng, &[0, 1, 2, 2]);
        self.kinesis.set_responses_before_end(responses);
        self.truth.log(format_args!("{responses} responses before the end of a closed shard"));
        self.change_stream(0..4).await;
        let offset = self.time(0..60_000);
        let ending = match self.rng.u8(..3) {
            0 => EndingPosition::Latest,
            1 => EndingPosition::AtTimestamp(self.kinesis.now() + offset),
            _ => EndingPosition::AtTimestamp(self.kinesis.now()),
        };
        let options = Job { workers, ending, skips_first: self.later_rng.bool() };
        self.truth.log(format_args!("{options:?}"));
        self.change_stream(0..2).await;
        let mut delivered = Delivered::new();
        for _ in 0..self.rng.usize(0..3) {
            let existing = self.puts.len();
            let mut job = self.begin_job(options);
            let time = self.time(0..20_000);
            self.outdate_listings();
            self.fail_calls();
            self.drive(&mut job, time, &mut delivered).await;
            self.change_stream(0..2).await;
            self.outdate_listings();
            let time = self.time(0..20_000);
            self.drive(&mut job, time, &mut delivered).await;
            if job.iter().all(|worker| worker.has_ended) {
                self.check_complete(options, existing, &delivered);
            }
            self.stop_job(job).await;
        }
        self.end_job(options, &mut delivered).await;
    }

    /// Runs a job to its end, and checks what it and all jobs before it have delivered.
    async fn end_job(&mut self, options: Job, delivered: &mut Delivered) {
        let ending = options.ending;
        let existing = self.puts.len();
        self.kinesis.on_call(|_| Outcome::Served);
        let mut job = self.begin_job(options);
        let time = self.time(0..5000);
        self.outdate_listings();
        self.drive(&mut job, time, delivered).await;
        self.change_stream(0..2).await;
        self.outdate_listings();
        self.drive(&mut job, PATIENCE, delivered).await;
        if job.iter().any(|worker| !worker.has_ended) {
            self.breaks(Promise::Progress, format_args!("a job up to {ending:?} does not end"));
        }
        self.check_complete(options, existing, delivered);
        let is_late = |number: &&usize| match ending {
            EndingPosition::AtTimestamp(end) => self.arrival(**number) > end,
            _ => false,
        };
        let late: Vec<&usize> = delivered.iter().filter(is_late).collect();
        if !late.is_empty() {
            self.breaks(
                Promise::NotAfterTheEnding,
                format_args!("records {late:?} after {ending:?} are delivered"),
            );
        }
        self.stop_job(job).await;
        if self.truth.is_broken() {
            return;
        }
        if matches!(ending, EndingPosition::AtTimestamp(_)) {
            let (mut again, mut repeated) =
                (self.begin_job(Job { workers: 1, ..options }), Delivered::new());
            self.drive(&mut again, PATIENCE, &mut repeated).await;
            if !repeated.is_empty() || !again[0].has_ended {
                self.breaks(
                    Promise::FewRepeats,
                    format_args!("a complete job delivers {repeated:?} again, or does not end"),
                );
            }
            self.stop_job(again).await;
        }
        self.read_rest_of_stream(options, delivered).await;
    }

    /// Checks that a job whose streams have all ended has delivered every record up to the ending.
    /// The first `existing` records were put before its first poll.
    fn check_complete(&self, options: Job, existing: usize, delivered: &Delivered) {
        let Job { ending, .. } = options;
        let due = |number: &usize| match ending {
            _ if self.is_skipped(options, *number) => false,
            EndingPosition::AtTimestamp(end) => self.arrival(*number) <= end,
            // Each worker has its own first poll, after these records.
            _ => *number < existing,
        };
        let missing: Vec<usize> =
            (0..self.puts.len()).filter(due).filter(|it| !delivered.contains(it)).collect();
        if !missing.is_empty() {
            self.breaks(
                Promise::NothingIsLost,
                format_args!("records {missing:?} up to {ending:?} are not delivered"),
            );
        }
    }

    /// Reads everything after the ending position.
    async fn read_rest_of_stream(&mut self, options: Job, delivered: &mut Delivered) {
        let mut reader = self.begin(StartingPosition::TrimHorizon, OnTrimmed::Fail);
        let is_left =
            |number: &usize| !delivered.contains(number) && !self.is_skipped(options, *number);
        let rest: Vec<usize> = (0..self.puts.len()).filter(is_left).collect();
        self.read_all(&mut reader, &rest).await;
        reader.close().await;
    }

    fn begin_job(&self, options: Job) -> Vec<JobWorker> {
        let Job { workers, ending, skips_first } = options;
        let first = self.orders.shard(0).id();
        let begin = |number: usize| {
            let builder = consumer_of(&self.kinesis, self.kinesis.client(), "orders");
            let builder = self.plan.apply(builder).store(self.store.clone());
            let set = |builder: ConsumerBuilder| {
                let builder = if skips_first {
                    builder.starting_position_for(first.clone(), ShardPosition::ShardEnd)
                } else {
                    builder
                };
                builder
                    .starting_position(StartingPosition::TrimHorizon)
                    .ending_position(ending)
                    .lease_duration(Duration::from_secs(6))
                    .worker_id(format!("job-{number}-{}", self.kinesis.call_count()))
            };
            let consumer = set(builder).build().expect("the plan's options are valid");
            let stream = Merged::new(&consumer, self.truth.clone(), &self.plan);
            JobWorker { consumer, stream, has_ended: false }
        };
        (0..workers).map(begin).collect()
    }

    /// Reads with all workers, until this time is over or all streams have ended.
    async fn drive(&self, job: &mut [JobWorker], time: Duration, delivered: &mut Delivered) {
        let end = Instant::now() + time;
        while job.iter().any(|worker| !worker.has_ended) {
            let open = job.iter_mut().filter(|worker| !worker.has_ended);
            let next = open.map(|worker| {
                Box::pin(async {
                    let next = worker.stream.next().await;
                    worker.has_ended = next.is_none();
                    next
                })
            });
            let Ok((next, ..)) = timeout_at(end, futures::future::select_all(next)).await else {
                return;
            };
            match next {
                Some(Ok(record)) => {
                    let text = std::str::from_utf8(record.data()).expect("the payload is text");
                    self.truth.log(format_args!("record: {text} of {}", record.shard_id()));
                    delivered.insert(text.parse().expect("the payload is a number"));
                    if self.plan.mode == CheckpointOn::Ack {
                        record.ack();
                    }
                }
                Some(Err(error)) => self.truth.log(format_args!("error: {error}")),
                None => self.truth.log(format_args!("the stream of a worker has ended")),
            }
        }
    }

    /// Closes some workers and drops the others.
    async fn stop_job(&mut self, job: Vec<JobWorker>) {
        for JobWorker { consumer, stream, has_ended } in job {
            drop(stream);
            if has_ended || self.rng.bool() {
                consumer.close().await.expect("the store of an act does not fail");
            }
        }
        let time = self.time(0..10_000);
        sleep(time).await;
    }

    /// Puts records and reshards the stream, with pauses.
    async fn change_stream(&mut self, times: std::ops::Range<usize>) {
        for _ in 0..self.rng.usize(times) {
            self.put_some(0..6);
            let pause = self.time(0..4000);
            sleep(pause).await;
            if self.rng.u8(..3) == 0 {
                self.reshard();
            }
            self.put_some(0..4);
            let pause = self.time(1..4000);
            sleep(pause).await;
        }
    }

    fn fail_calls(&mut self) {
        for _ in 0..self.rng.usize(0..6) {
            let read = self.plan.read_call();
            let next = if self.plan.fan_out {
                ["ContinuationSequenceNumber", "ChildShards"]
            } else {
                ["NextShardIterator", "ChildShards"]
            };
            let (operation, outcome) = match self.rng.u8(..7) {
                0 => (read, Outcome::throttled()),
                1 => (read, Outcome::failed(500, "InternalFailure", "no")),
                2 => (read, Outcome::without(["MillisBehindLatest"])),
                3 => (read, Outcome::without(next)),
                4 => ("ListShards", Outcome::failed(500, "InternalFailure", "no")),
                5 => ("ListShards", Outcome::Mislisted(WrongListing::Empty)),
                _ => ("GetShardIterator", Outcome::throttled()),
            };
            let times = self.rng.usize(1..4);
            self.truth.log(format_args!("next {times} calls of {operation}: {outcome:?}"));
            self.kinesis.next_calls(operation, times, outcome);
        }
    }

    /// Makes the listings of some seconds show the stream as it was when it had fewer shards.
    ///
    /// A worker believes an outdated listing after 30 s. Two such times of a job do not cover all of
    /// its listings until then, since their distance doubles.
    fn outdate_listings(&mut self) {
        if self.later_rng.u8(..3) == 0 {
            return;
        }
        let all = self.orders.shards();
        let first = all.iter().filter(|shard| shard.parents().is_empty()).count();
        let is_first = self.later_rng.bool();
        let count = if is_first { first } else { self.later_rng.usize(first..=all.len()) };
        let time = Duration::from_millis(self.later_rng.u64(..10_000));
        let until = Instant::now() + time;
        self.truth.log(format_args!("listings show {count} shards for {time:?}"));
        self.kinesis.on_call(move |call| match call.operation.as_str() {
            "ListShards" if Instant::now() < until => {
                Outcome::Mislisted(WrongListing::Stale(count))
            }
            _ => Outcome::Served,
        });
    }

    /// Returns true if the record is in a shard that the caller has set to its end.
    fn is_skipped(&self, options: Job, number: usize) -> bool {
        options.skips_first && self.puts[number].shard == 0
    }

    /// Returns the arrival time of a record.
    fn arrival(&self, number: usize) -> SystemTime {
        self.kinesis.now() - self.puts[number].at.elapsed()
    }
}
