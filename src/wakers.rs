//! Waking, which runs code of the caller: a waker may poll a stream at once, or panic.
//!
//! Wakers are collected under a lock, and woken and dropped when it is released.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::Waker;

/// Wakes all of them, also where one of them panics, and then goes on panicking.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    let mut panicked = None;
    for waker in wakers {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            panicked.get_or_insert(panic);
        }
    }
    if let Some(panic) = panicked {
        resume_unwind(panic);
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
    fn waker_that_panics_does_not_keep_the_others_asleep() {
        let woken = Arc::new(Panics::default());
        let wakers: Vec<Waker> = (0..3).map(|_| Waker::from(Arc::clone(&woken))).collect();
        let panicked = crate::error::contain_call(|| wake_all(wakers));
        assert_eq!(panicked.unwrap_err().to_string(), "woken");
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    }
}
