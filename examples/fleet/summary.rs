//! What has come of it.

use crate::board::Board;

/// Prints the summary. Whether nothing was lost, and nothing happened that must not.
pub(crate) fn print(board: &Board, is_interrupted: bool) -> bool {
    let tally = &board.tally;
    println!();
    for (worker, state) in &board.crew {
        let records = tally.by_worker.get(worker).copied().unwrap_or(0);
        println!("{worker}: {records} records, {}", state.name());
    }
    println!("\nmoves of leases {}, records refused by their epoch {}", tally.moves, tally.refused);
    for (what, time) in &board.times {
        println!("{:5.1} s  {what}", time.as_secs_f64());
    }
    println!();
    for finding in &tally.findings {
        println!("WRONG: {finding}");
    }
    let (unread, unread_is) =
        (tally.unread(), if is_interrupted { "not read yet" } else { "lost" });
    println!(
        "written {}, read {}, repeated {}, {unread_is} {unread}",
        tally.written(),
        tally.read,
        tally.repeated
    );
    (unread == 0 || is_interrupted) && tally.findings.is_empty()
}
