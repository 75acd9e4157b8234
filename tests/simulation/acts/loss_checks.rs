//! Checks the losses that a reader reports: each loss once, before the next delivered record, and
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kinestream::{Checkpoint, CheckpointOn, ErrorKind, OnTrimmed, Record};
use tokio::time::Instant;

use super::Act;
use super::horizon::{CLOCK_SKEW, Gap, HOUR, Horizon};
use super::reader::ActReader;
use crate::truth::{Promise, index_of};

/// The interval at which a reader of enhanced fan-out that does not know the retention period
/// checks for losses. A record that arrived later than this after its predecessor is checked in any
/// case.
const CHECK_EACH: Duration = Duration::from_secs(60);

/// The lifetimes of a subscription and of one that could not be renewed, and the longest time for
/// which the caller does not poll for pushed records.
const LONGEST_UNCHECKED: Duration = Duration::from_secs(300 + 30 + 500);

/// A minute in which a subscription shows nothing, and the lifetime of one that starts at the
/// oldest record.
const PROBE_COST: Duration = Duration::from_secs(60 + 300);

/// The time for which a read of the oldest record shows that nothing behind a refused position was
/// lost.
const SHOWN_FOR: Duration = Duration::from_secs(15);

/// The cost of a check, which each record may need: five seconds for a new subscription, and a
/// margin.
const CHECK_COST: Duration = Duration::from_secs(6);

/// A reader, and the facts that its deliveries and reports are checked against.
pub(super) struct CheckedReader {
    pub(super) reader: ActReader,
    pub(super) horizon: Horizon,
    pub(super) policy: OnTrimmed,
    /// The reader uses enhanced fan-out and does not know the retention period.
    pub(super) is_unsure: bool,
    /// The time that a subscription takes to approach a record that arrived an hour or more after
    /// the previous one.
    pub(super) approach: Duration,
    /// Sequence numbers of positions were refused, so that their shards are approached from an
    /// older record.
    pub(super) is_refused: bool,
    /// The kinds of errors that have other causes than a loss.
    pub(super) excused: Vec<ErrorKind>,
    /// For each shard, the index behind the last delivered record, or behind the stored position.
    pub(super) next: BTreeMap<usize, usize>,
    /// The shards from which this reader has delivered records.
    delivered: BTreeSet<usize>,
    /// The times from which earlier readers have decided to continue.
    pub(super) decided: BTreeMap<usize, SystemTime>,
    /// The shards with streams that a loss has ended.
    pub(super) failed: BTreeSet<usize>,
    pub(super) held: Vec<Record>,
}

impl CheckedReader {
    pub(super) fn new(reader: ActReader, horizon: Horizon, policy: OnTrimmed) -> Self {
        horizon.listen(&reader.consumer);
        Self {
            reader,
            horizon,
            policy,
            is_unsure: false,
            approach: Duration::ZERO,
            is_refused: false,
            excused: Vec::new(),
            next: BTreeMap::new(),
            delivered: BTreeSet::new(),
            decided: BTreeMap::new(),
            failed: BTreeSet::new(),
            held: Vec::new(),
        }
    }

    /// Returns the time from which `OnTrimmed::Latest` has decided to continue, as it applies to a
    /// record at this place: a record that was fetched before the decision is delivered. After a
    /// restart the earlier decision applies, whatever time the new report names, until records
    /// behind that decision are lost as well.
    pub(super) fn decision(&self, shard: usize, place: usize) -> Option<SystemTime> {
        let (gaps, arrivals) = (self.horizon.gaps(shard), self.horizon.arrivals(shard));
        let earlier = self.decided.get(&shard).copied();
        let is_new = |gap: &&Gap| {
            gap.passed.is_none_or(|passed| passed <= place)
                && arrivals[..gap.left].iter().any(|arrival| is_after(earlier, *arrival))
        };
        let times = gaps.iter().filter(is_new).filter_map(|gap| match gap.position {
            Checkpoint::AtTimestamp(time) => Some(time),
            _ => None,
        });
        times.chain(earlier).max()
    }

    /// Returns the time from which a record at this place may be delivered. A restarted reader
    /// reads from [`CLOCK_SKEW`] before a stored decision, because the arrival times of records
    /// come from hosts with different clocks.
    fn earliest(&self, shard: usize, place: usize) -> Option<SystemTime> {
        let decision = self.decision(shard, place)?;
        let is_stored = self.decided.get(&shard) == Some(&decision);
        Some(if is_stored { decision - CLOCK_SKEW } else { decision })
    }

    /// Returns the shards that are read completely. The in-flight limit may keep a reader with
    /// unfinished records from the tip.
    fn tips(&self) -> Vec<usize> {
        let is_read = |shard: &usize| {
            let arrived = self.horizon.arrivals(*shard).len();
            self.held.is_empty() && self.next.get(shard).is_some_and(|next| *next >= arrived)
        };
        self.horizon.shards().into_iter().filter(is_read).collect()
    }

