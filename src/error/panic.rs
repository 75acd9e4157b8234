//! Containment of panics in user code: code that the caller supplies.
//!
//! | user code | called by | state after a panic |
//! |---|---|---|
//! | store: saves | the writer's task | the positions stay pending; the next attempt saves them |
//! | store: exchanges | the worker's task | the lease table as last seen; leases are valid until they expire |
//! | store: tables and edits | the caller's own call | nothing is changed in this crate |
//! | HTTP client, interceptors, credentials provider | a shard's fetches, listings | the position after the last response |
//! | metrics recorder, tracing layer | every task, the caller's polls, `ack()` | one measurement or log line is missing |
//! | stream wakers: `clone` | the caller's polls; never under a lock | the stream is unchanged; the poll panics |
//! | stream wakers: `wake`, `drop` | every task, the caller's own calls; never under a lock | the other wakers are woken; a wake is repeated |
//!
//! Each call is contained where it is made. A panic that escapes is caught by the task, which
//! restarts with the state that it has, or reports an error.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;

/// The number of consecutive panics that are reported by events only.
pub(crate) const TOLERATED_PANICS: u32 = 2;

/// The message of a panic.
#[derive(Debug, Clone)]
pub(crate) struct Panic(String);

impl Panic {
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        let said = match payload.downcast::<String>() {
            Ok(said) => *said,
            Err(payload) => match payload.downcast::<&'static str>() {
                Ok(said) => (*said).to_owned(),
                Err(payload) => {
                    // Dropping the payload may panic as well.
                    let _dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                    "panic without a message".to_owned()
                }
            },
        };
        Self(said)
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Panic {}

/// Runs a future and returns its panic as an error.
pub(crate) async fn contain<T>(future: impl Future<Output = T>) -> Result<T, Panic> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(Panic::new)
}

/// Calls a function and returns its panic as an error.
pub(crate) fn contain_call<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(Panic::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_any_payload_becomes_a_value() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let said = |result: Result<(), Panic>| result.unwrap_err().to_string();
        assert_eq!(said(contain(async { panic!("boom") }).await), "boom");
        assert_eq!(said(contain(async { panic!("boom {}", 1) }).await), "boom 1");
        assert_eq!(said(contain_call(|| std::panic::panic_any(Bomb))), "panic without a message");
        assert_eq!(contain(async { 7 }).await.unwrap(), 7);
    }
}
