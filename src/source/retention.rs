//! Detects records that were lost to retention before they were read.
//!
//! Kinesis either rejects a sequence number that has left retention, or accepts it and begins with
//! the oldest kept record. An iterator is therefore placed at the last record read, which is
//! fetched again and skipped. If that record is returned, nothing after it was lost. If it is not,
//! the oldest kept record shows whether it has left retention.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::batch::Batch;
use super::fetch_state::{FetchState, Interrupt, QuietProgress};
use super::kinesis::{MAX_CLOCK_SKEW, server_time};
use super::loss::FailedLossCheck;
use super::oldest_record::{Probe, Verified};
use super::overtaking::NEAR_HORIZON;
use super::response::FirstRecord;
use super::retention_period::SHORTEST_RETENTION;
use super::{OnTrimmed, Position};
use crate::error::ClassifiedError;
use crate::record::SequenceNumber;

/// The time for which a polled shard must be quiet before it is stored as caught up.
const QUIET_AFTER: Duration = Duration::from_secs(60);
/// The interval of such saves from then on: a small part of the shortest retention period.
const QUIET_SAVE_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The evidence of lost records in the responses since the last placement. A placement is a new
/// iterator or subscription.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "the flags are independent")]
pub(super) struct Retention {
    /// The last placement has shown that nothing after the position was lost.
    is_sound: bool,
    /// Set if the next placement is at the oldest kept record.
    pub(super) probe: Option<Probe>,
    /// Set once the oldest kept record has shown that nothing after this position was lost.
    pub(super) verified: Option<Verified>,
    /// Only a record can show whether the last placement is sound.
    needs_record: bool,
    /// The start of placements.
    pub(super) start: PlacementStart,
    /// The sequence number at which placements that begin before the position continue. An event
    /// without records has brought the last placement there.
    pub(super) approached: Option<SequenceNumber>,
    /// The time at which the shard was added, if the position does not show it. Records that
    /// arrived since then must be read.
    added: Option<SystemTime>,
    /// The time up to which there was nothing to read, or up to which losses are reported.
    pub(super) read_until: Option<SystemTime>,
    /// The arrival time of the last fetched record.
    pub(super) last_arrival: Option<SystemTime>,
    /// The earliest time of the next subscription that checks for lost records, if the retention
    /// period is unknown.
    pub(super) next_check: Option<Instant>,
    /// The streak of failed calls that are needed to judge a placement.
    pub(super) unjudged: Option<FailedLossCheck>,
    /// The streak of failed lookups that show whether retention has overtaken a sound placement.
    pub(super) unchecked: Option<FailedLossCheck>,
    /// A time by the server's clock, and the instant at which it was received.
    clock: Option<(SystemTime, Instant)>,
}

/// The start of placements. Records that they return before the position are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum PlacementStart {
    #[default]
    Position,
    /// At the oldest kept record, since the sequence number of the position is rejected or has left
    /// retention.
    Horizon,
    /// At a time, since the sequence number of the position is rejected or has left retention, and
    /// no record before this time is to be read.
    Time(SystemTime),
}

/// The verdict on the responses since the last placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// No record was lost before the response.
    Sound,
    /// The responses do not show yet whether records were lost.
    Undecided,
    /// The response is discarded, and a new placement follows.
    Replaced,
    /// The response is discarded, and a new placement follows after a back-off.
    Postponed,
}

impl Retention {
    pub(super) fn new(added: Option<SystemTime>) -> Self {
        Self { added, ..Self::default() }
    }
}

impl FetchState {
    /// Returns the position at which the next placement begins.
    pub(super) fn begin(&self) -> Position {
        let Retention { probe, start, approached, .. } = &self.state.retention;
        if !self.begins_before() {
            return self.position.clone();
        }
        match (approached, start) {
            (Some(from), _) => Position::AfterSequenceNumber(from.clone(), None),
            (None, PlacementStart::Time(time)) if probe.is_none() => Position::AtTimestamp(*time),
            (None, _) => Position::TrimHorizon,
        }
    }

    /// Drops the records that a placement returned before the position.
    pub(super) fn skip_placed(&self, batch: &mut Batch) {
        batch.skip_past(&self.position);
        if let PlacementStart::Time(time) = self.state.retention.start {
            batch.skip_past(&Position::AtTimestamp(time));
        }
    }

