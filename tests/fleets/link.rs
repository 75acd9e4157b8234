//! The connection of each worker to the store, and the knowledge that it gains from responses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinestream::store::lease::{HeartbeatResponse, Membership};
use tokio::time::Instant;

use crate::plan::Plan;
use crate::truth::{Facts, index_of};

/// The longest duration of a save, and the longest back-off after a save that failed.
const STORE_RECOVERY: Duration = Duration::from_secs(16);

/// The condition of a connection to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    /// Every call takes this long, half of the time before it is carried out.
    Slow(Duration),
    /// Every call is carried out after this time, even if the caller no longer waits for it.
    Late(Duration),
    /// No call reaches the store.
    Down,
    /// Every call is carried out, and its response is lost.
    Forgetful,
    /// No call returns or is carried out.
    Hangs,
}

/// A wall clock that advances with tokio's clock and can be moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wall(SystemTime, Instant);

impl Wall {
    pub(crate) fn at(time: SystemTime) -> Self {
        Self(time, Instant::now())
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.0 + self.1.elapsed()
    }

    pub(crate) fn move_by(&mut self, time: Duration) {
        self.0 += time;
    }

    pub(crate) fn set_back(&mut self, time: Duration) {
        self.0 -= time;
    }
}

/// The externally visible state of one worker.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) name: String,
    pub(crate) health: Health,
    pub(crate) is_dead: bool,
    /// The worker was closed or dropped, and tries to save for a while.
    is_gone: bool,
    began: Instant,
    checkpoint_interval: Duration,
    lease_duration: Duration,
    /// The time that the worker waits for unfinished records; `None` if it may release an abandoned
    /// stream earlier.
    pub(crate) patience: Option<Duration>,
    /// The periods in which the worker has reached the store.
    well: Vec<(Instant, Option<Instant>)>,
    /// A call of the worker has panicked.
    has_failed: bool,
    /// The end of the validity of its leases, by tokio's clock and by the wall clock of its host.
    valid: Option<(Instant, SystemTime)>,
    /// The wall clock of its host.
    pub(crate) wall: Wall,
    /// The epoch of each shard in the last table that the worker received.
    pub(crate) told: BTreeMap<usize, u64>,
    /// The shards that cannot be read, according to that table.
    pub(crate) unreadable: BTreeSet<usize>,
    /// The epoch from which each shard must be read since the worker's own consumer has moved it.
    pub(crate) sought: BTreeMap<usize, u64>,
}

impl Life {
    pub(crate) fn new(name: String, plan: &Plan) -> Self {
        Self {
            name,
            health: Health::Well,
            is_dead: false,
            is_gone: false,
            began: Instant::now(),
            checkpoint_interval: plan.checkpoint_interval,
            lease_duration: plan.lease_duration,
            patience: plan.poll_timeout.is_none().then_some(plan.handoff_timeout),
            well: Vec::new(),
            has_failed: false,
            valid: None,
            wall: Wall::at(UNIX_EPOCH + crate::world::BEGINNING),
            told: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            sought: BTreeMap::new(),
        }
    }

    /// Returns true if its leases are valid, as far as the worker can know.
    pub(crate) fn is_valid(&self) -> bool {
        self.valid.is_some_and(|(until, wall)| Instant::now() < until && self.wall.now() < wall)
    }

    /// Returns true if a record that was finished at that time had the time to be saved.
    pub(crate) fn had_time_to_save(&self, finished: Instant) -> bool {
        let needed = self.checkpoint_interval + Duration::from_millis(50);
        self.well.iter().any(|(from, to)| {
            let ready = if self.is_from_the_start(*from) { *from } else { *from + STORE_RECOVERY };
            ready.max(finished) + needed <= to.unwrap_or_else(Instant::now)
        })
    }

    /// Returns how long the worker has reached the store.
    pub(crate) fn well_for(&self) -> Duration {
        match self.well.last() {
            Some((from, None)) if self.is_from_the_start(*from) => Duration::MAX,
            Some((from, None)) => from.elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn is_from_the_start(&self, from: Instant) -> bool {
        from == self.began && !self.has_failed
    }

    fn note(&mut self, is_well: bool) {
        let was_well = self.well.last().is_some_and(|(_, to)| to.is_none());
        match (was_well, is_well) {
            (true, false) => {
                self.well.last_mut().expect("the worker reached the store").1 =
                    Some(Instant::now());
            }
            (false, true) if !self.is_gone => self.well.push((Instant::now(), None)),
            _ => {}
        }
    }
}

impl Facts {
    pub(crate) fn begin_life(&mut self, life: Life) -> usize {
        self.lives.push(life);
        self.note_health();
        self.lives.len() - 1
    }

    /// Sets the condition of the connection of one worker.
    pub(crate) fn set_link(&mut self, worker: usize, health: Health) {
        let name = &self.lives[worker].name;
        self.tell(format_args!("the connection of {name} is {health:?}", name = name.clone()));
        self.lives[worker].health = health;
        self.note_health();
    }

    /// Sets the condition of the store for all workers.
    pub(crate) fn set_store(&mut self, health: Health) {
        self.tell(format_args!("the store is {health:?}"));
        self.store = health;
        self.note_health();
    }

    /// Registers that a worker is closed or dropped.
    pub(crate) fn end_life(&mut self, worker: usize) {
        self.lives[worker].is_gone = true;
    }

    /// Prevents all calls of a worker from reaching the store.
    pub(crate) fn kill(&mut self, worker: usize) {
        self.lives[worker].is_dead = true;
        self.note_health();
    }

    /// Registers that no process runs from now on, so that no worker can save.
    pub(crate) fn begin_stall(&mut self) {
        self.lives.iter_mut().for_each(|life| life.note(false));
    }

    /// Registers that a call of a worker fails.
    pub(crate) fn note_failure(&mut self, worker: usize) {
        self.lives[worker].note(false);
        self.lives[worker].has_failed = true;
        self.note_health();
    }

    /// Updates which workers reach the store.
    pub(crate) fn note_health(&mut self) {
        for life in &mut self.lives {
            let is_well = self.store == Health::Well && life.health == Health::Well;
            life.note(is_well && !life.is_dead);
        }
    }

    /// Returns the condition that a call of a worker meets.
    pub(crate) fn health(&self, worker: usize) -> Health {
        let life = &self.lives[worker];
        match (life.is_dead, self.store) {
            (true, _) => Health::Hangs,
            (_, Health::Well) => life.health,
            (_, health) => health,
        }
    }

    /// Registers the response to a heartbeat that the worker sent at this time.
    pub(crate) fn hear(
        &mut self,
        worker: usize,
        asked: (Instant, SystemTime),
        answer: &HeartbeatResponse,
    ) {
        if let Some(table) = &answer.table {
            self.lives[worker].told =
                table.leases.iter().map(|(shard, lease)| (index_of(shard), lease.epoch)).collect();
            let unreadable = table.leases.iter().filter(|(_, lease)| lease.unreadable.is_some());
            self.lives[worker].unreadable = unreadable.map(|(shard, _)| index_of(shard)).collect();
        }
        if answer.membership != Membership::Occupied {
            let (at, wall) = asked;
            let life = &mut self.lives[worker];
            life.valid = Some((at + life.lease_duration, wall + life.lease_duration));
        }
    }
}
