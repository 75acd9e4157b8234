//! The rate at which records are read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The seconds over which a rate is measured.
const MEASURED: usize = 5;

/// The rate of the last seconds. Shards that have caught up are polled once a second, so that a
/// single second would show too few or too many records.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// A measurement per second, the oldest one first.
    measured: VecDeque<(Instant, u64)>,
    per_second: f64,
}

impl Rate {
    /// Takes a measurement of the count if the last one is a second old.
    #[allow(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
    pub(super) fn measure(&mut self, now: Instant, records: u64) {
        let age = |at: Instant| now.saturating_duration_since(at);
        if self.measured.back().is_some_and(|(at, _)| age(*at) < Duration::from_secs(1)) {
            return;
        }
        if let Some((at, before)) = self.measured.front() {
            self.per_second = records.saturating_sub(*before) as f64 / age(*at).as_secs_f64();
        }
        self.measured.push_back((now, records));
        if self.measured.len() > MEASURED {
            self.measured.pop_front();
        }
    }

    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity;

    #[test]
    fn rate_is_that_of_the_last_five_seconds() {
        let began = Instant::now();
        let mut rate = Rate::default();
        let mut shown = Vec::new();
        // Ten records per second, which are delivered every other second, and then none.
        for (second, records) in
            [0_u64, 0, 20, 20, 40, 40, 60, 60, 60, 60, 60, 60].into_iter().enumerate()
        {
            rate.measure(began + Duration::from_secs(second as u64), records);
            shown.push(quantity::rate(rate.per_second()));
        }
        assert_eq!(
            shown.join(" "),
            "0.0/s 0.0/s 10.0/s 6.7/s 10.0/s 8.0/s 12.0/s 8.0/s 8.0/s 4.0/s 4.0/s 0.0/s"
        );
    }

    #[test]
    fn measurement_within_a_second_changes_nothing() {
        let began = Instant::now();
        let mut rate = Rate::default();
        rate.measure(began, 0);
        rate.measure(began + Duration::from_millis(900), 100);
        assert!(rate.per_second() < f64::EPSILON);
    }
}
