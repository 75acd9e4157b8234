//! Formats the board as text: owner and lag of each shard, and the counts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use kinestream::{ShardId, ShardState, ShardStatus};

use crate::board::{Board, State, short};

/// The colours of the workers, in turn.
const COLOURS: [u8; 6] = [32, 36, 33, 35, 34, 31];
const FAINT: u8 = 2;

/// Returns the board as one line.
pub(crate) fn line(board: &mut Board) -> String {
    format!("{}   {}", counts(board), board.shares())
}

fn counts(board: &Board) -> String {
    let tally = &board.tally;
    format!(
        "{:6.1} s  written {} read {} behind {} repeated {} refused {} moves {}",
        board.began.elapsed().as_secs_f64(),
        tally.written(),
        tally.read,
        tally.unread(),
        tally.repeated,
        tally.refused,
        tally.moves,
    )
}

/// Returns the board as at most `most` lines.
pub(crate) fn lines(board: &mut Board, most: usize) -> Vec<String> {
    let rates = board.tally.rates();
    let mut lines = vec![String::new(), counts(board), heading(board)];
    let below = [shares(board), speeds(board, &rates), states(board)];
    let open: Vec<_> =
        board.leases.iter().filter(|(_, lease)| lease.state != ShardState::Finished).collect();
    let room = most.saturating_sub(lines.len() + below.len());
    let shown = if open.len() > room { room.saturating_sub(1) } else { open.len() };
    for (shard, lease) in &open[..shown] {
        lines.push(row(board, shard, lease, &rates));
    }
    if shown < open.len() {
        lines.push(format!("  and {} more shards", open.len() - shown));
    }
    lines.extend(below);
    lines.truncate(most.max(1));
    lines
}

fn heading(board: &Board) -> String {
    let mut line = coloured(FAINT, "  shard     ");
    for (number, (worker, _)) in board.workers.iter().enumerate() {
        line += &coloured(colour(number), &format!("{worker:<8}"));
    }
    line + &coloured(FAINT, "behind  records/s  epoch")
}

fn row(
    board: &Board,
    shard: &ShardId,
    lease: &ShardStatus,
    rates: &BTreeMap<Arc<str>, usize>,
) -> String {
    let mut line = format!("  {:<10}", short(shard.as_str()));
    for (number, (worker, _)) in board.workers.iter().enumerate() {
        let sign = if lease.owner.as_deref() == Some(&**worker) {
            "●"
        } else if lease.next_owner.as_deref() == Some(&**worker) {
            "○"
        } else {
            "·"
        };
        let colour = if sign == "·" { FAINT } else { colour(number) };
        line += &coloured(colour, &format!("{sign:<8}"));
    }
    let known = board.tally.shards.get(shard.as_str());
    let behind = known.map_or(0, |known| known.written.saturating_sub(known.accepted));
    let rate = rates.get(shard.as_str()).copied().unwrap_or(0);
    let _infallible = write!(line, "{behind:>6}  {rate:>9}  {}", lease.epoch);
    line
}

fn shares(board: &Board) -> String {
    per_worker(board, "shards", |worker| board.held_by(worker).len().to_string())
}

fn speeds(board: &Board, rates: &BTreeMap<Arc<str>, usize>) -> String {
    per_worker(board, "a second", |worker| rates.get(worker).copied().unwrap_or(0).to_string())
}

fn states(board: &Board) -> String {
    let state = |worker: &Arc<str>| board.state(worker).map_or("", State::name).to_owned();
    per_worker(board, "", state)
}

fn per_worker(board: &Board, title: &str, value: impl Fn(&Arc<str>) -> String) -> String {
    let mut line = coloured(FAINT, &format!("  {title:<10}"));
    for (number, (worker, state)) in board.workers.iter().enumerate() {
        let is_here = matches!(state, State::Reads | State::Leaves);
        let colour = if is_here { colour(number) } else { FAINT };
        line += &coloured(colour, &format!("{:<8}", value(worker)));
    }
    line
}

fn colour(number: usize) -> u8 {
    COLOURS[number % COLOURS.len()]
}

fn coloured(colour: u8, text: &str) -> String {
    format!("\x1b[{colour}m{text}\x1b[0m")
}
