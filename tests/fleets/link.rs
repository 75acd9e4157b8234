//! The connection of each worker to the store, and the knowledge that it gains from responses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinestream::ShardId;
use kinestream::store::lease::{Exchange, Exchanged, LeaseTable};
use kinestream::testing::WallClock;
use tokio::time::Instant;

use crate::plan::Plan;
use crate::truth::{Facts, index_of};

/// The longest duration of a save, and the longest back-off after a save that failed.
const STORE_RECOVERY: Duration = Duration::from_secs(16);

/// The condition of a connection to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Healthy,
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
pub(crate) struct WorkerState {
    pub(crate) name: String,
    pub(crate) condition: Condition,
    pub(crate) is_killed: bool,
    /// The worker was closed or dropped, and tries to save for a while.
    is_gone: bool,
    began: Instant,
    checkpoint_interval: Duration,
    lease_duration: Duration,
    /// The time that the worker waits for unfinished records; `None` if it may release an abandoned
    /// stream earlier.
    pub(crate) patience: Option<Duration>,
    /// The periods in which the worker has reached the store.
    reachable: Vec<(Instant, Option<Instant>)>,
    /// The task that renews its leases, once it has.
    pub(crate) task: Option<tokio::task::Id>,
    /// The wall clock that its consumer reads.
    pub(crate) clock: Option<WallClock>,
    /// A call of the worker has panicked.
    has_failed: bool,
    /// The end of the validity of its leases, by tokio's clock and by the wall clock of its host.
    valid: Option<(Instant, SystemTime)>,
    /// The wall clock of its host.
    pub(crate) wall: Wall,
    /// The epoch of each shard in the last table that the worker received.
    pub(crate) known_epochs: BTreeMap<usize, u64>,
    /// The shards that cannot be read, according to that table.
    pub(crate) unreadable: BTreeSet<usize>,
    /// The epoch from which each shard must be read since the worker's own consumer has moved it.
    pub(crate) seek_epochs: BTreeMap<usize, u64>,
}

impl WorkerState {
    pub(crate) fn new(name: String, plan: &Plan) -> Self {
        Self {
            name,
            condition: Condition::Healthy,
            is_killed: false,
            is_gone: false,
            began: Instant::now(),
            checkpoint_interval: plan.checkpoint_interval,
            lease_duration: plan.lease_duration,
            patience: plan.poll_timeout.is_none().then_some(plan.handoff_timeout),
            reachable: Vec::new(),
            task: None,
            clock: None,
            has_failed: false,
            valid: None,
            wall: Wall::at(UNIX_EPOCH + crate::world::BEGINNING),
            known_epochs: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            seek_epochs: BTreeMap::new(),
        }
    }

    /// Returns true if its leases are valid, as far as the worker can know.
    pub(crate) fn is_valid(&self) -> bool {
        self.valid.is_some_and(|(until, wall)| Instant::now() < until && self.wall.now() < wall)
    }

    /// Returns true if a record that was finished at that time had the time to be saved.
    pub(crate) fn had_time_to_save(&self, finished: Instant) -> bool {
        let needed = self.checkpoint_interval + Duration::from_millis(50);
        self.reachable.iter().any(|(from, to)| {
            let ready = if self.is_from_the_start(*from) { *from } else { *from + STORE_RECOVERY };
            ready.max(finished) + needed <= to.unwrap_or_else(Instant::now)
        })
    }

