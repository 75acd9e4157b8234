//! Detects callers that have stopped polling.
//!
//! A waiting caller polls only when it is woken, so the lack of polls alone proves nothing. It is
//! woken after half of the time limit, and has the other half to poll.

use std::sync::{Arc, MutexGuard};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::mutex::Mutex;
use crate::wakers::wake_all;

/// The last poll of a stream. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct PollMonitor(Arc<Mutex<LastPoll>>);

#[derive(Debug)]
struct LastPoll {
    at: Instant,
    /// The waker of the last poll; `None` before the first.
    waker: Option<Waker>,
    /// The time at which the caller was woken to check that it polls.
    asked: Option<Instant>,
    /// The monitor of the stream that this one is merged into. Its polls count for both.
    merged: Option<PollMonitor>,
}

impl PollMonitor {
    pub(crate) fn new() -> Self {
        let record_poll = LastPoll { at: Instant::now(), waker: None, asked: None, merged: None };
        Self(Arc::new(Mutex::new(record_poll)))
    }

    /// Notes a poll. `waker` is that of the stream's [`CallerWaker`](crate::wakers::CallerWaker).
    pub(crate) fn record_poll(&self, waker: &Waker) {
        let before = {
            let mut record_poll = self.lock();
            (record_poll.at, record_poll.asked) = (Instant::now(), None);
            match &record_poll.waker {
                Some(last) if last.will_wake(waker) => None,
                _ => record_poll.waker.replace(waker.clone()),
            }
        };
        // Dropping the waker may drop whatever it holds, even this stream.
        drop(before);
    }

    /// Counts the polls of `merged`, the stream that this one is merged into, from now on.
    pub(crate) fn merge_into(&self, merged: &Self) {
        let before = self.lock().merged.replace(merged.clone());
        drop(before);
    }

    /// Returns true if the caller has not polled for `time`, although it was woken.
    pub(crate) fn has_stopped(&self, time: Duration) -> bool {
        let merged = self.lock().merged.clone();
        if let Some(merged) = merged {
            return merged.has_stopped(time);
        }
        let mut record_poll = self.lock();
        if record_poll.at.elapsed() < time / 2 {
            return false;
        }
        if let Some(asked) = record_poll.asked {
            return asked.elapsed() >= time / 2;
        }
        record_poll.asked = Some(Instant::now());
        let waker = record_poll.waker.clone();
        drop(record_poll);
        wake_all(waker);
        false
    }

    /// Returns true if the stream was dropped, so that it will not be polled again. A merged stream
    /// lasts as long as its shard is read.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.lock().merged.is_none() && Arc::strong_count(&self.0) == 1
    }

    fn lock(&self) -> MutexGuard<'_, LastPoll> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    struct InlinePoller(PollMonitor);

    /// A caller that polls whenever it is woken.
    impl Wake for InlinePoller {
        fn wake(self: Arc<Self>) {
            // Polls inline, which works because no lock is held.
            let poll_monitor = self.0.clone();
            poll_monitor.record_poll(&Waker::from(self));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn caller_that_polls_when_woken_has_not_stopped() {
        let poll_monitor = PollMonitor::new();
        poll_monitor.record_poll(&Waker::from(Arc::new(InlinePoller(poll_monitor.clone()))));
        for _ in 0..20 {
            advance(LIMIT / 3).await;
            assert!(!poll_monitor.has_stopped(LIMIT));
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn caller_that_ignores_its_wake_has_stopped() {
        for merged in [false, true] {
            let (poll_monitor, outer) = (PollMonitor::new(), PollMonitor::new());
            if merged {
                poll_monitor.merge_into(&outer);
            }
            advance(LIMIT * 3).await;
            assert!(!poll_monitor.has_stopped(LIMIT), "the caller was not woken yet");
            advance(LIMIT / 2).await;
            assert!(poll_monitor.has_stopped(LIMIT));
            if merged { &outer } else { &poll_monitor }.record_poll(Waker::noop());
            assert!(!poll_monitor.has_stopped(LIMIT));
        }
    }
}
