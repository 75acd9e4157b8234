//! Tables as text: columns as wide as their widest cell.

use console::{Alignment, measure_text_width, pad_str};

use crate::output::Paint;

/// A table. Its cells may hold colours.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new(), right: Vec::new() }
    }

    /// Aligns these columns to the right, as numbers are.
    pub(crate) fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the headings and the rows, each with a line end.
    pub(crate) fn shown(&self, paint: Paint) -> String {
        let headings = self.headings.iter().map(|heading| paint.heading(heading)).collect();
        let rows: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let is_right = self.right.contains(&column);
                let alignment = if is_right { Alignment::Right } else { Alignment::Left };
                pad_str(cell, widths.get(column).copied().unwrap_or(0), alignment, None)
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_their_widest_cell() {
        let mut table = Table::new(&["NAME", "SHARDS"]).right(&[1]);
        table.push(vec!["orders".to_owned(), "4".to_owned()]);
        table.push(vec!["日本".to_owned(), "1,000".to_owned()]);
        assert_eq!(table.shown(Paint::plain()), "NAME    SHARDS\norders       4\n日本     1,000\n");
    }
}
