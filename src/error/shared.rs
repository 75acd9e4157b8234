//! The errors of a call that the readers of many shards share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ErrorKind;

/// Kinds of errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u32);

impl Kinds {
    fn of(kind: ErrorKind) -> Self {
        Self(1 << kind as u32)
    }

    pub(crate) fn contains(self, kind: ErrorKind) -> bool {
        self.0 & Self::of(kind).0 != 0
    }

    /// Returns true if the kind was missing.
    pub(crate) fn insert(&mut self, kind: ErrorKind) -> bool {
        let is_new = !self.contains(kind);
        self.0 |= Self::of(kind).0;
        is_new
    }
}

/// The failures of a shared call since its last success. Every shard has an error for them, of which the
/// caller receives one of each kind.
///
/// The shard that is polled first yields it: an error that waits in a shard which is dropped is not lost.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedFailures(Arc<AtomicU32>);

impl SharedFailures {
    /// Returns true if the caller has received no error of this kind, and is to receive this one.
    pub(super) fn claim(&self, kind: ErrorKind) -> bool {
        let before = self.0.fetch_or(Kinds::of(kind).0, Ordering::Relaxed);
        !Kinds(before).contains(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_claimed_once() {
        let failures = SharedFailures::default();
        let clone = failures.clone();
        assert!(failures.claim(ErrorKind::Denied));
        assert!(!clone.claim(ErrorKind::Denied));
        assert!(clone.claim(ErrorKind::RuntimeShutdown));
        assert!(!failures.claim(ErrorKind::RuntimeShutdown));
    }
}
