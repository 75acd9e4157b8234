use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;

/// Says once, to all streams of a consumer, that it is closed. Each stream has a clone of its own,
/// which wakes whoever polled it last: a merge polls with another waker each time.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    closed: Arc<AtomicBool>,
    sender: Arc<Mutex<Option<oneshot::Sender<()>>>>,
    signal: Shared<oneshot::Receiver<()>>,
}

impl Closing {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = oneshot::channel();
        Self {
            closed: Arc::default(),
            sender: Arc::new(Mutex::new(Some(sender))),
            signal: receiver.shared(),
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Whoever waits is woken by the sender's end.
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ready when closed.
    pub(crate) fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() || self.signal.poll_unpin(context).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
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
    fn keeps_no_waker_but_the_last() {
        let mut closing = Closing::new();
        let wakers: Vec<_> = (0..100).map(|_| Arc::new(Unwoken)).collect();
        for waker in &wakers {
            let waker = Waker::from(Arc::clone(waker));
            assert!(closing.poll_closed(&mut Context::from_waker(&waker)).is_pending());
        }
        let kept = |waker: &&Arc<Unwoken>| Arc::strong_count(waker) > 1;
        assert!(wakers.iter().rposition(|waker| kept(&waker)) == Some(99));
        assert_eq!(wakers.iter().filter(kept).count(), 1);
    }

    #[tokio::test]
    async fn wakes_every_clone_once_whoever_polled_it_last() {
        let closing = Closing::new();
        let (first, second) = (closing.clone(), closing.clone());
        let wait = |mut closing: Closing| {
            tokio::spawn(std::future::poll_fn(move |context| closing.poll_closed(context)))
        };
        let waiting = [wait(first), wait(second)];
        tokio::task::yield_now().await;
        assert!(!closing.is_closed());
        closing.close();
        closing.close();
        for waiting in waiting {
            waiting.await.unwrap();
        }
        wait(closing.clone()).await.unwrap();
    }
}
