//! One worker and its caller, from the first poll to a close, a drop or a kill.

use std::ops::Range;
use std::task::{Context, Poll};
use std::time::Duration;

use fastrand::Rng;
use kinestream::testing::{Kinesis, WallClock};
use kinestream::{CheckpointOn, Consumer, Error, ErrorKind, MemoryStore, Record};
use tokio::time::Instant;

use crate::delivery_checks::{CheckedStream, SharedEventChecker};
use crate::events::EventChecker;
use crate::inline::Inline;
use crate::jobs::is_late;
use crate::link::{Condition, Wall, WorkerState};
use crate::merged::Merged;
use crate::panics::{Panics, Part};
use crate::plan::Plan;
use crate::store::SimulatedStore;
use crate::truth::{Place, Promise, Truth, index_of};

/// The parts for which each panic is reported as an event.
const REPORTED: [Part; 4] = [Part::Store, Part::StoreAfter, Part::Call, Part::CallAfter];

pub(crate) struct Worker {
    /// The index among all workers, including those that have ended.
    pub(crate) ordinal: usize,
    pub(crate) name: String,
    pub(crate) plan: Plan,
    pub(crate) consumer: Consumer,
    pub(crate) events: SharedEventChecker,
    /// The wall clock of the host.
    wall: WallClock,
    stream: Inline<CheckedStream>,
    /// The panics of this worker.
    panics: Panics,
    truth: Truth,
    /// With `CheckpointOn::Ack`, the records that the caller holds, each with the time of its
    /// acknowledgement.
    held: Vec<(Record, Place, Instant)>,
    /// A record was dropped without an acknowledgement: this worker cannot finish its shard.
    pub(crate) has_dropped_record: bool,
    /// The periods in which the caller does not poll.
    busy: Vec<Range<Instant>>,
    pub(crate) suspended_until: Option<Instant>,
    /// The condition of the connection when the worker resumes.
    pub(crate) link_at_wake: Condition,
    /// The caller finishes each record at once and drops none.
    pub(crate) is_quick: bool,
    pub(crate) has_ended: bool,
    /// The parts for which this worker reports each panic as an event.
    reported: &'static [Part],
}

impl Worker {
    pub(crate) fn begin(
        kinesis: &Kinesis,
        stored: &MemoryStore,
        truth: &Truth,
        panics: &Panics,
        name: String,
        plan: Plan,
    ) -> Self {
        let panics = panics.of_one();
        let ordinal = truth.lock().add_worker(WorkerState::new(name.clone(), &plan));
        truth.log(format_args!("{name} starts: {plan:?}"));
        truth.lock().workers[ordinal].wall = Wall::at(kinesis.now());
        let store = SimulatedStore {
            stored: stored.clone(),
            truth: truth.clone(),
            worker: ordinal,
            panics: panics.clone(),
        };
        let client = panics.client(kinesis.client_with_key(&name));
        let builder = Consumer::builder(client, "orders").store(store);
        let wall = WallClock::at(kinesis.now());
        truth.lock().workers[ordinal].clock = Some(wall.clone());
        let builder = plan.apply(builder).worker_id(name.clone()).wall_clock(&wall);
        let consumer = builder.build().expect("the plan's options are valid");
        let events = EventChecker::new(consumer.events(), name.clone(), ordinal, truth.clone());
        let events = SharedEventChecker::new(events);
        let checked = CheckedStream {
            merged: Merged::new(&consumer, truth.clone(), &plan),
            events: events.clone(),
            truth: truth.clone(),
            stored: stored.clone(),
            ordinal,
            ordering: plan.ordering,
            mode: plan.mode,
        };
        let stream = Inline::new(checked, panics.clone());
        Self {
            ordinal,
            name,
            plan,
            consumer,
            events,
            wall,
            stream,
            panics,
            truth: truth.clone(),
            held: Vec::new(),
            has_dropped_record: false,
            busy: Vec::new(),
            suspended_until: None,
            link_at_wake: Condition::Healthy,
            is_quick: false,
            has_ended: false,
            reported: &REPORTED,
        }
    }

    /// Returns true if the caller polls now.
    fn polls(&self) -> bool {
        !self.has_ended && self.suspended_until.is_none() && self.busy_until() <= Instant::now()
    }

