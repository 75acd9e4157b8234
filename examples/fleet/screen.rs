//! The display: events, and below them a table that is redrawn in a terminal, or one line per
//! second otherwise.

use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::board::Shared;
use crate::table;

const REDRAW: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(1);

/// The rows and columns if the terminal does not report its size.
const USUAL: (usize, usize) = (24, 80);

#[derive(Clone)]
pub(crate) struct Screen {
    board: Shared,
    is_terminal: bool,
    /// The number of table lines at the bottom.
    drawn: Arc<Mutex<usize>>,
}

impl Screen {
    pub(crate) fn new(board: Shared) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        let is_terminal = std::io::stdout().is_terminal() && !is_dumb;
        Self { board, is_terminal, drawn: Arc::default() }
    }

    /// Draws the state of the fleet at regular intervals.
    pub(crate) async fn show(self) {
        let mut ticks = tokio::time::interval(if self.is_terminal { REDRAW } else { LINE });
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.is_terminal {
                self.draw(&[]);
            } else {
                self.draw(&[table::line(&mut self.board.lock())]);
            }
        }
    }

    /// Prints an event.
    pub(crate) fn print_event(&self, event: &str) {
        if self.is_terminal {
            self.draw(&[format!("\x1b[1m{}  {event}\x1b[0m", self.time())]);
        } else {
            self.draw(&[format!("{}  {event}", self.time())]);
        }
    }

    /// Prints a detail of the last event.
    pub(crate) fn detail(&self, event: &str) {
        self.draw(&[format!("{}    {event}", self.time())]);
    }

    fn time(&self) -> String {
        format!("{:6.1} s", self.board.lock().began.elapsed().as_secs_f64())
    }

    /// Draws the table a last time and leaves it on the screen.
    pub(crate) fn finish(&self) {
        if self.is_terminal {
            self.draw(&[]);
        }
        *self.drawn.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }

    fn draw(&self, events: &[String]) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        if *drawn > 0 {
            // Move to the first line of the table.
            text = format!("\x1b[{drawn}A\r");
        }
        let end = if self.is_terminal { "\x1b[K\n" } else { "\n" };
        for line in events {
            text.extend([line, end]);
        }
        if self.is_terminal {
            let (rows, columns) = size();
            let lines = table::lines(&mut self.board.lock(), rows.saturating_sub(2));
            for line in &lines {
                text.extend([&cut(line, columns), end]);
            }
            text.push_str("\x1b[J");
            *drawn = lines.len();
        }
        let mut output = std::io::stdout().lock();
        // Ignore errors: the output may be closed.
        let _output_may_be_closed = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    }
}

/// Returns the terminal's current rows and columns.
fn size() -> (usize, usize) {
    let query = || {
        let terminal = std::fs::File::open("/dev/tty").ok()?;
        let output =
            Command::new("stty").arg("size").stdin(terminal).stderr(Stdio::null()).output();
        let text = String::from_utf8(output.ok()?.stdout).ok()?;
        let (rows, columns) = text.trim().split_once(' ')?;
        let size = (rows.parse().ok()?, columns.parse().ok()?);
        // Some terminals report zero.
        (size.0 > 0 && size.1 > 0).then_some(size)
    };
    query().unwrap_or(USUAL)
}

/// Cuts a line to a number of columns. Colour sequences have no width.
fn cut(line: &str, columns: usize) -> String {
    let (mut text, mut width, mut is_escape) = (String::new(), 0, false);
    for letter in line.chars() {
        if letter == '\x1b' {
            is_escape = true;
        }
        if is_escape || width < columns {
            text.push(letter);
            width += usize::from(!is_escape);
        }
        if is_escape && letter == 'm' {
            is_escape = false;
        }
    }
    text
}
