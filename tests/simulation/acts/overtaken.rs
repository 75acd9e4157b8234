//! A reader that lags by more than a day, and that retention overtakes while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kinestream::testing::{Outcome, Shard};
use kinestream::{Checkpoint, CheckpointOn, ErrorKind, OnTrimmed, Record, StartingPosition};
use tokio::time::{Instant, sleep};

use super::horizon::{DAY, Gap, HOUR, Horizon};
use super::reader::ActReader;
use super::{Act, PATIENCE};
use crate::seeds::pick;
use crate::truth::{Promise, index_of};

/// Without the retention period, a reader that is pushed looks for losses once in that time, unless the
/// next record arrived later than that after the last one.
const CHECK_EACH: Duration = Duration::from_secs(60);

/// A reader pays five seconds for a new subscription, which each record may need.
const CHECK_COST: Duration = Duration::from_secs(6);

/// A reader, and what is true of it.
struct Late {
    reader: ActReader,
    horizon: Horizon,
    policy: OnTrimmed,
    /// The period is unknown, and records are pushed.
    is_unsure: bool,
    /// The place behind the last delivered record of each shard.
    next: BTreeMap<usize, usize>,
    /// Shards whose loss has ended their streams.
    failed: BTreeSet<usize>,
    held: Vec<Record>,
}

impl Act {
    pub(super) async fn be_overtaken(&mut self) {
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
        for shard in self.orders.open_shards() {
            self.put_old(&horizon, &shard, period, is_lowered);
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        horizon.listen(&reader.consumer);
        let is_unsure = is_denied && self.plan.fan_out;
        let (next, failed, held) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let mut late = Late { reader, horizon, policy, is_unsure, next, failed, held };
        self.read_on(&mut late, Duration::from_secs(60), 1).await;
        if is_denied {
            self.truth.tell(format_args!("the retention period is denied"));
            self.kinesis.on_call(|call| match call.operation.as_str() {
                "DescribeStreamSummary" => Outcome::failed(400, "AccessDeniedException", "no"),
                _ => Outcome::Served,
            });
        }
        let (steps, lowered_at) = (self.rng.usize(3..12), self.rng.usize(..3));
        for step in 0..steps {
            self.hold_up(&mut late).await;
            if is_lowered && step == lowered_at {
                late.horizon.lower(period);
            }
            // A reader that knows the period relies on it.
            if !self.plan.fan_out || is_denied {
                self.trim_old(&late);
            }
            let (time, most) = (self.time(1..20_000), self.rng.usize(1..6));
            self.read_on(&mut late, time, most).await;
            if self.truth.is_broken() {
                return;
            }
        }
        self.read_rest(&mut late).await;
        late.reader.close().await;
    }

    /// Puts records that leave retention one after the other, around the end of the period.
    fn put_old(&mut self, horizon: &Horizon, shard: &Shard, period: Duration, is_lowered: bool) {
        let seconds = Duration::from_secs;
        // Records that are older leave when the period is lowered.
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
            if arrival + seconds(600) > now {
                break;
            }
        }
    }

    /// Something keeps the reader from reading for a while.
    async fn hold_up(&mut self, late: &mut Late) {
        match self.rng.u8(..8) {
            0 => {
                let refusal = Outcome::throttled();
                let times = self.rng.usize(1..5);
                self.truth.tell(format_args!("{times} reads are throttled"));
                self.kinesis.next_calls(self.plan.read_call(), times, refusal);
            }
            1 => {
                let shards = self.orders.open_shards();
                let shard = &shards[self.rng.usize(..shards.len())];
                self.truth.tell(format_args!("shard {} is occupied", shard.index()));
                shard.occupy(self.time(1..120_000));
            }
            2 => {
                let outcome = match self.rng.u8(..3) {
                    0 => Outcome::failed(500, "InternalFailureException", ""),
                    1 => Outcome::Lost,
                    _ => Outcome::Delayed(self.time(1..9_000)),
                };
                self.truth.tell(format_args!("the next read: {outcome:?}"));
                self.kinesis.next_calls(self.plan.read_call(), self.rng.usize(1..4), outcome);
            }
            3 => {
                let operation =
                    if self.plan.fan_out { "SubscribeToShard" } else { "GetShardIterator" };
                let times = self.rng.usize(1..4);
                self.truth.tell(format_args!("{times} calls of {operation} are throttled"));
                self.kinesis.next_calls(operation, times, Outcome::throttled());
            }
            4 if self.plan.mode == CheckpointOn::Ack => {
                // The in-flight limit may hold the shard until the next time.
                if let Some(record) = late.reader.next(Duration::from_secs(20)).await {
                    self.judge(late, &record);
                    late.held.push(record);
                }
            }
            _ => {}
        }
        if self.rng.bool() {
            for record in late.held.drain(..) {
                record.ack();
            }
        }
        let longest = pick(&mut self.rng, &[100, 5_000, 60_000, 500_000]);
        let time = self.time(1..longest);
        self.truth.tell(format_args!("the caller is away for {time:?}"));
        sleep(time).await;
    }