    /// Notes the arrival time of the last record of a response that held only records up to the
    /// position. If placements begin at the oldest kept record, the next one begins at that time,
    /// less [`MAX_CLOCK_SKEW`].
    pub(super) fn skipped_to(&mut self, arrival: Option<SystemTime>) {
        let Some(arrival) = arrival else { return };
        let Retention { start, last_arrival, approached, .. } = &mut self.state.retention;
        *last_arrival = Some(arrival).max(*last_arrival);
        let Some(from) = arrival.checked_sub(MAX_CLOCK_SKEW) else { return };
        *approached = None;
        match *start {
            PlacementStart::Position => {}
            PlacementStart::Horizon => *start = PlacementStart::Time(from),
            PlacementStart::Time(time) => *start = PlacementStart::Time(time.max(from)),
        }
    }

    /// Returns true if the last placement has shown that nothing after the position was lost.
    pub(super) fn is_sound(&self) -> bool {
        self.state.retention.is_sound
    }

    /// Returns true if placements begin at the last record read, which is fetched again.
    pub(super) fn begins_at_last_record(&self) -> bool {
        let has_last_record = matches!(
            self.position,
            Position::AfterSequenceNumber(_, None) | Position::CaughtUp { after: Some(_), .. }
        );
        has_last_record && !self.begins_before()
    }

    /// Notes a placement that was requested at `asked`, and that the server responded to at `date` by
    /// its clock.
    pub(super) fn placed(&mut self, date: Option<SystemTime>, asked: Instant) {
        if let Some(date) = date {
            self.ending.see_date(date, asked);
        }
        (self.state.retention.is_sound, self.state.retention.needs_record) = (false, false);
        if let Some(tip) = &mut self.state.tip {
            tip.restart();
        }
        // The shard exists: one that has left retention has no iterator and no subscription.
        self.state.absence = None;
        self.see_time(date);
    }

    pub(super) fn see_time(&mut self, date: Option<SystemTime>) {
        let retention = &mut self.state.retention;
        if let Some(date) = date {
            retention.clock = Some((date, Instant::now()));
        }
    }

    /// Returns the time by the server's clock at `at`, or an earlier time.
    pub(super) fn server_time_at(&self, at: Instant) -> SystemTime {
        if let Some((date, seen)) = self.state.retention.clock {
            return date + at.saturating_duration_since(seen);
        }
        let now = server_time(None, SystemTime::now());
        now.checked_sub(at.elapsed()).unwrap_or(now)
    }

    /// Returns the time by the server's clock, less a `MillisBehindLatest`.
    pub(super) fn time_behind(&self, lag: i64) -> SystemTime {
        let now = self.server_time_at(Instant::now());
        now.checked_sub(Duration::from_millis(lag.try_into().unwrap_or(0))).unwrap_or(now)
    }

    pub(super) fn move_to(&mut self, position: Position) {
        self.position = position;
        let retention = &mut self.state.retention;
        (retention.verified, retention.start) = (None, PlacementStart::Position);
        (retention.added, retention.approached) = (None, None);
    }

    /// Moves the position to the last record of a response.
    pub(super) fn read_to(&mut self, number: SequenceNumber, arrival: Option<SystemTime>) {
        self.move_to(Position::AfterSequenceNumber(number, None));
        let retention = &mut self.state.retention;
        // A record without a time arrived no earlier than the record before it.
        retention.last_arrival = arrival.or(retention.last_arrival);
        // A reported loss ends at the first record after it.
        (retention.read_until, retention.unchecked) = (None, None);
    }

    /// Judges the responses since the last placement by their first record. If there is none,
    /// `is_tip` states that the shard holds no record from there on.
    pub(super) async fn judge_beginning(
        &mut self,
        first: Option<FirstRecord>,
        is_tip: bool,
    ) -> Result<Beginning, Interrupt> {
        if self.state.retention.is_sound {
            return Ok(Beginning::Sound);
        }
        let beginning = self.judge_placement(first, is_tip).await?;
        if matches!(beginning, Beginning::Sound | Beginning::Replaced) {
            // The calls that this needed have succeeded.
            self.state.retention.unjudged = None;
        }
        Ok(beginning)
    }

