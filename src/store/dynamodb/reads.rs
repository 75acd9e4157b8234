//! Consistent reads of the items of one application and stream.
//!
//! The head and the buckets are returned without pending writes: these are settled first.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio::time::sleep;

use super::buckets::Bucket;
use super::expressions::Item;
use super::front::Front;
use super::kcl::fill_gone;
use super::layout::{Range, leases};
use super::positions::{self, Row};
use super::requests::{BATCH, Partition};
use crate::backoff::{Backoff, CONFLICTS};
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;

/// The rounds after which reading fails, since other workers add pending writes faster than they are
/// settled.
const ROUNDS: u32 = 10;

/// The stored positions.
pub(super) type Rows = HashMap<ShardId, Row>;

/// All entries.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) front: Front,
    pub(super) buckets: Vec<Bucket>,
    pub(super) rows: Rows,
}

impl Partition<'_> {
    /// Reads the head and the heartbeats, and settles the pending entries of workers.
    pub(super) async fn front(&self) -> Result<Front> {
        self.front_of(&self.settled(Range::Front).await?)
    }

    fn front_of(&self, items: &[Item]) -> Result<Front> {
        let front = Front::read(self.table, &self.key, items)?;
        let why = match (&front.kcl, &self.kcl) {
            (Some(table), None) => format!(
                "the positions are in the lease table {table:?} of a KCL; build the store with \
                 kcl_table"
            ),
            (None, Some(_)) if front.version > 0 => {
                "the positions are in this table, and not in that of a KCL; build the store without \
                 kcl_table, or use another application"
                    .to_owned()
            }
            _ => return Ok(front),
        };
        let message = format!("DynamoDB table {}, {}: {why}", self.table, self.key);
        Err(Error::new(ErrorKind::Configuration, message))
    }

    /// Reads buckets as they are, with their pending writes.
    pub(super) async fn raw_buckets(&self, numbers: &BTreeSet<u8>) -> Result<Vec<Bucket>> {
        let keys = numbers.iter().map(|number| self.key(&leases(*number)));
        let items = self.items(keys.collect()).await?;
        let mut found: BTreeMap<u8, Bucket> =
            numbers.iter().map(|number| (*number, Bucket::empty(*number))).collect();
        for bucket in items.iter().filter_map(Bucket::read) {
            found.insert(bucket.number, bucket);
        }
        Ok(found.into_values().collect())
    }

    /// Reads buckets, and settles their pending writes.
    pub(super) async fn buckets(&self, numbers: &BTreeSet<u8>) -> Result<BTreeMap<u8, Bucket>> {
        let mut settled = BTreeMap::new();
        let mut due = numbers.clone();
        let mut backoff = Backoff::new(CONFLICTS);
        for _ in 0..ROUNDS {
            if due.is_empty() {
                return Ok(settled);
            }
            let (pending, others): (Vec<_>, Vec<_>) =
                self.raw_buckets(&due).await?.into_iter().partition(Bucket::is_pending);
            settled.extend(others.into_iter().map(|bucket| (bucket.number, bucket)));
            due = pending.iter().map(|bucket| bucket.number).collect();
            if !self.settle(pending).await? {
                sleep(backoff.failed()).await;
            }
        }
        Err(self.never_settled())
    }

    /// Reads the positions of these shards, whose buckets are settled. Shards without a position may
    /// be left out.
    pub(super) async fn rows(&self, shards: &BTreeSet<ShardId>) -> Result<Rows> {
        let Some(kcl) = self.kcl else { return self.own_rows(shards).await };
        let (theirs, own): (BTreeSet<_>, BTreeSet<_>) =
            shards.iter().cloned().partition(|shard| self.kcl_of(shard).is_some());
        let mut rows = self.own_rows(&own).await?;
        rows.extend(self.kcl_rows(kcl, &theirs).await?);
        Ok(rows)
    }

    async fn own_rows(&self, shards: &BTreeSet<ShardId>) -> Result<Rows> {
        if shards.len() > BATCH {
            let mut rows = rows_of(&self.query(Range::Shards).await?);
            rows.retain(|shard, _| shards.contains(shard));
            return Ok(rows);
        }
        let keys = shards.iter().map(|shard| positions::key(self, shard));
        Ok(rows_of(&self.items(keys.collect()).await?))
    }

    /// Reads all positions.
    pub(super) async fn all_rows(&self) -> Result<Rows> {
        let items = self.settled(Range::Shards).await?;
        let mut rows = rows_of(&items);
        let buckets: Vec<Bucket> = items.iter().filter_map(Bucket::read).collect();
        self.add_kcl_rows(&mut rows, &buckets).await?;
        Ok(rows)
    }

    /// Adds the rows of a KCL, if these have the positions, and what is known of leases without one.
    /// The buckets were read before.
    async fn add_kcl_rows(&self, rows: &mut Rows, buckets: &[Bucket]) -> Result<()> {
        let Some(kcl) = self.kcl else { return Ok(()) };
        let mut theirs = self.all_kcl_rows(kcl).await?;
        fill_gone(&mut theirs, buckets);
        rows.extend(theirs);
        Ok(())
    }

    /// Reads all leases.
    pub(super) async fn all_buckets(&self) -> Result<Vec<Bucket>> {
        let items = self.settled(Range::Shards).await?;
        Ok(items.iter().filter_map(Bucket::read).collect())
    }

    /// Reads all entries. The leases and positions are at least as new as the front.
    pub(super) async fn whole(&self) -> Result<Whole> {
        let items = self.settled(Range::Whole).await?;
        let front = self.front_of(&items)?;
        let buckets: Vec<Bucket> = items.iter().filter_map(Bucket::read).collect();
        let mut rows = rows_of(&items);
        if let Some(shard) = rows.keys().find(|shard| self.kcl_of(shard).is_some()) {
            return Err(self.has_own_positions(shard));
        }
        self.add_kcl_rows(&mut rows, &buckets).await?;
        Ok(Whole { front, buckets, rows })
    }

    /// Reads the items of a range after its head and its buckets were settled.
    async fn settled(&self, range: Range) -> Result<Vec<Item>> {
        let mut backoff = Backoff::new(CONFLICTS);
        for _ in 0..ROUNDS {
            let items = self.query(range).await?;
            let front = self.front_of(&items)?;
            let pending: Vec<Bucket> =
                items.iter().filter_map(Bucket::read).filter(Bucket::is_pending).collect();
            if pending.is_empty() && front.pending.is_empty() {
                return Ok(items);
            }
            if !self.settle_workers(&front).await? || !self.settle(pending).await? {
                sleep(backoff.failed()).await;
            }
        }
        Err(self.never_settled())
    }

    fn has_own_positions(&self, shard: &ShardId) -> Error {
        let message = format!(
            "DynamoDB table {}: {} has positions here, such as that of {shard}, and not in the table \
             of a KCL; use another application, or a store without kcl_table",
            self.table, self.key
        );
        Error::new(ErrorKind::Configuration, message)
    }

    fn never_settled(&self) -> Error {
        let message = format!(
            "DynamoDB table {}: the leases of {} change faster than they are read",
            self.table, self.key
        );
        Error::new(ErrorKind::StoreUnavailable, message)
    }
}

fn rows_of(items: &[Item]) -> Rows {
    let rows = items.iter().filter_map(|item| {
        let shard = positions::shard_of(item)?;
        Some((shard, Row::read(Some(item))))
    });
    rows.collect()
}