    /// Returns the maximum time of the approach to a record.
    fn approach_cost(&self, (shard, place): (usize, usize)) -> Duration {
        let arrivals = self.horizon.arrivals(shard);
        let is_behind_gap = place > 0 && arrivals[place] >= arrivals[place - 1] + HOUR;
        let has_approach = is_behind_gap && !self.approach.is_zero();
        if has_approach { self.approached_within() } else { Duration::ZERO }
    }

    /// Returns the time within which a reader gets a record that its subscriptions approach. Each
    /// subscription that a check for losses ends lasts twice as long as the one before, so that
    /// together they last less than four times as long as the approach. At most six of them precede
    /// the last one. Each costs [`CHECK_COST`] and the five seconds of an event, and also
    /// [`PROBE_COST`] if only a record can show whether records were lost.
    fn approached_within(&self) -> Duration {
        let needs_record = self.policy == OnTrimmed::Latest || self.is_unsure;
        let probe = if needs_record { PROBE_COST } else { Duration::ZERO };
        4 * self.approach + 6 * (CHECK_COST + Duration::from_secs(5) + probe)
    }

    /// Returns the records that must be delivered, by shard and place.
    pub(super) fn due(&self) -> Vec<(usize, usize)> {
        let mut due = Vec::new();
        for shard in self.horizon.shards() {
            if self.failed.contains(&shard) {
                continue;
            }
            let next = self.next.get(&shard).copied().unwrap_or_default();
            let from = next.max(self.horizon.left(shard));
            let arrivals = self.horizon.arrivals(shard);
            let is_due = |place: &usize| is_after(self.decision(shard, *place), arrivals[*place]);
            due.extend((from..arrivals.len()).filter(is_due).map(|place| (shard, place)));
        }
        due
    }
}

