//! Handlers that drop or keep records: the stalls that the consumer reports, and its health.

use std::collections::BTreeMap;
use std::time::Duration;

use kinestream::{CheckpointOn, Event, OnTrimmed, Record, StartingPosition};
use tokio::time::{Instant, sleep, timeout_at};

use super::Act;
use super::reader::ActReader;
use crate::seeds::pick;
use crate::truth::{Promise, index_of};

const SECOND: Duration = Duration::from_secs(1);

/// The time for which the in-flight limit must have blocked a shard, as documented at
/// `Event::Stalled`.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The limits of the probes, as documented in the guide.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LIVE_WITHIN: Duration = Duration::from_secs(300);

/// Times are stored in seconds and checked once a second.
const EXACT_TO: Duration = Duration::from_secs(3);

/// An unacknowledged record.
struct Unacknowledged {
    shard: usize,
    at: Instant,
    /// The record and the time at which it is acknowledged; `None` if it was dropped.
    ack: Option<(Record, Instant)>,
}

/// A handler of records, and the facts that reports and health are checked against.
struct Handler {
    reader: ActReader,
    limit: usize,
    held: Vec<Unacknowledged>,
    /// The time since which the limit has blocked a shard, and whether that was reported.
    full: BTreeMap<usize, (Instant, bool)>,
    /// The shards that were reported although they had not stalled, with the number of records in
    /// flight.
    false_reports: Vec<(usize, usize)>,
    /// The time since which the handler has not polled after it received a record.
    unpolled_since: Option<Instant>,
}

impl Act {
    pub(super) async fn stall(&mut self) {
        let limit = self.rng.usize(1..4);
        (self.plan.mode, self.plan.max_in_flight) = (CheckpointOn::Ack, limit);
        self.plan.max_in_flight_bytes = 64 << 20;
        self.truth.log(format_args!("the in-flight limit is {limit}"));
        // In percent of the records.
        let (dropped, kept) = (pick(&mut self.rng, &[0, 5, 30]), pick(&mut self.rng, &[0, 30, 80]));
        let reader = self.begin(StartingPosition::TrimHorizon, OnTrimmed::Fail);
        self.check_unread(&reader, "before the first record");
        let mut handler = Handler::new(reader, limit);
        self.put_each();
        let first = handler.reader.next(Duration::from_secs(60)).await;
        let Some(first) = first else {
            return self.breaks(Promise::Progress, format_args!("no record for a minute"));
        };
        self.decide(&mut handler, first, 0, 0);
        let (puts, busy_at) = (self.rng.u64(30..400), self.rng.u64(10..800));
        for second in 0..self.rng.u64(60..700) {
            if second < puts && self.rng.u8(..3) == 0 {
                self.put_some(0..3);
            }
            self.handle(&mut handler, dropped, kept).await;
            self.check_handler(&mut handler);
            if second == busy_at {
                self.stop_polling(&mut handler).await;
            }
            if self.truth.is_broken() {
                return;
            }
        }
        let consumer = handler.reader.consumer.clone();
        handler.reader.close().await;
        let health = consumer.health();
        if health.is_ready() || !health.is_live() {
            self.breaks(Promise::HealthIsTrue, format_args!("a closed consumer: {health:?}"));
        }
    }

    fn check_unread(&self, reader: &ActReader, why: &str) {
        let health = reader.consumer.health();
        if health.is_ready() || !health.is_live() {
            self.breaks(Promise::HealthIsTrue, format_args!("{why}: {health:?}"));
        }
    }

