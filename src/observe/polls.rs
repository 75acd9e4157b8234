//! Whether the callers of a consumer's streams still take records.
//!
//! A poll costs two stores and reads no clock: the polls are counted, and looked at once a second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// The polls of one stream.
#[derive(Debug)]
pub(crate) struct Polls {
    count: AtomicU64,
    /// The last poll found nothing: the caller is woken when there is something.
    is_waiting: AtomicBool,
    /// The stream yields records, and not shards alone, for which a caller may cease to ask.
    yields_records: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    count: u64,
    at: Instant,
}

impl Default for Polls {
    fn default() -> Self {
        Self {
            count: AtomicU64::new(0),
            is_waiting: AtomicBool::new(false),
            yields_records: AtomicBool::new(true),
            seen: Mutex::new(Seen { count: 0, at: Instant::now() }),
        }
    }
}

impl Polls {
    /// The stream yields shards.
    pub(crate) fn of_shards(&self) {
        self.yields_records.store(false, Ordering::Relaxed);
    }

    /// The stream yields the records of all shards.
    pub(crate) fn of_records(&self) {
        self.yields_records.store(true, Ordering::Relaxed);
    }

    /// Notes a poll, which has come to this.
    #[inline]
    pub(crate) fn polled<T>(&self, polled: Poll<T>) -> Poll<T> {
        // One caller polls a stream: what it counts nobody else does.
        self.count.store(self.count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.is_waiting.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    /// How long ago the last poll was, to the second where somebody looks each second; `None` before
    /// the first.
    pub(super) fn last(&self) -> Option<Duration> {
        let since = self.look();
        (self.count.load(Ordering::Relaxed) > 0).then_some(since)
    }

    /// For how long the caller has not asked for more records. `undelivered` is the age of the
    /// oldest record that it would get.
    pub(super) fn silent_for(&self, undelivered: Option<Duration>) -> Option<Duration> {
        let since = self.look();
        if !self.yields_records.load(Ordering::Relaxed) {
            return None;
        }
        if self.is_waiting.load(Ordering::Relaxed) {
            // Woken when there was something, it would have polled.
            return undelivered.map(|age| age.min(since));
        }
        Some(since)
    }

    /// How long ago it was that more polls had come.
    pub(super) fn look(&self) -> Duration {
        let count = self.count.load(Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if count != seen.count {
            *seen = Seen { count, at: Instant::now() };
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
    async fn caller_that_waits_is_silent_only_while_there_is_something() {
        let polls = Polls::default();
        assert_eq!(polls.last(), None);
        advance(SECOND).await;
        assert_eq!(polls.silent_for(None), Some(SECOND), "it has never polled");
        let _ = polls.polled(Poll::<()>::Pending);
        advance(60 * SECOND).await;
        polls.look();
        assert_eq!(polls.silent_for(None), None, "it waits");
        advance(SECOND).await;
        assert_eq!(polls.silent_for(Some(SECOND / 2)), Some(SECOND / 2));
        let _ = polls.polled(Poll::Ready(()));
        polls.look();
        advance(60 * SECOND).await;
        assert_eq!(polls.last(), Some(60 * SECOND));
        assert_eq!(polls.silent_for(None), Some(60 * SECOND), "it works on what it got");
        polls.of_shards();
        assert_eq!(polls.silent_for(None), None, "it need not ask for more shards");
    }
}
