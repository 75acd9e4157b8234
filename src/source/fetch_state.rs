//! How far a shard has been fetched, and what answers and failures make of that: the same for every
//! source.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::types;
use tokio::time::Instant;

use super::absent_listings::AbsentListings;
use super::batch::Batch;
use super::failure_streak::FailureStreak;
use super::retention::{Retention, arrival};
use super::unproven_end::UnprovenEnds;
use super::{Fetched, Kinesis, KnownShard, OnTrimmed, Position, Reservation};
use crate::checkpoint::Checkpoint;
use crate::error::{ClassifiedError, Error, ErrorKind, Kinds, Result, RetryAction};
use crate::pacing::Pace;
use crate::record::{AckSink, BatchContext, SequenceNumber, ShardId};
use crate::telemetry::{Event, ShardTelemetry, log_line};

/// A quiet shard moves its checkpoint so often: far more often than it could leave retention, which is
/// a day at least, and so rarely that a thousand of them are nothing to a store.
const PASSED_EACH: Duration = Duration::from_secs(60);

/// A shard, and how far it has been fetched.
pub(super) struct FetchState {
    pub(super) kinesis: Kinesis,
    pub(super) telemetry: ShardTelemetry,
    /// Of the lease under which it is read.
    pub(super) epoch: u64,
    pub(super) position: Position,
    pub(super) on_trimmed: OnTrimmed,
    pub(super) discovery_interval: Duration,
    /// The time that the caller names as the start of the shard.
    pub(super) start_time: Option<SystemTime>,
    /// Whether records that a producer has packed into one are handed out one by one.
    pub(super) deaggregate: bool,
    pub(super) finish: Arc<dyn AckSink>,
    /// When Kinesis may be asked.
    pub(super) pace: Pace,
    pub(super) state: State,
}

/// What has become of the calls so far.
#[derive(Default)]
pub(super) struct State {
    pub(super) retention: Retention,
    /// The kinds of errors that the caller knows of, from an earlier reading too.
    reported_kinds: Kinds,
    /// The calls that have failed for a reason that only the caller can remove.
    reported: FailureStreak,
    /// The answers that were of no use.
    useless: FailureStreak,
    /// What was fetched and is not handed out yet.
    answer: Option<Answer>,
    /// The position that `on_trimmed` has decided, which is stored at once.
    pub(super) decided: Option<(Option<SequenceNumber>, SystemTime)>,
    /// The children of the shard, whose records are all handed out.
    pub(super) ended: Option<Vec<KnownShard>>,
    /// When it is told next that a quiet shard is read up to somewhere.
    pub(super) next_passed: Option<Instant>,
    /// The hash keys of the shard were asked for in vain: the next attempt waits for its turn.
    hindered: bool,
    /// How many calls in a row have failed.
    pub(super) failed: u32,
    /// The answers prove nothing.
    pub(super) doubt: Option<UnprovenEnds>,
    /// The calls that have not found the shard.
    pub(super) not_found: FailureStreak,
    /// The listings that lack it since then.
    pub(super) absence: Option<AbsentListings>,
    /// How many of them in a row have panicked.
    panics: u32,
}

impl State {
    /// `reported_kinds` are the kinds of errors that an earlier reading has reported, and `added` is when the shard
    /// was added.
    pub(super) fn new(reported_kinds: Kinds, added: Option<SystemTime>) -> Self {
        Self { reported_kinds, retention: Retention::new(added), ..Self::default() }
    }
}

/// What an answer holds.
pub(super) struct Answer {
    pub(super) batch: Batch,
    pub(super) space: Reservation,
    /// Where no record is in it: how far the shard is read all the same.
    pub(super) passed: Option<Quiet>,
    /// The shard ends with it, and has these children.
    pub(super) end: Option<Vec<KnownShard>>,
}

/// How far a quiet shard is read, and the pause until that is stored again.
pub(super) struct Quiet {
    pub(super) after: Option<SequenceNumber>,
    pub(super) until: SystemTime,
    pub(super) each: Duration,
}

/// The records of an answer, up to the first one that has no valid sequence number.
pub(super) struct Unpacked {
    pub(super) batch: Batch,
    pub(super) is_misnumbered: bool,
}

/// What the caller is told.
pub(super) struct StreamError {
    pub(super) error: Error,
    /// The shard is read no further.
    pub(super) is_last: bool,
}

impl StreamError {
    pub(super) fn at_last(error: Error) -> Self {
        Self { error, is_last: true }
    }
}

