//! The errors of a call that the readers of many shards share.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Error, ErrorKind};

/// Kinds of errors, separate for shared calls and for calls of one shard: both may fail for the same reason, and
/// each is reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds {
    own: u32,
    shared: u32,
}

impl Kinds {
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

/// The failures of a shared call since its last success. Every shard has an error for them, of which the
/// caller receives one of each kind.
///
/// The shard that is polled first yields it: an error that waits in a shard which is dropped is not lost.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedFailures(Arc<Mutex<Claimed>>);

/// The kinds that the caller has received in the last reading.
#[derive(Debug, Default)]
struct Claimed {
    reading: u64,
    kinds: u32,
}

impl SharedFailures {
    /// Returns true if the caller has received no error of this kind in this reading of the stream, and is
    /// to receive this one.
    pub(super) fn claim(&self, kind: ErrorKind, reading: u64) -> bool {
        let mut claimed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut kinds = Kinds::default();
        assert!(kinds.insert(&error().shared(Some(SharedFailures::default()))));
        assert!(!kinds.contains(&error()));
        assert!(kinds.insert(&error()));
        assert!(!kinds.insert(&error().shared(Some(SharedFailures::default()))));
    }
}
