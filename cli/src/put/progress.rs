//! The progress and the summary of `put`, on stderr.

use std::time::{Duration, Instant};

use console::truncate_str;

use super::lines::Origin;
use super::sender::Tally;
use crate::live::LiveArea;
use crate::output::{Paint, escape};
use crate::quantity::{bytes, count, counted, rate};

/// The number of refused lines that are noted one by one.
const MAX_NOTES: u64 = 5;
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Progress {
    live: LiveArea,
    paint: Paint,
    is_quiet: bool,
    drawn: Option<Instant>,
}

impl Progress {
    pub(super) fn new(is_quiet: bool) -> Self {
        Self { live: LiveArea::new(!is_quiet), paint: Paint::stderr(), is_quiet, drawn: None }
    }

    pub(super) fn draw(&mut self, tally: &Tally) {
        if self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_INTERVAL) {
            self.drawn = Some(Instant::now());
            let line = shown(tally, tally.began.elapsed());
            self.live.draw(&[truncate_str(&line, self.live.size().1, "…").into_owned()]);
        }
    }

    pub(super) fn note(&mut self, note: &str) {
        if !self.is_quiet {
            self.live.note(&format!("{} {note}", self.paint.warn("note:")));
        }
    }

    /// Counts a line that is no record. Notes the first few, and that there are more.
    pub(super) fn refuse(&mut self, tally: &mut Tally, origin: Origin, note: &str) {
        tally.refused += 1;
        tally.first_refused.get_or_insert(origin);
        let refused = tally.refused;
        let more = if refused == MAX_NOTES { "; further notes are left out" } else { "" };
        if refused <= MAX_NOTES {
            self.note(&format!("{}{more}", escape(note.as_bytes())));
        }
    }

    pub(super) fn finish(&mut self, tally: &Tally, stream: &str) {
        self.live.clear();
        if !self.is_quiet {
            let summary = summary(tally, stream, tally.began.elapsed());
            self.live.note(&summary);
        }
    }
}

fn shown(tally: &Tally, time: Duration) -> String {
    let mut line = format!(
        "{}  {}  {}",
        counted(tally.records, "record"),
        bytes(tally.bytes),
        speed(tally, time)
    );
    if tally.retried > 0 {
        line += &format!("  {} retried", count(tally.retried));
    }
    if tally.refused > 0 {
        line += &format!("  {} refused", count(tally.refused));
    }
    line
}

fn summary(tally: &Tally, stream: &str, time: Duration) -> String {
    let mut line = format!(
        "put {} ({}) into {stream} in {:.1} s, {}",
        counted(tally.records, "record"),
        bytes(tally.bytes),
        time.as_secs_f64(),
        speed(tally, time),
    );
    if tally.retried > 0 {
        line += &format!("; {} retried", count(tally.retried));
    }
    if tally.refused > 0 {
        line += &format!("; {} refused", counted(tally.refused, "line"));
    }
    line
}

#[allow(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
fn speed(tally: &Tally, time: Duration) -> String {
    rate(tally.records as f64 / time.as_secs_f64().max(0.001))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_what_was_not_smooth() {
        let mut tally = Tally { records: 1200, bytes: 4096, ..Tally::new() };
        let time = Duration::from_secs(4);
        assert_eq!(
            summary(&tally, "orders", time),
            "put 1,200 records (4.0 KiB) into orders in 4.0 s, 300/s"
        );
        (tally.retried, tally.refused) = (3, 1);
        assert_eq!(
            summary(&tally, "orders", time),
            "put 1,200 records (4.0 KiB) into orders in 4.0 s, 300/s; 3 retried; 1 line refused"
        );
        assert_eq!(shown(&tally, time), "1,200 records  4.0 KiB  300/s  3 retried  1 refused");
    }
}
