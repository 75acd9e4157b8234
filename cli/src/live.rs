//! A block of lines at the bottom of the terminal, on stderr, that is redrawn in place.

use std::io::IsTerminal;

use console::Term;

use crate::output::{obeys_codes, say};

/// The live lines. Without a terminal on stderr that obeys control codes it draws nothing.
#[derive(Debug)]
pub(crate) struct LiveArea {
    /// `None` without a terminal.
    terminal: Option<Term>,
    /// The widths of the lines on the screen, in columns.
    shown: Vec<usize>,
}

impl LiveArea {
    pub(crate) fn new(is_wanted: bool) -> Self {
        let is_drawn = is_wanted && std::io::stderr().is_terminal() && obeys_codes();
        Self { terminal: is_drawn.then(Term::stderr), shown: Vec::new() }
    }

    pub(crate) fn is_drawn(&self) -> bool {
        self.terminal.is_some()
    }

    /// Returns the height and the width of the terminal. The last column stays free, since some
    /// terminals wrap a full line.
    pub(crate) fn size(&self) -> (usize, usize) {
        let size = self.terminal.as_ref().and_then(Term::size_checked);
        // Some pseudo-terminals have no size.
        let (height, width) =
            size.filter(|(height, width)| *height > 0 && *width > 0).unwrap_or((24, 80));
        (usize::from(height), usize::from(width).saturating_sub(1).max(1))
    }

    /// Replaces the lines, each of which fits the width.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        if self.terminal.is_none() {
            return;
        }
        let erased = self.erasure();
        self.shown = lines.iter().map(|line| console::measure_text_width(line)).collect();
        say(&format!("{erased}{}", lines.join("\r\n")));
    }

    /// Removes the lines.
    pub(crate) fn clear(&mut self) {
        if !self.shown.is_empty() {
            say(&self.erasure());
            self.shown.clear();
        }
    }

    /// Prints a line on stderr above the lines, which the next [`draw`](Self::draw) shows again.
    pub(crate) fn note(&mut self, line: &str) {
        self.clear();
        say(&format!("{line}\n"));
    }

    /// Returns the codes that remove the lines and leave the cursor where they began.
    fn erasure(&self) -> String {
        let width = self.size().1 + 1;
        match rows(&self.shown, width) {
            0 => String::new(),
            1 => "\r\x1b[J".to_owned(),
            rows => format!("\r\x1b[{}A\x1b[J", rows - 1),
        }
    }
}

/// Returns the rows that lines take on a terminal of this width. A terminal that became narrower has
/// wrapped them.
fn rows(lines: &[usize], width: usize) -> usize {
    lines.iter().map(|line| line.div_ceil(width.max(1)).max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_take_several_rows() {
        assert_eq!(rows(&[], 80), 0);
        assert_eq!(rows(&[0, 79, 80], 80), 3);
        assert_eq!(rows(&[79, 10], 20), 5);
    }
}
