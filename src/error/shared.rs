//! The errors of a call that the readers of many shards share.

use std::sync::Arc;

use super::{Error, ErrorKind};

use crate::mutex::Mutex;

/// A set of error kinds, kept separately for shared calls and for calls of one shard: both may fail
/// for the same reason, and each failure is reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ErrorKindSet {
    own: u32,
    shared: u32,
}

impl ErrorKindSet {
    pub(crate) fn contains(mut self, error: &Error) -> bool {
        !self.insert(error)
    }

    /// Returns true if the kind was missing.
    pub(crate) fn insert(&mut self, error: &Error) -> bool {
        let kinds = if error.is_shared() { &mut self.shared } else { &mut self.own };
        insert(kinds, error.kind())
    }
}

fn insert(kinds: &mut u32, kind: ErrorKind) -> bool {
    let bit = 1 << kind as u32;
    let is_new = *kinds & bit == 0;
    *kinds |= bit;
    is_new
}

/// The failures of a shared call since its last success. Every shard has an error for them, and the
/// caller receives one error of each kind.
///
/// The shard that is polled first yields the error. No error is lost if a shard is dropped before
/// it is polled.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedFailures(Arc<Mutex<Claimed>>);

/// The kinds of which the caller has received an error in the last reading of the stream.
#[derive(Debug, Default)]
struct Claimed {
    reading: u64,
    kinds: u32,
}

impl SharedFailures {
    /// Returns true if the caller has received no error of this kind in this reading of the stream.
    /// The kind then counts as received.
    pub(super) fn claim(&self, kind: ErrorKind, reading: u64) -> bool {
        let mut claimed = self.0.lock();
        if claimed.reading != reading {
            *claimed = Claimed { reading, kinds: 0 };
        }
        insert(&mut claimed.kinds, kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_claimed_once_a_reading() {
        let failures = SharedFailures::default();
        let clone = failures.clone();
        assert!(failures.claim(ErrorKind::Denied, 1));
        assert!(!clone.claim(ErrorKind::Denied, 1));
        assert!(clone.claim(ErrorKind::RuntimeShutdown, 1));
        assert!(!failures.claim(ErrorKind::RuntimeShutdown, 1));
        assert!(clone.claim(ErrorKind::Denied, 2));
        assert!(!failures.claim(ErrorKind::Denied, 2));
    }

    #[test]
    fn errors_of_shared_calls_are_separate_kinds() {
        let error = || Error::new(ErrorKind::Denied, "no");
        let mut kinds = ErrorKindSet::default();
        assert!(kinds.insert(&error().shared(Some(SharedFailures::default()))));
        assert!(!kinds.contains(&error()));
        assert!(kinds.insert(&error()));
        assert!(!kinds.insert(&error().shared(Some(SharedFailures::default()))));
    }
}