    /// Records of a day ago and before leave retention.
    fn trim_old(&mut self, late: &Late) {
        for shard in self.orders.open_shards() {
            let now = self.kinesis.now();
            let arrivals = late.horizon.arrivals(shard.index());
            let old = arrivals.iter().take_while(|arrival| **arrival + DAY <= now).count();
            let left = late.horizon.left(shard.index());
            if left < old && self.rng.u8(..3) == 0 {
                late.horizon.trim(&shard, self.rng.usize(left + 1..=old));
            }
        }
    }

    /// Reads for this time, up to so many records.
    async fn read_on(&mut self, late: &mut Late, time: Duration, most: usize) {
        let end = Instant::now() + time;
        let mut read = 0;
        while read < most && Instant::now() < end {
            let next = late.reader.next(end - Instant::now()).await;
            self.judge_errors(late);
            if let Some(record) = next {
                self.judge(late, &record);
                read += 1;
                if self.plan.mode == CheckpointOn::Ack {
                    record.ack();
                }
            }
        }
    }

    /// Every record that is kept and that `on_trimmed` does not leave out comes, and the reader catches up.
    async fn read_rest(&mut self, late: &mut Late) {
        late.held.drain(..).for_each(|record| record.ack());
        for shard in self.orders.open_shards() {
            late.horizon.put_at(&shard, self.kinesis.now());
        }
        let checks: Duration = self.due(late).iter().map(|_| CHECK_COST).sum();
        let by = Instant::now() + PATIENCE + 4 * self.plan.discovery_interval + checks;
        while !self.due(late).is_empty() && Instant::now() < by && !self.truth.is_broken() {
            self.read_on(late, Duration::from_secs(5), usize::MAX).await;
        }
        let due = self.due(late);
        if !due.is_empty() {
            self.breaks(Promise::NothingIsLost, format_args!("{due:?} are not delivered"));
        }
        for shard in self.orders.shards() {
            self.judge_gaps(late.policy, &late.horizon.gaps(shard.index()));
        }
    }

    /// The records that are to be delivered, by shard and place.
    fn due(&self, late: &Late) -> Vec<(usize, usize)> {
        let mut due = Vec::new();
        for shard in self.orders.shards() {
            let shard = shard.index();
            if late.failed.contains(&shard) {
                continue;
            }
            let next = late.next.get(&shard).copied().unwrap_or_default();
            let from = next.max(late.horizon.left(shard));
            let arrivals = late.horizon.arrivals(shard);
            let decided = late.horizon.gaps(shard).last().map(|gap| gap.at);
            let is_due = |place: &usize| {
                late.policy != OnTrimmed::Latest || decided.is_none_or(|at| arrivals[*place] >= at)
            };
            due.extend((from..arrivals.len()).filter(is_due).map(|place| (shard, place)));
        }
        due
    }

    fn judge_errors(&self, late: &mut Late) {
        for error in std::mem::take(&mut late.reader.errors) {
            let shard = error.shard_id().map(|id| index_of(&id.parse().expect("an id")));
            let is_loss = shard
                .filter(|_| error.kind() == ErrorKind::Trimmed && late.policy == OnTrimmed::Fail);
            let Some(shard) = is_loss else {
                self.breaks(Promise::FewErrors, format_args!("{error}"));
                continue;
            };
            let next = late.next.get(&shard).copied().unwrap_or_default();
            let left = late.horizon.left(shard);
            if left < next.max(1) || !late.failed.insert(shard) {
                self.breaks(
                    Promise::LossesAreReported,
                    format_args!("{error}: {next} records are read, {left} have left"),
                );
            }
        }
    }

