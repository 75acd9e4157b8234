//! Prints records until the stream ends, the count is reached, or the program is to stop.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use kinestream::{Consumer, Event, Record};
use tokio::time::interval;

use super::footer::Footer;
use super::printer::Printer;
use super::reading::Reading;
use super::sorted;
use crate::arguments::{DynamoDb, Store, TailArguments};
use crate::failure::{Failure, Outcome};
use crate::live::LiveArea;
use crate::output::{Paint, Written, is_pipe, is_reader_gone, short, write_out};
use crate::signals::Stop;

/// The interval at which the live lines are drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);
/// The time after which a worker that has not joined is noted.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
/// The output that is printed at once.
const CHUNK: usize = 1 << 20;

/// Reads with the consumer of the arguments, and closes it at the end.
pub(super) async fn follow(reading: &Reading<'_>, printer: Printer, mut stop: Stop) -> Outcome<()> {
    let consumer = tokio::select! {
        biased;
        () = stop.requested() => return Ok(()),
        consumer = reading.consumer() => consumer?,
    };
    let mut follower = Follower::new(reading, printer, &consumer);
    let outcome = follower.run(&mut stop).await;
    // Releases the leases also after a failure.
    let closed = consumer.close().await;
    follower.finish(outcome.is_ok());
    outcome?;
    Ok(closed?)
}

/// The end of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    More,
    End,
}

struct Follower {
    consumer: Consumer,
    /// The note on a store that does not let this worker join; `None` once it was shown, and without an
    /// application.
    wait_note: Option<String>,
    records: BoxStream<'static, kinestream::Result<Record>>,
    events: kinestream::Events,
    printer: Printer,
    footer: Footer,
    live: LiveArea,
    /// The headings above the first record.
    headings: Option<String>,
    /// The records that were printed, and those that may still be.
    printed: u64,
    left: u64,
    is_quiet: bool,
    /// The reading end of stdout is closed.
    is_reader_gone: bool,
    paint: Paint,
}

impl Follower {
    fn new(reading: &Reading<'_>, printer: Printer, consumer: &Consumer) -> Self {
        let arguments = reading.arguments;
        let events = consumer.events();
        let records = if arguments.sort {
            sorted::by_arrival(consumer).boxed()
        } else {
            consumer.records().boxed()
        };
        Self {
            consumer: consumer.clone(),
            wait_note: wait_note(arguments),
            records,
            events,
            headings: printer
                .headings()
                .filter(|_| std::io::stdout().is_terminal() && !arguments.quiet),
            printer,
            footer: Footer::new(Instant::now()),
            // The reader of a pipe often prints on the same terminal.
            live: LiveArea::new(!arguments.quiet && !is_pipe()),
            printed: 0,
            left: arguments.count.unwrap_or(u64::MAX),
            is_quiet: arguments.quiet,
            is_reader_gone: false,
            paint: Paint::stderr(),
        }
    }