    /// Returns how long the worker has reached the store.
    pub(crate) fn reachable_for(&self) -> Duration {
        match self.reachable.last() {
            Some((from, None)) if self.is_from_the_start(*from) => Duration::MAX,
            Some((from, None)) => from.elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn is_from_the_start(&self, from: Instant) -> bool {
        from == self.began && !self.has_failed
    }

    fn set_reachable(&mut self, is_reachable: bool) {
        let was_reachable = self.reachable.last().is_some_and(|(_, to)| to.is_none());
        match (was_reachable, is_reachable) {
            (true, false) => {
                self.reachable.last_mut().expect("the worker reached the store").1 =
                    Some(Instant::now());
            }
            (false, true) if !self.is_gone => self.reachable.push((Instant::now(), None)),
            _ => {}
        }
    }
}

impl Facts {
    pub(crate) fn add_worker(&mut self, state: WorkerState) -> usize {
        self.workers.push(state);
        self.update_reachability();
        self.workers.len() - 1
    }

    /// Sets the condition of the connection of one worker.
    pub(crate) fn set_link(&mut self, worker: usize, condition: Condition) {
        let name = &self.workers[worker].name;
        self.log(format_args!("the connection of {name} is {condition:?}", name = name.clone()));
        self.workers[worker].condition = condition;
        self.update_reachability();
    }

    /// Sets the condition of the store for all workers.
    pub(crate) fn set_store(&mut self, condition: Condition) {
        self.log(format_args!("the store is {condition:?}"));
        self.store = condition;
        self.update_reachability();
    }

    /// Registers that a worker is closed or dropped.
    pub(crate) fn mark_closed(&mut self, worker: usize) {
        self.workers[worker].is_gone = true;
    }

    /// Prevents all calls of a worker from reaching the store.
    pub(crate) fn kill(&mut self, worker: usize) {
        self.workers[worker].is_killed = true;
        self.update_reachability();
    }

    /// Registers that no process runs from now on, so that no worker can save.
    pub(crate) fn begin_stall(&mut self) {
        self.workers.iter_mut().for_each(|state| state.set_reachable(false));
    }

    /// Registers that a call of a worker fails.
    pub(crate) fn note_failure(&mut self, worker: usize) {
        self.workers[worker].set_reachable(false);
        self.workers[worker].has_failed = true;
        self.update_reachability();
    }

    /// Updates which workers reach the store.
    pub(crate) fn update_reachability(&mut self) {
        for state in &mut self.workers {
            let is_reachable =
                self.store == Condition::Healthy && state.condition == Condition::Healthy;
            state.set_reachable(is_reachable && !state.is_killed);
        }
    }

    /// Returns the condition that a call of a worker meets.
    pub(crate) fn condition(&self, worker: usize) -> Condition {
        let state = &self.workers[worker];
        match (state.is_killed, self.store) {
            (true, _) => Condition::Hangs,
            (_, Condition::Healthy) => state.condition,
            (_, condition) => condition,
        }
    }

    /// Registers the response to a read. The worker may have learned that a shard can be read.
    pub(crate) fn note_read(&mut self, worker: usize, answer: &Exchanged, after: &LeaseTable) {
        let is_read = |shard: &ShardId| {
            let is_shown = answer.entries.iter().any(|(key, _)| key.shard() == Some(shard));
            is_shown && after.leases.get(shard).is_some_and(|lease| lease.unreadable.is_none())
        };
        let read = after.leases.keys().filter(|shard| is_read(shard));
        read.for_each(|shard| {
            self.workers[worker].unreadable.remove(&index_of(shard));
        });
    }

    /// Registers the response to an exchange that the worker sent at this time. `after` is the table
    /// after the exchange. An edit by the worker's consumer tells the worker nothing: the worker
    /// reads its effect by its own exchange.
    pub(crate) fn note_heartbeat(
        &mut self,
        worker: usize,
        sent: (Instant, SystemTime),
        exchange: &Exchange,
        answer: &Exchanged,
        after: &LeaseTable,
    ) {
        if exchange.renewals.is_empty() {
            return;
        }
        if answer.is_whole || exchange.known != Some(answer.version) {
            self.workers[worker].known_epochs =
                after.leases.iter().map(|(shard, lease)| (index_of(shard), lease.epoch)).collect();
        }
        let unreadable = &mut self.workers[worker].unreadable;
        if answer.is_whole {
            unreadable.clear();
        }
        for (key, _) in &answer.entries {
            let Some(id) = key.shard() else { continue };
            if after.leases.get(id).is_some_and(|lease| lease.unreadable.is_some()) {
                unreadable.insert(index_of(id));
            } else {
                unreadable.remove(&index_of(id));
            }
        }
        let name = self.workers[worker].name.clone();
        if exchange.renewals.iter().any(|renewal| *renewal.worker == *name) {
            let (at, wall) = sent;
            let state = &mut self.workers[worker];
            state.valid = Some((at + state.lease_duration, wall + state.lease_duration));
        }
    }
}
