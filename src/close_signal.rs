use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};

use crate::mutex::Mutex;
use crate::wakers::{Waiters, wake_all};

/// A one-time signal to the holders of its clones, such as the close of a consumer to its streams.
///
/// Each clone wakes the waker of its last poll, since a merge polls with a different waker each
/// time. Wakers are woken and dropped without a lock held, since a waker may poll or drop a stream
/// inline.
#[derive(Debug)]
pub(crate) struct CloseSignal {
    signal: Arc<Signal>,
    /// The key of this clone.
    key: u64,
}

#[derive(Debug, Default)]
struct Signal {
    closed: AtomicBool,
    keys: AtomicU64,
    /// The waiting wakers, by the keys of the clones.
    waiting: Mutex<Waiters>,
}

impl Signal {
    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.waiting.lock()
    }
}

impl CloseSignal {
    pub(crate) fn new() -> Self {
        Self { signal: Arc::default(), key: 0 }
    }

    pub(crate) fn close(&self) {
        self.signal.closed.store(true, Ordering::SeqCst);
        let waiting = self.signal.lock().take();
        wake_all(waiting);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.signal.closed.load(Ordering::SeqCst)
    }

    /// Ready when closed.
    pub(crate) fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() {
            return Poll::Ready(());
        }
        let before = self.signal.lock().wait(self.key, context.waker());
        drop(before);
        // The signal may have been closed before the waker was registered.
        if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Clone for CloseSignal {
    fn clone(&self) -> Self {
        let key = self.signal.keys.fetch_add(1, Ordering::Relaxed) + 1;
        Self { signal: Arc::clone(&self.signal), key }
    }
}

impl Drop for CloseSignal {
    fn drop(&mut self) {
        let before = self.signal.lock().remove(self.key);
        drop(before);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};

    use super::*;

    struct Unwoken;

    impl Wake for Unwoken {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn close_signal_keeps_only_its_last_waker() {
        let mut close_signal = CloseSignal::new();
        let wakers: Vec<_> = (0..100).map(|_| Arc::new(Unwoken)).collect();
        for waker in &wakers {
            let waker = Waker::from(Arc::clone(waker));
            assert!(close_signal.poll_closed(&mut Context::from_waker(&waker)).is_pending());
        }
        let kept = |waker: &&Arc<Unwoken>| Arc::strong_count(waker) > 1;
        assert!(wakers.iter().rposition(|waker| kept(&waker)) == Some(99));
        assert_eq!(wakers.iter().filter(kept).count(), 1);
        drop(close_signal);
        assert_eq!(wakers.iter().filter(kept).count(), 0);
    }

    #[tokio::test]
    async fn close_wakes_every_clone() {
        let close_signal = CloseSignal::new();
        let (first, second) = (close_signal.clone(), close_signal.clone());
        let wait = |mut close_signal: CloseSignal| {
            tokio::spawn(std::future::poll_fn(move |context| close_signal.poll_closed(context)))
        };
        let waiting = [wait(first), wait(second)];
        tokio::task::yield_now().await;
        assert!(!close_signal.is_closed());
        close_signal.close();
        close_signal.close();
        for waiting in waiting {
            waiting.await.unwrap();
        }
        wait(close_signal.clone()).await.unwrap();
    }

    /// Polls and drops the clone of another stream as soon as it is woken.
    struct Inline(Mutex<Option<CloseSignal>>);

    impl Wake for Inline {
        fn wake(self: Arc<Self>) {
            let mut other = self.0.lock().take().unwrap();
            assert!(other.poll_closed(&mut Context::from_waker(Waker::noop())).is_ready());
        }
    }

    #[test]
    fn waker_that_polls_and_drops_inline_does_not_deadlock() {
        let mut close_signal = CloseSignal::new();
        let waker = Waker::from(Arc::new(Inline(Mutex::new(Some(close_signal.clone())))));
        assert!(close_signal.poll_closed(&mut Context::from_waker(&waker)).is_pending());
        close_signal.close();
        assert!(close_signal.is_closed());
    }
}
