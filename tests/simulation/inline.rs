//! A reader that is polled by its waker, on the stack of what wakes it, while it waits for a record.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};

use futures::{Stream, StreamExt};
use kinestream::{Record, Result};
use tokio::sync::Notify;

use crate::panics::{Panics, Part};

type Next = Option<Result<Record>>;

/// A stream that its waker polls as well.
pub(crate) struct Inline<S>(Arc<Shared<S>>);

impl<S> Drop for Inline<S> {
    /// The stream keeps wakers, which keep the stream.
    fn drop(&mut self) {
        let stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(stream);
    }
}

struct Shared<S> {
    /// `None` when the reader has dropped it.
    stream: Mutex<Option<S>>,
    /// A record is asked for: to ask without need would finish the one in hand.
    is_asked_for: AtomicBool,
    /// It was woken while it was polled.
    again: AtomicBool,
    found: Mutex<Option<Next>>,
    /// There is something to be found, or to be polled for.
    notify: Notify,
    panics: Panics,
}

impl<S: Stream<Item = Result<Record>> + Unpin + Send + 'static> Inline<S> {
    pub(crate) fn new(stream: S, panics: Panics) -> Self {
        Self(Arc::new(Shared {
            stream: Mutex::new(Some(stream)),
            is_asked_for: AtomicBool::new(false),
            again: AtomicBool::new(false),
            found: Mutex::default(),
            notify: Notify::new(),
            panics,
        }))
    }

    /// The stream itself, which nothing polls meanwhile.
    pub(crate) fn with(&self, work: impl FnOnce(&mut S)) {
        let mut stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &mut *stream {
            work(stream);
        }
    }

    /// The next record. Dropped before, it asks for none any more.
    pub(crate) async fn next(&self) -> Next {
        let _asking = Asking(&self.0.is_asked_for);
        self.0.is_asked_for.store(true, Ordering::SeqCst);
        loop {
            // What was found already comes before more is asked for.
            let found = self.0.found.lock().unwrap().take();
            if let Some(next) = found {
                return next;
            }
            self.0.poll();
            let found = self.0.found.lock().unwrap().take();
            if let Some(next) = found {
                return next;
            }
            self.0.notify.notified().await;
        }
    }
}

struct Asking<'a>(&'a AtomicBool);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl<S: Stream<Item = Result<Record>> + Unpin + Send + 'static> Shared<S> {
    /// Polls until there is nothing more to be had by polling.
    fn poll(self: &Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        while self.again.load(Ordering::SeqCst) && self.is_asked_for.load(Ordering::SeqCst) {
            let mut stream = match self.stream.try_lock() {
                Ok(stream) => stream,
                // Whoever polls it polls once more.
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            self.again.store(false, Ordering::SeqCst);
            let waker = Waker::from(Arc::clone(self));
            let Some(stream) = &mut *stream else { return };
            if let Poll::Ready(next) = stream.poll_next_unpin(&mut Context::from_waker(&waker)) {
                self.is_asked_for.store(false, Ordering::SeqCst);
                *self.found.lock().unwrap() = Some(next);
                self.notify.notify_one();
            }
        }
    }
}

impl<S: Stream<Item = Result<Record>> + Unpin + Send + 'static> Wake for Shared<S> {
    fn wake(self: Arc<Self>) {
        // It is polled again all the same, by the reader.
        self.again.store(true, Ordering::SeqCst);
        self.notify.notify_one();
        // A panic within the reader's own poll would be the reader's.
        let is_polled = matches!(self.stream.try_lock(), Err(TryLockError::WouldBlock));
        if !is_polled {
            self.panics.maybe(Part::Waker);
        }
        if self.panics.polls_inline() {
            self.poll();
        }
    }
}
