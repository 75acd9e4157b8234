//! Tracks how far a shard has been fetched, and handles responses and failures, for polling and
//! enhanced fan-out alike.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::absent_listings::AbsentListings;
use super::batch::Batch;
use super::ending::{Ending, Tip};
use super::failure_streak::FailureStreak;
use super::memory_budget::HeldMemory;
use super::response::{NamedChild, RecordRange};
use super::retention::Retention;
use super::unproven_end::UnprovenEnds;
use super::{Fetched, OnTrimmed, Position, StreamClient};
use crate::checkpoint::Checkpoint;
use crate::error::{ClassifiedError, Error, ErrorKind, ErrorKindSet, Result, RetryAction};
use crate::pacing::Pace;
use crate::record::{AckSink, KnownShard, ResponseContext, SequenceNumber, ShardId};
use crate::telemetry::{Event, ShardTelemetry, log_line};

/// The interval at which a quiet shard moves its checkpoint. It is far shorter than the retention
/// period, which is at least a day, and long enough that a thousand quiet shards put no load on a
/// store.
const QUIET_SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// A shard and the position up to which it has been fetched.
pub(super) struct FetchState {
    pub(super) kinesis: StreamClient,
    pub(super) telemetry: ShardTelemetry,
    /// The epoch of the lease under which the shard is read.
    pub(super) epoch: u64,
    pub(super) position: Position,
    pub(super) ending: Ending,
    pub(super) on_trimmed: OnTrimmed,
    pub(super) discovery_interval: Duration,
    /// The start time that the caller has set for the shard.
    pub(super) start_time: Option<SystemTime>,
    /// True if the user records of an aggregated record are delivered one by one.
    pub(super) deaggregate: bool,
    pub(super) ack_sink: Arc<dyn AckSink>,
    /// Limits the rate of the calls.
    pub(super) pace: Pace,
    pub(super) state: FetchProgress,
}

/// The results of the calls so far.
#[derive(Default)]
pub(super) struct FetchProgress {
    pub(super) retention: Retention,
    /// The kinds of errors that the caller has already received, including those of earlier sources
    /// of this shard.
    reported_kinds: ErrorKindSet,
    /// Consecutive failures that only the caller can fix.
    reported: FailureStreak,
    /// Consecutive useless responses.
    useless: FailureStreak,
    /// The time at which the position of the quiet shard may be yielded again.
    pub(super) next_quiet_save: Option<Instant>,
    /// The lookup of the shard's hash keys has failed, and the next attempt waits for its turn.
    hash_keys_failed: bool,
    /// Set once a response has shown the tip of the shard at a time after the ending position.
    pub(super) tip: Option<Tip>,
    /// The number of consecutive failed calls.
    pub(super) failed: u32,
    /// Tracks responses that prove nothing; `None` while there is no doubt.
    pub(super) doubt: Option<UnprovenEnds>,
    /// Consecutive calls that have not found the shard.
    pub(super) not_found: FailureStreak,
    /// The listings since then that lack the shard.
    pub(super) absence: Option<AbsentListings>,
    /// The number of consecutive calls that have panicked.
    panics: u32,
}

impl FetchProgress {
    /// Creates the state. `reported_kinds` are the kinds of errors that an earlier source of this
    /// shard has reported, and `added` is the time at which the shard was added.
    pub(super) fn new(reported_kinds: ErrorKindSet, added: Option<SystemTime>) -> Self {
        Self { reported_kinds, retention: Retention::new(added), ..Self::default() }
    }
}

/// The contents of a response.
pub(super) struct FetchedResponse {
    /// An error that the caller receives before the records.
    pub(super) error: Option<Error>,
    pub(super) batch: Batch,
    /// The position that the shard has reached, if the response holds no record.
    pub(super) passed: Option<QuietProgress>,
    /// The children of the shard, if the shard ends with this response.
    pub(super) end: Option<Vec<KnownShard>>,
    /// True if the ending position follows these records.
    pub(super) is_reached: bool,
}

impl FetchedResponse {
    /// Returns the last records before the ending position.
    pub(super) fn last(batch: Batch) -> Self {
        Self { error: None, batch, passed: None, end: None, is_reached: true }
    }

    /// Returns the records of a response that leaves doubts. An error that ends the source is
    /// returned instead of them.
    pub(super) fn doubtful(batch: Batch, doubt: Result<(), Interrupt>) -> Result<Self, Interrupt> {
        let error = match doubt {
            Ok(()) => None,
            Err(Interrupt::Error(error)) => Some(error),
            Err(interrupt) => return Err(interrupt),
        };
        Ok(Self { error, batch, passed: None, end: None, is_reached: false })
    }
}

/// The position of a quiet shard, and the pause before it is stored again.
pub(super) struct QuietProgress {
    pub(super) after: Option<SequenceNumber>,
    pub(super) until: SystemTime,
    pub(super) each: Duration,
}

