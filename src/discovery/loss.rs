//! Losses of records that a listing finds, and their report once the table shows them.

use super::identity::has_begun;
use crate::error::Error;
use crate::record::{SequenceNumber, ShardId};
use crate::store::lease::{Lease, LeaseTable};
use crate::telemetry::Event;

/// Records that were lost before they were read.
///
/// The change that stores a loss is made once. The call may fail although the store has made the
/// change, so the worker reports the loss when a table shows it, and not when the call returns.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) report: Report,
    shown: Option<ShownAs>,
}

/// The report of a loss.
#[derive(Debug)]
pub(crate) enum Report {
    /// Only the caller can decide what to do.
    Error(Error),
    /// The caller has nothing to decide.
    Event(Event),
}

/// The content of a table that proves a loss to be stored.
#[derive(Debug)]
pub(super) enum ShownAs {
    /// The shard is finished.
    Finished(ShardId),
    /// The shard is marked as expired.
    Lost(ShardId),
    /// The lease of the shard has this first sequence number.
    Start(ShardId, SequenceNumber),
    /// The scope has shards that a worker has added.
    Shards,
}

impl Loss {
    /// Returns a loss that every listing finds again until its changes are made.
    pub(super) fn listed(report: Report) -> Self {
        Self { report, shown: None }
    }

    /// Returns a loss that no later listing finds once its change is made.
    pub(super) fn stored(report: Report, shown: ShownAs) -> Self {
        Self { report, shown: Some(shown) }
    }

    /// Returns true if the loss is reported with its listing, whatever the table shows.
    pub(crate) fn is_of_listing(&self) -> bool {
        self.shown.is_none()
    }

    /// Returns true if a table proves that the loss is stored.
    pub(crate) fn is_shown_by(&self, table: &LeaseTable) -> bool {
        let lease = |shard: &ShardId| table.leases.get(shard);
        match &self.shown {
            None => false,
            Some(ShownAs::Finished(shard)) => lease(shard).is_some_and(Lease::is_finished),
            Some(ShownAs::Lost(shard)) => lease(shard).is_some_and(|lease| lease.is_shard_expired),
            Some(ShownAs::Start(shard, start)) => {
                lease(shard).is_some_and(|lease| lease.start.as_ref() == Some(start))
            }
            Some(ShownAs::Shards) => has_begun(table),
        }
    }
}
