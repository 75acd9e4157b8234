//! Delivery times, for the age of the oldest unacknowledged record.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The number of delivery times that are kept. It is limited so that a record that is never
/// acknowledged costs no memory for the records after it.
const MAX_TIMES: usize = 64;

/// The times at which records were found to be delivered.
#[derive(Default)]
pub(super) struct DeliveryTimes {
    /// The times by the number of their first record, from the first unacknowledged record on.
    times: VecDeque<(u64, Instant)>,
    /// The records below this number have a time.
    noted: u64,
}

impl DeliveryTimes {
    /// Notes that all records below `delivered` are delivered, and all below `prefix` acknowledged.
    pub(super) fn note(&mut self, delivered: u64, prefix: u64) {
        if delivered <= self.noted {
            return;
        }
        let first = std::mem::replace(&mut self.noted, delivered);
        if self.times.len() >= MAX_TIMES {
            // Keep every second time: half the memory at half the resolution.
            let mut is_kept = false;
            self.times.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
        self.times.push_back((first, Instant::now()));
        self.forget(prefix);
    }

    /// Forgets the times of acknowledged records.
    pub(super) fn forget(&mut self, prefix: u64) {
        while self.times.get(1).is_some_and(|(first, _)| *first <= prefix) {
            self.times.pop_front();
        }
    }

    /// Returns the age of the oldest unacknowledged record.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.times.front().map(|(_, time)| time.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn times_of_many_unacknowledged_records_cost_no_memory() {
        let (mut times, second) = (DeliveryTimes::default(), Duration::from_secs(1));
        for delivered in 1..=1000 {
            times.note(delivered, 0);
            tokio::time::advance(second).await;
        }
        assert!(times.times.len() <= MAX_TIMES);
        assert_eq!(times.oldest(), Some(1000 * second));
        times.forget(1000);
        assert_eq!(times.times.len(), 1);
    }
}
