//! `kinestream put`: lines into a stream, one record per line.

mod ahead;
mod key;
mod lines;
mod progress;
mod request;
mod sender;

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep_until, timeout};

use crate::arguments::{Aws, PutArguments};
use crate::client::{self, Calls, suggest_names};
use crate::failure::{Failure, Outcome};
use crate::output::{Written, escape, write_out};
use crate::quantity::counted;
use crate::signals::Stop;

pub(crate) use key::KeyTemplate;
use lines::{Line, LineReader, Origin};
use progress::Progress;
use request::{Entry, LARGEST_RECORD, Request};
use sender::{Sender, Tally};

/// A request is sent this time after its first line, also if it has room for more.
const DELAY: Duration = Duration::from_millis(200);
/// After a signal, the lines that are read arrive within this time.
const LULL: Duration = Duration::from_millis(200);
/// The bytes that a dry run prints at once.
const SHOWN: usize = 64 << 10;

pub(crate) async fn run(arguments: &PutArguments, aws: &Aws) -> Outcome<()> {
    let mut stop = Stop::listen_for_two()?;
    let mut lines = LineReader::open(&arguments.files)?;
    let progress = Progress::new(arguments.quiet);
    if arguments.dry_run {
        return dry_run(arguments, lines, progress, stop).await;
    }
    let client = client::connect(aws, Some(&arguments.stream), Calls::Short).await?;
    let sender = Sender::new(client.clone(), arguments);
    let progress = RefCell::new(progress);
    let mut put = Put::new(arguments, sender, &progress);
    let (mut first, mut noted) = (stop.clone(), stop.clone());
    // The call that runs when the signal arrives may last.
    let note = async {
        noted.requested().await;
        progress.borrow_mut().note("stopping: the lines that are read already are put");
        std::future::pending::<Infallible>().await
    };
    let outcome = tokio::select! {
        biased;
        () = stop.requested_again() => {
            Err(Failure::new("stopped at once by a second signal"))
        }
        never = note => match never {},
        outcome = put.all(&mut lines, first.requested()) => outcome,
    };
    match put.finish(outcome, &mut lines) {
        Err(failure) => Err(suggest_names(&client, &arguments.stream, failure).await),
        Ok(()) => Ok(()),
    }
}

struct Put<'a> {
    arguments: &'a PutArguments,
    request: Request,
    /// The time at which the request is sent, unless it is full before.
    due: Instant,
    /// The last line that was taken.
    last: Option<Origin>,
    /// The line that is taken and neither in the request nor refused.
    in_hand: Option<Origin>,
    sender: Sender,
    /// Borrowed for the time of a call, never over an await.
    progress: &'a RefCell<Progress>,
}

impl<'a> Put<'a> {
    fn new(arguments: &'a PutArguments, sender: Sender, progress: &'a RefCell<Progress>) -> Self {
        let (request, due) = (Request::default(), Instant::now());
        Self { arguments, request, due, last: None, in_hand: None, sender, progress }
    }

    /// Puts lines until the input ends. After `stop` it reads no further, and puts the lines
    /// that it has read.
    ///
    /// # Errors
    ///
    /// A line that cannot be read fails after the lines before it are put.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the records that are not put in the request, and may have stored them. The
    /// origin of a line that was to join them stays in `in_hand`.
    async fn all(&mut self, lines: &mut LineReader, stop: impl Future<Output = ()>) -> Outcome<()> {
        let mut stop = std::pin::pin!(stop);
        loop {
            let next = tokio::select! {
                biased;
                () = &mut stop => return self.rest(lines).await,
                () = sleep_until(self.due), if !self.request.is_empty() => {
                    self.send().await?;
                    continue;
                }
                next = lines.next() => next,
            };
            match next {
                Some(Ok(line)) => self.take(line).await?,
                Some(Err(failure)) => {
                    self.send().await?;
                    return Err(failure);
                }
                None => return self.send().await,
            }
        }
    }

    /// Puts the lines that are read already.
    async fn rest(&mut self, lines: &mut LineReader) -> Outcome<()> {
        lines.stop();
        let mut outcome = Ok(());
        // The thread that reads may wait for input without an end.
        while let Ok(Some(line)) = timeout(LULL, lines.next()).await {
            match line {
                Ok(line) => self.take(line).await?,
                Err(failure) => outcome = Err(failure),
            }
        }
        self.send().await?;
        if let Some(last) = &self.last {
            let note = format!("stopped after {}", escape_origin(last));
            self.progress.borrow_mut().note(&note);
        }
        outcome
    }

