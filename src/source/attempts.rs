use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Failure, Remedy};

/// Whoever waited while somebody else failed does not try at once: there may be a thousand shards.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// When something that one finds out for all could not be found out.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: Option<Instant>,
}

impl Attempts {
    /// An attempt begins, unless one has failed a moment ago. One that is dropped counts as failed.
    pub(super) fn begin(&mut self, what: &str) -> Result<(), Failure> {
        if self.failed.is_some_and(|failed| failed.elapsed() < AFTER_FAILURE) {
            return Err(Failure {
                remedy: Remedy::Retry,
                error: Error::new(ErrorKind::Unavailable, format!("{what} a moment ago")),
                answered: None,
            });
        }
        self.failed = Some(Instant::now());
        Ok(())
    }

    pub(super) fn end(&mut self, has_failed: bool) {
        self.failed = has_failed.then(Instant::now);
    }
}
