//! Counts, sizes, rates and durations as people read them.

use std::time::Duration;

/// Returns the count with separators between thousands: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the count and the noun in its number: `1 shard`, `2 shards`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Returns the size in binary units: `512 B`, `1.5 KiB`.
#[allow(clippy::cast_precision_loss, reason = "a size is shown with one decimal")]
pub(crate) fn bytes(number: u64) -> String {
    let mut size = number as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        // Rounded to one decimal, 1023.96 would be shown as 1024.0.
        if size < 1023.95 {
            return if unit == "B" { format!("{number} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// Returns the rate: one decimal below 100, separators above: `12.5/s`, `1,234/s`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and rounded")]
pub(crate) fn rate(per_second: f64) -> String {
    if per_second < 99.95 {
        return format!("{per_second:.1}/s");
    }
    format!("{}/s", count(per_second.round() as u64))
}

/// Returns the duration in its two largest units: `250 ms`, `12 s`, `3m 2s`, `2d 5h`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..2 => format!("{} ms", time.as_millis()),
        2..60 => format!("{seconds} s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators() {
        let shown = [0, 999, 1000, 12_345, 1_234_567].map(count);
        assert_eq!(shown, ["0", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!(counted(1, "shard"), "1 shard");
        assert_eq!(counted(1000, "shard"), "1,000 shards");
    }

    #[test]
    fn sizes_change_their_unit_before_they_reach_1024() {
        let shown = [0, 1023, 1024, 1536, 1_048_575, 1 << 40].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 TiB"]);
    }

    #[test]
    fn rates_have_a_decimal_below_a_hundred() {
        assert_eq!(
            [0.0, 12.34, 99.94, 99.96, 1234.5].map(rate),
            ["0.0/s", "12.3/s", "99.9/s", "100/s", "1,235/s"]
        );
    }

    #[test]
    fn durations_have_two_units() {
        let shown = [250, 1999, 12_000, 182_000, 7_500_000, 190_800_000]
            .map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(shown, ["250 ms", "1999 ms", "12 s", "3m 2s", "2h 5m", "2d 5h"]);
    }
}
