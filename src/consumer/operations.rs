//! What an operator sees and moves: the positions of an application.

use std::collections::BTreeMap;

use super::Consumer;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::record::ShardId;
use crate::store::in_time;
use crate::store::lease::{Edit, Lease};

/// What to do about positions that a worker has the lease of.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use kinestream::{Checkpoint, WhenHeld};
///
/// let shard = "shardId-000000000000".parse()?;
/// consumer.set_position(&shard, Checkpoint::TrimHorizon, WhenHeld::Refuse).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WhenHeld {
    /// Change nothing, and name the worker.
    #[default]
    Refuse,
    /// Change it all the same: the worker loses the lease, and whoever has it next begins there.
    Force,
}

impl Consumer {
    /// Every shard that the application knows: how far it is finished, who reads it, in which
    /// epoch, and its parents. Asks the store, and joins nothing.
    ///
    /// # Errors
    ///
    /// The store's.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// for (shard, lease) in consumer.positions().await? {
    ///     println!("{shard} {:?} {:?}", lease.checkpoint, lease.owner);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn positions(&self) -> Result<BTreeMap<ShardId, Lease>> {
        let table = in_time(self.inner.leases.table(&self.inner.scope)).await;
        Ok(table.map_err(|error| self.here(error))?.leases)
    }

    /// Has a shard read on from `checkpoint`, which may lie before its position or behind it.
    ///
    /// # Errors
    ///
    /// [`InUse`](crate::ErrorKind::InUse) where a worker has the lease and it is not forced;
    /// [`Configuration`](crate::ErrorKind::Configuration) for a store of your own that keeps no
    /// leases; the store's.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, it is done or not; to do it again changes nothing.
    pub async fn set_position(
        &self,
        shard: &ShardId,
        checkpoint: Checkpoint,
        when_held: WhenHeld,
    ) -> Result<()> {
        self.edit(&Edit::Set { shard: shard.clone(), checkpoint }, when_held)
            .await
            .map_err(|error| error.in_shard(shard.as_str()))
    }

    /// Forgets everything that is stored of this application and stream: whoever reads next begins
    /// at its starting position.
    ///
    /// # Errors
    ///
    /// As [`set_position`](Self::set_position), where any worker is alive.
    ///
    /// # Cancel safety
    ///
    /// As [`set_position`](Self::set_position).
    pub async fn clear_positions(&self, when_held: WhenHeld) -> Result<()> {
        self.edit(&Edit::Clear, when_held).await
    }

    async fn edit(&self, edit: &Edit, when_held: WhenHeld) -> Result<()> {
        let forced = when_held == WhenHeld::Force;
        let edited = in_time(self.inner.leases.edit(&self.inner.scope, edit, forced)).await;
        match edited.map_err(|error| self.here(error))? {
            None => Ok(()),
            Some(worker) => Err(self.in_use(&format!(
                "worker {worker} is reading; stop it first, or force it, and what it has not saved \
                 yet is lost to it"
            ))),
        }
    }

    fn here(&self, error: Error) -> Error {
        error.in_stream(self.inner.kinesis.name())
    }
}
