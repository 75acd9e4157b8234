//! The load of this worker's shards: measured at each renewal, stated when it has changed.
//!
//! The load of a shard is what arrives in it: the bytes of its responses, in relation to the time of
//! arrival that they cover. A worker that reads slowly, or that catches up, states the same load as one
//! that keeps up, so a slow worker does not seem to have room.
//!
//! A worker is *strained* if its caller takes records, but fewer than arrive. Each degree of strain makes it count as
//! smaller, until it has kept up for an hour.
//!
//! ```text
//!             behind in 6 measurements, and 6 intervals since the last change
//!   ┌──────────┐ ──────────────────────────────────────────────────────────► ┌──────────────┐
//!   │ strain n │                                                             │ strain n + 1 │
//!   └──────────┘ ◄────────────────────────────────────────────────────────── └──────────────┘
//!                        not behind for an hour since the last change
//! ```
//!
//! Every statement is a change of the table that all workers read. So a worker states its load again
//! only once it differs by a tenth: as an average over nine intervals, so that noise states nothing, and
//! for six intervals after a large change as an average over about two.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::weights::{IDLE, Weights};
use crate::record::ShardId;
use crate::store::lease::{LeaseTable, WorkerLoad};
use crate::telemetry::Reading;

/// The load is stated again once it differs by this part from the stated one.
const STATED_PART: u64 = 10;

/// The part by which a recent average differs from the stated load after a large change.
const LARGE_PART: u64 = 3;

/// The number of intervals after a large change in which the recent average is stated, and the part by
/// which it then differs.
const CHANGING: u32 = 6;
const CHANGED_PART: u64 = 10;

/// The number of intervals over which the averages are taken.
const RECENT: f64 = 1.5;
const LONG: f64 = 9.0;

/// The number of measurements in a row after which a worker that falls behind is strained, and the
/// number of intervals between two degrees. In this time, the leases that move after a degree have moved.
const STRAINED_AFTER: u32 = 6;

/// A worker falls behind if its caller takes less than this part of the records that arrive.
const KEPT_UP_PART: f64 = 0.95;

/// The time for which a worker keeps up before its strain goes down, so that leases that move away
/// from it come back at most once an hour.
const RELIEF: Duration = Duration::from_secs(60 * 60);

const KIB: f64 = 1024.0;

/// A shard that the worker reads, as the meter sees it.
#[derive(Debug, Clone)]
pub(super) struct ReadShard {
    pub(super) id: ShardId,
    pub(super) epoch: u64,
    pub(super) reading: Reading,
}

/// The loads of the shards that this worker reads.
#[derive(Debug)]
pub(super) struct LoadMeter {
    /// The interval between renewals.
    renewal: Duration,
    shards: BTreeMap<ShardId, MeteredShard>,
    measured_at: Instant,
    /// The load as it was stated last; `None` before the first measurement.
    stated: Option<WorkerLoad>,
    /// The end of the time in which the recent average counts.
    changing_until: Instant,
    strain: Strain,
}

#[derive(Debug)]
struct MeteredShard {
    epoch: u64,
    /// The number of records that were delivered until the last measurement.
    delivered: u64,
    /// The first of the readings that reached as far as the last one.
    base: Reading,
    /// KiB per second; `None` until it is measured, or taken from the worker before.
    rate: Option<Rate>,
    /// Records per second.
    records: f64,
    /// True once the shard was read here for a whole interval.
    is_measured: bool,
}

/// The averages over the last few intervals and over more of them.
#[derive(Debug, Clone, Copy)]
struct Rate {
    recent: f64,
    long: f64,
}

impl MeteredShard {
    fn new(epoch: u64, reading: Reading, rate: Option<f64>) -> Self {
        let rate = rate.map(|rate| Rate { recent: rate, long: rate });
        let (delivered, base) = (reading.delivered, reading);
        Self { epoch, delivered, base, rate, records: 0.0, is_measured: false }
    }

