//! Confirms that parents that no listing shows have left retention.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

use crate::error::Failure;
use crate::record::ShardId;
use crate::source::unusable;

/// The number of answers by which Kinesis must confirm that a parent is gone, or that a shard belongs to
/// another stream, and the pause between them: together as long as a stream must be missing that is named
/// for the first time.
pub(super) const CONFIRMATIONS: u32 = 3;
pub(super) const CONFIRM_EACH: Duration = Duration::from_secs(1);

/// The number of parents that are probed at once. Each shard admits five iterators per second.
const CONCURRENT_CONFIRMATIONS: usize = 16;

/// The number of answers, for each parent, that there is no such shard. Kept over the attempts of one
/// listing, so that a failed probe costs no answer to another.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    answers: BTreeMap<ShardId, u32>,
    last_round: Option<Instant>,
}

impl Confirmations {
    /// Probes each parent until [`CONFIRMATIONS`] answers say that it is gone; a failed probe is repeated in
    /// the next round.
    ///
    /// # Errors
    ///
    /// Where a parent exists, so that the listing is incomplete, and where no probe of a round succeeds.
    pub(super) async fn confirm<'a, F>(
        &mut self,
        parents: &[&'a ShardId],
        is_gone: impl Fn(&'a ShardId) -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<bool, Failure>>,
    {
        let missing: BTreeSet<&ShardId> = parents.iter().copied().collect();
        self.answers.retain(|parent, _| missing.contains(parent));
        loop {
            let left: Vec<&'a ShardId> =
                parents.iter().copied().filter(|parent| !self.is_confirmed(parent)).collect();
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
        parents: &[&'a ShardId],
        is_gone: impl Fn(&'a ShardId) -> F,
    ) -> Result<(), Failure>
    where
        F: Future<Output = Result<bool, Failure>>,
    {
        let mut has_answers = false;
        for some in parents.chunks(CONCURRENT_CONFIRMATIONS) {
            let mut failed = None;
            let probes = join_all(some.iter().copied().map(&is_gone)).await;
            for (parent, probe) in some.iter().zip(probes) {
                match probe {
                    Ok(true) => {
                        *self.answers.entry((*parent).clone()).or_default() += 1;
                        has_answers = true;
                    }
                    Ok(false) => {
                        self.answers.remove(*parent);
                        return Err(unusable(format!("is incomplete: parent {parent} is missing")));
                    }
                    Err(failure) => failed = Some(failure),
                }
            }
            // The next probes would fail as well.
            if let Some(failure) = failed.filter(|_| !has_answers) {
                return Err(failure);
            }
        }
        Ok(())
    }

    fn is_confirmed(&self, parent: &ShardId) -> bool {
        self.answers.get(parent).is_some_and(|answers| *answers >= CONFIRMATIONS)
    }
}