impl FetchState {
    /// What a failed call leads to: another one, or something that the caller is told.
    pub(super) async fn recover(&mut self, failure: ClassifiedError) -> Result<(), StreamError> {
        let action = failure.action_after(&mut self.state.panics);
        let error = self.here(failure.error);
        if !matches!(
            action,
            RetryAction::RetryThenReport
                | RetryAction::RestartListing
                | RetryAction::SlowDown
                | RetryAction::CoolDown
        ) {
            self.state.useless = FailureStreak::default();
        }
        match action {
            RetryAction::SlowDown => self.pace.throttled(),
            RetryAction::RetryThenReport | RetryAction::RestartListing => {
                self.pace.failed();
                if self.state.useless.lasts() {
                    return Err(StreamError::at_last(error));
                }
            }
            RetryAction::Retry | RetryAction::CoolDown | RetryAction::RestartIterator => {
                self.pace.failed()
            }
            RetryAction::WaitForOther => self.pace.occupied(),
            RetryAction::Trimmed => {
                self.see_time(failure.answered);
                return self.trimmed(error);
            }
            RetryAction::Gone => return self.not_found(error).await,
            RetryAction::Report => {
                if error.is_shared() {
                    // Its readers make one call for all, as rarely as it has to be.
                    self.pace.failed();
                } else {
                    self.pace.reported();
                }
                let is_known = self.state.reported.is_empty() && self.is_reported(&error);
                if self.state.reported.lasts() || is_known {
                    self.note_panic(&error);
                    return Err(StreamError::at_last(error));
                }
                if self.state.reported_kinds.insert(&error) {
                    if error.is_shared() {
                        // The caller may receive it by another shard.
                        self.retries(&error);
                    } else {
                        self.note_panic(&error);
                    }
                    return Err(StreamError { error, is_last: false });
                }
            }
        }
        self.retries(&error);
        Ok(())
    }

    /// Counts a failed call, and emits an event for its retry.
    pub(super) fn retries(&mut self, error: &Error) {
        self.state.failed += 1;
        let shard_id = Some(self.shard_id().clone());
        self.telemetry.emit(Event::retried(shard_id, error, self.state.failed));
    }

    /// Emits an event for the records after `after` that are not delivered: reading goes on at `position`.
    pub(super) fn report_gap(&self, after: Option<SequenceNumber>, position: Checkpoint) {
        let shard_id = self.shard_id().clone();
        self.telemetry.emit(Event::Gap { shard_id, after, position });
    }

    /// Whether the caller knows of an error of this kind, from an earlier reading too, and it is not cured.
    pub(super) fn is_reported(&self, error: &Error) -> bool {
        self.state.reported_kinds.contains(error)
    }

    /// Emits an event for each panic, whatever becomes of the error.
    pub(super) fn note_panic(&self, error: &Error) {
        if error.kind() == ErrorKind::Panicked {
            let shard_id = Some(self.shard_id().clone());
            self.telemetry.emit(Event::retried(shard_id, error, self.state.failed));
        }
    }

    fn forget_failures(&mut self) {
        (self.state.reported, self.state.useless) =
            (FailureStreak::default(), FailureStreak::default());
    }

    /// Names the stream and the shard in an error.
    pub(super) fn here(&self, error: Error) -> Error {
        error.in_stream(self.kinesis.name()).in_shard(self.shard_id().as_str())
    }

    /// The shard is read from now on.
    pub(super) fn begins(&self) {
        let (shard_id, position) = (self.shard_id().clone(), self.position.checkpoint());
        self.telemetry.emit(Event::ShardStarted { shard_id, position });
    }

    pub(super) fn shard_id(&self) -> &ShardId {
        self.telemetry.shard_id()
    }

    /// The records of an answer, of so many bytes, less those before the position; moves the position.
    /// `placed` says that the server has just begun there.
    pub(super) fn unpack(
        &mut self,
        mut records: Vec<types::Record>,
        bytes: usize,
        lag: Option<i64>,
        placed: bool,
    ) -> Unpacked {
        (self.state.reported_kinds, self.state.failed, self.state.panics) = (Kinds::default(), 0, 0);
        self.forget_failures();
        (self.state.not_found, self.state.absence) = (FailureStreak::default(), None);
        let millis_behind_latest = self.telemetry.answered(records.len(), bytes, lag);
        if let Some(last) = records.last() {
            let (records, sequence_number) = (records.len(), &*last.sequence_number);
            log_line!(trace, records, bytes, sequence_number, millis_behind_latest, "fetched");
        }
        let invalid =
            records.iter().position(|record| !SequenceNumber::is_one(&record.sequence_number));
        records.truncate(invalid.unwrap_or(records.len()));
        let last = records.last().map(|record| (record.sequence_number.parse(), arrival(record)));
        let origin = BatchContext {
            stream: Arc::clone(self.kinesis.name()),
            shard_id: self.shard_id().clone(),
            millis_behind_latest,
            epoch: self.epoch,
            finish: Arc::clone(&self.finish),
        };
        let mut batch = Batch::new(records, self.deaggregate, origin);
        if placed {
            self.skip_placed(&mut batch);
            if let (0, Some((Ok(_), arrival))) = (batch.len(), &last) {
                self.skipped_to(*arrival);
            }
        }
        if let (1.., Some((Ok(last), arrival))) = (batch.len(), last) {
            self.read_to(last, arrival);
        }
        Unpacked { batch, is_misnumbered: invalid.is_some() }
    }