    /// Measures what has arrived since the last measurement.
    fn measure(&mut self, reading: &Reading, renewal: Duration) {
        self.is_measured = true;
        let (Some(before), Some(reached)) = (self.base.reached, reading.reached) else {
            self.base = reading.clone();
            return;
        };
        let covered = reached.saturating_duration_since(before).as_secs_f64();
        if covered > 0.0 {
            let share =
                |intervals: f64| 1.0 - (-covered / (intervals * renewal.as_secs_f64())).exp();
            let kib = per_second(self.base.bytes, reading.bytes, covered) / KIB;
            let rate = self.rate.get_or_insert(Rate { recent: kib, long: kib });
            rate.recent += share(RECENT) * (kib - rate.recent);
            rate.long += share(LONG) * (kib - rate.long);
            let records = per_second(self.base.records, reading.records, covered);
            self.records += share(RECENT) * (records - self.records);
        }
        if reached != before {
            self.base = reading.clone();
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn per_second(before: u64, after: u64, seconds: f64) -> f64 {
    after.saturating_sub(before) as f64 / seconds
}

impl LoadMeter {
    pub(super) fn new(renewal: Duration, now: Instant) -> Self {
        let strain = Strain { degree: 0, behind: 0, changed_at: now, behind_at: now };
        let (shards, stated) = (BTreeMap::new(), None);
        Self { renewal, shards, measured_at: now, stated, changing_until: now, strain }
    }

    /// Measures the shards that the worker reads. Does nothing within an interval between renewals.
    /// The table has the loads that the workers before have stated.
    pub(super) fn measure(
        &mut self,
        now: Instant,
        read: impl IntoIterator<Item = ReadShard>,
        table: &LeaseTable,
    ) {
        let elapsed = now.duration_since(self.measured_at);
        if elapsed < self.renewal.mul_f64(0.9) {
            return;
        }
        self.measured_at = now;
        let mut before = std::mem::take(&mut self.shards);
        let mut weights = None;
        let (mut arrives, mut is_taken, mut is_held_up) = (0.0, 0.0, false);
        for ReadShard { id, epoch, reading } in read {
            let known = before.remove(&id).filter(|known| known.epoch == epoch);
            let shard = if let Some(mut known) = known {
                known.measure(&reading, self.renewal);
                known
            } else {
                let stated = weights.get_or_insert_with(|| Weights::of(table)).stated(&id);
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52 KiB per second")]
                let rate = stated.map(|rate| rate as f64);
                MeteredShard::new(epoch, reading.clone(), rate)
            };
            arrives += shard.records;
            is_taken += per_second(shard.delivered, reading.delivered, elapsed.as_secs_f64());
            is_held_up |= reading.is_held_up;
            let delivered = reading.delivered;
            self.shards.insert(id, MeteredShard { delivered, ..shard });
        }
        // A caller that takes nothing is stopped, or the store is away. More workers would not help.
        if is_taken > 0.0 || !is_held_up {
            let is_behind = is_held_up && is_taken < arrives * KEPT_UP_PART;
            self.strain.observe(is_behind, now, self.renewal);
        }
        self.state(now);
    }

    /// States the load if it has changed enough.
    fn state(&mut self, now: Instant) {
        let Some(stated) = &self.stated else {
            if self.shards.values().all(|shard| shard.is_measured) {
                self.stated = Some(self.load(|rate| rate.recent));
            }
            return;
        };
        let recent = self.load(|rate| rate.recent);
        if differs(stated, &recent, self.shards.keys(), LARGE_PART) {
            self.changing_until = now + CHANGING * self.renewal;
        }
        let (load, part) = if now < self.changing_until {
            for rate in self.shards.values_mut().filter_map(|shard| shard.rate.as_mut()) {
                rate.long = rate.recent;
            }
            (recent, CHANGED_PART)
        } else {
            (self.load(|rate| rate.long), STATED_PART)
        };
        if differs(stated, &load, self.shards.keys(), part) {
            self.stated = Some(load);
        }
    }

    /// Returns the load as the worker states it; `None` before the first measurement.
    pub(super) fn stated(&self) -> Option<&WorkerLoad> {
        self.stated.as_ref()
    }

    fn load(&self, average: impl Fn(Rate) -> f64) -> WorkerLoad {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is not negative, and a cast of a large one saturates"
        )]
        let whole = |rate: f64| (rate.round() as u64).min(u64::from(u32::MAX));
        let rates = self
            .shards
            .iter()
            .map(|(id, it)| (id.clone(), it.rate.map_or(0, |rate| whole(average(rate)))));
        WorkerLoad { strain: self.strain.degree, ..WorkerLoad::of(rates) }
    }
}

/// The degree to which a worker falls behind.
#[derive(Debug)]
struct Strain {
    degree: u32,
    /// The number of measurements in a row in which the worker fell behind.
    behind: u32,
    changed_at: Instant,
    /// The last time at which the worker fell behind.
    behind_at: Instant,
}

impl Strain {
    fn observe(&mut self, is_behind: bool, now: Instant, renewal: Duration) {
        if is_behind {
            (self.behind, self.behind_at) = (self.behind + 1, now);
        } else {
            self.behind = 0;
        }
        let has_rested = now >= self.changed_at + STRAINED_AFTER * renewal;
        if self.behind >= STRAINED_AFTER && has_rested && self.degree < WorkerLoad::MAX_STRAIN {
            (self.degree, self.changed_at) = (self.degree + 1, now);
        } else if self.degree > 0 && now >= self.changed_at.max(self.behind_at) + RELIEF {
            (self.degree, self.changed_at) = (self.degree - 1, now);
        }
    }
}

/// Returns true if the loads differ by this part and by an idle shard, or by strain.
fn differs<'a>(
    stated: &'a WorkerLoad,
    load: &'a WorkerLoad,
    shards: impl Iterator<Item = &'a ShardId>,
    part: u64,
) -> bool {
    let of = |load: &WorkerLoad, shard: &ShardId| load.heaviest.get(shard).copied().unwrap_or(0);
    let gone = stated.heaviest.keys().filter(|shard| !load.heaviest.contains_key(shard));
    let named: u64 =
        shards.chain(gone).map(|shard| of(stated, shard).abs_diff(of(load, shard))).sum();
    let difference = named + stated.others.abs_diff(load.others);
    stated.strain != load.strain || difference > IDLE + stated.total().max(load.total()) / part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fixtures::{shard, table};

    const RENEWAL: Duration = Duration::from_secs(3);
    const MIB: u64 = 1024 * 1024;

    struct Metered {
        meter: LoadMeter,
        now: Instant,
        reading: Reading,
    }

    impl Metered {
        /// Returns a meter that has seen its shard with this lag.
        fn new(lag: Duration) -> Self {
            let now = Instant::now() + Duration::from_secs(24 * 60 * 60);
            let reading = Reading { reached: Some(now - lag), ..Reading::default() };
            let mut metered = Self { meter: LoadMeter::new(RENEWAL, now), now, reading };
            metered.pass(0, Duration::ZERO);
            metered
        }

        /// Lets an interval pass in which the worker comes forward by a time of 1 MiB and 100 records per
        /// second, and its caller takes a number of records.
        fn pass(&mut self, taken: u64, covered: Duration) {
            self.now += RENEWAL;
            let millis = u64::try_from(covered.as_millis()).unwrap();
            self.reading.bytes += MIB * millis / 1000;
            self.reading.records += millis / 10;
            self.reading.delivered += taken;
            *self.reading.reached.as_mut().unwrap() += covered;
            self.measure();
        }

        /// Lets an interval pass in which the worker keeps up.
        fn pass_without_bytes(&mut self) {
            self.now += RENEWAL;
            *self.reading.reached.as_mut().unwrap() += RENEWAL;
            self.measure();
        }

        fn measure(&mut self) {
            let read = ReadShard { id: shard(0), epoch: 1, reading: self.reading.clone() };
            self.meter.measure(self.now, [read], &table(&[], &[]));
        }

        fn strain(&self) -> u32 {
            self.meter.stated().unwrap().strain
        }

        fn total(&self) -> u64 {
            self.meter.stated().unwrap().total()
        }
    }

    #[test]
    fn load_is_what_arrives_however_fast_it_is_read() {
        let mut keeps_up = Metered::new(Duration::ZERO);
        let mut falls_behind = Metered::new(Duration::ZERO);
        let mut catches_up = Metered::new(Duration::from_secs(1000));
        let mut has_long_batches = Metered::new(Duration::ZERO);
        for interval in 1..=20 {
            keeps_up.pass(300, RENEWAL);
            falls_behind.pass(200, RENEWAL * 2 / 3);
            catches_up.pass(600, RENEWAL * 2);
            let covered = if interval % 5 == 0 { RENEWAL * 5 } else { Duration::ZERO };
            has_long_batches.pass(300, covered);
        }
        for metered in [&keeps_up, &falls_behind, &catches_up, &has_long_batches] {
            assert_eq!(metered.total(), 1024, "expected 1 MiB per second");
        }
    }

    #[test]
    fn shard_without_responses_has_no_load_and_holds_up_no_statement() {
        let mut metered = Metered::new(Duration::ZERO);
        metered.reading = Reading::default();
        metered.meter = LoadMeter::new(RENEWAL, metered.now);
        for _ in 0..2 {
            metered.now += RENEWAL;
            metered.measure();
        }
        assert_eq!(metered.total(), 0);
    }

    #[test]
    fn strain_rises_only_while_the_caller_holds_up_and_goes_down_after_an_hour() {
        let mut metered = Metered::new(Duration::ZERO);
        for _ in 0..30 {
            metered.pass(200, RENEWAL);
        }
        assert_eq!(metered.strain(), 0, "expected no strain where Kinesis is slow");
        metered.reading.is_held_up = true;
        for _ in 0..30 {
            metered.pass(0, Duration::ZERO);
        }
        assert_eq!(metered.strain(), 0, "expected no strain while nothing is delivered");
        for _ in 0..STRAINED_AFTER - 1 {
            metered.pass(200, RENEWAL);
        }
        assert_eq!(metered.strain(), 0);
        metered.pass(200, RENEWAL);
        assert_eq!(metered.strain(), 1);
        for _ in 0..STRAINED_AFTER {
            metered.pass(200, RENEWAL);
        }
        assert_eq!(metered.strain(), 2);
        metered.pass(300, RENEWAL);
        for _ in 0..STRAINED_AFTER - 1 {
            metered.pass(200, RENEWAL);
        }
        assert_eq!(metered.strain(), 2, "expected no strain by a short burst");
        for _ in 0..1199 {
            metered.pass(300, RENEWAL);
        }
        assert_eq!(metered.strain(), 2);
        metered.pass(300, RENEWAL);
        assert_eq!(metered.strain(), 1);
        for _ in 0..1200 {
            metered.pass(300, RENEWAL);
        }
        assert_eq!(metered.strain(), 0);
        for _ in 0..20 * STRAINED_AFTER {
            metered.pass(200, RENEWAL);
        }
        assert_eq!(metered.strain(), WorkerLoad::MAX_STRAIN);
    }

    /// Returns the number of statements while each interval brings one of these parts of the load.
    fn statements(metered: &mut Metered, percents: impl Iterator<Item = u64>) -> usize {
        let mut count = 0;
        for percent in percents {
            let before = metered.meter.stated().cloned();
            metered.reading.bytes += 3 * MIB * percent / 100;
            metered.pass_without_bytes();
            count += usize::from(metered.meter.stated() != before.as_ref());
        }
        count
    }

    #[test]
    fn load_is_stated_once_it_differs_by_a_tenth() {
        let mut metered = Metered::new(Duration::ZERO);
        statements(&mut metered, [100].into_iter().cycle().take(20));
        assert_eq!(metered.total(), 1024);
        assert_eq!(statements(&mut metered, [107].into_iter().cycle().take(60)), 0);
        assert_eq!(statements(&mut metered, [125].into_iter().cycle().take(60)), 1);
        assert!(metered.total().abs_diff(1280) <= 140, "{}", metered.total());
    }

    #[test]
    fn noise_states_nothing_and_a_large_change_is_stated_at_once() {
        let mut metered = Metered::new(Duration::ZERO);
        statements(&mut metered, [100].into_iter().cycle().take(20));
        let mut random = fastrand::Rng::with_seed(7);
        let noise = (0..1000).map(|_| random.u64(60..=140));
        let count = statements(&mut metered, noise);
        assert!(
            count <= 50,
            "expected at most one statement in 20 intervals, got {count} in 1,000"
        );
        statements(&mut metered, [100].into_iter().cycle().take(60));
        assert!(statements(&mut metered, [300].into_iter().cycle().take(6)) >= 2);
        assert!(metered.total().abs_diff(3072) < 300, "{}", metered.total());
    }
}
