//! Handles responses that prove nothing: an end without evidence, a record without a valid sequence
//! number, a shard that is not found.
//!
//! The position does not move, and the shard is fetched again from there.

use std::time::Duration;

use tokio::time::Instant;

use super::OnTrimmed;
use super::absent_listings::AbsentListings;
use super::failure_streak::{FailureStreak, GIVE_UP_AFTER};
use super::fetch_state::{FetchState, Interrupt};
use crate::checkpoint::Checkpoint;
use crate::error::{ClassifiedError, Error, ErrorKind, RetryAction};
use crate::record::KnownShard;
use crate::telemetry::Event;

/// The number of consecutive responses with a next position that clear a doubt.
const CERTAIN_RESPONSES: u32 = 3;

/// The number of times that an empty response must repeat before it is believed: an end with a
/// `MillisBehindLatest` above zero, or a shard that keeps no record.
pub(super) const BEHIND_RESPONSES: u32 = 4;
/// The time for which such responses must repeat.
pub(super) const BEHIND_FOR: Duration = Duration::from_secs(2);

/// The time for which a shard must not be found before a listing is checked for it. It is far
/// longer than the start of a server or a change of a stream takes.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// The minimum time between the last listing that lacks the shard and the start of the next one.
const NEXT_LISTING: Duration = Duration::from_millis(1);

/// The maximum age of a listing that shows whether a shard is gone or has ended.
const LISTED_WITHIN: Duration = Duration::from_secs(5);

pub(super) const UNPROVEN_END: &str = "the response names no next position, but nothing proves that \
     the shard has ended: no child shard, no EndingSequenceNumber in ListShards; reading continues \
     after the last record";

const LACKS_RECORDS: &str = "the response has no Records member, so records may be missing; reading \
     continues after the last record";

pub(super) const INVALID_NUMBER: &str = "a record has no valid sequence number; reading continues after \
     the record before it";

/// The state of a doubt: consecutive responses that prove nothing.
#[derive(Debug, Default)]
pub(super) struct UnprovenEnds {
    responses: FailureStreak,
    /// The number of consecutive responses with a next position.
    certain: u32,
    is_reported: bool,
    /// The last response had neither a next position nor a proof of the end.
    open_end: bool,
    /// The streak of listings that could have proved the end, but failed for a lasting reason.
    unlisted: FailureStreak,
}

/// A response that names no next position.
pub(super) struct OpenEnd {
    /// The response held no record after the position.
    pub(super) is_empty: bool,
    /// The response held records, which may all precede the position.
    pub(super) has_records: bool,
    /// `MillisBehindLatest`, if the response names it.
    pub(super) lag: Option<i64>,
}

/// Returns the earliest moment at which a listing must have begun to be used now.
pub(super) fn oldest_usable_listing() -> Instant {
    let now = Instant::now();
    now.checked_sub(LISTED_WITHIN).unwrap_or(now)
}

impl FetchState {
    /// Notes a response that names a next position.
    ///
    /// A single response without records does not clear a doubt: ferrokinesis returns one before
    /// each end of an iterator that is placed at the end of a closed shard. Responses that hold
    /// only records up to the position do not count: a placement that begins before the position
    /// returns those in between again.
    pub(super) fn note_next_position(&mut self, is_empty: bool, has_records: bool) {
        let Some(doubt) = &mut self.state.doubt else { return };
        if is_empty && has_records {
            return;
        }
        doubt.certain += 1;
        if !is_empty || doubt.certain >= CERTAIN_RESPONSES {
            self.state.doubt = None;
        }
    }

    /// Reports that the shard is read again, unless a doubt remains or a loss after the position is
    /// not ruled out yet. If the response holds new records, their delivery reports it.
    pub(super) fn report_recovery(&self, is_empty: bool) {
        if is_empty && self.state.doubt.is_none() && self.is_sound() {
            self.telemetry.succeeded();
        }
    }

    /// Notes a response that proves nothing. Emits an event, or returns an error if such responses
    /// last.
    ///
    /// The error ends the source, so that the lease is released. If the response holds new records,
    /// the source continues instead, and the caller receives the error once.
    pub(super) fn doubt(&mut self, what: &str, is_empty: bool) -> Result<(), Interrupt> {
        if let Some(tip) = &mut self.state.tip {
            tip.restart();
        }
        let doubt = self.state.doubt.get_or_insert_default();
        let lasts = doubt.responses.lasts();
        let attempt = doubt.responses.failures();
        doubt.certain = 0;
        let is_due = lasts && (is_empty || !doubt.is_reported);
        doubt.is_reported |= is_due;
        let error = self.error(ErrorKind::Rejected, what);
        if is_due {
            return Err(if is_empty { Interrupt::Failed(error) } else { Interrupt::Error(error) });
        }
        let shard_id = Some(self.shard_id().clone());
        self.telemetry.emit(Event::retried(shard_id, &error, attempt));
        Ok(())
    }

    /// Notes a response without the member `Records`, not even an empty one. Records may be
    /// missing, whatever else the response holds.
    pub(super) fn lacks_records(&mut self) -> Result<(), Interrupt> {
        let outcome = self.doubt(LACKS_RECORDS, true);
        if let Some(doubt) = &mut self.state.doubt {
            doubt.open_end = false;
        }
        outcome
    }

