//! One worker and its caller, from the first poll to a close, a drop or a sudden end.

use std::ops::Range;
use std::task::{Context, Poll};
use std::time::Duration;

use fastrand::Rng;
use kinestream::testing::{Kinesis, WallClock};
use kinestream::{CheckpointOn, Consumer, Error, ErrorKind, MemoryStore, Record};
use tokio::time::Instant;

use crate::hearing::Hearing;
use crate::inline::Inline;
use crate::judged::{Judged, SharedHearing};
use crate::link::{Health, Life, Wall};
use crate::merged::Merged;
use crate::panics::{Panics, Part};
use crate::plan::Plan;
use crate::store::SimulatedStore;
use crate::truth::{Place, Promise, Truth, index_of};

/// The parts whose panics are each reported as an event.
const REPORTED: [Part; 4] = [Part::Store, Part::StoreAfter, Part::Call, Part::CallAfter];

pub(crate) struct Worker {
    /// Its place among all workers that there ever were.
    pub(crate) life: usize,
    pub(crate) name: String,
    pub(crate) plan: Plan,
    pub(crate) consumer: Consumer,
    pub(crate) hearing: SharedHearing,
    /// The wall clock of its host.
    wall: WallClock,
    stream: Inline<Judged>,
    /// What has panicked in it.
    panics: Panics,
    truth: Truth,
    /// With `Ack`, what the caller works on, and when it is done with it.
    held: Vec<(Record, Place, Instant)>,
    /// A record was dropped without an ack: its shard can't be finished by this worker.
    pub(crate) has_forgotten: bool,
    /// The caller does not poll before, and since when it has not.
    /// When its caller does something else, to the end of the last time.
    busy: Vec<Range<Instant>>,
    pub(crate) suspended_until: Option<Instant>,
    /// How its connection is when it wakes.
    pub(crate) link_at_wake: Health,
    /// Its caller is done with each record at once, and forgets none.
    pub(crate) is_quick: bool,
    pub(crate) has_ended: bool,
    /// The parts whose panics are each reported as an event.
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
        let life = truth.lock().begin_life(Life::new(name.clone(), &plan));
        truth.tell(format_args!("{name} begins: {plan:?}"));
        truth.lock().lives[life].wall = Wall::at(kinesis.now());
        let store = SimulatedStore {
            stored: stored.clone(),
            truth: truth.clone(),
            worker: life,
            panics: panics.clone(),
        };
        let client = panics.client(kinesis.client_with_key(&name));
        let builder = Consumer::builder(client, "orders").store(store);
        let builder = plan.apply(builder).worker_id(name.clone());
        let consumer = builder.build().expect("the plan's options are valid");
        let hearing = Hearing::new(consumer.events(), name.clone(), truth.clone());
        let hearing = SharedHearing::new(hearing);
        let judged = Judged {
            merged: Merged::new(&consumer, truth.clone(), &plan),
            hearing: hearing.clone(),
            truth: truth.clone(),
            stored: stored.clone(),
            life,
            ordering: plan.ordering,
            mode: plan.mode,
        };
        let stream = Inline::new(judged, panics.clone());
        Self {
            life,
            name,
            plan,
            consumer,
            hearing,
            wall: WallClock::at(kinesis.now()),
            stream,
            panics,
            truth: truth.clone(),
            held: Vec::new(),
            has_forgotten: false,
            busy: Vec::new(),
            suspended_until: None,
            link_at_wake: Health::Well,
            is_quick: false,
            has_ended: false,
            reported: &REPORTED,
        }
    }

    /// Whether its caller polls now.
    fn polls(&self) -> bool {
        !self.has_ended && self.suspended_until.is_none() && self.busy_until() <= Instant::now()
    }

    /// When something happens to it that is not a record.
    pub(crate) fn next_moment(&self) -> Option<Instant> {
        let now = Instant::now();
        if let Some(until) = self.suspended_until {
            return Some(until);
        }
        let held = self.held.iter().map(|(_, _, due)| *due);
        held.chain([self.busy_until()]).filter(|at| *at > now).min()
    }

    /// Polls its stream, if the caller does.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<kinestream::Result<(Record, Place)>>> {
        // Its tasks keep the clock of the host that they were started on.
        self.wall.enter();
        if self.polls() { self.stream.poll_next(context) } else { Poll::Pending }
    }

    /// Its caller polls no longer.
    pub(crate) fn stop_polling(&self) {
        self.stream.stop_asking();
    }

    pub(crate) fn take(
        &mut self,
        rng: &mut Rng,
        next: Option<kinestream::Result<(Record, Place)>>,
    ) {
        self.hearing.lock().listen();
        match next {
            None => {
                self.truth.tell(format_args!("the stream of {} ends", self.name));
                self.has_ended = true;
            }
            Some(Err(error)) => self.hear(&error),
            Some(Ok((record, place))) => {
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

    /// The wall clock of its host goes on, and no timer has heard of it, as after a sleep.
    pub(crate) fn move_wall(&self, time: Duration) {
        self.wall.move_by(time);
        self.truth.lock().lives[self.life].wall.move_by(time);
    }

    /// The wall clock of its host is set back.
    pub(crate) fn set_wall_back(&self, time: Duration) {
        self.wall.set_back(time);
        self.truth.lock().lives[self.life].wall.set_back(time);
    }

    /// Its caller has something else to do for so long.
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

    /// How much of this time up to now its caller was busy, and could not be told anything.
    fn busy_in(&self, time: Duration) -> Duration {
        let now = Instant::now();
        let since = now.checked_sub(time).unwrap_or(now);
        let within =
            |busy: &Range<Instant>| busy.end.min(now).duration_since(busy.start.max(since));
        self.busy.iter().map(within).sum()
    }

    /// Acknowledges what its caller is done with.
    pub(crate) fn ack_due(&mut self) {
        if self.suspended_until.is_some() {
            return;
        }
        let now = Instant::now();
        while let Some(index) = self.held.iter().position(|(_, _, due)| *due <= now) {
            let (record, place, _) = self.held.swap_remove(index);
            self.truth.lock().finish(place);
            self.truth.tell(format_args!("{} acks {} {}", self.name, place.shard, place.number));
            record.ack();
        }
    }

    pub(crate) fn ack_all(&mut self) {
        for (_, _, due) in &mut self.held {
            *due = Instant::now();
        }
        self.ack_due();
    }

    /// Drops one of the records that the caller works on.
    pub(crate) fn forget(&mut self, rng: &mut Rng) {
        if !self.held.is_empty() {
            let (_, place, _) = self.held.swap_remove(rng.usize(..self.held.len()));
            self.truth.tell(format_args!("{} forgets {place:?}", self.name));
            self.has_forgotten = true;
        }
    }

    /// Its caller has enough of one shard, which goes on to whoever takes it.
    pub(crate) fn drop_one_stream(&mut self, rng: &mut Rng) {
        let (some, mut dropped) = (rng.usize(..100), None);
        self.stream.with(|stream| dropped = stream.drop_one(some));
        if let Some(shard) = dropped {
            let shard = index_of(&shard);
            self.truth.tell(format_args!("{} drops its stream of shard {shard}", self.name));
            self.truth.lock().drop_stream(self.life, shard);
        }
    }

    /// Expects no event for a panic of its client: one under an edit of positions is returned instead.
    pub(crate) fn move_positions(&mut self) {
        self.reported = &REPORTED[..2];
    }

    /// Each panic of its store and of its client is reported.
    pub(crate) fn check_panics(&mut self) {
        self.hearing.lock().listen();
        let (panicked, reported) = (self.panics.fired(self.reported), self.hearing.lock().panics);
        if reported < panicked {
            self.truth.breaks(
                Promise::PanicsAreReported,
                format_args!("{}: {panicked} panics, of which {reported} are reported", self.name),
            );
        }
    }

    /// Only what no retry cures is told.
    fn hear(&mut self, error: &Error) {
        self.truth.tell(format_args!("{} is told: {error}", self.name));
        let mut facts = self.truth.lock();
        if error.to_string().contains("the task that fetches the shard panicked")
            && let Some(Ok(shard)) = error.shard_id().map(str::parse)
        {
            // A shard whose fetch task panics is released as one whose stream is dropped.
            facts.drop_stream(self.life, index_of(&shard));
        }
        let is_expected = match error.kind() {
            // The call that joins may be under way for 30 s.
            ErrorKind::StoreUnavailable => {
                let well = facts.lives[self.life].well_for();
                well < Duration::from_secs(50) + self.busy_in(well)
            }
            ErrorKind::Unavailable | ErrorKind::Denied => true,
            ErrorKind::StoreCorrupt => facts.had_damage,
            ErrorKind::NotFound => facts.were_blocked && error.shard_id().is_some(),
            ErrorKind::Panicked => self.panics.have_fired(),
            // An earlier life of it has its name.
            ErrorKind::Configuration => {
                facts.lives[..self.life].iter().any(|life| life.name == self.name)
            }
            _ => false,
        };
        drop(facts);
        if !is_expected {
            self.truth.breaks(Promise::FewErrors, format_args!("{error}"));
        }
    }

    /// As by SIGSTOP: nothing of it happens until then, and nothing reaches it.
    pub(crate) fn suspend(&mut self, time: Duration) {
        self.truth.tell(format_args!("{} is suspended for {time:?}", self.name));
        self.suspended_until = Some(Instant::now() + time);
        self.truth.lock().set_link(self.life, Health::Hangs);
    }

    /// It goes on, if its time has come. Whether it does.
    pub(crate) fn wakes(&mut self) -> bool {
        let wakes = self.suspended_until.is_some_and(|until| until <= Instant::now());
        if wakes {
            self.suspended_until = None;
            self.truth.tell(format_args!("{} wakes", self.name));
            let health = std::mem::replace(&mut self.link_at_wake, Health::Well);
            self.truth.lock().set_link(self.life, health);
        }
        wakes
    }

    /// Its process is killed.
    pub(crate) fn kill(self) {
        self.truth.tell(format_args!("{} is killed", self.name));
        self.truth.lock().kill(self.life);
    }

    /// It is closed in a task of its own, with all records acknowledged that its caller has.
    pub(crate) fn close(mut self) {
        self.truth.tell(format_args!("{} closes", self.name));
        self.ack_all();
        self.truth.lock().end_life(self.life);
        let consumer = self.consumer.clone();
        let (truth, name) = (self.truth.clone(), self.name.clone());
        drop(self);
        tokio::spawn(async move {
            if let Err(error) = consumer.close().await {
                truth.tell(format_args!("{name} cannot close: {error}"));
            }
        });
    }

    pub(crate) fn drop_all(self) {
        self.truth.tell(format_args!("{} is dropped", self.name));
        self.truth.lock().end_life(self.life);
    }
}
