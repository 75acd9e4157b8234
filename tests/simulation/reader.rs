//! One reader, from its first poll to its close, its drop or its kill.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use futures::{FutureExt, StreamExt};
use kinestream::testing::Kinesis;
use kinestream::{
    CheckpointOn, Consumer, Error, ErrorKind, Event, Events, FallbackReason, MemoryBudget, Record,
    ShardOrdering, Task, WireFormat,
};
use tokio::time::{Instant, timeout};

use crate::database::Database;
use crate::inline::Inline;
use crate::merged::Merged;
use crate::neighbour::Neighbour;
use crate::panics::{Panics, Part};
use crate::plan::Plan;
use crate::reads::used;
use crate::simulated_clock::consumer_of;
use crate::store::SimulatedStore;
use crate::truth::{Fact, Facts, Place, Promise, Truth, index_of};
use crate::world::STORE_RECOVERY;

/// The parts for which each panic is reported as an event.
const REPORTED: [Part; 4] = [Part::Store, Part::StoreAfter, Part::Call, Part::CallAfter];

/// The maximum length of a partition key, in bytes.
const LONGEST_KEY: usize = 3;

/// Returns the bytes of a record that count as in flight.
fn size(record: &Record) -> usize {
    record.data().len() + record.partition_key().map_or(0, str::len)
}

/// Slightly less than the minute after which a shard that is not found is reported.
const UNREAD: Duration = Duration::from_secs(55);

#[allow(clippy::struct_excessive_bools, reason = "the flags are independent")]
pub(crate) struct Reader {
    pub(crate) consumer: Consumer,
    pub(crate) store: SimulatedStore,
    stream: Inline<Merged>,
    events: Events,
    panics: Panics,
    /// The number of panics before the reader started, the number of panics that it has reported
    /// since, and a flag for missed events.
    panicked: usize,
    reported_panics: usize,
    missed_events: bool,
    truth: Truth,
    plan: Plan,
    /// With `CheckpointOn::Ack`, the records that the caller holds.
    held: Vec<(Record, Place)>,
    /// The records that were dropped without an acknowledgement: the positions of their shards no
    /// longer advance.
    forgotten: Vec<(Place, u64)>,
    /// For each shard, the index of the next record.
    pub(crate) next: BTreeMap<usize, usize>,
    /// The epoch of the last record of each shard.
    epochs: BTreeMap<usize, u64>,
    /// Shards with failed streams, which restart at their checkpoints.
    restarted: BTreeSet<usize>,
    began: Instant,
    /// The number of calls before the reader started.
    pub(crate) first_call: usize,
    pub(crate) ended: bool,
    /// True after the consumer was closed.
    pub(crate) is_closed: bool,
    yielded: Vec<ErrorKind>,
    /// The number of `Denied` errors of each shard.
    denied: BTreeMap<String, usize>,
    kinesis: Kinesis,
    pub(crate) neighbour: Option<Neighbour>,
    /// The server has altered values since the reader started.
    pub(crate) was_altered: bool,
    /// The consumer has fallen back to JSON.
    fell_back: bool,
}

impl Reader {
    pub(crate) async fn begin(
        kinesis: &Kinesis,
        store: SimulatedStore,
        truth: Truth,
        plan: Plan,
        panics: Panics,
        database: Option<&Database>,
    ) -> Self {
        let client = panics.client(kinesis.client());
        let mut builder = consumer_of(kinesis, client, "orders").store(store.clone());
        let mut neighbour = None;
        if plan.has_neighbour {
            let budget = MemoryBudget::new(plan.max_buffered_bytes);
            neighbour = Some(Neighbour::begin(&budget, &truth, &plan).await);
            builder = plan.apply_to_shared(builder).memory_budget(&budget);
        } else {
            builder = plan.apply(builder);
        }
        if let Some(database) = database {
            builder = database.apply(builder);
        }
        let consumer = builder.build().expect("the plan's options are valid");
        let stream = Inline::new(Merged::new(&consumer, truth.clone(), &plan), panics.clone());
        let positions = match database {
            Some(database) => database.positions.clone(),
            None => store.positions().await,
        };
        truth.lock().begin_reader(&positions);
        truth.log(format_args!("a reader starts"));
        Self {
            events: consumer.events(),
            panicked: panics.fired(&REPORTED),
            reported_panics: 0,
            missed_events: false,
            panics,
            consumer,
            store,
            stream,
            truth,
            plan,
            held: Vec::new(),
            forgotten: Vec::new(),
            next: BTreeMap::new(),
            epochs: BTreeMap::new(),
            restarted: BTreeSet::new(),
            began: Instant::now(),
            first_call: kinesis.call_count(),
            ended: false,
            is_closed: false,
            yielded: Vec::new(),
            denied: BTreeMap::new(),
            kinesis: kinesis.clone(),
            neighbour,
            was_altered: false,
            fell_back: false,
        }
    }

