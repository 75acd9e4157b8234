//! Waking, which runs code of the caller: a waker may poll a stream at once, or panic.
//!
//! Wakers are collected under a lock, and woken and dropped after the lock is released.

use std::task::Waker;

use crate::error::contain_call;

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
