//! The lines of stdin and of files, which a separate thread reads.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;

use super::ahead::{AheadReceiver, queue};
use crate::failure::{Failure, Outcome};

/// The longest line that is read, which is longer than any record.
pub(super) const LONGEST: u64 = (10 << 20) + 1;
/// The unused memory with which a line is kept. A line grows by doubling.
const SPARE: usize = 4096;

/// One line, without its line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) data: Vec<u8>,
    pub(super) origin: Origin,
}

/// The place of a line in the input. Earlier lines come first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    /// The number in all input, from 1.
    pub(super) overall: u64,
    file: Arc<str>,
    /// The number in the file, from 1.
    number: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {} of {}", self.number, self.file)
    }
}

impl Line {
    #[cfg(test)]
    pub(super) fn of(number: u64, data: &str) -> Self {
        let origin = Origin { overall: number, file: "stdin".into(), number };
        Self { data: data.as_bytes().to_vec(), origin }
    }
}

/// Reads lines ahead, within the limits of [`queue`].
#[derive(Debug)]
pub(super) struct LineReader {
    lines: AheadReceiver,
    is_stopped: Arc<AtomicBool>,
}

impl LineReader {
    /// Opens all files before the first line is read, so that a wrong name puts nothing.
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio.
    pub(super) fn open(files: &[PathBuf]) -> Outcome<Self> {
        let stdin = || ("stdin".into(), Box::new(std::io::stdin()) as Box<dyn Read + Send>);
        let mut inputs: Vec<(Arc<str>, Box<dyn Read + Send>)> = Vec::new();
        for path in files {
            if path == Path::new("-") {
                inputs.push(stdin());
                continue;
            }
            let name = path.display().to_string();
            let file = File::open(path)
                .map_err(|error| Failure::new(format!("cannot open {name}: {error}")))?;
            if file.metadata().is_ok_and(|data| data.is_dir()) {
                return Err(Failure::new(format!("cannot read {name}: it is a directory")));
            }
            inputs.push((name.into(), Box::new(file)));
        }
        if inputs.is_empty() {
            inputs.push(stdin());
        }
        let (sender, receiver) = queue();
        let runtime = Handle::current();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_stopped);
        // Not a task: a read of a terminal would keep the runtime from shutting down.
        std::thread::spawn(move || {
            let mut number = 0;
            for (name, input) in inputs {
                let send = |line| runtime.block_on(sender.send(line));
                if !read_all(&name, BufReader::new(input), &mut number, send, &flag) {
                    break;
                }
            }
        });
        Ok(Self { lines: receiver, is_stopped })
    }

    /// Reads no further input. The lines that are read already can still be received.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Returns a line that is read already.
    pub(super) fn next_read(&mut self) -> Option<Line> {
        self.lines.next_read()
    }

    pub(super) async fn next(&mut self) -> Option<Outcome<Line>> {
        self.lines.next().await
    }
}

/// Sends the lines of one input. `send` returns false if nothing receives them. Returns false if no
/// further input is to be read.
fn read_all(
    name: &Arc<str>,
    mut input: BufReader<impl Read>,
    number: &mut u64,
    send: impl Fn(Outcome<Line>) -> bool,
    is_stopped: &AtomicBool,
) -> bool {
    for in_file in 1.. {
        // The lines in the buffer are gone from the pipe.
        if is_stopped.load(Ordering::Relaxed) && !input.buffer().contains(&b'\n') {
            return false;
        }
        let line = match read_line(&mut input) {
            Ok(Some(data)) => {
                *number += 1;
                let origin = Origin { overall: *number, file: Arc::clone(name), number: in_file };
                Ok(Line { data, origin })
            }
            Ok(None) => return true,
            Err(error) => Err(Failure::new(format!("cannot read {name}: {error}"))),
        };
        let is_failed = line.is_err();
        if !send(line) || is_failed {
            return false;
        }
    }
    true
}

/// Reads a line, of which it keeps at most [`LONGEST`] bytes. Returns `None` at the end.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if input.by_ref().take(LONGEST).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == LONGEST {
        skip_line(input)?;
    }
    if line.capacity() - line.len() > SPARE {
        line.shrink_to_fit();
    }
    Ok(Some(line))
}

fn skip_line(input: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let (length, is_end) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(length);
        if is_end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(mut input: &[u8]) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| read_line(&mut input).expect("a slice can be read")).collect()
    }

    #[test]
    fn last_line_needs_no_line_end() {
        assert_eq!(lines(b"a\n\nb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b"a\r\nb\n"), [&b"a\r"[..], b"b"]);
        assert_eq!(lines(b""), [b""; 0]);
    }

    #[test]
    fn long_line_is_cut_and_the_next_one_is_whole() {
        let mut input = vec![b'x'; usize::try_from(LONGEST).unwrap() + 10];
        input.extend_from_slice(b"\nnext\n");
        let lines = lines(&input);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len() as u64, LONGEST);
        assert_eq!(lines[1], b"next");
    }

    proptest! {
        #[test]
        fn joined_lines_are_the_input(input in prop::collection::vec(prop::sample::select(b"ab\n\r".to_vec()), 0..50)) {
            let mut joined = lines(&input).join(&b'\n');
            if input.last() == Some(&b'\n') {
                joined.push(b'\n');
            }
            prop_assert_eq!(joined, input);
        }
    }
}