    /// Waits up to `patience` for a record. Returns true if one was delivered.
    pub(crate) async fn read(&mut self, patience: Duration) -> bool {
        let polled = timeout(patience, self.stream.next()).await;
        polled.is_ok_and(|next| self.take(next))
    }

    /// Polls once, and drops the future if it is pending. Returns true if a record was delivered.
    pub(crate) fn poll_once(&mut self) -> bool {
        let polled = self.stream.next().now_or_never();
        polled.is_some_and(|next| self.take(next))
    }

    /// Returns true if this reader can no longer finish some shard.
    pub(crate) fn forgot(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// Acknowledges a random record that the caller holds.
    pub(crate) fn ack(&mut self, rng: &mut Rng) {
        if !self.held.is_empty() {
            let (record, place) = self.held.swap_remove(rng.usize(..self.held.len()));
            if self.epochs.get(&place.0) == Some(&record.epoch()) {
                self.truth.lock().finish(place);
            } else {
                self.truth.lock().finish_late(place);
            }
            self.truth.log(format_args!("ack of shard {} record {}", place.0, place.1));
            record.ack();
        }
    }

    pub(crate) fn ack_all(&mut self, rng: &mut Rng) {
        while !self.held.is_empty() {
            self.ack(rng);
        }
    }

    /// Drops a random record that the caller holds.
    pub(crate) fn forget(&mut self, rng: &mut Rng) {
        if !self.held.is_empty() {
            let (record, place) = self.held.swap_remove(rng.usize(..self.held.len()));
            self.truth.log(format_args!(
                "shard {} record {} is dropped without an ack",
                place.0, place.1
            ));
            self.forgotten.push((place, record.epoch()));
        }
    }

    /// Returns true if the shard has delivered a record and no record of it was dropped without an
    /// acknowledgement.
    pub(crate) fn is_reading(&self, shard: usize) -> bool {
        self.next.contains_key(&shard) && self.forgotten.iter().all(|(place, _)| place.0 != shard)
    }

    /// Returns true if the caller holds as many records of the shard as the in-flight limits allow.
    pub(crate) fn is_full(&self, shard: usize) -> bool {
        let held = self.held.iter().filter(|(_, place)| place.0 == shard);
        let (records, bytes) =
            held.fold((0, 0), |(records, bytes), (record, _)| (records + 1, bytes + size(record)));
        let facts = self.truth.lock();
        let next = self.next.get(&shard).and_then(|next| facts.shards[shard].records.get(*next));
        let next = next.map_or(3, Fact::size) + LONGEST_KEY;
        records >= self.plan.max_in_flight
            || bytes > 0 && bytes + next > self.plan.max_in_flight_bytes
    }

    fn take(&mut self, next: Option<kinestream::Result<Record>>) -> bool {
        match next {
            None => {
                self.truth.log(format_args!("the stream ends"));
                if !self.is_closed {
                    self.truth.breaks(
                        Promise::Progress,
                        format_args!("the stream ends although the consumer is open"),
                    );
                }
                self.ended = true;
                false
            }
            Some(Err(error)) => {
                self.check_error(&error);
                false
            }
            Some(Ok(record)) => {
                let Some(place) = self.check_record(&record) else { return false };
                self.truth.lock().delivered(place, record.checkpoint());
                self.epochs.insert(place.0, record.epoch());
                self.check_previous_saved(place);
                if self.plan.mode == CheckpointOn::Pull {
                    self.stream.with(|stream| stream.hold(place));
                } else {
                    let epoch = record.epoch();
                    self.held.push((record, place));
                    self.check_in_flight(place.0, epoch);
                }
                true
            }
        }
    }

    /// Processes the events so far.
    pub(crate) fn process_events(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            match event {
                Event::TaskRestarted { task, .. } => {
                    let is_reported = !matches!(task, Task::Metrics | Task::Tracing);
                    self.reported_panics += usize::from(is_reported);
                }
                Event::Lagged { .. } => {
                    self.missed_events = true;
                    self.truth.lock().miss_events();
                }
                gap @ Event::Gap { .. } => self.truth.lock().note_gap(&gap),
                // An error has ended the stream of the shard. A new one starts at the checkpoint.
                Event::ShardFailed { shard_id, .. } => {
                    self.restarted.insert(index_of(&shard_id));
                }
                Event::WireFormatFallback { reason } => self.check_fallback(reason),
                _ => {}
            }
        }
    }