    /// Moves the position to where the next event begins, which may lie behind the last record; the new
    /// position where it is further than the one before. No other record had arrived by `until`.
    ///
    /// At the tip of the shard a reader has caught up, also where the number is that of the last record.
    pub(super) fn advance(
        &mut self,
        mut next: SequenceNumber,
        until: SystemTime,
        is_tip: bool,
    ) -> Option<Quiet> {
        match &self.position {
            Position::AfterSequenceNumber(last, None) if is_tip => next = next.max(last.clone()),
            _ if self.is_further(&next) => {}
            _ => return None,
        }
        self.move_to(Position::CaughtUp { after: Some(next.clone()), until });
        Some(Quiet { after: Some(next), until, each: PASSED_EACH })
    }

    /// Returns true if the number is behind the position.
    pub(super) fn is_further(&self, next: &SequenceNumber) -> bool {
        match &self.position {
            Position::CaughtUp { after: Some(number), .. } => next >= number,
            position => position.number().is_none_or(|number| next > number),
        }
    }

    /// An answer has come, which [`hand_out`](Self::hand_out) hands out.
    pub(super) fn answered(&mut self, answer: Answer) {
        self.state.answer = Some(answer);
    }

    /// What is left of the last answer, if anything is.
    pub(super) async fn hand_out(&mut self) -> Result<Option<Fetched>, StreamError> {
        if let Some(children) = self.state.ended.take() {
            return Ok(Some(Fetched::End(children)));
        }
        if let Some((after, until)) = self.state.decided.take() {
            return Ok(Some(Fetched::Passed { after, until }));
        }
        let Some(mut answer) = self.state.answer.take() else { return Ok(None) };
        if let Err(reported_kinds) = self.retain_own(&mut answer.batch).await {
            self.state.answer = Some(answer);
            return Err(reported_kinds);
        }
        let Answer { batch, space, passed, end } = answer;
        if batch.len() > 0 {
            self.state.ended = end;
            return Ok(Some(Fetched::Records(batch, space)));
        }
        if let Some(children) = end {
            return Ok(Some(Fetched::End(children)));
        }
        let now = Instant::now();
        let passed = passed.filter(|_| self.state.next_passed.is_none_or(|next| next <= now));
        Ok(passed.map(|Quiet { after, until, each }| {
            self.state.next_passed = Some(now + each);
            Fetched::Passed { after, until }
        }))
    }

    /// Leaves out what was packed with others and belongs into another shard.
    async fn retain_own(&mut self, batch: &mut Batch) -> Result<(), StreamError> {
        while batch.is_aggregated() {
            if std::mem::take(&mut self.state.hindered) {
                self.pace.turn().await;
            }
            match self.kinesis.hash_range(self.telemetry.shard_id()).await {
                Ok(range) => {
                    self.telemetry.left_out(batch.retain(&range));
                    self.forget_failures();
                    return Ok(());
                }
                Err(failure) => {
                    self.pace.asks();
                    self.state.hindered = true;
                    self.recover(failure).await?;
                }
            }
        }
        Ok(())
    }
}

/// The children of `shard`, as its end names them; `None` where no valid one is named, which proves
/// no end.
///
/// A split names two children, and a merge one with two parents. If fewer are named, or one cannot be
/// parsed, none are returned: only a listing shows all children with all their parents.
pub(super) fn children(shard: &ShardId, named: &[types::ChildShard]) -> Option<Vec<KnownShard>> {
    let parse = |child: &types::ChildShard| {
        let parents = child.parent_shards().iter().map(|id| id.parse().ok());
        let parents = parents.collect::<Option<_>>()?;
        Some(KnownShard { id: child.shard_id().parse().ok()?, parents })
    };
    let is_child = |child: &types::ChildShard| {
        child.shard_id().parse::<ShardId>().is_ok()
            && child.parent_shards().iter().any(|parent| parent == shard.as_str())
    };
    if !named.iter().any(is_child) {
        return None;
    }
    let children: Option<Vec<KnownShard>> = named.iter().map(parse).collect();
    let is_whole = |children: &Vec<KnownShard>| {
        children.len() > 1 || children.iter().any(|child| child.parents.len() > 1)
    };
    Some(children.filter(is_whole).unwrap_or_default())
}
