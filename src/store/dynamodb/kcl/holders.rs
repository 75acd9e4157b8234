//! The rows that a KCL holds: whether a KCL is alive.
//!
//! A KCL that stops does not free its rows, and DynamoDB has no clock. So each read of all rows notes
//! the time since which the counter of each row that a KCL holds is the same. A KCL renews each of its rows, by
//! raising the counter, three times in the `failoverTimeMillis` of its configuration. It counts as dead
//! once none of its rows has changed for a lease duration of this crate.

use std::time::Duration;

use tokio::time::Instant;

use super::super::reads::Rows;
use super::super::requests::Partition;
use super::Kcl;
use super::row::TableItem;
use crate::error::{ErrorKind, Result};
use crate::record::ShardId;
use crate::store::lease::OtherReader;

/// A row that a KCL holds, as the reads of this process have seen it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    counter: u64,
    /// The time since which the counter is the same.
    since: Instant,
    /// True if it had another counter before.
    has_renewed: bool,
}

impl Held {
    /// Returns the row as it is after a read has shown this counter.
    fn seen(known: Option<Self>, counter: u64, now: Instant) -> Self {
        match known {
            Some(known) if known.counter == counter => known,
            known => Self { counter, since: now, has_renewed: known.is_some() },
        }
    }

    /// Returns the time until which a row must stay the same, from the time of a request that shows
    /// it, for its KCL to count as dead; `None` once it does.
    fn left(&self, asked: Instant, lease_duration: Duration) -> Option<Duration> {
        let still = asked.saturating_duration_since(self.since);
        lease_duration.checked_sub(still).filter(|left| !left.is_zero())
    }
}

impl Kcl<'_> {
    /// Notes how long each row that a KCL holds has been the same.
    pub(super) fn observe(self, rows: &Rows) {
        let now = Instant::now();
        let held = rows.iter().filter_map(|(shard, row)| {
            let TableItem::Lease { row: Ok(row), .. } = TableItem::parse(row.item.as_ref()?) else {
                return None;
            };
            row.foreign_holder().map(|_| (shard, row.counter))
        });
        self.with(|known| {
            let mut before = std::mem::take(&mut known.held);
            for (shard, counter) in held {
                known.held.insert(shard.clone(), Held::seen(before.remove(shard), counter, now));
            }
        });
    }
}

impl Partition<'_> {
    /// Fails while a KCL holds a row that it may still renew: until each row that a KCL holds has had
    /// the same counter for a lease duration.
    ///
    /// A KCL that stops does not free its rows, so the first worker of a fleet waits for a lease
    /// duration after it.
    pub(in super::super) async fn admit(&self, lease_duration: Duration) -> Result<()> {
        let Some(kcl) = self.kcl else { return Ok(()) };
        let reader = self.kcl_reader(None, lease_duration).await?;
        let Some(OtherReader { name, shard, .. }) = reader else { return Ok(()) };
        let what = format!(
            "worker {name:?} of a KCL holds the lease of {shard}, and may be alive; stop the KCL: \
             reading begins once no lease was renewed for {lease_duration:?}"
        );
        Err(kcl.error(ErrorKind::StoreUnavailable, &what))
    }

    /// See [`LeaseStore::other_reader`](crate::store::lease::LeaseStore::other_reader).
    pub(in super::super) async fn kcl_reader(
        &self,
        shards: Option<&[ShardId]>,
        lease_duration: Duration,
    ) -> Result<Option<OtherReader>> {
        let Some(kcl) = self.kcl else { return Ok(None) };
        let asked = Instant::now();
        let rows = self.all_kcl_rows(kcl).await?;
        let found = kcl.with(|known| {
            let is_asked = |shard: &ShardId| shards.is_none_or(|shards| shards.contains(shard));
            let held = known.held.iter().filter(|(shard, _)| is_asked(shard));
            let alive = held.filter_map(|(shard, held)| {
                let undecided = held.left(asked, lease_duration)?;
                Some(((!held.has_renewed).then_some(undecided), shard.clone()))
            });
            // One that has renewed comes first.
            alive.min()
        });
        Ok(found.map(|(undecided, shard)| {
            let name = rows.get(&shard).and_then(|row| row.holder.clone()).unwrap_or_default();
            OtherReader { undecided, ..OtherReader::new(name, shard) }
        }))
    }
}
