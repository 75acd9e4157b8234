//! `kinestream put`: lines into a stream, one record per line.

mod key;
mod lines;
mod progress;
mod request;
mod sender;

use std::time::Duration;

use tokio::time::timeout;

use crate::arguments::{Aws, PutArguments};
use crate::client::{self, suggest_names};
use crate::failure::{Failure, Outcome};
use crate::output::{escape, write_out};
use crate::quantity::counted;
use crate::signals::Stop;

pub(crate) use key::KeyTemplate;
use lines::{Line, LineReader};
use progress::Progress;
use request::{Entry, Request};
use sender::Sender;

/// A request is sent when no further line follows for this time, as from a program that writes
/// slowly.
const LULL: Duration = Duration::from_millis(200);

pub(crate) async fn run(arguments: &PutArguments, aws: &Aws) -> Outcome<()> {
    let stop = Stop::listen()?;
    let lines = LineReader::open(&arguments.files)?;
    let progress = Progress::new(arguments.quiet);
    if arguments.dry_run {
        return dry_run(arguments, lines, progress, stop).await;
    }
    let client = client::connect(aws).await?;
    let sender = Sender::new(client.clone(), arguments);
    let mut put = Put { arguments, request: Request::default(), sender, progress, stop };
    let outcome = put.all(lines).await;
    match put.finish(outcome) {
        Err(failure) => Err(suggest_names(&client, &arguments.stream, failure).await),
        Ok(()) => Ok(()),
    }
}

struct Put<'a> {
    arguments: &'a PutArguments,
    request: Request,
    sender: Sender,
    progress: Progress,
    stop: Stop,
}

impl Put<'_> {
    /// Puts lines until the input ends or the program is to stop.
    async fn all(&mut self, mut lines: LineReader) -> Outcome<()> {
        while !self.stop.is_requested() {
            let next = tokio::select! {
                biased;
                () = self.stop.requested() => break,
                next = timeout(LULL, lines.next()) => next,
            };
            match next {
                Ok(Some(line)) => self.take(line?).await?,
                Ok(None) => {
                    self.send().await?;
                    break;
                }
                Err(_lull) => self.send().await?,
            }
        }
        Ok(())
    }

    /// Adds a line to the request, and sends the request first if it has no room.
    async fn take(&mut self, line: Line) -> Outcome<()> {
        match entry(self.arguments, line) {
            Ok((_, entry)) => {
                if !self.request.has_room_for(&entry) {
                    self.send().await?;
                }
                self.request.push(entry);
            }
            Err(note) => {
                self.sender.tally.refused += 1;
                self.progress.refuse(self.sender.tally.refused, &note);
            }
        }
        Ok(())
    }

    /// Sends the request until all of its records are stored, or the program is to stop.
    async fn send(&mut self) -> Outcome<()> {
        let mut is_noted = false;
        while !self.request.is_empty() && !self.stop.is_requested() {
            // A request in flight is finished, since its result belongs into the summary.
            if let Some(reason) = self.sender.send(&mut self.request).await?
                && !is_noted
            {
                is_noted = true;
                self.progress.note(&format!("retrying: {}", escape(reason.as_bytes())));
            }
            self.progress.draw(&self.sender.tally);
        }
        self.progress.draw(&self.sender.tally);
        Ok(())
    }

    /// Prints the summary, and returns a failure if a line was not put.
    fn finish(&mut self, outcome: Outcome<()>) -> Outcome<()> {
        self.progress.finish(&self.sender.tally, &self.arguments.stream);
        let refused = self.sender.tally.refused;
        let failure = match outcome {
            Err(failure) => failure,
            Ok(()) if !self.request.is_empty() => {
                Failure::new("stopped before all lines that were read were put")
            }
            Ok(()) if refused > 0 => Failure::new(format!("{} not put", counted(refused, "line"))),
            Ok(()) => return Ok(()),
        };
        Err(match self.request.first_origin() {
            Some(origin) => failure.advise(format!("The first line that is not put is {origin}.")),
            None => failure,
        })
    }
}

/// Returns the key and the record of a line, or a note that says why it has none.
fn entry(arguments: &PutArguments, line: Line) -> Result<(String, Entry), String> {
    let key = arguments.key.key(&line).map_err(|error| format!("{}: {error}", line.origin))?;
    Ok((key.clone(), Entry::new(key, line)?))
}

/// Prints the key and the size of each record.
async fn dry_run(
    arguments: &PutArguments,
    mut lines: LineReader,
    mut progress: Progress,
    mut stop: Stop,
) -> Outcome<()> {
    let mut refused = 0;
    loop {
        let line = tokio::select! {
            biased;
            () = stop.requested() => break,
            line = lines.next() => match line {
                Some(line) => line?,
                None => break,
            },
        };
        let size = line.data.len();
        match entry(arguments, line) {
            Ok((key, _)) => {
                let shown = format!("{} {size} B\n", escape(key.as_bytes()));
                if write_out(shown.as_bytes())? == crate::output::Written::ReaderGone {
                    return Ok(());
                }
            }
            Err(note) => {
                refused += 1;
                progress.refuse(refused, &note);
            }
        }
    }
    match refused {
        0 => Ok(()),
        refused => Err(Failure::new(format!("{} cannot be put", counted(refused, "line")))),
    }
}
