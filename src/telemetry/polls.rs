//! Counts of the polls of a consumer's streams, to detect a caller that hangs.
//!
//! A poll costs two stores and reads no clock: polls are counted, and the count is checked once a
//! second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::mutex::Mutex;

/// The polls of one stream.
#[derive(Debug)]
pub(crate) struct PollCounter {
    count: AtomicU64,
    /// True if the last poll returned `Pending`: the caller waits to be woken.
    is_waiting: AtomicBool,
    /// True if a poll returned `None`: no record is due, and the caller holds none.
    has_ended: AtomicBool,
    /// True if the stream yields records. The caller may stop polling a stream of shards.
    yields_records: AtomicBool,
    seen: Mutex<SeenPolls>,
}

#[derive(Debug)]
struct SeenPolls {
    count: u64,
    at: Instant,
}

impl Default for PollCounter {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            is_waiting: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            yields_records: AtomicBool::new(true),
            seen: Mutex::new(SeenPolls { count: 0, at: Instant::now() }),
        }
    }
}

impl PollCounter {
    /// Marks the stream as one of shards.
    pub(crate) fn of_shards(&self) {
        self.yields_records.store(false, Ordering::Relaxed);
    }

    /// Marks the stream as one of records.
    pub(crate) fn of_records(&self) {
        self.yields_records.store(true, Ordering::Relaxed);
    }

    /// Notes a poll and its outcome.
    #[inline]
    pub(crate) fn note<T>(&self, polled: &Poll<Option<T>>) {
        // A stream has one caller, so the counter has one writer.
        self.count.store(self.count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.is_waiting.store(polled.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(None) = polled {
            self.has_ended.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the time since the last poll, to the second; `None` before the first.
    pub(super) fn last(&self) -> Option<Duration> {
        let since = self.look();
        (self.count.load(Ordering::Relaxed) > 0).then_some(since)
    }

    /// Returns the time for which the caller has not polled although it holds a record or a record
    /// is due; `None` if it need not poll. `undelivered` is the age of the oldest record that is
    /// due.
    pub(super) fn silent_for(&self, undelivered: Option<Duration>) -> Option<Duration> {
        let since = self.look();
        let yields_records = self.yields_records.load(Ordering::Relaxed);
        if !yields_records || self.has_ended.load(Ordering::Relaxed) {
            return None;
        }
        if self.is_waiting.load(Ordering::Relaxed) {
            // The caller was woken when the record became due.
            return undelivered.map(|age| age.min(since));
        }
        Some(since)
    }

    /// Returns the time since the count last changed.
    pub(super) fn look(&self) -> Duration {
        let count = self.count.load(Ordering::Relaxed);
        let mut seen = self.seen.lock();
        if count != seen.count {
            *seen = SeenPolls { count, at: Instant::now() };
        }
        seen.at.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn waiting_caller_is_silent_only_while_a_record_is_due() {
        let polls = PollCounter::default();
        assert_eq!(polls.last(), None);
        advance(SECOND).await;
        assert_eq!(polls.silent_for(None), Some(SECOND), "a stream that was never polled");
        polls.note(&Poll::<Option<()>>::Pending);
        advance(60 * SECOND).await;
        polls.look();
        assert_eq!(polls.silent_for(None), None, "a caller that waits for records");
        advance(SECOND).await;
        assert_eq!(polls.silent_for(Some(SECOND / 2)), Some(SECOND / 2));
        polls.note(&Poll::Ready(Some(())));
        polls.look();
        advance(60 * SECOND).await;
        assert_eq!(polls.last(), Some(60 * SECOND));
        assert_eq!(polls.silent_for(None), Some(60 * SECOND), "a caller that holds a record");
        polls.of_shards();
        assert_eq!(polls.silent_for(None), None, "a stream of shards");
    }

    #[tokio::test(start_paused = true)]
    async fn ended_stream_is_never_silent() {
        let polls = PollCounter::default();
        polls.note(&Poll::Ready(Some(())));
        polls.note(&Poll::<Option<()>>::Ready(None));
        advance(600 * SECOND).await;
        assert_eq!(polls.silent_for(Some(SECOND)), None);
    }
}
