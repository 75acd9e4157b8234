//! The queue of the errors that background tasks report to the caller.

use tokio::sync::mpsc;

use super::{Error, Result, contain_call};

/// Reports errors to the caller's stream, which yields them even while it waits for records.
#[derive(Debug, Clone)]
pub(crate) struct ErrorReporter(mpsc::UnboundedSender<Error>);

impl ErrorReporter {
    /// Creates a reporter, and the queue from which the caller's stream takes the errors.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Error>) {
        let (errors, reported) = mpsc::unbounded_channel();
        (Self(errors), reported)
    }

    /// Queues an error. Returns it if the caller's stream has ended or was dropped.
    pub(crate) fn report(&self, error: Error) -> Result<()> {
        // The error is queued even if the caller's waker panics.
        let sent = contain_call(|| self.0.send(error)).unwrap_or(Ok(()));
        sent.map_err(|unsent| unsent.0)
    }
}
