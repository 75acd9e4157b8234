//! Stores the wakers of streams and tasks that wait for one event.

use std::collections::BTreeMap;
use std::collections::btree_map::IntoValues;
use std::task::Waker;

/// The last waker of each key. Each stream or task has its own key, and may be polled with a
/// different waker each time. The caller wakes or drops returned wakers without a lock held.
#[derive(Debug, Default)]
pub(crate) struct Waiters(BTreeMap<u64, Waker>);

impl Waiters {
    /// Sets the waker of a key. Returns the previous waker if it was a different one.
    #[must_use = "drop the waker after the lock is released"]
    pub(crate) fn wait(&mut self, key: u64, waker: &Waker) -> Option<Waker> {
        match self.0.get(&key) {
            Some(last) if last.will_wake(waker) => None,
            _ => self.0.insert(key, waker.clone()),
        }
    }

    /// Removes a key. Returns its waker.
    #[must_use = "drop the waker after the lock is released"]
    pub(crate) fn remove(&mut self, key: u64) -> Option<Waker> {
        self.0.remove(&key)
    }

    /// Removes all keys. Returns their wakers, to be woken.
    #[must_use = "wake the wakers after the lock is released"]
    pub(crate) fn take(&mut self) -> IntoValues<u64, Waker> {
        std::mem::take(&mut self.0).into_values()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    struct Unwoken;

    impl Wake for Unwoken {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn waiter_keeps_only_its_last_waker() {
        let mut waiters = Waiters::default();
        let wakers: Vec<Waker> = (0..100).map(|_| Waker::from(Arc::new(Unwoken))).collect();
        for (place, waker) in wakers.iter().enumerate() {
            for key in [7, 8] {
                let before = waiters.wait(key, waker);
                assert_eq!(before.is_some(), place > 0);
                assert!(before.is_none_or(|before| before.will_wake(&wakers[place - 1])));
                assert!(waiters.wait(key, waker).is_none(), "the same waker is kept");
            }
        }
        assert_eq!(waiters.len(), 2);
        assert!(waiters.remove(7).is_some_and(|waker| waker.will_wake(&wakers[99])));
        assert_eq!(waiters.take().count(), 1);
        assert_eq!(waiters.len(), 0);
    }
}
