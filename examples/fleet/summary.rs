//! The summary at the end.

use std::io::{self, Write};

use crate::board::Board;

/// Prints the summary. Returns true if no record was lost and no guarantee was violated.
pub(crate) fn print(board: &Board, is_interrupted: bool) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    let tally = &board.tally;
    writeln!(output)?;
    for (worker, state) in &board.workers {
        let records = tally.by_worker.get(worker).copied().unwrap_or(0);
        writeln!(output, "{worker}: {records} records, {}", state.name())?;
    }
    writeln!(output, "\nlease moves {}, records refused by epoch {}", tally.moves, tally.refused)?;
    for (what, time) in &board.times {
        writeln!(output, "{:5.1} s  {what}", time.as_secs_f64())?;
    }
    writeln!(output)?;
    for finding in &tally.findings {
        writeln!(output, "VIOLATION: {finding}")?;
    }
    let (unread, unread_is) =
        (tally.unread(), if is_interrupted { "not read yet" } else { "lost" });
    writeln!(
        output,
        "written {}, read {}, repeated {}, {unread_is} {unread}",
        tally.written(),
        tally.read,
        tally.repeated
    )?;
    Ok((unread == 0 || is_interrupted) && tally.findings.is_empty())
}