    async fn judge_placement(
        &mut self,
        first: Option<FirstRecord>,
        is_tip: bool,
    ) -> Result<Beginning, Interrupt> {
        let Some(number) = self.position.number().cloned() else {
            return self.judge_time(first).await;
        };
        let (first, arrived) = match first {
            Some(FirstRecord { number: Some(number), arrival }) => (Some(number), arrival),
            // The caller of this method reports the invalid sequence number.
            Some(FirstRecord { number: None, .. }) => return Ok(Beginning::Undecided),
            None if is_tip => (None, None),
            None => return self.judge_approach().await,
        };
        if self.state.retention.probe.is_some() {
            return self.judge_oldest(number, first, arrived).await;
        }
        let is_kept = first.is_some_and(|first| first <= number);
        if !is_kept && !self.is_verified() {
            let is_unread = self.on_trimmed == OnTrimmed::Latest
                && self.state.retention.start == PlacementStart::Position
                && arrived.zip(self.quiet_since()).is_some_and(|(arrived, since)| arrived < since);
            match self.is_quiet_within_retention().await {
                // `is_unread`: the record arrived before the quiet time, so `on_trimmed` may have
                // decided to leave it out.
                Ok(is_quiet) if !is_quiet || is_unread => {
                    self.state.retention.probe = Some(Probe::default());
                    return Ok(Beginning::Replaced);
                }
                Ok(_) => {}
                Err(failure) => return self.judge_later(failure),
            }
        }
        Ok(self.is_now_sound())
    }

    fn is_now_sound(&mut self) -> Beginning {
        // A later placement may find that retention has overtaken the position.
        let retention = &mut self.state.retention;
        (retention.is_sound, retention.verified) = (true, None);
        Beginning::Sound
    }

    /// Judges a placement by a response without records that is behind the tip. If every record
    /// that arrived since the position is kept, nothing was lost. With `OnTrimmed::Latest`, an
    /// earlier decision may leave records out; only the first record shows that.
    async fn judge_approach(&mut self) -> Result<Beginning, Interrupt> {
        let Retention { probe, needs_record, start, .. } = &self.state.retention;
        if probe.is_some() || *needs_record {
            return Ok(Beginning::Undecided);
        }
        if self.is_verified() {
            return Ok(self.is_now_sound());
        }
        if self.on_trimmed == OnTrimmed::Latest && *start == PlacementStart::Position {
            return Ok(Beginning::Undecided);
        }
        match self.is_quiet_within_retention().await {
            Ok(true) => Ok(self.is_now_sound()),
            Ok(false) => {
                // The position only gets older, so the check would not succeed later.
                let retention = &mut self.state.retention;
                (retention.needs_record, retention.unjudged) = (true, None);
                Ok(Beginning::Undecided)
            }
            Err(failure) => self.judge_later(failure),
        }
    }

    /// Judges a placement without a sequence number. `first` is the oldest kept record after it, if
    /// there is one.
    async fn judge_time(&mut self, first: Option<FirstRecord>) -> Result<Beginning, Interrupt> {
        if let Some(until) = self.read_until() {
            let oldest = first.and_then(|first| first.arrival);
            match self.is_kept_since(until, oldest).await {
                Ok(true) => {}
                Ok(false) => {
                    let is_unread = self.position == Position::TrimHorizon;
                    self.lose(if is_unread {
                        self.late_shard_error(until)
                    } else {
                        self.position_trimmed_error(until)
                    })?;
                    return Ok(Beginning::Replaced);
                }
                Err(failure) => return self.judge_later(failure),
            }
        }
        self.state.retention.is_sound = true;
        Ok(Beginning::Sound)
    }

    /// Returns the time up to which there was nothing to read, for a position without a record.
    fn read_until(&self) -> Option<SystemTime> {
        let start = match self.position {
            Position::CaughtUp { until, .. } => Some(until),
            // Records that arrived before the start time named by the caller need not be read.
            Position::AtTimestamp(pin) if self.start_time.is_none_or(|start| pin > start) => {
                Some(pin)
            }
            // The same holds for records that left retention before the shard was known.
            Position::TrimHorizon => self.state.retention.added,
            Position::AtTimestamp(pin) => self.state.retention.added.map(|added| added.max(pin)),
            _ => None,
        };
        start.max(self.state.retention.read_until)
    }

