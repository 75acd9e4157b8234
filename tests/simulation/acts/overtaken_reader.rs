//! A reader that lags by more than a day and is overtaken by retention while it runs.

use std::time::Duration;

use fastrand::Rng;
use kinestream::testing::{Outcome, Shard};
use kinestream::{Checkpoint, CheckpointOn, OnTrimmed, Record, StartingPosition};
use tokio::time::sleep;

use super::Act;
use super::horizon::{DAY, HOUR, Horizon};
use super::loss_checks::CheckedReader;
use crate::seeds::pick;

/// Draws the time that subscriptions take to approach a record that follows a gap of an hour or
/// more.
pub(super) fn draw_approach(is_pushed: bool, rng: &mut Rng) -> Duration {
    let seconds = if is_pushed { pick(rng, &[0, 0, 0, 7, 60, 240, 420]) } else { 0 };
    Duration::from_secs(seconds)
}

/// The response to a placement if its sequence number is refused.
pub(super) fn refused_number() -> Outcome {
    Outcome::failed(400, "InvalidArgumentException", "StartingSequenceNumber is invalid")
}

/// The parameters of the records that an act puts before its reader starts.
#[derive(Clone, Copy)]
struct Old {
    period: Duration,
    is_lowered: bool,
    /// Some records are hours apart.
    has_gaps: bool,
}

impl Act {
    pub(super) async fn overtake_reader(&mut self) {
        let policies = [
            OnTrimmed::TrimHorizon,
            OnTrimmed::TrimHorizon,
            OnTrimmed::TrimHorizon,
            OnTrimmed::Latest,
            OnTrimmed::Fail,
        ];
        let policy = pick(&mut self.rng, &policies);
        let period = HOUR * pick(&mut self.rng, &[24, 25, 30, 48]);
        let (is_lowered, is_denied) = (self.rng.u8(..3) == 0, self.rng.u8(..3) == 0);
        self.kinesis.set_trimmed_numbers_accepted(self.rng.bool());
        if self.rng.u8(..4) != 0 {
            self.plan.limit = self.rng.u32(1..4);
            self.plan.prefetch = self.rng.usize(..2);
        }
        let longer = if is_lowered { HOUR * pick(&mut self.rng, &[1, 24]) } else { Duration::ZERO };
        let horizon = Horizon::new(self, period + longer);
        let approach = draw_approach(self.plan.fan_out, &mut self.later_rng);
        self.kinesis.set_approach(approach);
        let old = Old { period, is_lowered, has_gaps: !approach.is_zero() };
        for shard in self.orders.open_shards() {
            self.put_old(&horizon, &shard, old);
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon, policy);
        checked.is_unsure = is_denied && self.plan.fan_out;
        checked.approach = approach;
        self.read_checked(&mut checked, Duration::from_secs(60), 1).await;
        if is_denied {
            let denied = Outcome::failed(400, "AccessDeniedException", "no");
            self.refuse("DescribeStreamSummary", denied);
        }
        let (steps, lowered_at) = (self.rng.usize(3..12), self.rng.usize(..3));
        // A restart loses a decision of `OnTrimmed::Latest` that is not stored yet, and enhanced
        // fan-out takes the ARN of the stream from the denied call.
        let is_bound = policy == OnTrimmed::Latest || checked.is_unsure;
        let may_restart = self.later_rng.u8(..3) == 0 && !is_bound;
        let restarted_at = if may_restart { self.later_rng.usize(..steps) } else { steps };
        if !is_denied && self.later_rng.bool() {
            let failed = Outcome::failed(500, "InternalFailureException", "");
            self.kinesis.next_calls("DescribeStreamSummary", self.later_rng.usize(1..4), failed);
        }
        for step in 0..steps {
            if step == restarted_at {
                checked = self.start_again(checked).await;
            }
            self.hold_up(&mut checked).await;
            if is_lowered && step == lowered_at {
                checked.horizon.lower(period);
            }
            // A reader that knows the retention period relies on it, so no record may be trimmed
            // earlier.
            if !self.plan.fan_out || is_denied {
                self.trim_old(&checked);
            }
            let (time, most) = (self.time(1..20_000), self.rng.usize(1..6));
            self.read_checked(&mut checked, time, most).await;
            if self.truth.is_broken() {
                return;
            }
        }
        self.read_rest(&mut checked).await;
        checked.reader.close().await;
    }

