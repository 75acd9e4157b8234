//! Reads that a replica answers, which lags behind the store by some steps.
//!
//! A call that makes a step, renews a worker or saves a position reaches the store itself. A
//! separate generator chooses these faults, for some seeds only, so that the other scenarios stay
//! the same.

use std::collections::VecDeque;

use fastrand::Rng;
use kinestream::MemoryStore;

use crate::seeds::pick;
use crate::world::World;

/// Mixed with the seed for this generator.
const MIX: u64 = 0x0057_a1e0_5eed;

/// The most steps by which a replica lags.
const MAX_LAG: usize = 4;

/// The generator of these faults, and the replicas.
#[derive(Debug)]
pub(crate) struct StaleReads {
    rng: Rng,
    /// The percentage of reads that a replica answers.
    percentage: u8,
    /// Copies of the store as it was before the last steps.
    replicas: VecDeque<MemoryStore>,
}

impl StaleReads {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ MIX);
        let percentage = pick(&mut rng, &[0, 0, 0, 20, 80]);
        Self { rng, percentage, replicas: VecDeque::new() }
    }

    /// Returns the replica that answers the next read; `None` for the store itself.
    pub(crate) fn replica(&mut self) -> Option<MemoryStore> {
        if self.replicas.is_empty() || self.rng.u8(..100) >= self.percentage {
            return None;
        }
        Some(self.replicas[self.rng.usize(..self.replicas.len())].clone())
    }

    /// Lets the store itself answer all reads from now on.
    pub(crate) fn end(&mut self) {
        self.percentage = 0;
    }
}

impl World {
    /// Copies the store for the stale reads of the next steps.
    pub(crate) fn copy_for_stale_reads(&mut self) {
        let mut facts = self.truth.lock();
        let reads = &mut facts.stale_reads;
        if reads.percentage > 0 {
            reads.replicas.push_back(self.stored.replica());
            if reads.replicas.len() > MAX_LAG {
                reads.replicas.pop_front();
            }
        }
    }
}
