//! Calls to Kinesis that fail for one worker or one shard until a given time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kinestream::ShardId;
use kinestream::testing::{Call, Outcome};
use tokio::time::Instant;

use crate::world::World;

/// The maximum time for which calls are blocked, in milliseconds.
const LONGEST: u64 = 200_000;

#[derive(Debug)]
struct Block {
    /// The worker for which calls fail; `None` for all workers.
    worker: Option<String>,
    /// The shard for which calls fail; `None` for all shards.
    shard: Option<ShardId>,
    /// Blocks only calls that read.
    only_reads: bool,
    outcome: Outcome,
    /// The end of the block; `None` if it lasts until it is cleared.
    until: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks(Arc<Mutex<Vec<Block>>>);

impl Blocks {
    /// Returns the outcome of a call that is blocked.
    pub(crate) fn decide(&self, call: &Call) -> Option<Outcome> {
        let mut blocks = self.0.lock().unwrap();
        blocks.retain(|block| block.until.is_none_or(|until| Instant::now() < until));
        let is_read =
            ["GetRecords", "GetShardIterator", "SubscribeToShard"].contains(&&*call.operation);
        let found = blocks.iter().find(|block| {
            (block.worker.is_none() || block.worker == call.access_key_id)
                && (block.shard.is_none() || block.shard == call.shard_id)
                && (is_read || !block.only_reads)
        });
        found.map(|block| block.outcome.clone())
    }

    /// Blocks all calls of one worker, or of all workers, until the blocks are
    /// [cleared](Self::clear).
    pub(crate) fn block_all(&self, worker: Option<&str>, outcome: Outcome) {
        let worker = worker.map(str::to_owned);
        let block = Block { worker, shard: None, only_reads: false, outcome, until: None };
        self.0.lock().unwrap().push(block);
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

impl World {
    /// Sometimes denies the calls of one worker, or makes a shard missing for all workers.
    pub(crate) fn block_calls(&mut self) {
        if self.added_rng.u8(..100) >= self.block_faults || self.workers.is_empty() {
            return;
        }
        let time = Duration::from_millis(self.added_rng.u64(..LONGEST));
        let denied = Outcome::failed(400, "AccessDeniedException", "no");
        let missing = Outcome::failed(400, "ResourceNotFoundException", "no");
        let worker = self.workers[self.added_rng.usize(..self.workers.len())].name.clone();
        let shard = self.added_rng.usize(..self.orders.shards().len());
        let shard = self.orders.shard(shard).id();
        if self.added_rng.bool() {
            self.block(Some(worker), None, denied, time);
        } else {
            self.block(None, Some(shard), missing, time);
        }
    }

    fn block(
        &mut self,
        worker: Option<String>,
        shard: Option<ShardId>,
        outcome: Outcome,
        time: Duration,
    ) {
        self.truth.log(format_args!(
            "calls of worker {worker:?} for shard {shard:?} fail for {time:?}: {outcome:?}"
        ));
        let until = Some(Instant::now() + time);
        let block = Block { worker, shard, only_reads: true, outcome, until };
        self.truth.lock().were_blocked = true;
        self.blocks.0.lock().unwrap().push(block);
    }
}
