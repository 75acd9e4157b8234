//! A bar of the progress towards the end of the stream.

use crate::output::Paint;

/// The part of a bar's cells that is filled, in eighths.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// Returns a bar of `width` columns for a fraction from 0 to 1, between two edges.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a bar has few cells, and the fraction is limited"
)]
pub(super) fn bar(fraction: f64, width: usize, paint: Paint) -> String {
    let cells = width.saturating_sub(2);
    let eighths = (fraction.clamp(0.0, 1.0) * (cells * 8) as f64).round() as usize;
    let (full, rest) = (eighths / 8, eighths % 8);
    let mut filled = "█".repeat(full);
    if full < cells && rest > 0 {
        filled.push(EIGHTHS[rest]);
    }
    let empty = " ".repeat(cells - filled.chars().count());
    format!("▕{}{empty}▏", paint.good(&filled))
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bar_is_filled_by_eighths() {
        let shown = [0.0, 0.5, 0.53, 1.0].map(|fraction| bar(fraction, 6, Paint::plain()));
        assert_eq!(shown, ["▕    ▏", "▕██  ▏", "▕██▏ ▏", "▕████▏"]);
    }

    proptest! {
        #[test]
        fn bar_has_its_width(fraction in -1.0..2.0_f64, width in 2..100_usize) {
            prop_assert_eq!(measure_text_width(&bar(fraction, width, Paint::plain())), width);
        }
    }
}
