//! A position behind which records are trimmed while no reader runs, with faults while the reader
//! determines the loss.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kinestream::testing::Outcome;
use kinestream::{Checkpoint, CheckpointOn, ErrorKind, OnTrimmed, StartingPosition};
use tokio::time::{Instant, sleep};

use super::horizon::{CLOCK_SKEW, DAY, Horizon};
use super::loss_checks::CheckedReader;
use super::overtaken_reader::refused_number;
use super::{Act, PATIENCE};
use crate::seeds::pick;
use crate::truth::{Promise, index_of};

/// A response that is well-formed and withholds the records.
const EMPTY: &str = r#"{"Records":[],"NextShardIterator":"next","MillisBehindLatest":0}"#;

/// The facts that apply to all readers of the act that start after the loss.
struct Away {
    policy: OnTrimmed,
    horizon: Horizon,
    /// The kinds of errors that have other causes than a loss.
    excused: Vec<ErrorKind>,
    /// The times from which earlier readers have decided to continue.
    decided: BTreeMap<usize, SystemTime>,
}

impl Act {
    pub(super) async fn lose_positions(&mut self) {
        let policy = pick(
            &mut self.rng,
            &[OnTrimmed::Fail, OnTrimmed::TrimHorizon, OnTrimmed::Latest, OnTrimmed::Latest],
        );
        self.kinesis.set_trimmed_numbers_accepted(self.rng.bool());
        let period = pick(&mut self.rng, &[DAY, DAY, 2 * DAY]);
        let horizon = Horizon::new(self, period);
        self.read_first(&horizon, policy).await;
        self.leave_retention(&horizon, period).await;
        let stored = self.stored().await;
        let are_read = stored.iter().all(|(shard, at)| horizon.passed(*shard, at).is_some());
        let excused = self.fail_loss_checks(are_read);
        let mut away = Away { policy, horizon, excused, decided: BTreeMap::new() };
        for _ in 0..self.rng.usize(1..3) {
            if policy == OnTrimmed::Fail || self.truth.is_broken() {
                break;
            }
            self.decide_and_stop(&mut away).await;
            let time = self.time(100..60_000);
            sleep(time).await;
        }
        let mut checked = self.restart(&away).await;
        self.read_rest(&mut checked).await;
        let has_failed = !checked.failed.is_empty();
        checked.reader.close().await;
        if has_failed {
            // A reader with another `on_trimmed` continues behind the loss and reports it.
            away.policy = OnTrimmed::TrimHorizon;
            let mut checked = self.restart(&away).await;
            self.read_rest(&mut checked).await;
            checked.reader.close().await;
        }
    }

    /// Reads some records of each shard, and stores its position.
    async fn read_first(&mut self, horizon: &Horizon, policy: OnTrimmed) {
        for shard in self.orders.open_shards() {
            for _ in 0..self.rng.usize(2..8) {
                horizon.put_at(&shard, self.kinesis.now());
            }
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon.clone(), policy);
        let by = Instant::now() + PATIENCE;
        while checked.next.len() < self.orders.shards().len() && Instant::now() < by {
            self.read_checked(&mut checked, Duration::from_secs(5), 1).await;
        }
        match self.rng.u8(..4) {
            0 | 1 => {
                let (time, most) = (self.time(1..10_000), self.rng.usize(1..9));
                self.read_checked(&mut checked, time, most).await;
            }
            // An idle shard is stored as caught up.
            2 => self.read_checked(&mut checked, Duration::from_secs(90), usize::MAX).await,
            _ => {}
        }
        if self.plan.mode == CheckpointOn::Ack
            && let Some(record) = checked.reader.next(Duration::from_secs(2)).await
        {
            self.truth.log(format_args!("the next record is not acknowledged"));
            self.check_record(&mut checked, &record);
            checked.held.push(record);
        }
        checked.reader.close().await;
    }

    /// Puts and trims records while no reader runs.
    async fn leave_retention(&mut self, horizon: &Horizon, period: Duration) {
        let stored = self.stored().await;
        for _ in 0..self.rng.usize(1..4) {
            let time = self.time(1000..3_600_000);
            sleep(time).await;
            for shard in self.orders.open_shards() {
                for _ in 0..self.rng.usize(..4) {
                    horizon.put_at(&shard, self.kinesis.now());
                }
            }
        }
        if self.rng.bool() {
            let away = period.saturating_sub(self.time(0..7_200_000));
            self.truth.log(format_args!("no reader runs for {away:?}"));
            sleep(away).await;
        }
        if period > DAY && self.rng.bool() {
            horizon.lower(DAY);
        }
        for shard in self.orders.open_shards() {
            // A position that is stored as caught up is compared with the age of the records.
            let is_read =
                matches!(stored.get(&shard.index()), Some(Checkpoint::AfterSequenceNumber { .. }));
            if is_read && self.rng.u8(..3) != 0 {
                let passed = horizon.passed(shard.index(), &stored[&shard.index()]).unwrap_or(0);
                let (from, end) = (passed.saturating_sub(1), horizon.arrivals(shard.index()).len());
                horizon.trim(&shard, self.rng.usize(from..=end));
            }
        }
        // A decision to continue must be later than all records that it skips, by more than the
        // clock skew.
        sleep(CLOCK_SKEW + Duration::from_secs(10)).await;
    }

