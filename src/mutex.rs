//! A mutex that ignores poisoning.

use std::sync::{self, MutexGuard, PoisonError};

/// A mutex whose lock is available after a panic of its holder.
///
/// User code never runs under a lock of the crate, and the crate leaves no value half changed at a
/// point that can panic, so a poisoned value is as valid as any other.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T: ?Sized>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the value without a lock, which the exclusive reference makes unnecessary.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}
