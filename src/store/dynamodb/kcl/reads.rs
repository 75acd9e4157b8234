//! Reads of rows.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::super::buckets::Bucket;
use super::super::expressions::{Item, text};
use super::super::layout::Range;
use super::super::positions::Row;
use super::super::reads::Rows;
use super::super::requests::{BATCH, Partition};
use super::gone::fill_gone;
use super::row::{self, LEASE_KEY, RowPosition, TableItem};
use super::{Kcl, UNREADABLE};
use crate::checkpoint::Checkpoint;
use crate::error::{ErrorKind, Result};
use crate::record::ShardId;

/// The maximum skew of a working clock: AWS rejects requests that are signed by a clock that is
/// further off.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// The position of a finished shard.
pub(super) const SHARD_END: &str = "SHARD_END";

impl Kcl<'_> {
    /// Returns the key of the shard's row. The stream must be known.
    pub(in super::super) fn key(self, shard: &ShardId) -> Item {
        let stream = self.with(|known| known.stream.clone().flatten());
        let key = stream.map_or_else(|| shard.to_string(), |stream| format!("{stream}:{shard}"));
        Item::from([(LEASE_KEY.to_owned(), text(key))])
    }

    /// Returns the row of an item; `None` if it is not the lease of a shard of this stream.
    ///
    /// # Errors
    ///
    /// Returns an error if another application or stream has claimed the row.
    pub(super) fn read(self, item: &Item) -> Result<Option<(ShardId, Row)>> {
        let TableItem::Lease { stream, shard, row } = TableItem::parse(item) else {
            return Ok(None);
        };
        if self.with(|known| known.stream.clone()).is_some_and(|known| known != stream) {
            return Ok(None);
        }
        let item = Some(item.clone());
        let row = match row {
            Ok(row) => {
                if let Some(other) = row.scope.as_ref().filter(|scope| **scope != self.mark()) {
                    let what = format!(
                        "the lease of {shard} belongs to {other}; a lease table serves one \
                         application, and one stream unless the KCL has stored several; use another \
                         table for {}",
                        self.mark()
                    );
                    return Err(self.error(ErrorKind::Configuration, &what));
                }
                let text = match row.position() {
                    RowPosition::None => None,
                    RowPosition::Text(position) => Some(position.into()),
                    RowPosition::Latest => Some(latest().into()),
                    RowPosition::Unreadable(why) => Some(format!("{UNREADABLE}{why}").into()),
                };
                Row {
                    text,
                    fence: row.epoch.map(|epoch| epoch.to_string().into()),
                    holder: row.holder().map(Into::into),
                    item,
                    ..Row::default()
                }
            }
            Err(why) => {
                Row { text: Some(format!("{UNREADABLE}{why}").into()), item, ..Row::default() }
            }
        };
        Ok(Some((shard, row)))
    }

    /// Determines which rows are those of the stream.
    ///
    /// # Errors
    ///
    /// Returns an error if the table has several streams, and none or more than one of them may be
    /// this one.
    fn identify(self, items: &[Item]) -> Result<()> {
        if items.iter().any(|item| !item.contains_key(LEASE_KEY)) {
            let what = "it is not the lease table of a KCL: its items have no leaseKey; name the lease \
                        table, which has the name of the KCL application by default";
            return Err(self.error(ErrorKind::Configuration, what));
        }
        let mut streams = BTreeSet::new();
        for item in items {
            match TableItem::parse(item) {
                TableItem::Lease { stream, .. } => {
                    streams.insert(stream);
                }
                TableItem::Unknown(key) => {
                    tracing::warn!(table = self.table.name(), key, "row ignored: it is no lease");
                }
                TableItem::Other => {}
            }
        }
        let is_single = streams.remove(&None);
        let (name, account) = (self.scope.stream_name(), self.account());
        let of_name = streams.iter().flatten().filter(|stream| {
            row::stream_name(stream) == Some(name)
                && account.is_none_or(|account| stream.split(':').next() == Some(account))
        });
        let of_name: Vec<&String> = of_name.collect();
        let accounts: BTreeSet<&str> =
            of_name.iter().filter_map(|stream| stream.split(':').next()).collect();
        let what = if streams.is_empty() {
            // A table without rows may become one of several streams.
            self.with(|known| known.stream = is_single.then_some(None));
            return Ok(());
        } else if is_single {
            "it has leases of one stream and of several; let the KCL finish its migration first"
                .to_owned()
        } else if accounts.len() > 1 {
            format!("it has streams {name} of several accounts; name the stream by its ARN")
        } else {
            // A stream that was deleted and created again has a later time of creation.
            let created = |stream: &str| {
                let time = stream.rsplit(':').next().and_then(|time| time.parse::<u64>().ok());
                time.unwrap_or(0)
            };
            if let Some(stream) = of_name.into_iter().max_by_key(|stream| created(stream)) {
                self.with(|known| known.stream = Some(Some(stream.clone())));
                return Ok(());
            }
            format!(
                "it has leases of several streams, but none of {name}; let the KCL add the stream \
                 first"
            )
        };
        Err(self.error(ErrorKind::Configuration, &what))
    }
}