    /// Puts records that are trimmed one after the other, with ages around the retention period.
    fn put_old(&mut self, horizon: &Horizon, shard: &Shard, old: Old) {
        let Old { period, is_lowered, has_gaps } = old;
        let seconds = Duration::from_secs;
        // Older records are trimmed when the period is lowered.
        let older = if is_lowered { self.time(0..1_800_000) } else { Duration::ZERO };
        let now = self.kinesis.now();
        let mut arrival = now - period + self.time(5_000..600_000) - older;
        let apart = pick(&mut self.rng, &[1, 20, 100]);
        for _ in 0..self.rng.usize(3..30) {
            horizon.put_at(shard, arrival);
            arrival += match self.rng.u8(..12) {
                0 => Duration::ZERO,
                1 => self.time(60_000..600_000),
                2 => self.time(600_000..3_600_000),
                _ => self.time(0..1000 * apart),
            };
            if has_gaps && self.later_rng.u8(..4) == 0 {
                arrival += HOUR * self.later_rng.u32(1..6);
            }
            if arrival + seconds(600) > now {
                break;
            }
        }
    }

    /// Stops the reader, and starts another one at the stored positions.
    async fn start_again(&mut self, checked: CheckedReader) -> CheckedReader {
        let CheckedReader { reader, horizon, policy, is_unsure, approach, held, .. } = checked;
        held.iter().for_each(Record::ack);
        reader.close().await;
        let is_refused = self.later_rng.bool();
        if is_refused {
            self.refuse_placements();
        }
        let (mut checked, stored) = self.begin_stored(horizon, policy).await;
        (checked.is_unsure, checked.approach, checked.is_refused) =
            (is_unsure, approach, is_refused);
        for (shard, checkpoint) in stored {
            // The position after a loss keeps the sequence number of the last record before the
            // loss.
            if let Checkpoint::CaughtUp { until, .. } = checkpoint {
                let arrivals = checked.horizon.arrivals(shard);
                let next = checked.next.entry(shard).or_default();
                *next = arrivals.partition_point(|arrival| *arrival < until).max(*next);
            }
        }
        checked
    }

    /// Refuses the next placement, and with one shard also the placement at its position after the
    /// oldest record was delivered.
    pub(super) fn refuse_placements(&self) {
        for outcome in [refused_number(), Outcome::Served, refused_number()] {
            self.kinesis.next_calls(self.plan.placement_call(), 1, outcome);
        }
    }

    /// Delays the reader by a fault or an unacknowledged record, and by a pause of the caller.
    async fn hold_up(&mut self, checked: &mut CheckedReader) {
        match self.rng.u8(..8) {
            0 => {
                let refusal = Outcome::throttled();
                let times = self.rng.usize(1..5);
                self.truth.log(format_args!("{times} reads are throttled"));
                self.kinesis.next_calls(self.plan.read_call(), times, refusal);
            }
            1 => {
                let shards = self.orders.open_shards();
                let shard = &shards[self.rng.usize(..shards.len())];
                self.truth.log(format_args!("shard {} is occupied", shard.index()));
                shard.occupy(self.time(1..120_000));
            }
            2 => {
                let outcome = match self.rng.u8(..3) {
                    0 => Outcome::failed(500, "InternalFailureException", ""),
                    1 => Outcome::Lost,
                    _ => Outcome::Delayed(self.time(1..9_000)),
                };
                self.truth.log(format_args!("the next read: {outcome:?}"));
                self.kinesis.next_calls(self.plan.read_call(), self.rng.usize(1..4), outcome);
            }
            3 => {
                let operation = self.plan.placement_call();
                let times = self.rng.usize(1..4);
                self.truth.log(format_args!("{times} calls of {operation} are throttled"));
                self.kinesis.next_calls(operation, times, Outcome::throttled());
            }
            4 if self.plan.mode == CheckpointOn::Ack => {
                // The in-flight limit may block the shard until the next call.
                if let Some(record) = checked.reader.next(Duration::from_secs(20)).await {
                    self.check_record(checked, &record);
                    checked.held.push(record);
                }
            }
            _ => {}
        }
        if self.rng.bool() {
            for record in checked.held.drain(..) {
                record.ack();
            }
        }
        let longest = pick(&mut self.rng, &[100, 5_000, 60_000, 500_000]);
        let time = self.time(1..longest);
        self.truth.log(format_args!("the caller does not poll for {time:?}"));
        sleep(time).await;
    }

    /// Trims some records that are older than a day.
    fn trim_old(&mut self, checked: &CheckedReader) {
        for shard in self.orders.open_shards() {
            let now = self.kinesis.now();
            let arrivals = checked.horizon.arrivals(shard.index());
            let old = arrivals.iter().take_while(|arrival| **arrival + DAY <= now).count();
            let left = checked.horizon.left(shard.index());
            if left < old && self.rng.u8(..3) == 0 {
                checked.horizon.trim(&shard, self.rng.usize(left + 1..=old));
            }
        }
    }
}
