//! The state of the fleet: workers, leases and counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kinestream::{ShardId, ShardState, ShardStatus};

use crate::tally::Tally;

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Reads,
    Paused,
    Killed,
    Leaves,
    Left,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Paused => "paused",
            Self::Killed => "killed",
            Self::Leaves => "leaves",
            Self::Left => "left",
        }
    }
}

pub(crate) struct Board {
    pub(crate) began: Instant,
    /// The workers in the order in which they joined.
    pub(crate) workers: Vec<(Arc<str>, State)>,
    /// The leases as last read from the store.
    pub(crate) leases: BTreeMap<ShardId, ShardStatus>,
    pub(crate) tally: Tally,
    /// The awaited conditions, and the time until each was met.
    pub(crate) times: Vec<(String, Duration)>,
}

/// A board that several tasks share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Board>>);

impl Shared {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Board {
            began: Instant::now(),
            workers: Vec::new(),
            leases: BTreeMap::new(),
            tally: Tally::default(),
            times: Vec::new(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    pub(crate) fn update_leases(&mut self, leases: BTreeMap<ShardId, ShardStatus>) {
        for (shard, lease) in &leases {
            if let Some(owner) = &lease.owner {
                self.tally.observe(owner, shard.as_str(), lease.epoch);
            }
        }
        self.leases = leases;
    }

    pub(crate) fn set(&mut self, worker: &Arc<str>, state: State) {
        match self.workers.iter_mut().find(|(name, _)| name == worker) {
            Some((_, known)) => *known = state,
            None => self.workers.push((Arc::clone(worker), state)),
        }
    }

    pub(crate) fn state(&self, worker: &Arc<str>) -> Option<State> {
        self.workers.iter().find(|(name, _)| name == worker).map(|(_, state)| *state)
    }

    /// Returns the reading workers, oldest first.
    pub(crate) fn reading(&self) -> Vec<Arc<str>> {
        let reads = self.workers.iter().filter(|(_, state)| *state == State::Reads);
        reads.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Returns the shards of a worker with the epochs of its leases.
    pub(crate) fn held_by(&self, worker: &Arc<str>) -> BTreeMap<ShardId, u64> {
        let held =
            self.leases.iter().filter(|(_, lease)| lease.owner.as_deref() == Some(&**worker));
        held.map(|(shard, lease)| (shard.clone(), lease.epoch)).collect()
    }

    /// Returns true if every readable shard has a reading owner, and the shares of the reading
    /// workers differ by at most one.
    pub(crate) fn is_even(&self) -> bool {
        let mut shares: BTreeMap<_, usize> =
            self.reading().into_iter().map(|worker| (worker, 0)).collect();
        for lease in self.leases.values().filter(|lease| is_readable(lease)) {
            match lease.owner.as_deref().and_then(|owner| shares.get_mut(owner)) {
                Some(share) if lease.next_owner.is_none() => *share += 1,
                _ => return false,
            }
        }
        let (least, most) = (shares.values().min(), shares.values().max());
        let (Some(least), Some(most)) = (least, most) else { return false };
        *most > 0 && most - least <= 1
    }

    /// Returns true if records of all these shards have arrived with later epochs than these.
    pub(crate) fn are_read_since(&self, shards: &BTreeMap<ShardId, u64>) -> bool {
        shards.iter().all(|(shard, epoch)| {
            let known = self.tally.shards.get(shard.as_str());
            known.is_some_and(|known| known.epoch > *epoch)
        })
    }

    /// Returns the number of children of a shard from which records have arrived.
    pub(crate) fn children_read(&self, parent: &ShardId) -> usize {
        let children = self.leases.iter().filter(|(_, lease)| lease.parents.contains(parent));
        let accepted =
            |shard: &ShardId| self.tally.shards.get(shard.as_str()).map(|known| known.accepted);
        children.filter(|(shard, _)| accepted(shard).is_some_and(|accepted| accepted > 0)).count()
    }

    /// Returns the number of shards of each reading worker.
    pub(crate) fn shares(&self) -> String {
        let share = |worker: &Arc<str>| format!("{worker} {}", self.held_by(worker).len());
        self.reading().iter().map(share).collect::<Vec<_>>().join(", ")
    }
}

/// Returns the shard's number: its name without the common prefix.
pub(crate) fn short(shard: &str) -> &str {
    let number = shard.trim_start_matches("shardId-").trim_start_matches('0');
    if number.is_empty() { "0" } else { number }
}

fn is_readable(shard: &ShardStatus) -> bool {
    !matches!(shard.state, ShardState::Waiting | ShardState::Finished)
}