    /// Checks that the consumer had a reason to fall back to JSON.
    fn check_fallback(&mut self, reason: FallbackReason) {
        self.truth.log(format_args!("reads by JSON from now on: {reason:?}"));
        let is_first = !std::mem::replace(&mut self.fell_back, true);
        let is_possible = self.plan.wire_format == WireFormat::Auto && !self.plan.fan_out;
        // A distorted response may lack the records.
        let is_true =
            reason != FallbackReason::Different || self.plan.distorted || self.was_altered;
        if !(is_first && is_possible && is_true) {
            self.truth.breaks(
                Promise::FallbacksAreTrue,
                format_args!("{reason:?}, first: {is_first}, altered: {}", self.was_altered),
            );
        }
    }

    /// Checks that each panic so far was reported.
    pub(crate) fn check_panics(&mut self) {
        let panicked = self.panics.fired(&REPORTED) - self.panicked;
        if self.reported_panics < panicked && !self.missed_events {
            self.truth.breaks(
                Promise::PanicsAreReported,
                format_args!("{panicked} panics, of which {} were reported", self.reported_panics),
            );
        }
    }

    /// Checks, with a checkpoint interval of zero, that the previous record is stored, unless the
    /// store fails.
    fn check_previous_saved(&self, (shard, place): Place) {
        let is_due = self.plan.mode == CheckpointOn::Pull
            && self.plan.checkpoint_interval.is_zero()
            && self.store.answers_for() > STORE_RECOVERY;
        let mut facts = self.truth.lock();
        if !is_due || place == 0 || !facts.shards[shard].records[place - 1].finished {
            return;
        }
        let positions =
            self.store.positions().now_or_never().expect("the memory store never waits");
        let stored = positions.iter().find(|(id, _)| index_of(id) == shard);
        let passed = stored.and_then(|(_, checkpoint)| facts.passed(shard, checkpoint));
        if passed.is_some_and(|passed| passed < place) {
            facts.breaks(
                Promise::EachIsSaved,
                format_args!(
                    "record {place} of shard {shard} is delivered while {passed:?} is stored"
                ),
            );
        }
    }

    /// Checks the in-flight limits for the records that were delivered in one epoch. A shard that
    /// is read again from its checkpoint has nothing in flight.
    fn check_in_flight(&self, shard: usize, epoch: u64) {
        let of_epoch = |place: &Place, of: u64| place.0 == shard && of == epoch;
        let held = self.held.iter().filter(|(record, place)| of_epoch(place, record.epoch()));
        let held: Vec<usize> = held.map(|(record, _)| size(record)).collect();
        let (held, bytes) = (held.len(), held.iter().sum::<usize>());
        if held > 1 && bytes > self.plan.max_in_flight_bytes {
            self.truth.breaks(
                Promise::InFlight,
                format_args!("{bytes} bytes of {held} records of shard {shard} are held"),
            );
        }
        let forgotten = self.forgotten.iter().filter(|(place, of)| of_epoch(place, *of)).count();
        if held + forgotten > self.plan.max_in_flight {
            self.truth.breaks(
                Promise::InFlight,
                format_args!(
                    "{held} records of shard {shard} are held, {forgotten} dropped without an ack"
                ),
            );
        }
    }

    /// Returns the number of outages of a shard: runs of failed reads, at the start or after a
    /// successful one.
    fn outages(&self, shard: &str) -> usize {
        let calls = self.kinesis.calls_from(self.first_call);
        let calls = used(&calls);
        let reads = calls.iter().filter(|call| {
            call.operation == self.plan.read_call()
                && call.shard_id.as_ref().is_some_and(|id| id.as_str() == shard)
        });
        let mut answered: Vec<bool> = reads.map(|call| call.status == Some(200)).collect();
        answered.dedup();
        answered.into_iter().filter(|answered| !answered).count()
    }

    /// Returns the time since the last successful read of a shard, or since the reader started.
    fn unread_for(&self, shard: &str) -> Duration {
        let calls = self.kinesis.calls_from(self.first_call);
        let calls = used(&calls);
        let answered = calls.iter().rfind(|call| {
            call.operation == self.plan.read_call()
                && call.shard_id.as_ref().is_some_and(|id| id.as_str() == shard)
                && call.status == Some(200)
        });
        answered.map_or(self.began, |call| call.at).elapsed()
    }

