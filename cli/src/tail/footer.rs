//! The live lines of a reading: a line per shard, as many as the screen has room for, and a total.

mod columns;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use console::{measure_text_width, truncate_str};
use kinestream::{Event, Record, ShardId};

use super::bar::bar;
use super::rate::Rate;
use crate::output::{Paint, short};
use crate::quantity::{bytes, count, counted, duration, rate as rate_shown};

use columns::Columns;

/// The most lines of shards.
const MAX_ROWS: usize = 10;
/// The time without a record after which a shard that has reported to be caught up has no lag. The
/// report precedes the records that were fetched before it.
const DELIVERED: Duration = Duration::from_secs(2);
/// The time for which a line shows that its shard was throttled.
const THROTTLED: Duration = Duration::from_secs(3);

/// The progress of all shards.
#[derive(Debug)]
pub(super) struct Footer {
    shards: BTreeMap<ShardId, Shard>,
    began: Instant,
    rate: Rate,
}

/// The progress of one shard.
#[derive(Debug, Default)]
struct Shard {
    records: u64,
    bytes: u64,
    /// The lag in milliseconds; `None` before the first response.
    lag: Option<u64>,
    /// The highest lag so far.
    first_lag: u64,
    rate: Rate,
    throttled: Option<Instant>,
    has_ended: bool,
    /// The shard has reported that everything is fetched.
    has_caught_up: bool,
    delivered: Option<Instant>,
}

impl Footer {
    pub(super) fn new(now: Instant) -> Self {
        let mut rate = Rate::default();
        rate.measure(now, 0);
        Self { shards: BTreeMap::new(), began: now, rate }
    }

    /// Counts a record that was delivered.
    pub(super) fn count(&mut self, record: &Record, now: Instant) {
        let lag = u64::try_from(record.millis_behind_latest()).unwrap_or(0);
        self.delivered(record.shard_id(), record.data().len() as u64, lag, now);
    }

    fn delivered(&mut self, shard: &ShardId, bytes: u64, lag: u64, now: Instant) {
        let shard = self.shard(shard);
        shard.records += 1;
        shard.bytes += bytes;
        shard.lag = Some(lag);
        shard.first_lag = shard.first_lag.max(lag);
        shard.delivered = Some(now);
    }

