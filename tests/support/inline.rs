//! A waker that polls its future at once, on the stack of the code that wakes it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::task::{Context, Wake, Waker};

/// A future that its own waker polls.
pub(crate) struct Inline {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    /// True if the future was woken since its last poll began, and must be polled again.
    again: AtomicBool,
}

impl Inline {
    /// Polls the future for the first time.
    pub(crate) fn start(future: impl Future<Output = ()> + Send + 'static) -> Arc<Self> {
        let inline = Arc::new(Self {
            future: Mutex::new(Some(Box::pin(future))),
            again: AtomicBool::new(true),
        });
        inline.run();
        inline
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.future.lock().unwrap().is_none()
    }

    fn run(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        while self.again.load(Ordering::SeqCst) {
            let mut future = match self.future.try_lock() {
                Ok(future) => future,
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            self.again.store(false, Ordering::SeqCst);
            if let Some(polled) = &mut *future
                && polled.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
            {
                *future = None;
            }
        }
    }
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        self.run();
    }
}