    /// Checks that an error is one that no retry can resolve, yielded once for each cause.
    fn check_error(&mut self, error: &Error) {
        self.truth.log(format_args!("error: {error}"));
        let kind = error.kind();
        let cause = match kind {
            // An outage that is over is not reported, unless it delayed the start. The start loads
            // the positions, stores the starts of shards, and loads the result.
            ErrorKind::StoreUnavailable => {
                let yielded = self.yielded.iter().filter(|yielded| **yielded == kind).count();
                self.store.healthy_for() < Duration::from_secs(20)
                    || self.next.is_empty() && yielded < 3
            }
            // Even the first listing failed for seconds, or the calls of a shard for a minute.
            ErrorKind::Unavailable => {
                let unread = error.shard_id().map(|shard| self.unread_for(shard.as_str()));
                self.plan.distorted
                    || self.next.is_empty() && !self.yielded.contains(&kind)
                    || unread.is_some_and(|unread| unread > UNREAD)
            }
            // Yielded once until the shard is read successfully. A caller that does not poll gets
            // the errors later, one for each outage.
            ErrorKind::Denied => error.shard_id().is_some_and(|shard| {
                let yielded = self.denied.entry(shard.as_str().to_owned()).or_default();
                *yielded += 1;
                *yielded <= self.outages(shard.as_str())
            }),
            // At most one error for three panics, and none for panics of wakers. A start that was
            // already delayed by another fault may yield one earlier.
            ErrorKind::Panicked => {
                let yielded = self.yielded.iter().filter(|yielded| **yielded == kind).count();
                let wakers = self.panics.fired(&[Part::Waker]);
                let ends_shard = error.to_string().contains("the task that fetches the shard");
                let shard = error.shard_id().filter(|_| ends_shard);
                self.restarted.extend(shard.map(index_of));
                let others = self.panics.all_fired() - wakers;
                yielded < others / 3 || self.next.is_empty()
            }
            // Wrong responses for a minute, yielded once for each such period.
            ErrorKind::Rejected => self.plan.distorted,
            // The same for a shard from which no response has brought records for a minute.
            ErrorKind::NotFound => {
                let unread = error.shard_id().map(|shard| self.unread_for(shard.as_str()));
                self.plan.distorted && unread.is_some_and(|unread| unread > UNREAD)
            }
            _ => false,
        };
        if !cause {
            self.truth.breaks(Promise::FewErrors, format_args!("{error}"));
        }
        self.yielded.push(kind);
    }

    /// Checks a delivered record against the promises.
    fn check_record(&mut self, record: &Record) -> Option<Place> {
        self.process_events();
        let mut facts = self.truth.lock();
        let (shard, place) = facts.place_of(record)?;
        facts.log(format_args!("record: shard {shard} record {place}"));
        let before = self.next.insert(shard, place + 1);
        let checkpoint = facts.shards[shard].base.or(facts.shards[shard].start).unwrap_or(0);
        let begins_again = self.restarted.remove(&shard) && place >= checkpoint;
        if begins_again {
            facts.begin_again((shard, place));
        }
        let known = before.or(facts.shards[shard].base).or(facts.shards[shard].start);
        // Set even if an earlier reader stored a position without delivering a record: the database
        // of the caller starts at the first delivered record.
        facts.shards[shard].start.get_or_insert(place);
        match known {
            Some(expected) if place > expected && facts.are_reported(shard, expected..place) => {}
            Some(expected)
                if place > expected
                    && before.is_none()
                    && facts.have_left(shard, expected..place) => {}
            Some(expected) if place > expected && facts.shards[shard].lost.is_due => {
                facts.breaks(
                    Promise::LossesAreReported,
                    format_args!(
                        "shard {shard} skips records {expected} to {place} without a report"
                    ),
                );
            }
            Some(expected) if place > expected => facts.breaks(
                Promise::NothingIsLost,
                format_args!("shard {shard} skips from record {expected} to {place}"),
            ),
            Some(expected) if place < expected && begins_again => {}
            Some(expected) if place < expected && before.is_some() => facts.breaks(
                Promise::Order,
                format_args!("shard {shard} goes back from record {expected} to {place}"),
            ),
            Some(expected) if place < expected => facts.breaks(
                Promise::FewRepeats,
                format_args!(
                    "shard {shard} was stored at record {expected}, but starts at {place}"
                ),
            ),
            Some(_) => {}
            None => Self::check_first(&mut facts, shard, place),
        }
        if self.plan.ordering == ShardOrdering::ParentFirst {
            let mut parents = facts.shards[shard].parents.clone();
            parents.retain(|parent| !facts.shards[*parent].is_finished());
            for parent in parents {
                facts.breaks(
                    Promise::ParentsFirst,
                    format_args!("shard {shard} starts before its parent {parent} is finished"),
                );
            }
        }
        Some((shard, place))
    }

    /// Checks the first record of a shard that is ever delivered.
    fn check_first(facts: &mut Facts, shard: usize, place: usize) {
        if let Some(skipped) =
            facts.shards[shard].records[..place].iter().position(|fact| fact.required)
        {
            facts.breaks(
                Promise::NothingIsLost,
                format_args!(
                    "shard {shard} starts with record {place}, and skips record {skipped}"
                ),
            );
        }
        if facts.shards[shard].records[place].old {
            facts.breaks(
                Promise::NotBeforeTheStart,
                format_args!("shard {shard} starts with record {place}, which precedes the start"),
            );
        }
    }
}
