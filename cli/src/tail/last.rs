//! Prints the last records before now: reads back in windows that grow, each before the last one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kinestream::{SequenceNumber, ShardId, StartingPosition};

use super::follow;
use super::printer::Printer;
use super::reading::Reading;
use crate::client::of_stream;
use crate::failure::Outcome;
use crate::live::LiveArea;
use crate::output::{Paint, write_out};
use crate::quantity::{count, counted, duration};
use crate::signals::Stop;

/// The first window.
const FIRST: Duration = Duration::from_secs(4);
/// The age from which a window ends where the one before it began. A shard without records ends five
/// minutes after an ending position, so younger windows are read again instead.
const SETTLED: Duration = Duration::from_secs(6 * 60);
/// The factor by which each window begins further back than the one before.
const GROWTH: u32 = 8;
/// The longest retention of Kinesis.
const LONGEST_RETENTION: Duration = Duration::from_secs(366 * 86_400);

/// A record's place in the order of arrival, which also tells records apart.
type Place = (Option<SystemTime>, ShardId, SequenceNumber, u64);

/// A formatted record, and the note about it.
struct Line {
    text: Vec<u8>,
    note: Option<String>,
}

/// The formatted records that arrived last.
struct Newest {
    lines: BTreeMap<Place, Line>,
    limit: usize,
}

impl Newest {
    fn push(&mut self, place: Place, line: Line) {
        self.lines.insert(place, line);
        if self.lines.len() > self.limit {
            self.lines.pop_first();
        }
    }
}

/// Prints the last `count` selected records in the order of their arrival.
pub(super) async fn print(
    reading: &Reading<'_>,
    count: usize,
    mut printer: Printer,
    mut stop: Stop,
) -> Outcome<()> {
    let mut newest = Newest { lines: BTreeMap::new(), limit: count };
    let mut live = LiveArea::new(!reading.arguments.quiet);
    let is_complete = tokio::select! {
        biased;
        () = stop.requested() => false,
        collected = collect(reading, &mut newest, &mut printer, &mut live) => {
            collected?;
            true
        }
    };
    live.clear();
    if !is_complete {
        return Ok(());
    }
    let found = newest.lines.len();
    let (mut lines, mut notes) = (Vec::new(), Vec::new());
    for line in newest.lines.into_values() {
        lines.extend(line.text);
        notes.extend(line.note.and_then(|note| printer.limited(&note)));
    }
    write_out(&lines)?;
    if found < count {
        let found = counted(found as u64, "record");
        notes.push(format!("the stream holds only {found} of the selection"));
        if printer.undecoded() > 0 && reading.arguments.grep.is_some() {
            notes.push("records that could not be decoded may be left out by --grep".to_owned());
        }
    }
    for text in notes {
        note(reading, &mut live, &text);
    }
    Ok(())
}

fn note(reading: &Reading<'_>, live: &mut LiveArea, text: &str) {
    if !reading.arguments.quiet {
        live.note(&format!("{} {text}", Paint::stderr().warn("note:")));
    }
}

async fn collect(
    reading: &Reading<'_>,
    newest: &mut Newest,
    printer: &mut Printer,
    live: &mut LiveArea,
) -> Outcome<()> {
    let now = SystemTime::now();
    let retention = retention(reading).await.unwrap_or(LONGEST_RETENTION);
    let mut back = FIRST;
    let mut end: Option<SystemTime> = None;
    while newest.lines.len() < newest.limit {
        let is_last = back >= retention;
        let begin = now.checked_sub(back).filter(|_| !is_last);
        let from = begin.map_or(StartingPosition::TrimHorizon, StartingPosition::AtTimestamp);
        read_window(reading, (from, end), back, newest, printer, live).await?;
        if is_last {
            break;
        }
        if back < SETTLED && newest.lines.len() < newest.limit {
            newest.lines.clear();
        } else {
            end = begin;
        }
        back *= GROWTH;
    }
    Ok(())
}

async fn read_window(
    reading: &Reading<'_>,
    (from, end): (StartingPosition, Option<SystemTime>),
    back: Duration,
    newest: &mut Newest,
    printer: &mut Printer,
    live: &mut LiveArea,
) -> Outcome<()> {
    // Records of an older window do not replace those of a newer one.
    let mut window = Newest { lines: BTreeMap::new(), limit: newest.limit - newest.lines.len() };
    let consumer = reading.window(from, end)?;
    let mut events = consumer.events();
    let mut records = consumer.records();
    let mut read = 0_u64;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        let record = tokio::select! {
            biased;
            // A window without records is read for seconds as well.
            _ = ticks.tick() => {
                let found = newest.lines.len() + window.lines.len();
                let progress = format!(
                    "reading back {}: {} read, {} of {} found",
                    duration(back),
                    counted(read, "record"),
                    count(found as u64),
                    count(newest.limit as u64)
                );
                live.draw(&[console::truncate_str(&progress, live.size().1, "…").into_owned()]);
                continue;
            }
            Some(event) = events.next() => {
                if let Some(text) = follow::note(&event) {
                    note(reading, live, &text);
                }
                continue;
            }
            record = records.next() => record,
        };
        let record = match record {
            Some(Ok(record)) => record,
            Some(Err(error)) if error.is_temporary() => {
                note(reading, live, &error.to_string());
                continue;
            }
            Some(Err(error)) => return Err(error.into()),
            None => break,
        };
        read += 1;
        let mut text = Vec::new();
        let (is_printed, note) = printer.print(&record, &mut text);
        let place = (
            record.approximate_arrival(),
            record.shard_id().clone(),
            record.sequence_number().clone(),
            record.sub_sequence_number(),
        );
        if is_printed && !newest.lines.contains_key(&place) {
            window.push(place, Line { text, note });
        }
        record.ack();
    }
    newest.lines.append(&mut window.lines);
    consumer.close().await?;
    Ok(())
}

/// Returns the retention of the stream; `None` if the call fails, since only it may be denied.
async fn retention(reading: &Reading<'_>) -> Option<Duration> {
    let call = reading.client.describe_stream_summary();
    let summary = of_stream!(call, &reading.stream).send().await.ok()?.stream_description_summary?;
    let hours = u64::try_from(summary.retention_period_hours).ok().filter(|hours| *hours > 0)?;
    Some(Duration::from_secs(3600 * hours))
}
