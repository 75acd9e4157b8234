//! Compares the events of a worker with its behaviour.

use std::collections::BTreeMap;

use futures::{FutureExt, StreamExt};
use kinestream::{Event, Events, Task};
use tokio::time::Instant;

use crate::truth::{Promise, Truth, index_of};

/// The state of a lease according to the events of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseState {
    Gained,
    /// The stream of the shard has started.
    Started,
    /// The lease is released, and no further record is delivered.
    Released,
    /// The end of the shard is stored.
    Finished,
}

pub(crate) struct EventChecker {
    events: Events,
    name: String,
    /// The index of the worker.
    worker: usize,
    truth: Truth,
    /// The time up to which all events are processed.
    processed_at: Instant,
    /// The leases that are not over according to the events, by shard and epoch.
    leases: BTreeMap<(usize, u64), LeaseState>,
    /// For each shard, its last epoch, and whether an error has ended its stream.
    last: BTreeMap<usize, (u64, bool)>,
    /// The number of reported panics of the store and of the client.
    pub(crate) panics: usize,
}

/// The shortest pause after an error, in milliseconds. An epoch is the time of its acquisition in
/// milliseconds.
const SHORTEST_REST: u64 = 10_000;

impl EventChecker {
    pub(crate) fn new(events: Events, name: String, worker: usize, truth: Truth) -> Self {
        let (leases, last) = (BTreeMap::new(), BTreeMap::new());
        let processed_at = Instant::now();
        Self { events, name, worker, truth, processed_at, leases, last, panics: 0 }
    }

    /// Processes all events so far.
    pub(crate) fn process_events(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.process(&event);
        }
        self.processed_at = Instant::now();
        self.truth.lock().check_explained(self.worker);
    }

    fn process(&mut self, event: &Event) {
        let is_wrong = match event {
            Event::ShardFailed { shard_id, .. } => {
                let shard = index_of(shard_id);
                match self.last.get_mut(&shard) {
                    Some((epoch, has_failed)) => {
                        *has_failed = true;
                        self.truth.lock().note_failed_shard((shard, *epoch), self.processed_at);
                        false
                    }
                    None => true,
                }
            }
            Event::LeaseGained { shard_id, epoch } => {
                self.check_rest(index_of(shard_id), *epoch);
                self.leases.insert((index_of(shard_id), *epoch), LeaseState::Gained).is_some()
            }
            Event::LeaseReleased { shard_id, epoch } => {
                // A worker may release a shard before it learns that the end of the shard is
                // stored.
                let before = self.leases.insert((index_of(shard_id), *epoch), LeaseState::Released);
                before.is_none_or(|state| state == LeaseState::Released)
            }
            Event::LeaseLost { shard_id, epoch } => {
                self.leases.remove(&(index_of(shard_id), *epoch)).is_none()
            }
            Event::ShardStarted { shard_id, .. } => {
                let shard = index_of(shard_id);
                let mut epochs = self.leases.range_mut((shard, 0)..=(shard, u64::MAX)).rev();
                match epochs.next() {
                    Some((_, state)) if *state == LeaseState::Gained => {
                        *state = LeaseState::Started;
                        false
                    }
                    // A stream starts once in each epoch, and only while its lease is held.
                    _ => true,
                }
            }
            Event::ShardFinished { shard_id } => {
                let shard = index_of(shard_id);
                let facts = self.truth.lock();
                for (place, state) in self.leases.range_mut((shard, 0)..=(shard, u64::MAX)) {
                    // The response to a save may arrive after the shard was moved back and is read
                    // in a later epoch.
                    if facts.moves == 0 || facts.saved_ends.contains(place) {
                        *state = LeaseState::Finished;
                    }
                }
                facts.moves == 0 && !facts.shards[shard].is_finished()
            }
            Event::TaskRestarted { task, .. } => {
                self.panics += usize::from(!matches!(task, Task::Metrics | Task::Tracing));
                false
            }
            Event::Lagged { .. } => true,
            _ => false,
        };
        let line = format!("{} reports: {event:?}", self.name);
        self.truth.log(format_args!("{line}"));
        if is_wrong {
            self.truth.breaks(Promise::EventsAreTrue, format_args!("unexpected event: {line}"));
        }
    }

    /// Checks that the worker does not acquire a shard again too soon after a failure.
    fn check_rest(&mut self, shard: usize, epoch: u64) {
        let before = self.last.insert(shard, (epoch, false));
        let Some((last, true)) = before else { return };
        let facts = self.truth.lock();
        // Epochs are times only if neither the clock nor the table moves back.
        let is_comparable =
            !facts.clock_moved && !facts.lost_data && !facts.had_damage && facts.cleared == 0;
        drop(facts);
        if is_comparable && epoch < last + SHORTEST_REST {
            self.truth.breaks(
                Promise::FailedRests,
                format_args!(
                    "{} acquires shard {shard} in epoch {epoch}, after a failure in epoch {last}",
                    self.name
                ),
            );
        }
    }

    /// Checks that the events allow a record of this shard and epoch.
    pub(crate) fn check_record(&self, shard: usize, epoch: u64) {
        let state = self.leases.get(&(shard, epoch));
        if state != Some(&LeaseState::Started) {
            self.truth.breaks(
                Promise::EventsAreTrue,
                format_args!(
                    "{} reads shard {shard} in epoch {epoch}, which its events report as {state:?}",
                    self.name
                ),
            );
        }
    }

    /// Returns the held shards and their epochs, according to the events.
    pub(crate) fn held(&self) -> Vec<(usize, u64)> {
        let is_held =
            |state: &LeaseState| matches!(state, LeaseState::Gained | LeaseState::Started);
        let held = self.leases.iter().filter(|(_, state)| is_held(state));
        held.map(|(place, _)| *place).collect()
    }
}