    /// Judges the end of a shard. Returns true if nothing was lost before it; otherwise a new
    /// placement follows.
    pub(super) async fn judge_end(&mut self, beginning: Beginning) -> Result<bool, Interrupt> {
        let beginning = match beginning {
            Beginning::Undecided => self.judge_beginning(None, true).await?,
            decided => decided,
        };
        Ok(beginning == Beginning::Sound)
    }

    pub(super) fn judge_later(&mut self, failure: ClassifiedError) -> Result<Beginning, Interrupt> {
        self.recover_judgement(failure)?;
        Ok(Beginning::Postponed)
    }

    /// Returns true if the shard was quiet up to a time after which every record is still kept.
    pub(super) async fn is_quiet_within_retention(&self) -> Result<bool, ClassifiedError> {
        match self.position.quiet_until().max(self.state.retention.read_until) {
            Some(until) => self.is_kept_since(until, None).await,
            None => Ok(false),
        }
    }

    /// Returns the time from which records must be read, if none arrived before the quiet time. It
    /// is [`MAX_CLOCK_SKEW`] earlier, since arrival times come from hosts whose clocks differ.
    pub(super) fn quiet_since(&self) -> Option<SystemTime> {
        self.position.quiet_until()?.checked_sub(MAX_CLOCK_SKEW)
    }

    /// Returns true if the stream still keeps every record that arrived after `until`. `oldest` is
    /// the arrival time of the oldest kept record.
    async fn is_kept_since(
        &self,
        until: SystemTime,
        oldest: Option<SystemTime>,
    ) -> Result<bool, ClassifiedError> {
        let now = self.server_time_at(Instant::now());
        let age = now.duration_since(until).unwrap_or_default();
        // The arrival times of records come from hosts with different clocks.
        let age = age + MAX_CLOCK_SKEW;
        if age < SHORTEST_RETENTION {
            return Ok(true);
        }
        // An operator may lower the period at any time.
        let period = self.kinesis.retention(Instant::now()).await?;
        if period.is_known {
            return Ok(age < period.length);
        }
        let oldest = oldest.and_then(|oldest| now.duration_since(oldest).ok());
        let is_longer = oldest.is_some_and(|age| age > period.length + NEAR_HORIZON);
        // An operator may have set the position to a time within a longer period.
        let is_assumed = is_longer || matches!(self.position, Position::AtTimestamp(_));
        Ok(age < period.length || is_assumed)
    }

    /// Notes a response without records at the tip of the shard, to a call made at `asked`. Returns
    /// the position up to which the shard is read, if a checkpoint can store it.
    pub(super) fn caught_up(&mut self, asked: Instant) -> Option<QuietProgress> {
        let until = self.server_time_at(asked);
        if self.position.number().is_none() {
            self.state.retention.read_until = Some(until);
        }
        let after = match &self.position {
            Position::AfterSequenceNumber(number, None)
            | Position::CaughtUp { after: Some(number), .. } => Some(number.clone()),
            // A restart reads from MAX_CLOCK_SKEW before `until`, which must not precede the start.
            Position::AtTimestamp(start) if until < *start + MAX_CLOCK_SKEW => return None,
            // The next placement begins there again, whatever arrival times later records have.
            Position::TrimHorizon | Position::AtTimestamp(_) | Position::CaughtUp { .. } => None,
            Position::AfterSequenceNumber(_, Some(_)) | Position::AtSequenceNumber(_) => {
                return None;
            }
        };
        if let Some(number) = &after {
            self.position = Position::CaughtUp { after: Some(number.clone()), until };
        }
        Some(QuietProgress { after, until, each: QUIET_SAVE_INTERVAL })
    }

    /// Restarts the time for which a polled shard must be quiet, since records have arrived.
    pub(super) fn restart_quiet(&mut self) {
        self.state.next_quiet_save = Some(Instant::now() + QUIET_AFTER);
    }
}
