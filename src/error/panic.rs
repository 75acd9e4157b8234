//! Containment of panics in code that the caller supplies.
//!
//! | code of the caller | called by | what a panic leaves |
//! |---|---|---|
//! | store: saves | the writer's task | the positions stay pending, and are saved by the next attempt |
//! | store: exchanges | the worker's task | the table as it was seen last; leases are valid until they expire |
//! | store: tables and edits | the caller's own call | nothing changed here |
//! | HTTP client, interceptors, credentials provider | a shard's fetches, listings | the position behind the last answer |
//! | metrics recorder, tracing layer | every task, the caller's polls, `ack()` | one measurement or log line is missing |
//! | wakers of streams: `clone` | the caller's polls; never under a lock | the stream as it was; the poll panics |
//! | wakers of streams: `wake`, `drop` | every task, the caller's own calls; never under a lock | the others are woken, and a wake is repeated |
//!
//! Each call is contained where it is made. A panic that gets past that is caught by the task, which
//! restarts with the state that it has, or reports an error.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;

/// The number of panics in a row that are reported by events alone.
pub(crate) const TOLERATED: u32 = 2;

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
                    // The destructor of the payload may panic as well.
                    let _dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                    "a panic without a message".to_owned()
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

/// Runs a future, and returns its panic as an error.
pub(crate) async fn contain<T>(future: impl Future<Output = T>) -> Result<T, Panic> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(Panic::new)
}

/// Calls a function, and returns its panic as an error.
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
        assert_eq!(said(contain_call(|| std::panic::panic_any(Bomb))), "a panic without a message");
        assert_eq!(contain(async { 7 }).await.unwrap(), 7);
    }
}
