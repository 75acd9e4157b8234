//! How far a shard has been fetched, and what answers and failures make of that: the same for every
//! source.

use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_kinesis::types;

use super::batch::Batch;
use super::kinesis::server_time;
use super::{Kinesis, KnownShard, OnTrimmed, Position};
use crate::error::{Error, ErrorKind, Failure, Remedy, Result};
use crate::pace::Pace;
use crate::record::{Finish, Origin, SequenceNumber, ShardId};

/// A shard, and how far it has been fetched.
pub(super) struct Progress {
    pub(super) kinesis: Kinesis,
    pub(super) shard_id: ShardId,
    /// Of the lease under which it is read.
    pub(super) epoch: u64,
    pub(super) position: Position,
    pub(super) on_trimmed: OnTrimmed,
    /// Whether records that a producer has packed into one are handed out one by one.
    pub(super) deaggregate: bool,
    pub(super) finish: Arc<dyn Finish>,
    /// The record that the position is behind is read again.
    pub(super) again: bool,
    /// The kind of error that the caller knows of.
    pub(super) told: Option<ErrorKind>,
}

/// What a failed call leads to.
pub(super) enum Recovery {
    Again,
    /// The caller is told, and reading goes on.
    Tell(Error),
    /// The caller is told, and the shard is read no further.
    End(Error),
}

impl Progress {
    /// Where the server is to begin.
    pub(super) fn begin(&self) -> Position {
        match &self.position {
            Position::After(number, None) if self.again => Position::AtSequence(number.clone()),
            position => position.clone(),
        }
    }

    /// What a failed call leads to.
    pub(super) fn recover(&mut self, failure: Failure, pace: &mut Pace) -> Recovery {
        let error = failure.error.in_stream(self.kinesis.name()).in_shard(self.shard_id.as_str());
        match failure.remedy {
            Remedy::SlowDown => {
                tracing::debug!(%error, "throttled");
                pace.throttled();
                Recovery::Again
            }
            Remedy::Retry | Remedy::RestartListing => {
                tracing::debug!(%error, "trying again");
                pace.failed();
                Recovery::Again
            }
            Remedy::RestartIterator => {
                tracing::debug!(%error, "a new iterator");
                pace.failed();
                Recovery::Again
            }
            Remedy::Trimmed => {
                self.trimmed(error, server_time(failure.answered, SystemTime::now()), pace)
            }
            Remedy::WaitForOther => {
                tracing::debug!(%error, "waiting until it is free");
                pace.occupied();
                Recovery::Again
            }
            Remedy::Gone => Recovery::End(error),
            Remedy::Report => {
                pace.reported();
                match self.told.replace(error.kind()) {
                    Some(kind) if kind == error.kind() => Recovery::Again,
                    _ => Recovery::Tell(error),
                }
            }
        }
    }

    fn trimmed(&mut self, error: Error, now: SystemTime, pace: &mut Pace) -> Recovery {
        // The last number of a closed shard may be refused as what to read after, and yet be
        // there: then it is read once more, and passed over.
        if matches!(self.position, Position::After(_, None)) && !self.again {
            self.again = true;
            pace.failed();
            return Recovery::Again;
        }
        let position = match self.on_trimmed {
            OnTrimmed::Fail => return Recovery::End(error),
            OnTrimmed::TrimHorizon => Position::TrimHorizon,
            OnTrimmed::Latest => Position::AtTimestamp(now),
        };
        tracing::warn!(%error, ?position, "records were lost before they were read: going on");
        (self.position, self.again) = (position, false);
        pace.failed();
        Recovery::Again
    }

    /// The records of an answer, less those before the position, and moves the position. `placed`
    /// says that the server has just begun there.
    pub(super) fn unpack(
        &mut self,
        records: Vec<types::Record>,
        millis_behind_latest: i64,
        placed: bool,
    ) -> Result<Batch> {
        self.told = None;
        let last = records.last().map(|record| record.sequence_number.parse());
        let origin = Origin {
            stream: Arc::clone(self.kinesis.name()),
            shard_id: self.shard_id.clone(),
            millis_behind_latest,
            epoch: self.epoch,
            finish: Arc::clone(&self.finish),
        };
        let mut batch = Batch::new(records, self.deaggregate, origin);
        if placed {
            batch.skip_past(&self.position)?;
        }
        // A place that is none is told by the record that has it.
        if let (1.., Some(Ok(last))) = (batch.len(), last) {
            (self.position, self.again) = (Position::After(last, None), false);
        }
        Ok(batch)
    }

    /// Moves the position to where the next answer begins, which may lie behind the last record;
    /// whether it is further than the position was.
    pub(super) fn advance(&mut self, next: &SequenceNumber) -> bool {
        let is_further = match &self.position {
            Position::After(number, _) | Position::AtSequence(number) => next > number,
            Position::TrimHorizon | Position::AtTimestamp(_) => true,
        };
        if is_further {
            (self.position, self.again) = (Position::After(next.clone(), None), false);
        }
        is_further
    }

    /// Leaves out what was packed with others and belongs into another shard. An error is the
    /// caller's to see; asked again, it goes on.
    pub(super) async fn retain_own(
        &mut self,
        batch: &mut Batch,
        pace: &mut Pace,
    ) -> Result<(), Recovery> {
        while batch.is_aggregated() {
            let failure = match self.kinesis.hash_range(&self.shard_id).await {
                Ok(range) => {
                    batch.retain(&range);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            pace.asks();
            match self.recover(failure, pace) {
                Recovery::Again => pace.turn().await,
                told => return Err(told),
            }
        }
        Ok(())
    }
}

/// The children of a shard, as its end names them.
pub(super) fn children(named: &[types::ChildShard]) -> Vec<KnownShard> {
    let parsed = |child: &types::ChildShard| {
        Some(KnownShard {
            id: child.shard_id().parse().ok()?,
            parents: child.parent_shards().iter().filter_map(|id| id.parse().ok()).collect(),
        })
    };
    named.iter().filter_map(parsed).collect()
}
