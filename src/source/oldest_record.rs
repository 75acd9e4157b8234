//! Uses the oldest kept record to tell whether records after the position were lost.
//!
//! This is needed when the record at the position itself is not returned.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::fetch_state::{FetchState, Interrupt};
use super::retention::{Beginning, PlacementStart, Retention};
use super::unproven_end::{BEHIND_FOR, BEHIND_RESPONSES};
use super::{OnTrimmed, Position};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::record::SequenceNumber;

/// The time for which a read of the oldest kept record proves that nothing after the position was
/// lost. A loss within that time is not detected. With enhanced fan-out, the next placement takes
/// five seconds. If it takes longer than the proof holds, the next proof holds for twice the time,
/// until a placement is fast enough.
const VERIFIED_FOR: Duration = Duration::from_secs(15);

/// The last probe that proved that nothing was lost, and how long its proof holds. Reset when a
/// placement is sound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verified {
    last: Instant,
    holds_for: Duration,
}

impl Verified {
    fn after(before: Option<Self>) -> Self {
        let doubled = before.map(|before| before.holds_for.saturating_mul(2));
        Self { last: Instant::now(), holds_for: doubled.unwrap_or(VERIFIED_FOR) }
    }
}

/// Placements at the oldest kept record, until a response returns that record.
#[derive(Default)]
pub(super) struct Probe {
    /// The error with which Kinesis rejected the sequence number of the position.
    refused: Option<Error>,
    /// The time of the first response without any record.
    empty_since: Option<Instant>,
    /// The number of responses without any record.
    empty: u32,
}

impl Probe {
    /// Creates a probe after Kinesis rejected the sequence number of the position.
    pub(super) fn after(refusal: Error) -> Self {
        Self { refused: Some(refusal), ..Self::default() }
    }

    /// Counts a response without any record. Returns true once there have been enough of them to be
    /// believed.
    fn is_empty_again(&mut self) -> bool {
        let since = *self.empty_since.get_or_insert_with(Instant::now);
        self.empty += 1;
        self.empty >= BEHIND_RESPONSES && since.elapsed() >= BEHIND_FOR
    }
}

impl FetchState {
    /// Requests that the next placement begins at the oldest kept record, to check the position.
    /// Returns false if placements already begin before the position.
    pub(super) fn seek_oldest(&mut self) -> bool {
        let is_new = !self.begins_before();
        if is_new {
            self.state.retention.probe = Some(Probe::default());
        }
        is_new
    }

    /// Returns true if placements begin before the position instead of at it.
    pub(super) fn begins_before(&self) -> bool {
        let Retention { probe, start, .. } = &self.state.retention;
        probe.is_some() || *start != PlacementStart::Position
    }

    /// Returns true if a record that arrived at `arrival` precedes the start and must not be read.
    pub(super) fn precedes_start(&self, arrival: SystemTime) -> bool {
        matches!(self.state.retention.start, PlacementStart::Time(start) if arrival < start)
    }

    /// Notes how far events without records have brought a subscription that began before the
    /// position. The next subscription continues there, but never at the sequence number of the
    /// position, which may be rejected.
    pub(super) fn approach(&mut self, next: Option<&SequenceNumber>) {
        if self.begins_before() && next != self.position.number() {
            let approached = &mut self.state.retention.approached;
            *approached = next.cloned().max(approached.take());
        }
    }

    /// Returns true if the oldest kept record recently proved that no later record was lost.
    pub(super) fn is_verified(&self) -> bool {
        let verified = self.state.retention.verified;
        verified.is_some_and(|verified| verified.last.elapsed() < verified.holds_for)
    }

    /// Checks the position against the oldest kept record. A response without records must repeat
    /// before it is believed: it may be empty by mistake, and a loss moves the position.
    pub(super) async fn judge_oldest(
        &mut self,
        number: SequenceNumber,
        oldest: Option<SequenceNumber>,
        arrived: Option<SystemTime>,
    ) -> Result<Beginning, Interrupt> {
        let is_empty = oldest.is_none();
        let is_kept = oldest.is_some_and(|oldest| oldest <= number);
        // A caller may name the sequence number at which the shard starts, which need not be that
        // of a record.
        let is_start = if !is_kept && matches!(self.position, Position::AtSequenceNumber(_)) {
            match self.kinesis.start_of(self.telemetry.shard_id()).await {
                Ok(start) => start.is_some_and(|start| number <= start),
                Err(failure) => return self.judge_later(failure),
            }
        } else {
            false
        };
        if is_kept || is_start {
            let retention = &mut self.state.retention;
            retention.probe = None;
            retention.verified = Some(Verified::after(retention.verified));
            return Ok(Beginning::Replaced);
        }
        match self.is_quiet_within_retention().await {
            Ok(true) => {
                self.state.retention.probe = None;
                // The stored time up to which the shard was quiet may be wrong, so only `Latest`
                // relies on it.
                let since = self.quiet_since().filter(|_| self.on_trimmed == OnTrimmed::Latest);
                self.state.retention.start =
                    since.map_or(PlacementStart::Horizon, PlacementStart::Time);
                if let Some(since) = since
                    && arrived.is_some_and(|arrived| arrived < since)
                {
                    // Either an earlier decision leaves these records out, or the server withheld
                    // them from a reader that then stored the shard as caught up.
                    self.report_gap(Some(number), Checkpoint::AtTimestamp(since));
                }
                return Ok(Beginning::Replaced);
            }
            Ok(false) => {}
            Err(failure) => return self.judge_later(failure),
        }
        if let Some(probe) = &mut self.state.retention.probe
            && is_empty
            && !probe.is_empty_again()
        {
            self.pace.failed();
            return Ok(Beginning::Postponed);
        }
        let probe = self.state.retention.probe.take();
        let refused = probe.and_then(|probe| probe.refused);
        self.lose(refused.unwrap_or_else(|| self.number_trimmed_error(&number)))?;
        Ok(Beginning::Replaced)
    }
}