    /// Returns the children of the shard if a response without a next position is proved to be the
    /// end of the shard.
    ///
    /// A listing proves that the shard is closed, but not that it was read to its end. Therefore
    /// the response must also repeat after a new placement at the position.
    pub(super) async fn proven_end(
        &mut self,
        end: &OpenEnd,
    ) -> Result<Option<Vec<KnownShard>>, Interrupt> {
        let repeats_since = self.state.doubt.as_ref().filter(|doubt| {
            let repeats = match end.lag {
                Some(..=0) => true,
                // The size limits of a response may have cut off records after those that it holds.
                Some(_) if end.has_records => false,
                // ferrokinesis keeps increasing the lag of a closed shard.
                Some(_) => {
                    let responses = &doubt.responses;
                    responses.failures() >= BEHIND_RESPONSES && responses.age() >= BEHIND_FOR
                }
                // A response without a lag may lack records too, however often it repeats.
                None => false,
            };
            doubt.open_end && end.is_empty && repeats
        });
        if let Some(since) = repeats_since.and_then(|doubt| doubt.responses.since()) {
            // A listing that does not show the end may be stale, so it is repeated later.
            match self
                .kinesis
                .shard_presence(self.telemetry.shard_id(), since.max(oldest_usable_listing()))
                .await
            {
                Ok(standing) if standing.has_ended => return Ok(Some(standing.children)),
                Ok(_) => {
                    if let Some(doubt) = &mut self.state.doubt {
                        doubt.unlisted = FailureStreak::default();
                    }
                }
                // The source fetches again, and receives the same response.
                Err(failure) => return self.recover_listing(failure).await.map(|()| None),
            }
        }
        let outcome = self.doubt(UNPROVEN_END, end.is_empty);
        if let Some(doubt) = &mut self.state.doubt {
            doubt.open_end = true;
        }
        outcome.map(|()| None)
    }

    /// Handles a failed listing that could have proved the end. Ends the source if such failures
    /// last for [`GIVE_UP_AFTER`]: the successful responses between them reset the other limits.
    async fn recover_listing(&mut self, failure: ClassifiedError) -> Result<(), Interrupt> {
        if failure.action.lasts()
            && let Some(doubt) = &mut self.state.doubt
            && doubt.unlisted.lasts()
        {
            return Err(Interrupt::Failed(self.locate_error(failure.error)));
        }
        self.recover(failure).await
    }

    /// Handles a call that did not find the shard, or a resource named with it. The call is retried
    /// until listings confirm that the shard is gone.
    pub(super) async fn not_found(&mut self, error: Error) -> Result<(), Interrupt> {
        self.state.not_found.note();
        if self.state.not_found.age() >= GONE_AFTER {
            // Each listing counts once.
            let next = self.state.absence.as_ref().map(|absence| absence.last() + NEXT_LISTING);
            let listed_since =
                next.map_or_else(oldest_usable_listing, |next| next.max(oldest_usable_listing()));
            match self.kinesis.shard_presence(self.telemetry.shard_id(), listed_since).await {
                Ok(standing) if !standing.is_listed => {
                    let now = Instant::now();
                    let absence =
                        self.state.absence.get_or_insert_with(|| AbsentListings::begin(now));
                    absence.note(now);
                    if absence.is_proven(self.discovery_interval, now) {
                        return self.left_retention(standing.children);
                    }
                }
                Ok(_) => {
                    if self.state.absence.take().is_some() {
                        // The shard has returned to the listings, so calls may find it soon.
                        self.state.not_found = FailureStreak::default();
                    }
                }
                Err(failure) if failure.action == RetryAction::Gone => {
                    return Err(Interrupt::Failed(error));
                }
                Err(failure) => self.note_panic(&failure.error),
            }
        }
        self.pace.failed();
        // The end of the source discards a proof in progress, so the limit is longer during one.
        let (is_known, reported_after) = match self.state.absence {
            Some(_) => (false, self.discovery_interval.saturating_add(GONE_AFTER + GIVE_UP_AFTER)),
            None => (self.is_reported(&error), GIVE_UP_AFTER),
        };
        if is_known || self.state.not_found.has_lasted(reported_after) {
            return Err(Interrupt::Failed(error));
        }
        self.emit_retry(&error);
        Ok(())
    }

    /// Handles a shard that left retention as a whole while it was read. Fails with
    /// [`OnTrimmed::Fail`]; otherwise reports the gap, and its children follow.
    fn left_retention(&self, children: Vec<KnownShard>) -> Result<(), Interrupt> {
        if self.on_trimmed == OnTrimmed::Fail {
            return Err(Interrupt::Failed(self.error(
                ErrorKind::Trimmed,
                "the shard left the stream's retention while it was read, and records may be lost; \
                 set on_trimmed to continue with its children",
            )));
        }
        self.report_gap(self.position.number().cloned(), Checkpoint::ShardEnd);
        Err(Interrupt::Ended(children))
    }

    pub(super) fn error(&self, kind: ErrorKind, message: &str) -> Error {
        self.locate_error(Error::new(kind, message))
    }
}