    /// Runs the handler for one second, in which it polls.
    async fn handle(&mut self, handler: &mut Handler, dropped: u8, kept: u8) {
        let end = Instant::now() + SECOND;
        loop {
            let acks = handler.held.iter().filter_map(|held| held.ack.as_ref());
            let next = acks.map(|(_, at)| *at).min().unwrap_or(end).min(end);
            let left = next.saturating_duration_since(Instant::now());
            let polled = timeout_at(next, handler.reader.next(left.max(SECOND))).await;
            if let Ok(Some(record)) = polled {
                self.decide(handler, record, dropped, kept);
            }
            handler.ack_due();
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// Acknowledges a record now or later, or drops it.
    fn decide(&mut self, handler: &mut Handler, record: Record, dropped: u8, kept: u8) {
        let (shard, at) = (index_of(record.shard_id()), Instant::now());
        let chance = self.rng.u8(..100);
        let ack = if chance < dropped {
            self.truth.log(format_args!("a record of shard {shard} is dropped"));
            None
        } else {
            let most = if chance < dropped + kept { 90_000 } else { 1 };
            Some((record, at + self.time(0..most)))
        };
        handler.held.push(Unacknowledged { shard, at, ack });
        if handler.held.iter().filter(|held| held.shard == shard).count() >= handler.limit {
            handler.full.entry(shard).or_insert((at, false));
        }
    }

    /// Stops the handler from polling for up to 400 s after it received a record.
    async fn stop_polling(&mut self, handler: &mut Handler) {
        self.put_each();
        let Some(record) = handler.reader.next(Duration::from_secs(20)).await else { return };
        self.decide(handler, record, 0, 0);
        handler.ack_due();
        let time = self.time(1000..400_000);
        self.truth.log(format_args!("the handler does not poll for {time:?}"));
        handler.unpolled_since = Some(Instant::now());
        let end = Instant::now() + time;
        while Instant::now() < end && !self.truth.is_broken() {
            sleep(SECOND).await;
            handler.ack_due();
            self.check_handler(handler);
        }
        handler.unpolled_since = None;
    }

    fn check_handler(&self, handler: &mut Handler) {
        handler.process_events();
        for (shard, unacknowledged) in handler.false_reports.drain(..) {
            self.breaks(
                Promise::StallsAreReported,
                format_args!(
                    "shard {shard} has not stalled, but is reported with {unacknowledged} in flight"
                ),
            );
        }
        for (shard, (since, is_reported)) in &handler.full {
            if !is_reported && since.elapsed() > STALLED_AFTER + EXACT_TO {
                self.breaks(
                    Promise::StallsAreReported,
                    format_args!(
                        "shard {shard} has been blocked for {:?} without a report",
                        since.elapsed()
                    ),
                );
            }
        }
        let oldest = handler.held.iter().map(|held| held.at.elapsed()).max().unwrap_or_default();
        let unpolled_since =
            handler.unpolled_since.map(|since| since.elapsed()).unwrap_or_default();
        let health = handler.reader.consumer.health();
        for (what, reported, within) in
            [("ready", health.is_ready(), READY_WITHIN), ("live", health.is_live(), LIVE_WITHIN)]
        {
            let stalled = oldest.max(unpolled_since);
            let is_near = stalled.abs_diff(within) <= EXACT_TO;
            if !is_near && reported != (stalled < within) {
                self.breaks(
                    Promise::HealthIsTrue,
                    format_args!("{what} is {reported} after a stall of {stalled:?}: {health:?}"),
                );
            }
        }
    }
}

impl Handler {
    fn new(reader: ActReader, limit: usize) -> Self {
        Self {
            reader,
            limit,
            held: Vec::new(),
            full: BTreeMap::new(),
            false_reports: Vec::new(),
            unpolled_since: None,
        }
    }

    /// Registers the reported stalls. Called before each acknowledgement, because it ends a stall.
    fn process_events(&mut self) {
        for event in self.reader.new_events() {
            let Event::Stalled { shard_id, unacknowledged, .. } = event else { continue };
            let shard = index_of(&shard_id);
            self.reader.log(format_args!("shard {shard} is reported as stalled"));
            let due = self.full.get_mut(&shard).filter(|(since, is_reported)| {
                !is_reported
                    && since.elapsed() + SECOND >= STALLED_AFTER
                    && unacknowledged == self.limit
            });
            match due {
                Some((_, is_reported)) => *is_reported = true,
                None => self.false_reports.push((shard, unacknowledged)),
            }
        }
    }

    fn ack_due(&mut self) {
        self.process_events();
        let now = Instant::now();
        while let Some(due) =
            self.held.iter().position(|held| held.ack.as_ref().is_some_and(|(_, at)| *at <= now))
        {
            let held = self.held.swap_remove(due);
            if let Some((record, _)) = held.ack {
                self.reader.log(format_args!("ack of a record of shard {}", held.shard));
                record.ack();
                self.full.remove(&held.shard);
            }
        }
    }
}