    async fn run(&mut self, stop: &mut Stop) -> Outcome<()> {
        let mut ticks = interval(DRAW_INTERVAL);
        while self.left > 0 {
            tokio::select! {
                biased;
                () = stop.requested() => break,
                _ = ticks.tick() => {
                    if is_reader_gone() {
                        self.is_reader_gone = true;
                        break;
                    }
                    self.note_wait();
                    self.draw();
                }
                Some(event) = self.events.next() => self.on_event(&event),
                next = self.records.next() => {
                    if self.on_records(next, stop).await? == Turn::End {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Prints this record and all others that are ready, and acknowledges them. If the write is
    /// interrupted, the records stay unacknowledged.
    async fn on_records(
        &mut self,
        first: Option<kinestream::Result<Record>>,
        stop: &mut Stop,
    ) -> Outcome<Turn> {
        let (mut lines, mut read, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let mut next = Some(first);
        let now = Instant::now();
        while let Some(Some(Ok(record))) = next {
            self.footer.count(&record, now);
            let (is_printed, note) = self.printer.print(&record, &mut lines);
            notes.extend(note.and_then(|note| self.printer.limited(&note)));
            read.push(record);
            self.printed += u64::from(is_printed);
            self.left -= u64::from(is_printed);
            next = match self.left {
                0 => Some(None),
                _ if lines.len() < CHUNK && read.len() < 10_000 => {
                    self.records.next().now_or_never()
                }
                _ => None,
            };
        }
        for note in notes {
            self.note(&note);
        }
        if !lines.is_empty() {
            if let Some(headings) = self.headings.take() {
                lines.splice(0..0, headings.into_bytes());
            }
            if self.write(lines, stop).await? == Turn::End {
                return Ok(Turn::End);
            }
        }
        for record in read {
            record.ack();
        }
        match next {
            Some(Some(Err(error))) if error.is_temporary() => {
                self.note(&error.to_string());
                Ok(Turn::More)
            }
            Some(Some(Err(error))) => Err(error.into()),
            Some(None) => Ok(Turn::End),
            _ => Ok(Turn::More),
        }
    }

    /// Writes to stdout on another thread, since the reader of a pipe may be slow.
    async fn write(&mut self, lines: Vec<u8>, stop: &mut Stop) -> Outcome<Turn> {
        // Only a terminal shows both.
        let is_shared = self.live.is_drawn() && std::io::stdout().is_terminal();
        if is_shared {
            self.live.clear();
        }
        let mut write = tokio::task::spawn_blocking(move || write_out(&lines));
        let written = tokio::select! {
            biased;
            written = &mut write => written,
            () = stop.requested() => return Ok(Turn::End),
        };
        let written = written
            .map_err(|error| Failure::new(format!("cannot write to stdout: {error}")))
            .flatten()?;
        if is_shared {
            self.draw();
        }
        self.is_reader_gone = written == Written::ReaderGone;
        Ok(if self.is_reader_gone { Turn::End } else { Turn::More })
    }

    fn on_event(&mut self, event: &Event) {
        self.footer.on_event(event, Instant::now());
        if let Some(note) = note(event) {
            self.note(&note);
        }
    }

    /// Notes once that the worker has not joined. The consumer reports the reason only if it lasts.
    fn note_wait(&mut self) {
        if self.wait_note.is_none() {
            return;
        }
        let health = self.consumer.health();
        if health.since_renewal.is_none()
            && health.since_start.is_some_and(|time| time >= JOIN_LIMIT)
            && let Some(note) = self.wait_note.take()
        {
            self.note(&note);
        }
    }

    fn note(&mut self, note: &str) {
        if !self.is_quiet {
            self.live.note(&format!("{} {note}", self.paint.warn("note:")));
        }
    }

    fn draw(&mut self) {
        let now = Instant::now();
        self.footer.measure(now);
        if self.live.is_drawn() {
            let (height, width) = self.live.size();
            self.live.draw(&self.footer.lines(width, height, self.paint, now));
        }
    }

    /// Removes the live lines, and prints a summary.
    fn finish(&mut self, is_success: bool) {
        self.live.clear();
        let undecoded = self.printer.undecoded();
        if undecoded > 0 {
            let records = crate::quantity::counted(undecoded, "record");
            self.note(&format!("{records} could not be decoded"));
        }
        if is_success && !self.is_quiet && !self.is_reader_gone {
            let summary = self.footer.summary(self.printed, self.left == 0, Instant::now());
            self.live.note(&summary);
        }
    }
}

/// Returns the note on a worker that cannot join; `None` without an application.
fn wait_note(arguments: &TailArguments) -> Option<String> {
    arguments.application.as_ref()?;
    Some(match &arguments.store {
        Some(Store::DynamoDb(DynamoDb { kcl_table: Some(table), .. })) => format!(
            "waiting to join the application: a KCL that renews leases in KCL table {table} must be \
             stopped first"
        ),
        _ => "waiting to join the application: the store does not answer".to_owned(),
    })
}

/// Returns a note for an event that the user should know of: a call that has failed twice in a row,
/// a loss, a change of leases.
pub(super) fn note(event: &Event) -> Option<String> {
    let name = |shard: &kinestream::ShardId| short(shard.as_str()).to_owned();
    match event {
        Event::Retried { message, attempt: 2, .. } => Some(format!("retrying: {message}")),
        Event::Throttled { shard_id: Some(shard), attempt: 2 } => {
            Some(format!("shard {} is throttled by Kinesis", name(shard)))
        }
        Event::Throttled { shard_id: None, attempt: 2 } => Some("throttled by Kinesis".to_owned()),
        Event::Resharded { shard_id, parents } => {
            let parents: Vec<_> = parents.iter().map(name).collect();
            let (verb, parents) = match &parents[..] {
                [] => return None,
                [one] => ("split", one.clone()),
                several => ("merged", several.join(" and ")),
            };
            Some(format!("shard {} was {verb} from {parents}", name(shard_id)))
        }
        Event::Gap { shard_id, .. } => Some(format!(
            "records of shard {} left retention before they were read",
            name(shard_id)
        )),
        Event::StoreFailed { message } => Some(format!("checkpoints are not saved: {message}")),
        Event::StoreRecovered { .. } => Some("checkpoints are saved again".to_owned()),
        Event::LeaseLost { shard_id, .. } => {
            Some(format!("another worker has acquired shard {}", name(shard_id)))
        }
        _ => None,
    }
}