    /// Returns the time of the next change of the worker that is not a record.
    pub(crate) fn next_moment(&self) -> Option<Instant> {
        let now = Instant::now();
        if let Some(until) = self.suspended_until {
            return Some(until);
        }
        let held = self.held.iter().map(|(_, _, due)| *due);
        held.chain([self.busy_until()]).filter(|at| *at > now).min()
    }

    /// Polls the stream if the caller does.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<kinestream::Result<(Record, Place)>>> {
        if self.polls() { self.stream.poll_next(context) } else { Poll::Pending }
    }

    /// Stops polling on behalf of the caller.
    pub(crate) fn stop_polling(&self) {
        self.stream.withdraw_request();
    }

    pub(crate) fn take(
        &mut self,
        rng: &mut Rng,
        next: Option<kinestream::Result<(Record, Place)>>,
    ) {
        self.events.lock().process_events();
        match next {
            None => {
                self.truth.log(format_args!("the stream of {} has ended", self.name));
                self.has_ended = true;
            }
            Some(Err(error)) => self.check_error(&error),
            Some(Ok((record, place))) => {
                if is_late(self.plan.ending, record.approximate_arrival()) {
                    self.truth.breaks(
                        Promise::NotAfterTheEnding,
                        format_args!("{} delivers {place:?}", self.name),
                    );
                }
                let work = if self.is_quick { 0 } else { rng.u64(0..self.plan.work) };
                let work = Duration::from_millis(work);
                if self.plan.mode == CheckpointOn::Pull {
                    self.occupy(work);
                } else {
                    self.held.push((record, place, Instant::now() + work));
                }
            }
        }
    }

    /// Moves the wall clock of the host forward without the timers, as after a sleep of the host.
    pub(crate) fn move_wall(&self, time: Duration) {
        self.wall.move_by(time);
        self.truth.lock().workers[self.ordinal].wall.move_by(time);
    }

    /// Sets the wall clock of the host back.
    pub(crate) fn set_wall_back(&self, time: Duration) {
        self.wall.set_back(time);
        self.truth.lock().workers[self.ordinal].wall.set_back(time);
    }

    /// Stops the caller from polling for this time.
    pub(crate) fn occupy(&mut self, time: Duration) {
        let now = Instant::now();
        if let Some(last) = self.busy.last_mut() {
            last.end = last.end.min(now);
        }
        self.busy.push(now..now + time);
    }

    fn busy_until(&self) -> Instant {
        self.busy.last().map_or_else(Instant::now, |last| last.end)
    }

    /// Returns how much of this time up to now the caller did not poll, so that it could not get an
    /// error.
    fn busy_in(&self, time: Duration) -> Duration {
        let now = Instant::now();
        let since = now.checked_sub(time).unwrap_or(now);
        let within =
            |busy: &Range<Instant>| busy.end.min(now).duration_since(busy.start.max(since));
        self.busy.iter().map(within).sum()
    }

    /// Acknowledges the records that are due.
    pub(crate) fn ack_due(&mut self) {
        if self.suspended_until.is_some() {
            return;
        }
        let now = Instant::now();
        while let Some(index) = self.held.iter().position(|(_, _, due)| *due <= now) {
            let (record, place, _) = self.held.swap_remove(index);
            self.truth.lock().finish(place);
            self.truth.log(format_args!(
                "{} acks shard {} record {}",
                self.name, place.shard, place.number
            ));
            record.ack();
        }
    }

    pub(crate) fn ack_all(&mut self) {
        for (_, _, due) in &mut self.held {
            *due = Instant::now();
        }
        self.ack_due();
    }

    /// Drops a random record that the caller holds.
    pub(crate) fn forget(&mut self, rng: &mut Rng) {
        if !self.held.is_empty() {
            let (_, place, _) = self.held.swap_remove(rng.usize(..self.held.len()));
            self.truth.log(format_args!("{} drops {place:?} without an ack", self.name));
            self.has_dropped_record = true;
        }
    }

    /// Drops the stream of one shard, which another worker may then continue.
    pub(crate) fn drop_one_stream(&mut self, rng: &mut Rng) {
        let (some, mut dropped) = (rng.usize(..100), None);
        self.stream.with(|stream| dropped = stream.drop_one(some));
        if let Some(shard) = dropped {
            let shard = index_of(&shard);
            self.truth.log(format_args!("{} drops its stream of shard {shard}", self.name));
            self.truth.lock().drop_stream(self.ordinal, shard);
        }
    }

    /// Expects no event for a panic of the client: a panic during an edit of positions is returned
    /// to the caller instead.
    pub(crate) fn move_positions(&mut self) {
        self.reported = &REPORTED[..2];
    }

    /// Checks that each panic of the store and of the client is reported.
    pub(crate) fn check_panics(&mut self) {
        self.events.lock().process_events();
        let (panicked, reported) = (self.panics.fired(self.reported), self.events.lock().panics);
        if reported < panicked {
            self.truth.breaks(
                Promise::PanicsAreReported,
                format_args!("{}: {panicked} panics, of which {reported} are reported", self.name),
            );
        }
    }

    /// Checks that an error is one that no retry can resolve.
    fn check_error(&mut self, error: &Error) {
        self.truth.log(format_args!("{} yields an error: {error}", self.name));
        let mut facts = self.truth.lock();
        if error.to_string().contains("the task that fetches the shard panicked")
            && let Some(shard) = error.shard_id().cloned()
        {
            // A shard with a fetch task that panics is released, like one with a dropped stream.
            facts.drop_stream(self.ordinal, index_of(&shard));
        }
        let is_expected = match error.kind() {
            // The call that joins the fleet may take 30 s.
            ErrorKind::StoreUnavailable => {
                let reachable = facts.workers[self.ordinal].reachable_for();
                reachable < Duration::from_secs(50) + self.busy_in(reachable)
            }
            ErrorKind::Unavailable | ErrorKind::Denied => true,
            ErrorKind::StoreCorrupt => facts.had_damage,
            ErrorKind::NotFound => facts.were_blocked && error.shard_id().is_some(),
            ErrorKind::Panicked => self.panics.have_fired(),
            // An earlier worker had the same name.
            ErrorKind::Configuration => {
                facts.workers[..self.ordinal].iter().any(|worker| worker.name == self.name)
            }
            _ => false,
        };
        drop(facts);
        if !is_expected {
            self.truth.breaks(Promise::FewErrors, format_args!("{error}"));
        }
    }

    /// Suspends the worker, as by SIGSTOP: until it resumes, it does nothing and reaches nothing.
    pub(crate) fn suspend(&mut self, time: Duration) {
        self.truth.log(format_args!("{} is suspended for {time:?}", self.name));
        self.suspended_until = Some(Instant::now() + time);
        self.truth.lock().set_link(self.ordinal, Condition::Hangs);
    }

    /// Resumes the worker if it is time. Returns true if it has resumed.
    pub(crate) fn wakes(&mut self) -> bool {
        let wakes = self.suspended_until.is_some_and(|until| until <= Instant::now());
        if wakes {
            self.suspended_until = None;
            self.truth.log(format_args!("{} resumes", self.name));
            let condition = std::mem::replace(&mut self.link_at_wake, Condition::Healthy);
            self.truth.lock().set_link(self.ordinal, condition);
        }
        wakes
    }

    /// Kills the process of the worker.
    pub(crate) fn kill(self) {
        self.truth.log(format_args!("{} is killed", self.name));
        self.truth.lock().kill(self.ordinal);
    }

    /// Acknowledges all records that the caller holds, and closes the worker in a separate task.
    pub(crate) fn close(mut self) {
        self.truth.log(format_args!("{} closes", self.name));
        self.ack_all();
        self.truth.lock().mark_closed(self.ordinal);
        let consumer = self.consumer.clone();
        let (truth, name) = (self.truth.clone(), self.name.clone());
        drop(self);
        tokio::spawn(async move {
            if let Err(error) = consumer.close().await {
                truth.log(format_args!("{name} fails to close: {error}"));
            }
        });
    }

    pub(crate) fn drop_all(self) {
        self.truth.log(format_args!("{} is dropped", self.name));
        self.truth.lock().mark_closed(self.ordinal);
    }
}
