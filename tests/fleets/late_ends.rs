//! Ends of shards that the store has and of which the worker learns late: the response to the save
//! is delayed, and meanwhile the worker's own task panics and restarts.
//!
//! A separate generator chooses them, for some seeds only, so that the other scenarios stay the
//! same.

use std::future::pending;
use std::time::Duration;

use fastrand::Rng;
use kinestream::Checkpoint;
use kinestream::store::lease::{FencedOutcome, FencedSave};
use tokio::time::sleep;

use crate::link::Condition;
use crate::seeds::pick;
use crate::store::SimulatedStore;
use crate::world::World;

/// Mixed with the seed for this generator.
const MIX: u64 = 0x00e2_d51a_7e00;

/// The generator of these faults.
#[derive(Debug)]
pub(crate) struct LateEnds {
    rng: Rng,
    is_on: bool,
}

impl LateEnds {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ MIX);
        let is_on = rng.u8(..4) == 0;
        Self { rng, is_on }
    }
}

/// A fault of the next save that stores the end of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LateEnd {
    /// The delay of the response. It is shorter than the time limit of a call.
    delay: Duration,
    /// The number of times that the worker's task panics, from the save on.
    panics: u32,
}

impl World {
    /// Makes the next end of a shard late, in some steps.
    pub(crate) fn delay_ends(&mut self) {
        let LateEnds { rng, is_on } = &mut self.late_ends;
        if !*is_on || rng.u8(..3) > 0 {
            return;
        }
        let end = LateEnd {
            delay: Duration::from_millis(rng.u64(1..9000)),
            panics: pick(rng, &[1, 1, 2, 5]),
        };
        self.truth.log(format_args!("the next end of a shard is late: {end:?}"));
        self.truth.lock().late_end = Some(end);
    }
}

impl SimulatedStore {
    /// Delays the response to a save that has stored the end of a shard, if one is to be late.
    pub(crate) async fn delay_end(&self, saved: &[FencedSave], outcomes: &[FencedOutcome]) {
        let is_stored = |(save, outcome): (&FencedSave, &FencedOutcome)| {
            save.text.parse().is_ok_and(|it: Checkpoint| it == Checkpoint::ShardEnd)
                && outcome.is_saved
        };
        if !saved.iter().zip(outcomes).any(is_stored) {
            return;
        }
        let late = {
            let mut facts = self.truth.lock();
            let Some(late) = facts.late_end.take() else { return };
            // The worker saves nothing else in the meantime.
            facts.note_failure(self.worker);
            let state = &facts.workers[self.worker];
            if let (Some(task), Some(clock)) = (state.task, &state.clock) {
                clock.panic_in(task, late.panics);
                self.panics.note_other();
            }
            late
        };
        sleep(late.delay).await;
        if self.condition() == Condition::Hangs {
            pending::<()>().await;
        }
    }

    /// Notes the task of the worker, which makes its exchanges.
    pub(crate) fn note_task(&self) {
        self.truth.lock().workers[self.worker].task = tokio::task::try_id();
    }
}
