//! The backlog of a shard: batches that are fetched and not fully delivered.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::time::Instant;

use crate::mutex::Mutex;

/// The fetched batches with undelivered records.
#[derive(Debug, Default)]
pub(super) struct Backlog(Mutex<Batches>);

#[derive(Debug, Default)]
struct Batches {
    /// The number of records fetched so far.
    fetched: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// The number of records fetched up to the end of this batch.
    end: u64,
    at: Instant,
    millis_behind_latest: i64,
}

impl Backlog {
    /// Adds a batch of `records`; `delivered` is the number of records delivered so far.
    pub(super) fn fetched(&self, records: usize, millis_behind_latest: i64, delivered: u64) {
        let mut batches = self.lock();
        batches.fetched += records as u64;
        let end = batches.fetched;
        batches.forget(delivered);
        batches.waiting.push_back(Waiting { end, at: Instant::now(), millis_behind_latest });
    }

    /// Returns the number of records fetched so far.
    pub(super) fn count(&self) -> u64 {
        self.lock().fetched
    }

    /// Returns the age and the current lag in milliseconds of the oldest batch with an undelivered
    /// record.
    pub(super) fn oldest(&self, delivered: u64) -> Option<(Duration, i64)> {
        let mut batches = self.lock();
        batches.forget(delivered);
        let oldest = batches.waiting.front()?;
        let age = oldest.at.elapsed();
        let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        Some((age, oldest.millis_behind_latest.saturating_add(millis)))
    }

    fn lock(&self) -> MutexGuard<'_, Batches> {
        self.0.lock()
    }
}

impl Batches {
    fn forget(&mut self, delivered: u64) {
        while self.waiting.front().is_some_and(|oldest| oldest.end <= delivered) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lag_of_the_oldest_undelivered_batch_grows_until_it_is_delivered() {
        let backlog = Backlog::default();
        assert_eq!(backlog.oldest(0), None);
        backlog.fetched(10, 500, 0);
        advance(Duration::from_secs(1)).await;
        backlog.fetched(10, 0, 5);
        assert_eq!(backlog.oldest(9), Some((Duration::from_secs(1), 1500)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(backlog.oldest(10), Some((Duration::from_secs(1), 1000)));
        assert_eq!(backlog.oldest(20), None);
    }
}
