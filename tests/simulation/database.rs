//! A caller that stores the checkpoints in its own database, together with the results.

use std::collections::BTreeMap;

use fastrand::Rng;
use kinestream::{Checkpoint, ConsumerBuilder, ShardId, StartingPosition};

use crate::plan::Plan;
use crate::truth::{Facts, id_of};

/// Mixed with the seed for a separate generator, so that existing seeds keep their scenarios.
const DATABASE: u64 = 0x44_4154_4142_4153;

/// The start configuration of a reader that finds its store empty.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) positions: BTreeMap<ShardId, Checkpoint>,
    /// The number of shards at the first start. All other shards descend from them.
    roots: usize,
}

impl Database {
    /// Names each position, and each root shard without one. The default position skips all shards
    /// that are neither named nor descend from a named shard.
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

/// Chooses the readers that start from the database.
#[derive(Debug)]
pub(crate) struct Databases {
    rng: Rng,
    pub(crate) is_kept: bool,
    /// The last reader started from the database.
    was_used: bool,
    roots: Option<usize>,
}

impl Databases {
    pub(crate) fn new(seed: u64, plan: &Plan) -> Self {
        let mut rng = Rng::with_seed(seed ^ DATABASE);
        let is_kept = plan.start == StartingPosition::TrimHorizon && rng.u8(..6) == 0;
        Self { rng, is_kept, was_used: false, roots: None }
    }

    /// Returns the database if the next reader starts from it instead of its store. If the previous
    /// reader used the database and left an empty store, the next one uses the database again.
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
