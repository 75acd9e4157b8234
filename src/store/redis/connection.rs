//! The connection of a store, shared by all calls and replaced after a failure.
//!
//! ```text
//!                    a call                        answered
//!   no connection ──────────► connecting ────────► connected
//!        ▲                        │                    │
//!        └────── it failed ───────┴── a call failed, ──┘
//!                                     or was dropped
//! ```
//!
//! Calls that start during an attempt to connect wait for its result and share it.

use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use redis::aio::ConnectionLike;
use redis::{
    Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, RedisResult, Value,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::link::{CONNECT_TIMEOUT, FIRST_CONNECT_TIMEOUT, Link, Target};
use super::refusal::is_over;
use crate::backoff::{Backoff, CONNECTIONS};
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;

/// The time that calls in flight on a retired connection still have to complete. A call without an
/// answer must not delay its callers, such as a handoff that waits for a save. If the connection
/// was retired by the drop of another call, the remaining calls receive their answers within
/// milliseconds.
const RETIRED_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that is cheap to clone; clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    slot: Arc<SharedConnection>,
    database: i64,
}

struct SharedConnection {
    target: Target,
    state: Mutex<ConnectionState>,
    /// The number of the last retired connection.
    retired: watch::Sender<u64>,
}

/// The time after its limit at which a waiting call gives up an attempt. The runtime that connects
/// may be idle while calls come from another runtime; the limit then does not end the attempt.
const ATTEMPT_SLACK: Duration = Duration::from_millis(250);

/// An attempt to connect, or the established connection.
#[derive(Clone)]
struct ConnectAttempt {
    number: u64,
    /// The time until which a call waits for the attempt.
    until: Instant,
    link: Shared<BoxFuture<'static, RedisResult<Link>>>,
}

struct ConnectionState {
    /// The number of attempts so far. A failure retires only the connection on which it occurred.
    number: u64,
    /// The attempt in progress, or the established connection.
    current: Option<ConnectAttempt>,
    /// The earliest start of the next attempt.
    next: Instant,
}

impl Connection {
    /// Connects for the first time.
    pub(super) async fn open(target: Target) -> RedisResult<Self> {
        let database = target.database();
        let link = target.clone().connect(FIRST_CONNECT_TIMEOUT).await?;
        let (link, now) = (futures::future::ready(Ok(link)).boxed().shared(), Instant::now());
        let current = ConnectAttempt { number: 1, until: now, link };
        let state = ConnectionState { number: 1, current: Some(current), next: now };
        let slot =
            SharedConnection { target, state: Mutex::new(state), retired: watch::Sender::new(0) };
        Ok(Self { slot: Arc::new(slot), database })
    }

    /// Sends a command without a key, and returns the answer.
    pub(super) async fn ask_any(&self, command: Cmd) -> RedisResult<Value> {
        let (mut link, call) = self.slot.begin().await?;
        let answer = call.wait(link.ask_any(command)).await.and_then(Value::extract_error);
        call.end(answer.as_ref().err().is_some_and(is_over));
        answer
    }
}

impl SharedConnection {
    /// Returns the connection for one call, and the guard of that call.
    async fn begin(self: &Arc<Self>) -> RedisResult<(Link, PendingCall<'_>)> {
        let ConnectAttempt { number, until, link } = self.attempt();
        // Late calls wait too: another call may be about to receive the result.
        let until = until.max(Instant::now() + ATTEMPT_SLACK);
        let made = timeout_at(until, link).await.unwrap_or_else(|_elapsed| {
            let message = "the attempt to connect did not end in time";
            Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
        });
        match made {
            Ok(link) => Ok((link, PendingCall { slot: self, number, is_over: true })),
            Err(error) => {
                self.retire(number);
                Err(error)
            }
        }
    }

    /// Returns the current connection or attempt, or starts an attempt.
    fn attempt(self: &Arc<Self>) -> ConnectAttempt {
        let mut state = self.lock();
        if let Some(attempt) = &state.current {
            return attempt.clone();
        }
        let limit = CONNECT_TIMEOUT;
        let start = state.next.max(Instant::now());
        let until = start + limit + ATTEMPT_SLACK;
        state.next = start + Backoff::new(CONNECTIONS).failed();
        state.number += 1;
        let number = state.number;
        let slot = Arc::clone(self);
        // A separate task, since the call that starts it may be dropped while others wait for it.
        let connecting = tokio::spawn(async move {
            sleep_until(start).await;
            let link = slot.target.clone().connect(limit).await;
            if link.is_err() {
                slot.retire(number);
            }
            link
        });
        let link = async move {
            let ended = |error| Err(RedisError::from(io::Error::other(error)));
            connecting.await.unwrap_or_else(ended)
        };
        let attempt = ConnectAttempt { number, until, link: link.boxed().shared() };
        state.current = Some(attempt.clone());
        attempt
    }

    /// Makes the next call connect again, unless this connection was already retired.
    fn retire(&self, number: u64) {
        let retired = {
            let mut state = self.lock();
            if state.number == number { state.current.take() } else { None }
        };
        // Sent without the lock: it may close a socket, and it wakes calls.
        if retired.is_some() {
            self.retired.send_replace(number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock()
    }
}

/// A call in progress. A call that is dropped before its answer retires its connection, since the
/// answer may never arrive.
struct PendingCall<'a> {
    slot: &'a SharedConnection,
    number: u64,
    is_over: bool,
}

impl PendingCall<'_> {
    /// Waits for an answer, at most [`RETIRED_ANSWER_TIMEOUT`] after the connection was retired.
    async fn wait<T>(&self, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let mut retired = self.slot.retired.subscribe();
        let given_up = async {
            // The slot outlives its calls, so only a retirement ends this wait.
            let _is_retired = retired.wait_for(|last| *last >= self.number).await.is_ok();
            sleep(RETIRED_ANSWER_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = given_up => {
                let message = "the connection was replaced before the answer arrived";
                Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
            }
        }
    }

    /// Ends the call. Retires the connection if `is_over` is true.
    fn end(mut self, is_over: bool) {
        self.is_over = is_over;
    }
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        if self.is_over {
            self.slot.retire(self.number);
        }
    }
}

/// Returns true if this answer requires a new connection.
fn says_over(answer: &Value) -> bool {
    match answer {
        Value::ServerError(error) => is_over(&error.clone().into()),
        _ => false,
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let (mut link, call) = self.slot.begin().await?;
            let answer = call.wait(link.any().req_packed_command(command)).await;
            call.end(match &answer {
                Ok(value) => says_over(value),
                Err(error) => is_over(error),
            });
            answer
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        async move {
            let (mut link, call) = self.slot.begin().await?;
            let answer = call.wait(link.any().req_packed_commands(pipeline, offset, count)).await;
            call.end(match &answer {
                Ok(values) => values.iter().any(says_over),
                Err(error) => is_over(error),
            });
            answer
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        self.database
    }
}

/// Parses a URL. The error contains neither the URL nor the parser's text, which may contain a
/// password.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo> {
    if url.starts_with("rediss:") && cfg!(not(feature = "redis-tls")) {
        return Err(Error::new(
            ErrorKind::Configuration,
            "a rediss:// URL needs the cargo feature redis-tls of kinestream",
        ));
    }
    url.into_connection_info().map_err(|_unshown| {
        Error::new(
            ErrorKind::Configuration,
            "the Redis URL is invalid; use the form redis://user:password@host:6379/0, rediss://… \
             for TLS, or unix:///path",
        )
    })
}
