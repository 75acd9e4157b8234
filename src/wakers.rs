//! Wakers. A caller's waker is the caller's code: its clone, wake and drop may panic, or poll or drop a stream
//! before they return.
//!
//! The public streams register the waker of a [`CallerWaker`] and never the caller's own. A wake is all that
//! code below them, in this crate, tokio and futures, can run of the caller's code.
//!
//! | call of the caller's waker | made | a panic leaves |
//! |---|---|---|
//! | `clone` | by a poll that may have to wait, before it looks for anything, without a lock | the stream unchanged, and the waker of the poll before; the poll panics |
//! | `wake_by_ref` | by the event that a stream waits for, without a lock | nothing: it is contained, and repeated at once, up to three times in all; the waker is kept for the next wake |
//! | `drop` | by a poll with another waker, a wake at the same time, the drop of the stream; without a lock | nothing: it is contained, also during an unwind |
//!
//! `Waker::will_wake` compares two pointers, and runs no code of the caller.
//!
//! Two bounds: after three wakes in a row that panic, the task sleeps until the next event; and futures that are
//! no streams, such as `Consumer::close`, register the caller's waker with tokio, unwrapped.
//!
//! Below the streams, wakers are collected under a lock, and woken and dropped after the lock is released.

mod caller;
mod waiters;

use std::task::Waker;

use crate::error::contain_call;

pub(crate) use caller::CallerWaker;
pub(crate) use waiters::Waiters;

/// Wakes all of them. A waker that panics affects neither the others nor the code that wakes it: the
/// panic belongs to the executor of the waker, and its message is in the output of the panic hook.
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