    /// Injects faults into the calls that determine a loss. Returns the kinds of errors that the
    /// faults may cause.
    fn fail_loss_checks(&mut self, are_read: bool) -> Vec<ErrorKind> {
        let place = self.plan.placement_call();
        let read = self.plan.read_call();
        let internal = Outcome::failed(500, "InternalFailureException", "");
        let denied = Outcome::failed(400, "AccessDeniedException", "no");
        let limited = Outcome::failed(400, "LimitExceededException", "Rate exceeded");
        let mut failures = vec![
            (read, Outcome::throttled()),
            (read, Outcome::Lost),
            (read, internal.clone()),
            (place, Outcome::throttled()),
            (place, internal),
            ("ListShards", denied.clone()),
            ("ListShards", limited.clone()),
            ("DescribeStreamSummary", limited),
            ("DescribeStreamSummary", Outcome::Lost),
        ];
        if are_read {
            // Each of these calls names a sequence number.
            failures.push((place, refused_number()));
        }
        if !self.plan.fan_out {
            failures.push(("DescribeStreamSummary", denied));
            // Too few empty responses for the reader to rely on.
            failures.push(("GetRecords", Outcome::Garbled { status: 200, body: EMPTY.to_owned() }));
        }
        let mut excused = Vec::new();
        for _ in 0..self.rng.usize(..3) {
            let (operation, outcome) = failures.swap_remove(self.rng.usize(..failures.len()));
            let times = self.rng.usize(1..4);
            self.truth.log(format_args!("next {times} calls of {operation}: {outcome:?}"));
            excused.push(match &outcome {
                Outcome::Failed { code, .. } if code == "AccessDeniedException" => {
                    ErrorKind::Denied
                }
                // Kinesis refuses the iterator of this response.
                Outcome::Garbled { .. } => ErrorKind::Rejected,
                _ => ErrorKind::Unavailable,
            });
            self.kinesis.next_calls(operation, times, outcome);
        }
        excused
    }

    async fn restart(&self, away: &Away) -> CheckedReader {
        let (mut checked, _) = self.begin_stored(away.horizon.clone(), away.policy).await;
        checked.excused.clone_from(&away.excused);
        checked.decided.clone_from(&away.decided);
        checked
    }

    /// Starts a reader at the stored positions, and returns these positions.
    pub(super) async fn begin_stored(
        &self,
        horizon: Horizon,
        policy: OnTrimmed,
    ) -> (CheckedReader, BTreeMap<usize, Checkpoint>) {
        let stored = self.stored().await;
        self.truth.log(format_args!("stored: {stored:?}"));
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon, policy);
        checked.next = checked.horizon.passed_by(&stored);
        (checked, stored)
    }

    /// Checks that every loss is reported within a bound, and stops the reader as soon as its
    /// decision is stored.
    async fn decide_and_stop(&mut self, away: &mut Away) {
        let mut checked = self.restart(away).await;
        let horizon = &away.horizon;
        let is_unreported = |shard: usize| {
            let next = checked.next.get(&shard).copied().unwrap_or_default();
            !checked.decided.contains_key(&shard)
                && next > 0
                && horizon.left(shard) > next
                && horizon.gaps(shard).is_empty()
        };
        let lost: Vec<usize> =
            horizon.shards().into_iter().filter(|it| is_unreported(*it)).collect();
        let by = self.deadline();
        let is_due = || lost.iter().any(|shard| horizon.gaps(*shard).is_empty());
        while is_due() && Instant::now() < by {
            self.read_checked(&mut checked, Duration::from_millis(200), 1).await;
        }
        if is_due() {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("losses of shards {lost:?} are not all reported"),
            );
        }
        // The next save of checkpoints stores the decision.
        let time = self.plan.checkpoint_interval + self.time(100..20_000);
        self.read_checked(&mut checked, time, usize::MAX).await;
        self.check_gaps(&checked);
        let shards = horizon.shards().into_iter();
        away.decided = shards
            .filter_map(|shard| Some((shard, checked.decision(shard, usize::MAX)?)))
            .collect();
        let is_closed = self.rng.bool();
        self.truth.log(format_args!("the reader stops; closed: {is_closed}"));
        for shard in self.orders.open_shards() {
            if self.rng.u8(..4) != 0 {
                horizon.put_at(&shard, self.kinesis.now());
            }
        }
        if is_closed {
            checked.reader.close().await;
        } else {
            drop(checked);
        }
    }

    /// Returns the stored position of each shard.
    pub(super) async fn stored(&self) -> BTreeMap<usize, Checkpoint> {
        let reader = self.begin_with(|builder| builder);
        let status = reader.consumer.status().await.expect("the store of an act does not fail");
        let shards = status.shards.into_iter();
        shards.filter_map(|(shard, status)| Some((index_of(&shard), status.position?))).collect()
    }
}