/// Returns true if a record arrived after a decision, which is accurate to one second.
fn is_after(decision: Option<SystemTime>, arrival: SystemTime) -> bool {
    decision.is_none_or(|time| arrival > time + Duration::from_secs(1))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Act {
    /// Reads up to `most` records in this time, and acknowledges each of them at once.
    pub(super) async fn read_checked(
        &self,
        checked: &mut CheckedReader,
        time: Duration,
        most: usize,
    ) {
        let end = Instant::now() + time;
        let mut read = 0;
        while read < most && Instant::now() < end {
            let (began, tips) = (Instant::now(), checked.tips());
            let next = checked.reader.next(end - began).await;
            for shard in tips {
                checked.horizon.polled_at_tip(shard, began.elapsed());
            }
            self.check_loss_errors(checked);
            if let Some(record) = next {
                self.check_record(checked, &record);
                read += 1;
                if self.plan.mode == CheckpointOn::Ack {
                    record.ack();
                }
            }
        }
    }

    /// Checks that every retained record that `on_trimmed` does not skip is delivered.
    pub(super) async fn read_rest(&self, checked: &mut CheckedReader) {
        checked.held.drain(..).for_each(|record| record.ack());
        for shard in self.orders.open_shards() {
            checked.horizon.put_at(&shard, self.kinesis.now());
        }
        let due = checked.due();
        let checks: Duration = due.iter().map(|_| CHECK_COST).sum();
        let approaches: Duration = due.iter().map(|at| checked.approach_cost(*at)).sum();
        let again = if checked.is_refused { checked.approached_within() } else { Duration::ZERO };
        let by = self.deadline() + checks + approaches + again;
        while !checked.due().is_empty() && Instant::now() < by && !self.truth.is_broken() {
            self.read_checked(checked, Duration::from_secs(5), usize::MAX).await;
        }
        let due = checked.due();
        if !due.is_empty() {
            self.breaks(Promise::NothingIsLost, format_args!("records {due:?} are not delivered"));
        }
        self.check_gaps(checked);
    }

    fn check_loss_errors(&self, checked: &mut CheckedReader) {
        for error in std::mem::take(&mut checked.reader.errors) {
            if checked.excused.contains(&error.kind()) {
                continue;
            }
            let shard = error.shard_id().map(index_of);
            let may_fail = error.kind() == ErrorKind::Trimmed && checked.policy == OnTrimmed::Fail;
            let Some(shard) = shard.filter(|_| may_fail) else {
                self.breaks(Promise::FewErrors, format_args!("{error}"));
                continue;
            };
            // If nothing is read yet, the loss is that of a shard that waited.
            let next = checked.next.get(&shard).copied();
            let left = checked.horizon.left(shard);
            let is_false = next.is_some_and(|next| {
                left < next.max(1) || left == next && !checked.horizon.excuses(shard, next)
            });
            // A worker acquires a released shard again after a while and detects the same loss,
            // which is not reported again.
            let is_new = checked.failed.insert(shard);
            if is_false || !is_new {
                self.breaks(
                    Promise::LossesAreReported,
                    format_args!("{error}: {next:?} records are read, {left} are trimmed"),
                );
            }
        }
    }

    /// Checks a delivered record against the losses that were reported before it.
    pub(super) fn check_record(&self, checked: &mut CheckedReader, record: &Record) {
        let number = std::str::from_utf8(record.data()).expect("the payload is a number");
        let (shard, place) =
            checked.horizon.place(number.parse().expect("the payload is a number"));
        let gaps = checked.horizon.gaps(shard);
        if checked.failed.contains(&shard) {
            self.breaks(
                Promise::Order,
                format_args!("shard {shard} has ended with an error, but delivers record {place}"),
            );
        }
        let was_reported_lost = |gap: &&Gap| gap.passed == Some(place) && gap.left > place;
        if let Some(gap) = gaps.iter().find(was_reported_lost) {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("record {place} of shard {shard} was reported as lost: {gap:?}"),
            );
        }
        let before = checked.next.insert(shard, place + 1);
        let expected = before.unwrap_or_default();
        if place < expected {
            self.breaks(
                Promise::Order,
                format_args!("shard {shard} goes back from {expected} to {place}"),
            );
        }
        let is_reported = gaps.iter().any(|gap| gap.passed == Some(expected));
        // Records that are trimmed before anything is read need not be delivered.
        if place > expected && before.is_some() && !is_reported {
            self.check_unreported(checked, shard, expected, place);
        }
        self.check_skipped(checked, shard, expected..place);
        checked.delivered.insert(shard);
    }

    /// Checks records that were skipped without a report. That is allowed after an earlier
    /// decision, and between two checks of a reader of enhanced fan-out that does not know the
    /// retention period.
    fn check_unreported(
        &self,
        checked: &CheckedReader,
        shard: usize,
        expected: usize,
        place: usize,
    ) {
        let arrivals = checked.horizon.arrivals(shard);
        let decided = checked.decided.get(&shard);
        let is_decided = decided.is_some()
            && (expected..place).all(|place| !is_after(decided.copied(), arrivals[place]));
        let is_running = checked.delivered.contains(&shard);
        let is_near = is_running && arrivals[place] <= arrivals[expected - 1] + CHECK_EACH;
        // A subscription shows losses behind its position only when it starts. It is replaced after
        // 10 s, and later each time, so that it reaches the next record. Without a known retention
        // period, records that are trimmed in between are not noticed.
        let since = checked.horizon.left_at(shard, expected);
        let is_late = since.is_some_and(|since| self.kinesis.now() < since + LONGEST_UNCHECKED);
        let is_approached = is_late
            && (expected..=place).any(|place| !checked.approach_cost((shard, place)).is_zero());
        // The oldest record has shown that nothing was lost.
        let is_shown =
            checked.is_refused && since.is_some_and(|since| self.kinesis.now() < since + SHOWN_FOR);
        if !(is_decided || is_shown || checked.is_unsure && (is_near || is_approached)) {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("shard {shard} skips records {expected} to {place} without a report"),
            );
        }
    }

    /// Checks that each skipped record was trimmed, or precedes a decision of `OnTrimmed::Latest`.
    fn check_skipped(&self, checked: &CheckedReader, shard: usize, places: Range<usize>) {
        let (left, arrivals) = (checked.horizon.left(shard), checked.horizon.arrivals(shard));
        for place in places.clone().filter(|place| *place >= left) {
            if is_after(checked.decision(shard, place), arrivals[place]) {
                self.breaks(
                    Promise::NothingIsLost,
                    format_args!("record {place} of shard {shard} is retained, but skipped"),
                );
            }
        }
        let (place, earliest) = (places.end, checked.earliest(shard, places.end));
        if earliest.is_some_and(|time| seconds(arrivals[place]) < seconds(time)) {
            self.breaks(
                Promise::NotBeforeTheStart,
                format_args!("record {place} of shard {shard} precedes the decision to continue"),
            );
        }
    }

    /// Checks that losses are reported only if there may be one, and once. A reader cannot know
    /// whether a trimmed record was followed by other trimmed records.
    pub(super) fn check_gaps(&self, checked: &CheckedReader) {
        for shard in self.orders.shards() {
            let gaps = checked.horizon.gaps(shard.index());
            for (index, gap) in gaps.iter().enumerate() {
                let before = gaps[..index].iter().rfind(|before| before.passed == gap.passed);
                // If nothing is read yet, the loss is that of a shard that waited.
                let least = before.map_or(gap.passed, |before| Some(before.left + 1));
                // If no record behind the position is lost, the reader must have had a reason to
                // assume a loss.
                let is_plausible = gap.passed != Some(gap.left) || gap.is_excused;
                let is_true = least.is_none_or(|least| gap.left >= least.max(1)) && is_plausible;
                let is_of_policy = match checked.policy {
                    OnTrimmed::TrimHorizon => gap.position == Checkpoint::TrimHorizon,
                    OnTrimmed::Latest => matches!(gap.position, Checkpoint::AtTimestamp(_)),
                    _ => false,
                };
                if !is_true || !is_of_policy {
                    self.breaks(
                        Promise::LossesAreReported,
                        format_args!("unexpected report of a loss: {gap:?}, after {before:?}"),
                    );
                }
            }
        }
    }
}
