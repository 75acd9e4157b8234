//! Settling of the writes that large steps leave pending, and repair of fences.

use aws_sdk_dynamodb::types::TransactWriteItem;
use futures::{StreamExt, TryStreamExt, stream};

use super::buckets::Bucket;
use super::expressions::{Expressions, text};
use super::front::Front;
use super::layout::{HEAD, TEXT, heartbeat, leases};
use super::positions::{self, Named, PositionWrite};
use super::requests::{PARALLEL, Partition, TRANSACTION, Transacted};
use crate::error::Result;
use crate::record::ShardId;

impl Partition<'_> {
    /// Settles the pending writes of these buckets. Returns false if another request has changed one
    /// of them meanwhile, which may have settled it.
    ///
    /// Cancel safe: each transaction settles some writes of a bucket or none.
    pub(super) async fn settle(&self, buckets: Vec<Bucket>) -> Result<bool> {
        let calls = buckets.into_iter().map(|bucket| self.settle_one(bucket));
        let mut calls = stream::iter(calls).buffer_unordered(PARALLEL);
        let mut is_settled = true;
        while let Some(is_done) = calls.try_next().await? {
            is_settled &= is_done;
        }
        Ok(is_settled)
    }

    /// Writes as many pending entries of workers as fit in a transaction. Returns false if a step or
    /// another reader has changed the head since it was read.
    ///
    /// Cancel safe: the transaction is made as a whole or not at all.
    pub(super) async fn settle_workers(&self, front: &Front) -> Result<bool> {
        if front.pending.is_empty() {
            return Ok(true);
        }
        let mut left = front.pending.clone();
        let mut items = Vec::new();
        while items.len() < TRANSACTION - 1
            && let Some((worker, entry)) = left.pop_first()
        {
            items.push(self.worker(&worker, entry.as_deref(), Expressions::default())?);
        }
        items.push(self.write(self.key(HEAD), &front.settled(left))?);
        Ok(self.transact(items).await? == Transacted::Done)
    }

    /// Returns the write or the deletion of the entry of a worker, under these conditions.
    pub(super) fn worker(
        &self,
        worker: &str,
        entry: Option<&str>,
        conditions: Expressions,
    ) -> Result<TransactWriteItem> {
        let key = self.key(&heartbeat(worker));
        match entry {
            Some(entry) => self.write(key, &conditions.set(TEXT, Some(text(entry)))),
            None => self.delete(key, &conditions),
        }
    }

    /// Settles as many pending writes of a bucket as fit in a transaction. Returns false if the
    /// bucket or an expected position has changed meanwhile.
    async fn settle_one(&self, mut bucket: Bucket) -> Result<bool> {
        let condition = bucket.condition();
        let taken = bucket.take_pending(TRANSACTION - 1);
        let is_read = |write: &PositionWrite| self.kcl.is_some() || write.expected != Named::Open;
        let expecting = taken.iter().filter(|(_, write)| is_read(write));
        let expecting = expecting.map(|(shard, _)| shard.clone()).collect();
        let rows = self.rows(&expecting).await?;
        let mut items =
            vec![self.write(self.key(&leases(bucket.number)), &bucket.update(condition))?];
        for (shard, mut write) in taken {
            let row = rows.get(&shard);
            let stored = row.and_then(|row| row.text.clone());
            if write.expected != Named::Open && write.expected != Named::Text(stored) {
                // A save was faster than the step. The saved position stays.
                write = PositionWrite::default();
            }
            let lease = bucket.lease(&shard);
            items.extend(positions::write(self, &shard, row, lease.as_deref(), &write)?);
        }
        Ok(self.transact(items).await? == Transacted::Done)
    }

    /// Fences the positions of these shards of a settled bucket by their leases, if the bucket is
    /// still as it was read.
    pub(super) async fn restore_fences(&self, bucket: &Bucket, shards: &[ShardId]) -> Result<()> {
        let condition = self.check(self.key(&leases(bucket.number)), &bucket.condition())?;
        for shards in shards.chunks(TRANSACTION - 1) {
            let of_kcl = shards.iter().filter(|shard| self.kcl_of(shard).is_some()).cloned();
            let rows = self.rows(&of_kcl.collect()).await?;
            let fences = shards.iter().map(|shard| {
                let lease = bucket.lease(shard);
                let write = PositionWrite::default();
                positions::write(self, shard, rows.get(shard), lease.as_deref(), &write)
            });
            let fences: Vec<Option<TransactWriteItem>> = fences.collect::<Result<_>>()?;
            let fences = fences.into_iter().flatten();
            let items = std::iter::once(condition.clone()).chain(fences).collect();
            if self.transact(items).await? == Transacted::Refused {
                // The bucket has changed. The caller reads it again.
                return Ok(());
            }
        }
        Ok(())
    }
}