/// The records of a response, in memory that is counted until the last of them is dropped.
pub(super) struct MeasuredRecords {
    pub(super) records: Vec<RecordRange>,
    pub(super) buffer: Bytes,
    pub(super) memory: HeldMemory,
    /// The size of all records.
    pub(super) bytes: usize,
    pub(super) lag: Option<i64>,
}

/// The records of a response, up to the first one without a valid sequence number, or the first one
/// after the ending position.
pub(super) struct Unpacked {
    pub(super) batch: Batch,
    /// True if a record after the ending position was left out, with all records behind it.
    pub(super) is_reached: bool,
    pub(super) has_invalid_number: bool,
}

/// An outcome that ends a fetch early.
pub(super) enum Interrupt {
    /// An error for the caller. The source continues.
    Error(Error),
    /// An error that ends the source.
    Failed(Error),
    /// The position was moved, and is stored at once: no further record up to `after` is delivered,
    /// nor any that had arrived by `until`.
    Moved { after: Option<SequenceNumber>, until: SystemTime },
    /// The end of the shard.
    Ended(Vec<KnownShard>),
    /// The ending position.
    Reached,
}

impl Interrupt {
    /// Returns the item that the source yields, and true if it is the last one.
    pub(super) fn into_item(self) -> (Result<Fetched>, bool) {
        match self {
            Self::Error(error) => (Err(error), false),
            Self::Failed(error) => (Ok(Fetched::Failed(error)), true),
            Self::Moved { after, until } => (Ok(Fetched::Quiet { after, until }), false),
            Self::Ended(children) => (Ok(Fetched::End(children)), true),
            Self::Reached => (Ok(Fetched::Reached), true),
        }
    }
}

