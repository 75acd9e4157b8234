//! Isolates the crate from its callers' wakers. A waker is user code: its clone, wake and drop may
//! panic, or may poll or drop a stream before they return.
//!
//! The public streams register the waker of a [`CallerWaker`], never the caller's own. The code
//! below them, in this crate, tokio and futures, can therefore run no user code except a wake.
//!
//! | call of the caller's waker | made | effect of a panic |
//! |---|---|---|
//! | `clone` | by a poll that may have to wait, before it checks anything, without a lock | the poll panics; the stream is unchanged and keeps the waker of the previous poll |
//! | `wake_by_ref` | by the event that a stream waits for, without a lock | none: the panic is contained, and the wake is repeated at once, up to three times in all; the waker is kept for the next wake |
//! | `drop` | by a poll with another waker, a concurrent wake, or the drop of the stream; without a lock | none: the panic is contained, also during an unwind |
//!
//! `Waker::will_wake` compares two pointers, and runs no user code.
//!
//! There are two limits. After three consecutive wakes that panic, the task sleeps until the next
//! event. Futures that are not streams, such as `Consumer::close`, register the caller's waker with
//! tokio directly.
//!
//! Below the streams, wakers are collected under a lock, and woken and dropped after the lock is
//! released.

mod caller;
mod waiters;

use std::task::Waker;

use crate::error::contain_call;

pub(crate) use caller::CallerWaker;
pub(crate) use waiters::Waiters;

/// Wakes all wakers. A waker that panics affects neither the other wakers nor the calling code: the
/// panic belongs to the executor of the waker, and the panic hook prints its message.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        let _panic = contain_call(|| waker.wake());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Panics(AtomicUsize);

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            panic!("woken");
        }
    }

    #[test]
    fn waker_that_panics_does_not_affect_the_others() {
        let woken = Arc::new(Panics::default());
        wake_all((0..3).map(|_| Waker::from(Arc::clone(&woken))));
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    }
}