    /// Adds a line to the request, and sends the request first if it has no room.
    async fn take(&mut self, line: Line) -> Outcome<()> {
        let origin = line.origin.clone();
        self.last = Some(origin.clone());
        self.in_hand = Some(origin.clone());
        let entry = match entry(self.arguments, line, LARGEST_RECORD) {
            Ok((_, entry)) => {
                let limit = self.sender.max_record(entry.size()).await;
                entry.refusal(limit).map_or(Ok(entry), Err)
            }
            Err(note) => Err(note),
        };
        match entry {
            Ok(entry) => {
                if !self.request.has_room_for(&entry) {
                    self.send().await?;
                }
                if self.request.is_empty() {
                    self.due = Instant::now() + DELAY;
                }
                self.request.push(entry);
            }
            Err(note) => {
                self.progress.borrow_mut().refuse(&mut self.sender.tally, origin, &note);
            }
        }
        self.in_hand = None;
        Ok(())
    }

    /// Sends the request until all of its records are stored.
    async fn send(&mut self) -> Outcome<()> {
        let mut is_noted = false;
        while !self.request.is_empty() {
            if let Some(reason) = self.sender.send(&mut self.request).await?
                && !is_noted
            {
                is_noted = true;
                let note = format!("retrying: {}", escape(reason.as_bytes()));
                self.progress.borrow_mut().note(&note);
            }
            self.progress.borrow_mut().draw(&self.sender.tally);
        }
        self.progress.borrow_mut().draw(&self.sender.tally);
        Ok(())
    }

    /// Prints the summary, and returns a failure if a line was not put.
    fn finish(&mut self, outcome: Outcome<()>, lines: &mut LineReader) -> Outcome<()> {
        self.progress.borrow_mut().finish(&self.sender.tally, &self.arguments.stream);
        let refused = self.sender.tally.refused;
        let failure = match outcome {
            Err(failure) => failure,
            Ok(()) if refused > 0 => Failure::new(format!("{} not put", counted(refused, "line"))),
            Ok(()) => return Ok(()),
        };
        let unsent = [
            self.request.first_origin().cloned(),
            self.in_hand.take(),
            lines.next_read().map(|line| line.origin),
            self.sender.tally.first_refused.clone(),
        ];
        let first = unsent.into_iter().flatten().min();
        Err(match first {
            Some(origin) => failure
                .advise(format!("The first line that is not put is {}.", escape_origin(&origin))),
            None => failure,
        })
    }
}

fn escape_origin(origin: &Origin) -> String {
    escape(origin.to_string().as_bytes())
}

/// Returns the key and the record of a line, or a note that says why it has none.
fn entry(arguments: &PutArguments, line: Line, limit: usize) -> Result<(String, Entry), String> {
    let key = arguments.key.key(&line).map_err(|error| format!("{}: {error}", line.origin))?;
    Ok((key.clone(), Entry::new(key, line, limit)?))
}

/// Prints the key and the size of each record, of the lines that are ready at once.
async fn dry_run(
    arguments: &PutArguments,
    mut lines: LineReader,
    mut progress: Progress,
    mut stop: Stop,
) -> Outcome<()> {
    let mut tally = Tally::new();
    let (mut shown, mut next) = (String::new(), None);
    let mut unread = None;
    loop {
        let line = if let Some(line) = next.take() {
            line
        } else {
            if write(std::mem::take(&mut shown), &mut stop).await? == Written::ReaderGone {
                break;
            }
            tokio::select! {
                biased;
                () = stop.requested() => None,
                line = lines.next() => line,
            }
        };
        let line = match line {
            Some(Ok(line)) => line,
            Some(Err(failure)) => {
                unread = Some(failure);
                break;
            }
            None => break,
        };
        let (size, origin) = (line.data.len(), line.origin.clone());
        match entry(arguments, line, LARGEST_RECORD) {
            Ok((key, _)) => shown += &format!("{} {size} B\n", escape(key.as_bytes())),
            Err(note) => progress.refuse(&mut tally, origin, &note),
        }
        if shown.len() < SHOWN {
            next = lines.next().now_or_never();
        }
    }
    write(shown, &mut stop).await?;
    match (unread, tally.refused) {
        (Some(failure), _) => Err(failure),
        (None, 0) => Ok(()),
        (None, refused) => Err(Failure::new(format!("{} cannot be put", counted(refused, "line")))),
    }
}

/// Writes to stdout on another thread, since the reader of a pipe may be slow. A signal ends the
/// waiting as a closed pipe does.
async fn write(text: String, stop: &mut Stop) -> Outcome<Written> {
    if text.is_empty() {
        return Ok(Written::All);
    }
    let mut write = tokio::task::spawn_blocking(move || write_out(text.as_bytes()));
    tokio::select! {
        biased;
        written = &mut write => written
            .map_err(|error| Failure::new(format!("cannot write to stdout: {error}")))
            .flatten(),
        () = stop.requested() => Ok(Written::ReaderGone),
    }
}
