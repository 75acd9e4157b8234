//! Shows one status line per shard on stderr, if that is a terminal: the rate, the lag, and a bar
//! while the shard catches up.

use std::collections::BTreeMap;
use std::time::Duration;

use console::style;
use indicatif::{
    HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget,
    ProgressStyle,
};
use kinestream::{Event, Record, ShardId};
use tokio::time::Instant;

use crate::output::short;

/// The maximum number of lines. More would not be readable.
const MAX_LINES: usize = 24;

/// The progress of one shard.
struct Line {
    bar: Option<ProgressBar>,
    records: u64,
    bytes: u64,
    /// The highest lag so far, in milliseconds.
    first_lag: u64,
    lag: u64,
    /// The time and the record count of the last rate measurement.
    before: (Instant, u64),
    rate: f64,
    /// The line shows `throttled` until this time.
    throttled: Option<Instant>,
}

pub(crate) struct Live {
    bars: MultiProgress,
    shards: BTreeMap<ShardId, Line>,
    began: Instant,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self { bars: MultiProgress::new(), shards: BTreeMap::new(), began: Instant::now() }
    }

    pub(crate) fn count(&mut self, record: &Record) {
        let line = self.line(record.shard_id());
        line.records += 1;
        line.bytes += record.data().len() as u64;
        line.lag = u64::try_from(record.millis_behind_latest()).unwrap_or(0);
        line.first_lag = line.first_lag.max(line.lag);
    }

    /// Updates the lines after an event.
    pub(crate) fn on_event(&mut self, event: &Event) {
        match event {
            Event::ShardStarted { shard_id, .. } => {
                self.line(shard_id);
            }
            Event::Throttled { shard_id: Some(shard_id), .. } => {
                self.line(shard_id).throttled = Some(Instant::now() + Duration::from_secs(3));
            }
            Event::ShardEnded { shard_id, .. } | Event::LeaseLost { shard_id, .. } => {
                if let Some(bar) = self.line(shard_id).bar.take() {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
            _ => {}
        }
    }

    fn line(&mut self, shard: &ShardId) -> &mut Line {
        let is_shown = self.shards.len() < MAX_LINES;
        let above = self.shards.range(..shard).filter(|(_, line)| line.bar.is_some()).count();
        let bars = &self.bars;
        self.shards.entry(shard.clone()).or_insert_with(|| Line {
            bar: is_shown.then(|| bars.insert(above, ProgressBar::new(0))),
            records: 0,
            bytes: 0,
            first_lag: 0,
            lag: 0,
            before: (Instant::now(), 0),
            rate: 0.0,
            throttled: None,
        })
    }

    /// Redraws all lines.
    pub(crate) fn draw(&mut self) {
        for (shard, line) in &mut self.shards {
            line.measure();
            let Some(bar) = &line.bar else { continue };
            let is_behind = line.lag > 0;
            bar.set_style(if is_behind { catching_up() } else { following() });
            bar.set_prefix(short(shard.as_str()).to_owned());
            bar.set_length(line.first_lag);
            bar.set_position(line.first_lag - line.lag);
            bar.set_message(line.status_text());
            bar.tick();
        }
    }

    /// Prints above the status lines.
    pub(crate) fn print_above<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bars.suspend(print)
    }

    /// Stops drawing and returns a summary. The lines stay above it. They are not redrawn, since
    /// the terminal has echoed `^C` after them.
    pub(crate) fn sum_up(self) -> String {
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
        let sum = |count: fn(&Line) -> u64| self.shards.values().map(count).sum::<u64>();
        let behind = self.shards.values().map(|line| line.lag).max().unwrap_or(0);
        format!(
            "{} ({}) of {} in {:.1?}; {} behind",
            counted(sum(|line| line.records), "record"),
            HumanBytes(sum(|line| line.bytes)),
            counted(self.shards.len() as u64, "shard"),
            self.began.elapsed(),
            duration(behind),
        )
    }
}

impl Line {
    fn measure(&mut self) {
        let (at, records) = self.before;
        let time = at.elapsed().as_secs_f64();
        if time >= 1.0 {
            #[allow(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
            let read = (self.records - records) as f64;
            self.rate = read / time;
            self.before = (Instant::now(), self.records);
        }
    }

    fn status_text(&self) -> String {
        let throttled = self.throttled.is_some_and(|until| until > Instant::now());
        let throttled = if throttled {
            style("  throttled").yellow().for_stderr().to_string()
        } else {
            String::new()
        };
        format!(
            "{:>8.1}/s {:>9} {:>10}{throttled}",
            self.rate,
            HumanCount(self.records).to_string(),
            if self.lag == 0 {
                "caught up".to_owned()
            } else {
                format!("{} behind", duration(self.lag))
            },
        )
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

fn duration(millis: u64) -> String {
    match millis {
        0..2000 => format!("{millis} ms"),
        _ => HumanDuration(Duration::from_millis(millis)).to_string(),
    }
}

fn catching_up() -> ProgressStyle {
    let template = "{prefix:>12.cyan} {bar:24} {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn following() -> ProgressStyle {
    let template = "{prefix:>12.cyan} {spinner:24} {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
