//! What a worker tells of itself by events is held against what it does.

use std::collections::BTreeMap;

use futures::{FutureExt, StreamExt};
use kinestream::{Event, Events, Task};

use crate::truth::{Promise, Truth, index_of};

/// What is known of a lease by what was told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Gained,
    /// The shard is read.
    Started,
    /// No record is handed out any more.
    GivenBack,
    /// The store has its end.
    Finished,
}

pub(crate) struct Hearing {
    events: Events,
    name: String,
    truth: Truth,
    /// By shard and epoch, as long as they were not said to be over.
    leases: BTreeMap<(usize, u64), Told>,
    /// The last epoch of each shard, and whether an error has ended its stream.
    last: BTreeMap<usize, (u64, bool)>,
    /// How many panics of the store and of the client it has reported.
    pub(crate) panics: usize,
}

/// The shortest pause after an error, in milliseconds. Epochs are moments in milliseconds.
const SHORTEST_REST: u64 = 10_000;

impl Hearing {
    pub(crate) fn new(events: Events, name: String, truth: Truth) -> Self {
        let (leases, last) = (BTreeMap::new(), BTreeMap::new());
        Self { events, name, truth, leases, last, panics: 0 }
    }

    /// Takes note of all that was told up to now.
    pub(crate) fn listen(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.hear(&event);
        }
    }

    fn hear(&mut self, event: &Event) {
        let is_wrong = match event {
            Event::ShardFailed { shard_id, .. } => {
                let last = self.last.get_mut(&index_of(shard_id));
                last.map(|(_, has_failed)| *has_failed = true).is_none()
            }
            Event::LeaseGained { shard_id, epoch } => {
                self.check_rest(index_of(shard_id), *epoch);
                self.leases.insert((index_of(shard_id), *epoch), Told::Gained).is_some()
            }
            Event::LeaseReleased { shard_id, epoch } => {
                // One whose end is stored may not have heard of it.
                let before = self.leases.insert((index_of(shard_id), *epoch), Told::GivenBack);
                before.is_none_or(|told| told == Told::GivenBack)
            }
            Event::LeaseLost { shard_id, epoch } => {
                self.leases.remove(&(index_of(shard_id), *epoch)).is_none()
            }
            Event::ShardStarted { shard_id, .. } => {
                let shard = index_of(shard_id);
                let mut epochs = self.leases.range_mut((shard, 0)..=(shard, u64::MAX)).rev();
                match epochs.next() {
                    Some((_, told)) if *told == Told::Gained => {
                        *told = Told::Started;
                        false
                    }
                    // A stream begins once in each epoch, and none whose lease is over does.
                    _ => true,
                }
            }
            Event::ShardFinished { shard_id } => {
                let shard = index_of(shard_id);
                let epochs = self.leases.range_mut((shard, 0)..=(shard, u64::MAX));
                epochs.for_each(|(_, told)| *told = Told::Finished);
                let facts = self.truth.lock();
                facts.moves == 0 && !facts.shards[shard].is_finished()
            }
            Event::TaskRestarted { task, .. } => {
                self.panics += usize::from(!matches!(task, Task::Metrics | Task::Tracing));
                false
            }
            Event::Lagged { .. } => true,
            _ => false,
        };
        let line = format!("{} tells: {event:?}", self.name);
        self.truth.tell(format_args!("{line}"));
        if is_wrong {
            self.truth.breaks(Promise::Told, format_args!("{line}, which cannot be"));
        }
    }

    /// The worker acquires a shard, in this epoch.
    fn check_rest(&mut self, shard: usize, epoch: u64) {
        let before = self.last.insert(shard, (epoch, false));
        let Some((last, true)) = before else { return };
        let facts = self.truth.lock();
        // Epochs are moments only by a clock and a table that go on.
        let is_comparable =
            !facts.clock_moved && !facts.lost_data && !facts.had_damage && facts.cleared == 0;
        drop(facts);
        if is_comparable && epoch < last + SHORTEST_REST {
            self.truth.breaks(
                Promise::FailedRests,
                format_args!("{} acquires shard {shard} in {epoch}, failed in {last}", self.name),
            );
        }
    }

    /// A record comes of a shard, in this epoch.
    pub(crate) fn check_record(&self, shard: usize, epoch: u64) {
        let told = self.leases.get(&(shard, epoch));
        if told != Some(&Told::Started) {
            self.truth.breaks(
                Promise::Told,
                format_args!(
                    "{} reads shard {shard} in epoch {epoch}, of which is told {told:?}",
                    self.name
                ),
            );
        }
    }

    /// The shards that it has, and their epochs.
    pub(crate) fn held(&self) -> Vec<(usize, u64)> {
        let is_held = |told: &Told| matches!(told, Told::Gained | Told::Started);
        let held = self.leases.iter().filter(|(_, told)| is_held(told));
        held.map(|(place, _)| *place).collect()
    }
}
