//! Confirmation that the shards missing from a listing have left retention.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

use crate::error::{ClassifiedError, RetryAction};
use crate::record::ShardId;
use crate::source::{Listing, Position, StreamClient, unusable_listing};
use crate::store::lease::{Lease, LeaseTable};

/// The number of responses by which Kinesis must confirm that a shard is gone or belongs to another
/// stream, and the pause between them. Together they take as long as a new stream must be missing
/// before it counts as nonexistent.
pub(super) const CONFIRMATIONS: u32 = 3;
pub(super) const CONFIRM_EACH: Duration = Duration::from_secs(1);

/// The number of shards that are probed at once. Each shard allows five `GetShardIterator` calls
/// per second.
const CONCURRENT_CONFIRMATIONS: usize = 16;

/// Counts, for each unlisted shard, the responses that the shard does not exist. The counts are
/// kept over the retries of one listing, so that a failed probe does not discard the responses for
/// other shards.
#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    responses: BTreeMap<ShardId, u32>,
    last_round: Option<Instant>,
}

impl Confirmations {
    /// Lists the whole stream, and confirms that no shard is missing that the listed shards or the
    /// table name and that Kinesis still keeps.
    ///
    /// # Errors
    ///
    /// Returns the errors of the listing and of [`confirm`](Self::confirm).
    pub(crate) async fn list_whole(
        &mut self,
        kinesis: &StreamClient,
        table: &LeaseTable,
    ) -> Result<Listing, ClassifiedError> {
        let listing = kinesis.shards().await?;
        let ids: BTreeSet<&ShardId> = listing.shards.iter().map(|shard| &shard.id).collect();
        // Shards that earlier listings lacked have left retention.
        let may_be_kept = |lease: &Lease| lease.parents.is_some() && lease.unlisted.is_none();
        let unlisted =
            table.leases.iter().filter(|(id, lease)| !ids.contains(id) && may_be_kept(lease));
        let mut missing = unknown_parents(&listing, table);
        missing.extend(unlisted.map(|(id, _)| id));
        self.confirm(&missing, |shard| is_past_retention(kinesis, shard)).await?;
        Ok(listing)
    }

    /// Probes each shard until [`CONFIRMATIONS`] responses show that it is gone. A failed probe is
    /// repeated in the next round.
    ///
    /// # Errors
    ///
    /// Returns an error if a shard exists, since the listing is then incomplete, or if no probe of
    /// a round succeeds.
    pub(super) async fn confirm<'a, F>(
        &mut self,
        shards: &[&'a ShardId],
        is_gone: impl Fn(&'a ShardId) -> F,
    ) -> Result<(), ClassifiedError>
    where
        F: Future<Output = Result<bool, ClassifiedError>>,
    {
        let missing: BTreeSet<&ShardId> = shards.iter().copied().collect();
        self.responses.retain(|shard, _| missing.contains(shard));
        loop {
            let left: Vec<&'a ShardId> =
                shards.iter().copied().filter(|shard| !self.is_confirmed(shard)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if let Some(last) = self.last_round {
                sleep_until(last + CONFIRM_EACH).await;
            }
            let round = self.round(&left, &is_gone).await;
            self.last_round = Some(Instant::now());
            round?;
        }
    }

    async fn round<'a, F>(
        &mut self,
        shards: &[&'a ShardId],
        is_gone: impl Fn(&'a ShardId) -> F,
    ) -> Result<(), ClassifiedError>
    where
        F: Future<Output = Result<bool, ClassifiedError>>,
    {
        let mut has_responses = false;
        for some in shards.chunks(CONCURRENT_CONFIRMATIONS) {
            let mut failed = None;
            let probes = join_all(some.iter().copied().map(&is_gone)).await;
            for (shard, probe) in some.iter().zip(probes) {
                match probe {
                    Ok(true) => {
                        *self.responses.entry((*shard).clone()).or_default() += 1;
                        has_responses = true;
                    }
                    Ok(false) => {
                        self.responses.remove(*shard);
                        return Err(unusable_listing(format!("is incomplete: {shard} is missing")));
                    }
                    Err(failure) => failed = Some(failure),
                }
            }
            // The remaining probes would fail as well.
            if let Some(failure) = failed.filter(|_| !has_responses) {
                return Err(failure);
            }
        }
        Ok(())
    }

    fn is_confirmed(&self, shard: &ShardId) -> bool {
        self.responses.get(shard).is_some_and(|responses| *responses >= CONFIRMATIONS)
    }
}

/// Returns the unknown parents of listed shards, which are neither listed nor in the table. Shards
/// that are in the table with their parents are skipped, since the table shows that their missing
/// parents had left retention.
pub(super) fn unknown_parents<'a>(listing: &'a Listing, table: &LeaseTable) -> Vec<&'a ShardId> {
    let ids: BTreeSet<&ShardId> = listing.shards.iter().map(|shard| &shard.id).collect();
    let is_new = |id: &ShardId| table.leases.get(id).is_none_or(|it| it.parents.is_none());
    let parents = listing.shards.iter().filter(|shard| is_new(&shard.id));
    let parents: BTreeSet<&ShardId> = parents.flat_map(|shard| &shard.parents).collect();
    let is_known = |id: &ShardId| ids.contains(id) || table.leases.contains_key(id);
    parents.into_iter().filter(|id| !is_known(id)).collect()
}

/// Returns true if Kinesis does not find the shard.
pub(super) async fn is_past_retention(
    kinesis: &StreamClient,
    shard: &ShardId,
) -> Result<bool, ClassifiedError> {
    match kinesis.shard_iterator(shard, &Position::TrimHorizon).await {
        Ok(_) => Ok(false),
        Err(failure) if failure.action == RetryAction::Gone => Ok(true),
        Err(failure) => Err(failure),
    }
}
