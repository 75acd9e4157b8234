//! Writes to stdout, which may be a pipe that nothing reads, and to stderr.

use std::io::{ErrorKind, Write};

use console::{Term, truncate_str};

use super::Paint;
use crate::failure::{Failure, Outcome};

/// The result of a write to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    /// The reading end is closed, as by `head`.
    ReaderGone,
}

/// Writes to stdout. Blocks while the reader of a pipe does not read.
pub(crate) fn write_out(bytes: &[u8]) -> Outcome<Written> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Written::All),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Written::ReaderGone),
        Err(error) => Err(Failure::new(format!("cannot write to stdout: {error}"))),
    }
}

/// Writes a report for people to stdout. On a terminal its lines are cut to the width, since a table
/// with wrapped lines is unreadable; in a pipe or a file they are whole.
pub(crate) fn write_report(text: &str) -> Outcome<Written> {
    let terminal = Some(Term::stdout()).filter(Term::is_term);
    let width = terminal.as_ref().and_then(Term::size_checked).map(|(_, width)| width);
    // Some pseudo-terminals have no size.
    let Some(width) = width.filter(|width| *width > 0) else { return write_out(text.as_bytes()) };
    let cut = |line: &str| truncate_str(line, usize::from(width), "…").into_owned() + "\n";
    write_out(text.lines().map(cut).collect::<String>().as_bytes())
}

/// Writes to stderr. If stderr is closed, the text has no reader.
pub(crate) fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _written = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Writes a note to stderr.
pub(crate) fn note(text: &str) {
    say(&format!("{} {text}\n", Paint::stderr().warn("note:")));
}

/// Returns true if the reading end of stdout is closed, without writing to it. A quiet stream would
/// otherwise keep the program after its reader has ended.
#[cfg(unix)]
pub(crate) fn is_reader_gone() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = std::io::stdout();
    // `POLLERR` is reported without being requested.
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

/// Returns true if stdout is a pipe.
#[cfg(unix)]
pub(crate) fn is_pipe() -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let file = std::io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|data| data.file_type().is_fifo())
}

#[cfg(not(unix))]
pub(crate) fn is_reader_gone() -> bool {
    false
}

#[cfg(not(unix))]
pub(crate) fn is_pipe() -> bool {
    false
}