    pub(super) fn on_event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::ShardStarted { shard_id, .. } => {
                self.shard(shard_id).has_ended = false;
            }
            Event::CaughtUp { shard_id } => {
                let shard = self.shard(shard_id);
                shard.has_caught_up = true;
                shard.lag = Some(0);
            }
            Event::Throttled { shard_id: Some(shard_id), .. } => {
                let shard = self.shard(shard_id);
                shard.throttled = Some(now + THROTTLED);
                shard.has_caught_up = false;
            }
            Event::Retried { shard_id: Some(shard_id), .. } => {
                self.shard(shard_id).has_caught_up = false;
            }
            Event::ShardEnded { shard_id, .. }
            | Event::EndingReached { shard_id, .. }
            | Event::LeaseLost { shard_id, .. } => {
                let shard = self.shard(shard_id);
                shard.has_ended = true;
                shard.lag = Some(0);
            }
            _ => {}
        }
    }

    fn shard(&mut self, id: &ShardId) -> &mut Shard {
        if !self.shards.contains_key(id) {
            self.shards.insert(id.clone(), Shard::default());
        }
        self.shards.entry(id.clone()).or_default()
    }

    /// Updates the rates and the lags.
    pub(super) fn measure(&mut self, now: Instant) {
        for shard in self.shards.values_mut() {
            shard.rate.measure(now, shard.records);
            let is_delivered =
                shard.delivered.is_some_and(|at| now.saturating_duration_since(at) >= DELIVERED);
            if shard.has_ended || shard.has_caught_up && is_delivered {
                shard.lag = Some(0);
            }
        }
        let records = self.records();
        self.rate.measure(now, records);
    }

    fn records(&self) -> u64 {
        self.shards.values().map(|shard| shard.records).sum()
    }

    fn bytes(&self) -> u64 {
        self.shards.values().map(|shard| shard.bytes).sum()
    }

    fn lag(&self) -> u64 {
        self.shards.values().filter_map(|shard| shard.lag).max().unwrap_or(0)
    }

    /// Returns the lines for a terminal of this size. They take at most half of its height.
    pub(super) fn lines(
        &self,
        width: usize,
        height: usize,
        paint: Paint,
        now: Instant,
    ) -> Vec<String> {
        let total = self.total(width, paint);
        let room = (height / 2).saturating_sub(2).min(MAX_ROWS);
        let shown = self.shown(room);
        if self.shards.len() < 2 || shown.is_empty() {
            return vec![total];
        }
        let columns = Columns::fit(width);
        let all = self.shards.values().filter(|shard| !shard.has_ended).count();
        let mut headings = columns.headings();
        if shown.len() < all {
            let more = format!("{} of {} shards", shown.len(), count(all as u64));
            headings = format!("{headings:width$}{more}", width = columns.width());
        }
        let mut lines = vec![paint.dim(&truncate_str(&headings, width, "…"))];
        lines.extend(
            shown
                .iter()
                .map(|(id, shard)| columns.row(short(id.as_str()), shard, width, paint, now)),
        );
        lines.push(total);
        lines
    }

    /// Returns the shards with a line: those furthest behind, then those with the most records, in
    /// the order of their names.
    fn shown(&self, room: usize) -> Vec<(&ShardId, &Shard)> {
        let mut shards: Vec<_> = self.shards.iter().filter(|(_, shard)| !shard.has_ended).collect();
        if shards.len() > room {
            // The rate changes the order less often than the records do, so that lines stay.
            shards.sort_by(|(_, a), (_, b)| {
                let order = |shard: &Shard| (shard.lag.unwrap_or(0), shard.records);
                order(b).cmp(&order(a))
            });
            shards.truncate(room);
            shards.sort_by_key(|(id, _)| *id);
        }
        shards
    }

    /// Returns the line of all shards, with a bar while they catch up.
    fn total(&self, width: usize, paint: Paint) -> String {
        let open = self.shards.values().filter(|shard| !shard.has_ended).count() as u64;
        let lag = self.lag();
        let progress = match self.fraction() {
            Some(fraction) => format!(
                "{} {:.0} % {} behind",
                bar(fraction, if width < 60 { 10 } else { 22 }, paint),
                (fraction * 100.0).floor(),
                duration(Duration::from_millis(lag))
            ),
            None if self.shards.is_empty() => paint.dim("starting"),
            None if self.shards.values().any(|shard| shard.lag.is_none()) => paint.dim("waiting"),
            None => paint.good("caught up"),
        };
        // The least important part comes last.
        let parts = [
            progress,
            counted(self.records(), "record"),
            rate_shown(self.rate.per_second()),
            counted(open, "shard"),
            bytes(self.bytes()),
        ];
        let mut line = String::new();
        for part in parts {
            let more = if line.is_empty() { part } else { format!("  {part}") };
            if measure_text_width(&line) + measure_text_width(&more) > width {
                break;
            }
            line += &more;
        }
        if line.is_empty() {
            let lag = duration(Duration::from_millis(lag));
            line = truncate_str(&format!("{lag} behind"), width, "…").into_owned();
        }
        line
    }

    /// Returns the part of the first lag that has been caught up; `None` if no shard is behind.
    #[allow(clippy::cast_precision_loss, reason = "a fraction is shown with few digits")]
    fn fraction(&self) -> Option<f64> {
        let lag: u64 = self.shards.values().filter_map(|shard| shard.lag).sum();
        let first: u64 = self.shards.values().map(|shard| shard.first_lag).sum();
        (lag > 0 && first > 0).then(|| 1.0 - lag as f64 / first.max(lag) as f64)
    }

    /// Returns one line for the end of the reading, in which `printed` records were printed. `is_cut` is
    /// true if it ended at a count.
    pub(super) fn summary(&self, printed: u64, is_cut: bool, now: Instant) -> String {
        let lag = self.lag();
        let records = counted(self.records(), "record");
        let records = if printed == self.records() {
            records
        } else {
            format!("{} of {records}", count(printed))
        };
        let is_over = is_cut || self.shards.values().all(|shard| shard.has_ended);
        format!(
            "{records} ({}) of {} in {:.1} s{}",
            bytes(self.bytes()),
            counted(self.shards.len() as u64, "shard"),
            now.saturating_duration_since(self.began).as_secs_f64(),
            match lag {
                0 if is_over => String::new(),
                0 => ", caught up".to_owned(),
                lag => format!(", {} behind", duration(Duration::from_millis(lag))),
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::snapshot::assert_snapshot;

    fn id(number: usize) -> ShardId {
        format!("shardId-{number:012}").parse().unwrap()
    }

    /// A footer after 10 s with shards of different lags.
    fn footer(shards: usize, behind: u64) -> (Footer, Instant) {
        let began = Instant::now();
        let mut footer = Footer::new(began);
        for number in 0..shards {
            let lag = behind * (number as u64 % 7);
            footer.delivered(&id(number), 100, 2 * lag, began);
            footer.measure(began);
            for _ in 0..number % 5 {
                footer.delivered(&id(number), 100, lag, began);
            }
        }
        let now = began + Duration::from_secs(10);
        footer.on_event(&Event::Throttled { shard_id: Some(id(0)), attempt: 1 }, now);
        footer.measure(now);
        (footer, now)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn lines_fit_any_screen(
            shards in prop::sample::select(vec![0, 1, 2, 3, 10, 100, 1000]),
            behind in prop::sample::select(vec![0, 1, 900, 5_000_000, u64::from(u32::MAX)]),
            width in 20..=200_usize,
            height in 1..=60_usize,
            is_colourful: bool,
        ) {
            let (footer, now) = footer(shards, behind);
            let paint = if is_colourful { Paint::colourful() } else { Paint::plain() };
            let lines = footer.lines(width, height, paint, now);
            prop_assert!(!lines.is_empty());
            prop_assert!(lines.len() <= (height / 2).max(1), "{} lines of {height}", lines.len());
            for line in &lines {
                prop_assert!(measure_text_width(line) <= width, "{line:?}");
            }
        }
    }

    #[test]
    fn lines_are_as_in_the_snapshot() {
        let mut shown = String::new();
        for (shards, behind, width, height) in [
            (1, 0, 80, 24),
            (3, 0, 80, 24),
            (3, 60_000, 100, 30),
            (1000, 60_000, 100, 30),
            (1000, 60_000, 40, 12),
            (3, 60_000, 20, 5),
        ] {
            shown += &format!("shards: {shards}, screen: {width} x {height}\n");
            let (footer, now) = footer(shards, behind);
            for line in footer.lines(width, height, Paint::plain(), now) {
                shown += &format!("|{line}\n");
            }
            shown += &format!("{}\n\n", footer.summary(footer.records() / 2, false, now));
        }
        assert_snapshot("footer.txt", include_str!("../snapshots/footer.txt"), &shown);
    }

    #[test]
    fn shards_furthest_behind_have_lines() {
        let (footer, _) = footer(1000, 60_000);
        let shown = footer.shown(5);
        assert!(shown.iter().all(|(_, shard)| shard.lag >= Some(360_000)), "{shown:?}");
    }

    #[test]
    fn report_that_precedes_the_last_records_ends_the_lag() {
        let began = Instant::now();
        let mut footer = Footer::new(began);
        footer.on_event(&Event::CaughtUp { shard_id: id(0) }, began);
        footer.delivered(&id(0), 100, 5000, began);
        footer.measure(began + Duration::from_secs(1));
        assert_eq!(footer.lag(), 5000);
        footer.measure(began + DELIVERED);
        assert_eq!(footer.lag(), 0);
    }

    #[test]
    fn ended_shard_has_no_line_and_no_lag() {
        let (mut footer, now) = footer(2, 60_000);
        footer.on_event(&Event::ShardEnded { shard_id: id(1), children: Vec::new() }, now);
        assert_eq!(footer.lag(), 0);
        let lines = footer.lines(80, 24, Paint::plain(), now);
        assert!(lines.last().unwrap().starts_with("caught up  3 records"), "{lines:?}");
    }
}
