//! A caller that keeps the checkpoints in its own database, beside the results.

use std::collections::BTreeMap;

use fastrand::Rng;
use kinestream::{Checkpoint, ConsumerBuilder, ShardId, StartingPosition};

use crate::plan::Plan;
use crate::truth::{Facts, id_of};

/// Draws of what was added to the stories later.
const DATABASE: u64 = 0x44_4154_4142_4153;

/// What a reader begins with whose store has lost everything.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) positions: BTreeMap<ShardId, Checkpoint>,
    /// The number of shards at the first start. All others descend from them.
    roots: usize,
}

impl Database {
    /// Names each position, and each root without one. The default skips all that is not named and does
    /// not descend from what is.
    pub(crate) fn apply(&self, mut builder: ConsumerBuilder) -> ConsumerBuilder {
        builder = builder.starting_position(StartingPosition::Latest);
        for root in (0..self.roots).map(id_of) {
            builder = builder.starting_position_for(root, StartingPosition::TrimHorizon);
        }
        for (shard, checkpoint) in &self.positions {
            builder = builder.starting_position_for(shard.clone(), checkpoint.clone());
        }
        builder
    }
}

/// Which readers of a story begin with the database.
#[derive(Debug)]
pub(crate) struct Databases {
    rng: Rng,
    pub(crate) is_kept: bool,
    /// The last reader began with the database.
    was_used: bool,
    roots: Option<usize>,
}

impl Databases {
    pub(crate) fn new(seed: u64, plan: &Plan) -> Self {
        let mut rng = Rng::with_seed(seed ^ DATABASE);
        let is_kept = plan.start == StartingPosition::TrimHorizon && rng.u8(..6) == 0;
        Self { rng, is_kept, was_used: false, roots: None }
    }

    /// Returns what the next reader begins with in place of its store, if it does. A store that is still
    /// empty does not replace the database.
    pub(crate) fn next(&mut self, facts: &Facts, is_store_empty: bool) -> Option<Database> {
        let Some(roots) = self.roots else {
            // The first reader.
            self.roots = Some(facts.shards.len());
            return None;
        };
        let is_needed = self.was_used && is_store_empty;
        self.was_used = self.is_kept && (self.rng.u8(..3) > 0 || is_needed);
        self.was_used.then(|| Database { positions: facts.database(), roots })
    }
}