impl<'a> Partition<'a> {
    /// Reads all rows of the stream.
    pub(in super::super) async fn all_kcl_rows(&self, kcl: Kcl<'a>) -> Result<Rows> {
        let items = self.beside(kcl).scan().await.map_err(|error| match error.kind() {
            ErrorKind::Configuration => {
                let what = "there is no such table; name the lease table of the KCL, which has the \
                            name of its application by default, and check the region and the \
                            account of the client";
                kcl.error(ErrorKind::Configuration, what).with_source(error)
            }
            _ => error,
        })?;
        kcl.identify(&items)?;
        let rows: Vec<Option<(ShardId, Row)>> =
            items.iter().map(|item| kcl.read(item)).collect::<Result<_>>()?;
        let rows = rows.into_iter().flatten().collect();
        kcl.observe(&rows);
        Ok(rows)
    }

    /// Reads the rows of these shards. A shard without a row is left out, unless a lease shows what
    /// its row was.
    pub(in super::super) async fn kcl_rows(
        &self,
        kcl: Kcl<'a>,
        shards: &BTreeSet<ShardId>,
    ) -> Result<Rows> {
        if shards.is_empty() {
            return Ok(Rows::new());
        }
        let is_known = kcl.with(|known| known.stream.is_some());
        let mut rows = if is_known && shards.len() <= BATCH {
            self.some_kcl_rows(kcl, shards).await?
        } else {
            self.all_kcl_rows(kcl).await?
        };
        if shards.iter().any(|shard| !rows.contains_key(shard)) {
            let items = self.query(Range::Shards).await?;
            let buckets: Vec<Bucket> = items.iter().filter_map(Bucket::read).collect();
            rows = self.all_kcl_rows(kcl).await?;
            fill_gone(&mut rows, &buckets);
        }
        rows.retain(|shard, _| shards.contains(shard));
        Ok(rows)
    }

    async fn some_kcl_rows(&self, kcl: Kcl<'a>, shards: &BTreeSet<ShardId>) -> Result<Rows> {
        let keys = shards.iter().map(|shard| kcl.key(shard)).collect();
        let found = self.beside(kcl).items(keys).await?;
        let rows = found.iter().map(|item| kcl.read(item));
        let rows: Vec<Option<(ShardId, Row)>> = rows.collect::<Result<_>>()?;
        Ok(rows.into_iter().flatten().collect())
    }
}

/// Returns the position of a shard that a KCL was to read from its tip and in which it has saved
/// nothing: this moment, by any clock.
pub(super) fn latest() -> String {
    let now = SystemTime::now();
    Checkpoint::AtTimestamp(now.checked_sub(MAX_CLOCK_SKEW).unwrap_or(now)).to_string()
}

#[cfg(test)]
mod tests;
