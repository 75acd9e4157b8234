//! Ends of shards that the store has and whose worker learns of them late: the response to the save
//! is delayed, and meanwhile the worker's own task panics in an exchange and restarts.
//!
//! A separate generator chooses them, for some seeds only, so that the other scenarios stay the
//! same.

use std::future::pending;
use std::time::Duration;

use fastrand::Rng;
use kinestream::Checkpoint;
use kinestream::store::lease::{FencedCheckpoint, SaveOutcome};
use tokio::time::sleep;

use crate::link::Condition;
use crate::panics::Part;
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
    panics: ExchangePanics,
}

/// Panics of the next exchanges of a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExchangePanics {
    part: Part,
    left: u32,
}

impl World {
    /// Makes the next end of a shard late, in some steps.
    pub(crate) fn delay_ends(&mut self) {
        let LateEnds { rng, is_on } = &mut self.late_ends;
        if !*is_on || rng.u8(..3) > 0 {
            return;
        }
        let part = pick(rng, &[Part::Store, Part::StoreAfter]);
        let panics = ExchangePanics { part, left: rng.u32(1..4) };
        let end = LateEnd { delay: Duration::from_millis(rng.u64(1..9000)), panics };
        self.truth.log(format_args!("the next end of a shard is late: {end:?}"));
        self.truth.lock().late_end = Some(end);
    }
}

impl SimulatedStore {
    /// Delays the response to a save that has stored the end of a shard, if one is to be late.
    pub(crate) async fn delay_end(&self, saved: &[FencedCheckpoint], outcomes: &[SaveOutcome]) {
        let is_stored = |(position, outcome): (&FencedCheckpoint, &SaveOutcome)| {
            position.checkpoint == Checkpoint::ShardEnd && *outcome == SaveOutcome::Saved
        };
        if !saved.iter().zip(outcomes).any(is_stored) {
            return;
        }
        let late = {
            let mut facts = self.truth.lock();
            let Some(late) = facts.late_end.take() else { return };
            // The worker saves nothing else in the meantime.
            facts.note_failure(self.worker);
            facts.workers[self.worker].exchange_panics = Some(late.panics);
            late
        };
        sleep(late.delay).await;
        if self.condition() == Condition::Hangs {
            pending::<()>().await;
        }
    }

    /// Panics in an exchange if a late end is under way.
    pub(crate) fn maybe_panic_in_exchange(&self, at: Part) {
        if self.condition() == Condition::Hangs {
            return;
        }
        let mut facts = self.truth.lock();
        let panics = &mut facts.workers[self.worker].exchange_panics;
        match panics {
            Some(ExchangePanics { part, left }) if *part == at && *left > 0 => *left -= 1,
            _ => return,
        }
        facts.note_failure(self.worker);
        facts.log(format_args!("an exchange panics during a late end: {at:?}"));
        drop(facts);
        self.panics.fire(at);
    }
}
