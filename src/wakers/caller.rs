//! Wraps the waker of a stream's caller in a waker whose clone and drop run no user code.

use std::fmt;
use std::sync::{Arc, MutexGuard};
use std::task::{Wake, Waker};

use crate::error::contain_call;
use crate::mutex::Mutex;

/// The number of attempts at a wake that panics. A wake that panics may not have woken the caller,
/// which would then never poll again. A needless wake costs one poll.
const ATTEMPTS: usize = 3;

/// Keeps the waker of the caller's last poll, and provides a waker for it that stays the same for
/// the life of the stream.
pub(crate) struct CallerWaker {
    slot: Arc<WakerSlot>,
    /// Wakes the waker in the slot.
    waker: Waker,
}

impl CallerWaker {
    pub(crate) fn new() -> Self {
        let slot = Arc::new(WakerSlot(Mutex::default()));
        Self { waker: Waker::from(Arc::clone(&slot)), slot }
    }

    /// Keeps the waker of a poll. Returns the waker to register.
    ///
    /// # Panics
    ///
    /// Panics if the clone of the caller's waker panics. The waker of the previous poll is kept.
    pub(crate) fn follow(&self, waker: &Waker) -> Waker {
        let is_known = self.slot.lock().as_ref().is_some_and(|last| last.will_wake(waker));
        if !is_known {
            let waker = Arc::new(Contained::new(waker.clone()));
            let before = self.slot.lock().replace(waker);
            drop(before);
        }
        self.waker.clone()
    }
}

impl Drop for CallerWaker {
    /// Drops the caller's waker now: registered wakers share the slot, and may be dropped under a
    /// lock.
    fn drop(&mut self) {
        let last = self.slot.lock().take();
        drop(last);
    }
}

/// The caller's last waker. The lock is never held while user code runs.
struct WakerSlot(Mutex<Option<Arc<Contained>>>);

impl WakerSlot {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Contained>>> {
        self.0.lock()
    }
}

impl Wake for WakerSlot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let last = self.lock().clone();
        if let Some(waker) = last {
            waker.wake();
        }
    }
}

/// A waker of the caller that contains its panics. `None` only during the drop.
struct Contained(Option<Waker>);

impl Contained {
    fn new(waker: Waker) -> Self {
        Self(Some(waker))
    }

    fn will_wake(&self, other: &Waker) -> bool {
        self.0.as_ref().is_some_and(|waker| waker.will_wake(other))
    }

    fn wake(&self) {
        let wake = || self.0.as_ref().map(Waker::wake_by_ref);
        let _is_awake = (0..ATTEMPTS).any(|_| contain_call(wake).is_ok());
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let waker = self.0.take();
        let _panic = contain_call(|| drop(waker));
    }
}

impl fmt::Debug for CallerWaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("CallerWaker")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts its wakes and drops, and panics in its first wakes and in its drop.
    struct Caller {
        panics: usize,
        wakes: Arc<AtomicUsize>,
        drops: Arc<AtomicUsize>,
    }

    impl Wake for Caller {
        fn wake(self: Arc<Self>) {
            self.wake_by_ref();
        }

        fn wake_by_ref(self: &Arc<Self>) {
            let woken = self.wakes.fetch_add(1, Ordering::SeqCst);
            assert!(woken >= self.panics, "a wake panics");
        }
    }

    impl Drop for Caller {
        fn drop(&mut self) {
            self.drops.fetch_add(1, Ordering::SeqCst);
            std::panic::resume_unwind(Box::new("a drop panics"));
        }
    }

    fn caller(panics: usize) -> (Waker, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let (wakes, drops) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let caller = Caller { panics, wakes: Arc::clone(&wakes), drops: Arc::clone(&drops) };
        (Waker::from(Arc::new(caller)), wakes, drops)
    }

    #[test]
    fn stream_waker_stays_the_same_and_wakes_the_last_caller() {
        let caller_waker = CallerWaker::new();
        let (first, first_wakes, first_drops) = caller(0);
        let (second, second_wakes, _) = caller(0);
        let ours = caller_waker.follow(&first);
        assert!(ours.will_wake(&caller_waker.follow(&first)));
        ours.wake_by_ref();
        std::mem::forget(first);
        assert!(ours.will_wake(&caller_waker.follow(&second)));
        std::mem::forget(second);
        ours.wake();
        let wakes = [first_wakes, second_wakes].map(|wakes| wakes.load(Ordering::SeqCst));
        assert_eq!(wakes, [1, 1]);
        assert_eq!(first_drops.load(Ordering::SeqCst), 0, "the test leaked a clone");
    }

    /// Registered wakers are dropped under locks of this crate, tokio and futures.
    #[test]
    fn registered_waker_holds_no_reference_to_the_caller() {
        struct Sleeper;
        impl Wake for Sleeper {
            fn wake(self: Arc<Self>) {}
        }
        let (caller_waker, caller) = (CallerWaker::new(), Arc::new(Sleeper));
        let theirs = Waker::from(Arc::clone(&caller));
        let registered = [(); 3].map(|()| caller_waker.follow(&theirs));
        // The references of `caller`, of `theirs` and of the slot.
        assert_eq!(Arc::strong_count(&caller), 3);
        drop(caller_waker);
        assert_eq!(Arc::strong_count(&caller), 2);
        drop(registered);
    }

    #[test]
    fn panicking_wake_is_attempted_at_most_three_times() {
        for (panics, expected) in [(0, 1), (1, 2), (2, 3), (9, 3)] {
            let caller_waker = CallerWaker::new();
            let (theirs, wakes, _) = caller(panics);
            let ours = caller_waker.follow(&theirs);
            std::mem::forget(theirs);
            ours.wake();
            assert_eq!(wakes.load(Ordering::SeqCst), expected);
        }
    }

    #[test]
    fn dropped_stream_drops_the_waker_once_during_an_unwind() {
        let caller_waker = CallerWaker::new();
        let (theirs, wakes, drops) = caller(0);
        let ours = caller_waker.follow(&theirs);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _caller_waker = caller_waker;
            // This reference is not the last one, so it runs no drop.
            drop(theirs);
            std::panic::resume_unwind(Box::new("the caller panics"));
        }));
        assert!(unwound.is_err());
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        ours.wake();
        assert_eq!(wakes.load(Ordering::SeqCst), 0);
    }
}