impl FetchState {
    /// Handles a failed call: backs off before a retry, or returns an error for the caller.
    pub(super) async fn recover(&mut self, failure: ClassifiedError) -> Result<(), Interrupt> {
        let action = failure.action_after(&mut self.state.panics);
        let error = self.locate_error(failure.error);
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
                    return Err(Interrupt::Failed(error));
                }
            }
            RetryAction::Retry | RetryAction::CoolDown | RetryAction::RestartIterator => {
                self.pace.failed();
            }
            RetryAction::WaitForOther => self.pace.back_off_for_other_subscription(),
            RetryAction::Trimmed => {
                self.see_time(failure.answered);
                return self.trimmed(error);
            }
            RetryAction::Gone => return self.not_found(error).await,
            RetryAction::Report => {
                if error.is_shared() {
                    // The readers of all shards share one call, which has its own back-off.
                    self.pace.failed();
                } else {
                    self.pace.reported();
                }
                let is_known = self.state.reported.is_empty() && self.is_reported(&error);
                if self.state.reported.lasts() || is_known {
                    self.note_panic(&error);
                    return Err(Interrupt::Failed(error));
                }
                if self.state.reported_kinds.insert(&error) {
                    // Without an event, since the caller receives the error.
                    self.telemetry.fetch_failed();
                    if error.is_shared() {
                        // The caller may receive the error from another shard.
                        self.emit_retry(&error);
                    } else {
                        self.note_panic(&error);
                    }
                    return Err(Interrupt::Error(error));
                }
            }
        }
        self.emit_retry(&error);
        Ok(())
    }

    /// Counts a failed call and emits an event for its retry.
    pub(super) fn emit_retry(&mut self, error: &Error) {
        self.state.failed += 1;
        let shard_id = Some(self.shard_id().clone());
        self.telemetry.emit(Event::retried(shard_id, error, self.state.failed));
    }

    /// Emits an event for the records after `after` that are not delivered. Reading continues at
    /// `position`.
    pub(super) fn report_gap(&self, after: Option<SequenceNumber>, position: Checkpoint) {
        let shard_id = self.shard_id().clone();
        self.telemetry.emit(Event::Gap { shard_id, after, position });
    }

    /// Returns true if the caller has received an error of this kind, also from an earlier source
    /// of this shard, and no response has arrived since.
    pub(super) fn is_reported(&self, error: &Error) -> bool {
        self.state.reported_kinds.contains(error)
    }

    /// Emits an event if the error is a panic, regardless of how the error is handled.
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

    /// Adds the stream and the shard to an error.
    pub(super) fn locate_error(&self, error: Error) -> Error {
        error.in_stream(self.kinesis.name()).in_shard(self.shard_id())
    }

    /// Emits an event for the start of the shard.
    pub(super) fn emit_started(&self) {
        let (shard_id, position) = (self.shard_id().clone(), self.position.checkpoint());
        self.telemetry.emit(Event::ShardStarted { shard_id, position });
    }

    pub(super) fn shard_id(&self) -> &ShardId {
        self.telemetry.shard_id()
    }

    /// Returns the records of a response as a batch, without those before the position, and moves
    /// the position. `placed` is true if the server has just begun at the position.
    pub(super) fn unpack(&mut self, response: MeasuredRecords, placed: bool) -> Unpacked {
        let MeasuredRecords { mut records, buffer, memory, bytes, lag } = response;
        (self.state.reported_kinds, self.state.failed, self.state.panics) =
            (ErrorKindSet::default(), 0, 0);
        self.forget_failures();
        (self.state.not_found, self.state.absence) = (FailureStreak::default(), None);
        let millis_behind_latest = self.telemetry.answered(records.len(), bytes, lag);
        if let Some(last) = records.last() {
            let number = String::from_utf8_lossy(last.sequence_number.of(&buffer));
            let records = records.len();
            let sequence_number = &*number;
            log_line!(trace, records, bytes, sequence_number, millis_behind_latest, "fetched");
        }
        let invalid = records.iter().position(|record| !record.has_number);
        records.truncate(invalid.unwrap_or(records.len()));
        let last =
            records.last().and_then(|record| Some((record.number(&buffer)?, record.arrival())));
        let context = ResponseContext {
            stream: Arc::clone(self.kinesis.name()),
            shard_id: self.shard_id().clone(),
            millis_behind_latest,
            epoch: self.epoch,
            ack_sink: Arc::clone(&self.ack_sink),
            buffer,
        };
        let mut batch = Batch::new(records, self.deaggregate, context, memory);
        if placed {
            self.skip_placed(&mut batch);
            if let (0, Some((_, arrival))) = (batch.len(), &last) {
                self.skipped_to(*arrival);
            }
        }
        // Only after the records before the position are skipped: their arrival times decide nothing.
        let is_reached =
            !self.ending.is_never() && batch.end_before(|arrival| self.ending.is_before(arrival));
        if let (1.., Some((last, arrival))) = (batch.len(), last) {
            self.read_to(last, arrival);
        }
        Unpacked { batch, is_reached, has_invalid_number: invalid.is_some() }
    }

    /// Moves the position to the start of the next event, which may be after the last record.
    /// Returns the new position if it is further than the old one. No other record had arrived by
    /// `until`.
    ///
    /// At the tip of the shard the reader has caught up, even if `next` is the number of the last
    /// record.
    pub(super) fn advance(
        &mut self,
        mut next: SequenceNumber,
        until: SystemTime,
        is_tip: bool,
    ) -> Option<QuietProgress> {
        match &self.position {
            Position::AfterSequenceNumber(last, None) if is_tip => next = next.max(last.clone()),
            _ if self.is_further(&next) => {}
            _ => return None,
        }
        self.move_to(Position::CaughtUp { after: Some(next.clone()), until });
        Some(QuietProgress { after: Some(next), until, each: QUIET_SAVE_INTERVAL })
    }

    /// Returns true if the number is after the position.
    pub(super) fn is_further(&self, next: &SequenceNumber) -> bool {
        match &self.position {
            Position::CaughtUp { after: Some(number), .. } => next >= number,
            position => position.number().is_none_or(|number| next > number),
        }
    }

    /// Returns the position of a quiet shard, if it is time to store it.
    pub(super) fn due_position(&mut self, passed: QuietProgress) -> Option<Fetched> {
        let now = Instant::now();
        if self.state.next_quiet_save.is_some_and(|next| now < next) {
            return None;
        }
        let QuietProgress { after, until, each } = passed;
        self.state.next_quiet_save = Some(now + each);
        Some(Fetched::Quiet { after, until })
    }

    /// Drops the user records that belong to another shard.
    pub(super) async fn retain_own(&mut self, batch: &mut Batch) -> Result<(), Interrupt> {
        while batch.is_aggregated() {
            if std::mem::take(&mut self.state.hash_keys_failed) {
                self.pace.ready().await;
            }
            match self.kinesis.hash_range(self.telemetry.shard_id()).await {
                Ok(range) => {
                    self.telemetry.left_out(batch.retain(&range));
                    self.forget_failures();
                    return Ok(());
                }
                Err(failure) => {
                    self.pace.note_call();
                    self.state.hash_keys_failed = true;
                    self.recover(failure).await?;
                }
            }
        }
        Ok(())
    }
}

/// Returns the children of `shard` that a response names; `None` if it names no valid child, which
/// does not prove the end of the shard.
///
/// A split has two children, and a merge has one child with two parents. If fewer are named, or one
/// cannot be parsed, the list is empty: only a listing shows all children with all their parents.
pub(super) fn children(shard: &ShardId, named: &[NamedChild]) -> Option<Vec<KnownShard>> {
    let parse = |child: &NamedChild| {
        let parents = child.parents.iter().map(|id| id.parse().ok());
        let parents = parents.collect::<Option<_>>()?;
        Some(KnownShard { id: child.id.parse().ok()?, parents })
    };
    let is_child = |child: &NamedChild| {
        child.id.parse::<ShardId>().is_ok()
            && child.parents.iter().any(|parent| parent == shard.as_str())
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