    /// Holds a record to what was reported before it.
    fn judge(&self, late: &mut Late, record: &Record) {
        let number = std::str::from_utf8(record.data()).expect("a number");
        let (shard, place) = late.horizon.place(number.parse().expect("a number"));
        let gaps = late.horizon.gaps(shard);
        let before = late.next.insert(shard, place + 1);
        if late.failed.contains(&shard) {
            self.breaks(
                Promise::Order,
                format_args!("shard {shard} has ended with an error, and yields record {place}"),
            );
        }
        let is_lost = |gap: &&Gap| gap.passed == Some(place) && gap.left > place;
        if let Some(gap) = gaps.iter().find(is_lost) {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("record {place} of shard {shard} was reported as lost: {gap:?}"),
            );
        }
        let expected = before.unwrap_or_default();
        if place < expected {
            self.breaks(
                Promise::Order,
                format_args!("shard {shard} goes back from {expected} to {place}"),
            );
        }
        // What leaves retention before a reader has read anything is not due to it.
        let gap = gaps.iter().rfind(|gap| gap.passed == Some(expected));
        if place > expected && before.is_some() && gap.is_none() {
            self.judge_silence(late, shard, expected, place);
        }
        self.judge_left_out(late, shard, expected..place, gap);
    }

    /// Records are left out in silence, which only a reader may that is pushed and that does not know the
    /// period, between two checks.
    fn judge_silence(&self, late: &Late, shard: usize, expected: usize, place: usize) {
        let arrivals = late.horizon.arrivals(shard);
        let is_near = arrivals[place] <= arrivals[expected - 1] + CHECK_EACH;
        // An event without records moves the position of a pushed shard that keeps none past those that it
        // has lost: the subscription under way is not checked then.
        let is_moved = self.plan.fan_out && late.horizon.was_empty(shard, expected + 1..=place);
        if !(late.is_unsure && is_near || is_moved) {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("shard {shard} loses records {expected} to {place} in silence"),
            );
        }
    }

    /// What is left out has left retention, or lies before a decision for the latest.
    fn judge_left_out(
        &self,
        late: &Late,
        shard: usize,
        places: std::ops::Range<usize>,
        gap: Option<&Gap>,
    ) {
        let (left, arrivals) = (late.horizon.left(shard), late.horizon.arrivals(shard));
        let decided = gap.filter(|_| late.policy == OnTrimmed::Latest).map(|gap| gap.at);
        for place in places.clone().filter(|place| *place >= left) {
            if decided.is_none_or(|at| arrivals[place] > at) {
                self.breaks(
                    Promise::NothingIsLost,
                    format_args!("record {place} of shard {shard} is kept and left out"),
                );
            }
        }
        if let Some(at) = decided
            && arrivals[places.end] + Duration::from_secs(2) < at
        {
            self.breaks(
                Promise::NotBeforeTheStart,
                format_args!("record {} of shard {shard} is from before {at:?}", places.end),
            );
        }
    }

    /// A loss is reported where there may be one, and once. Whether records that have left retention
    /// followed a record that has left it, too, cannot be known.
    fn judge_gaps(&self, policy: OnTrimmed, gaps: &[Gap]) {
        for (index, gap) in gaps.iter().enumerate() {
            let before = gaps[..index].iter().rfind(|before| before.passed == gap.passed);
            let least = before.map_or(gap.passed, |before| Some(before.left + 1));
            let is_true = least.is_some_and(|least| gap.left >= least.max(1));
            let is_of_policy = match policy {
                OnTrimmed::TrimHorizon => gap.position == Checkpoint::TrimHorizon,
                OnTrimmed::Latest => matches!(gap.position, Checkpoint::AtTimestamp(_)),
                _ => false,
            };
            if !is_true || !is_of_policy {
                self.breaks(
                    Promise::LossesAreReported,
                    format_args!("no such loss: {gap:?}, after {before:?}"),
                );
            }
        }
    }
}
