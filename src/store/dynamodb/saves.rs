//! Saves of positions: one conditional update for each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use super::buckets::bucket_of;
use super::kcl::{self, Gone, UNREADABLE};
use super::positions::{self, Row, fence_of};
use super::requests::{PARALLEL, Partition, Updated};
use crate::backoff::{Backoff, CONFLICTS};
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;
use crate::store::lease::{FencedOutcome, FencedSave};

/// The rounds of one save, each after its fence was restored.
const ROUNDS: u32 = 6;

/// A save, with what is to be compared.
#[derive(Debug, Clone)]
pub(super) struct Save<'a> {
    position: &'a FencedSave,
    /// The epoch that the fence must have, if any.
    epoch: Option<Arc<str>>,
    /// Identifies this save in the item, so that a repeated attempt recognizes the first one.
    saver: Arc<str>,
}

impl<'a> Save<'a> {
    /// Creates a save in the epoch of the save.
    pub(super) fn fenced(save: &'a FencedSave) -> Self {
        Self { epoch: Some(save.epoch.to_string().into()), ..Self::unfenced(save) }
    }

    /// Creates a save in any epoch.
    pub(super) fn unfenced(save: &'a FencedSave) -> Self {
        Self { position: save, epoch: None, saver: format!("{:016x}", fastrand::u64(..)).into() }
    }
}

/// The outcome of one attempt.
#[derive(Debug)]
pub(super) enum Saved {
    Done,
    /// The stored position or its fence differs.
    Refused(Row),
}

