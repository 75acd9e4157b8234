//! The columns of the live line of a shard.

use std::time::{Duration, Instant};

use console::{measure_text_width, truncate_str};

use super::Shard;
use crate::output::Paint;
use crate::quantity::{count, duration, rate as rate_shown};
use crate::tail::bar::bar;

/// The columns that fit the width.
#[derive(Debug)]
pub(super) struct Columns {
    has_rate: bool,
    has_records: bool,
    /// The width of the bar, zero for none.
    bar: usize,
}

impl Columns {
    pub(super) fn fit(width: usize) -> Self {
        let bar = if width >= 66 { (width - 50).min(32) } else { 0 };
        Self { has_rate: width >= 36, has_records: width >= 48, bar }
    }

    /// Returns the columns before the bar.
    pub(super) fn width(&self) -> usize {
        self.cells("", "", "", "").chars().count()
    }

    pub(super) fn headings(&self) -> String {
        self.cells("shard", "records/s", "records", "lag").trim_end().to_owned()
    }

    /// Returns the line of a shard: the columns, and the bar and a remark if there is room.
    pub(super) fn row(
        &self,
        name: &str,
        shard: &Shard,
        width: usize,
        paint: Paint,
        now: Instant,
    ) -> String {
        let lag = match shard.lag {
            None => "waiting".to_owned(),
            Some(0) => "caught up".to_owned(),
            Some(lag) => format!("{} behind", duration(Duration::from_millis(lag))),
        };
        let cells =
            self.cells(name, &rate_shown(shard.rate.per_second()), &count(shard.records), &lag);
        let mut line = truncate_str(cells.trim_end(), width, "…").into_owned();
        let mut room = width.saturating_sub(self.width());
        let mut put = |part: String, line: &mut String| {
            let taken = measure_text_width(&part);
            if taken <= room {
                room -= taken;
                let lead = self.width().saturating_sub(measure_text_width(line));
                *line += &format!("{}{part}", " ".repeat(lead));
            }
        };
        if let Some(lag) = shard.lag.filter(|lag| *lag > 0 && self.bar > 0) {
            #[allow(clippy::cast_precision_loss, reason = "a bar has few cells")]
            let fraction = 1.0 - lag as f64 / shard.first_lag.max(lag) as f64;
            put(format!("{} ", bar(fraction, self.bar, paint)), &mut line);
        }
        if shard.throttled.is_some_and(|until| until > now) {
            put(paint.warn("throttled"), &mut line);
        }
        line.trim_end().to_owned()
    }

    fn cells(&self, name: &str, rate: &str, records: &str, lag: &str) -> String {
        let mut line = format!("{name:>5}");
        if self.has_rate {
            line += &format!(" {rate:>10}");
        }
        if self.has_records {
            line += &format!(" {records:>11}");
        }
        line + &format!("  {lag:16}")
    }
}