impl Partition<'_> {
    /// Saves positions, each by itself. The outcomes are in the order of the list. The lease is left
    /// out of the outcomes of saved positions, and of saves in any epoch.
    ///
    /// Cancel safe: each position is saved or not, maybe later.
    pub(super) async fn save(&self, saves: &[Save<'_>]) -> Result<Vec<FencedOutcome>> {
        let mut outcomes: Vec<Option<FencedOutcome>> = vec![None; saves.len()];
        // The saves of one shard are made one after the other.
        while let Some(due) = next_due(saves, &outcomes) {
            for (index, outcome) in self.save_distinct(saves, due).await? {
                outcomes[index] = Some(outcome);
            }
        }
        let judged = saves.iter().zip(outcomes.iter().flatten());
        let ended =
            judged.filter(|(it, outcome)| outcome.is_saved && kcl::is_end(&it.position.text));
        self.show_ends(ended.map(|(it, _)| it.position.shard.clone()).collect()).await?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Makes the saves of these indexes, of which no two have the same shard.
    async fn save_distinct(
        &self,
        saves: &[Save<'_>],
        mut due: Vec<usize>,
    ) -> Result<Vec<(usize, FencedOutcome)>> {
        let mut outcomes = Vec::new();
        let mut backoff = Backoff::new(CONFLICTS);
        for _ in 0..ROUNDS {
            let of_kcl = due.iter().map(|index| &saves[*index].position.shard);
            let of_kcl = of_kcl.filter(|shard| self.kcl_of(shard).is_some()).cloned();
            let mut rows = self.rows(&of_kcl.collect()).await?;
            let calls = due.iter().map(|index| {
                let row = rows.remove(&saves[*index].position.shard);
                self.save_one(*index, saves, row)
            });
            let calls: Vec<_> = calls.collect();
            let calls: Vec<_> =
                stream::iter(calls).buffer_unordered(PARALLEL).try_collect().await?;
            let mut refused = Vec::new();
            for (index, saved) in calls {
                let Save { position, epoch, .. } = &saves[index];
                match saved {
                    Saved::Done => {
                        let text = Some(Arc::clone(&position.text));
                        outcomes.push((index, FencedOutcome::new(true, None, text)));
                    }
                    Saved::Refused(row) if epoch.is_none() => {
                        outcomes.push((index, FencedOutcome::new(false, None, row.text)));
                    }
                    Saved::Refused(row) => refused.push((index, row)),
                }
            }
            let (decided, again) = self.judge(saves, refused).await?;
            outcomes.extend(decided);
            if again.is_empty() {
                return Ok(outcomes);
            }
            due = again;
            sleep(backoff.failed()).await;
        }
        let message = format!(
            "DynamoDB table {}: the leases of {} change faster than positions are saved",
            self.table, self.key
        );
        Err(Error::new(ErrorKind::StoreUnavailable, message))
    }

    /// Makes one save. `row` is the stored position, if it is in the table of a KCL.
    async fn save_one(
        &self,
        index: usize,
        saves: &[Save<'_>],
        row: Option<Row>,
    ) -> Result<(usize, Saved)> {
        let Save { position, epoch, saver } = &saves[index];
        if let Some(kcl) = self.kcl_of(&position.shard) {
            return Ok((index, self.save_row(kcl, position, epoch.as_deref(), row).await?));
        }
        let key = positions::key(self, &position.shard);
        let expected = position.expected.as_deref();
        let change = positions::save(epoch.as_deref(), expected, &position.text, saver);
        let outcome = match self.update(&key, &change).await? {
            Updated::Done => Saved::Done,
            Updated::Refused(item) => {
                let row = Row::read(item.as_ref());
                // An attempt whose answer was lost has left the mark of this save.
                if row.saver.as_ref() == Some(saver) { Saved::Done } else { Saved::Refused(row) }
            }
        };
        Ok((index, outcome))
    }

    /// Judges saves that were refused. Returns the outcomes of those that the lease or the position
    /// refuses, and the saves to repeat, whose fences have been restored.
    async fn judge(
        &self,
        saves: &[Save<'_>],
        refused: Vec<(usize, Row)>,
    ) -> Result<(Vec<(usize, FencedOutcome)>, Vec<usize>)> {
        let shard = |index: usize| &saves[index].position.shard;
        let numbers: BTreeSet<u8> =
            refused.iter().map(|(index, _)| bucket_of(shard(*index))).collect();
        let buckets = self.raw_buckets(&numbers).await?;
        let buckets: HashMap<u8, _> = buckets.into_iter().map(|it| (it.number, it)).collect();
        let (mut outcomes, mut again) = (Vec::new(), Vec::new());
        let mut unfenced: BTreeMap<u8, Vec<ShardId>> = BTreeMap::new();
        for (index, row) in refused {
            let shard = shard(index);
            let Some(bucket) = buckets.get(&bucket_of(shard)) else { continue };
            let lease = bucket.lease(shard);
            let fence = fence_of(lease.as_deref());
            if bucket.is_pending_for(shard) {
                again.push(index);
            } else if fence == saves[index].epoch.as_deref()
                && row.fence.as_deref() != fence
                && row.gone != Some(Gone::Finished)
                && !is_unreadable(&row)
            {
                unfenced.entry(bucket.number).or_default().push(shard.clone());
                again.push(index);
            } else {
                outcomes.push((index, FencedOutcome::new(false, lease, row.text)));
            }
        }
        for (number, shards) in &unfenced {
            if let Some(bucket) = buckets.get(number) {
                self.restore_fences(bucket, shards).await?;
            }
        }
        let pending = again.iter().filter_map(|index| buckets.get(&bucket_of(shard(*index))));
        let pending: BTreeMap<u8, _> =
            pending.filter(|it| it.is_pending()).map(|it| (it.number, it.clone())).collect();
        self.settle(pending.into_values().collect()).await?;
        Ok((outcomes, again))
    }
}

/// Returns true if the row of a KCL cannot be read, and is left as it is.
fn is_unreadable(row: &Row) -> bool {
    row.text.as_ref().is_some_and(|text| text.starts_with(UNREADABLE))
}

/// Returns the indexes of the next saves: the first of each shard that has no outcome yet.
fn next_due(saves: &[Save<'_>], outcomes: &[Option<FencedOutcome>]) -> Option<Vec<usize>> {
    let mut shards = BTreeSet::new();
    let due = (0..saves.len()).filter(|index| outcomes[*index].is_none());
    let due: Vec<usize> =
        due.filter(|index| shards.insert(&saves[*index].position.shard)).collect();
    (!due.is_empty()).then_some(due)
}
