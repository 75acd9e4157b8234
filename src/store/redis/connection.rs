//! The connection of a store: shared by all calls, and replaced once it no longer serves.
//!
//! ```text
//!                    a call                        answered
//!   no connection ──────────► connecting ────────► connected
//!        ▲                        │                    │
//!        └────── it failed ───────┴── a call failed, ──┘
//!                                     or was dropped
//! ```
//!
//! Calls that come while one connects wait for its outcome, and share it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// How long calls that are in flight on a retired connection may still be answered. One that has
/// waited in vain must not hold up what waits for it, such as a handoff that waits for a save; one
/// that is merely beside a dropped call has its answer within milliseconds.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Cheap to clone; the clones share one connection.
#[derive(Clone)]
pub(super) struct Connection {
    slot: Arc<Slot>,
    database: i64,
}

struct Slot {
    target: Target,
    state: Mutex<State>,
    /// The number of the last connection that was retired.
    retired: watch::Sender<u64>,
}

/// How long after its limit an attempt is given up by a call that waits for it: the runtime that connects
/// may be idle while calls come from another one, and then the limit does not end the attempt.
const ATTEMPT_SLACK: Duration = Duration::from_millis(250);

/// An attempt to connect, or the connection that it has made.
#[derive(Clone)]
struct Attempt {
    number: u64,
    /// Until when a call waits for it.
    until: Instant,
    link: Shared<BoxFuture<'static, RedisResult<Link>>>,
}

struct State {
    /// Counts attempts, so that a failure replaces only the connection on which it was seen.
    number: u64,
    /// The attempt that is under way, or the connection that it has made.
    current: Option<Attempt>,
    /// When the next attempt may start.
    next: Instant,
}

impl Connection {
    /// Connects for the first time.
    pub(super) async fn open(target: Target) -> RedisResult<Self> {
        let database = target.database();
        let link = target.clone().connect(FIRST_CONNECT_TIMEOUT).await?;
        let (link, now) = (futures::future::ready(Ok(link)).boxed().shared(), Instant::now());
        let current = Attempt { number: 1, until: now, link };
        let state = State { number: 1, current: Some(current), next: now };
        let slot = Slot { target, state: Mutex::new(state), retired: watch::Sender::new(0) };
        Ok(Self { slot: Arc::new(slot), database })
    }

    /// Sends a command that has no key, and returns what the server says.
    pub(super) async fn ask_any(&self, command: Cmd) -> RedisResult<Value> {
        let (mut link, call) = self.slot.begin().await?;
        let answer = call.wait(link.ask_any(command)).await.and_then(Value::extract_error);
        call.end(answer.as_ref().err().is_some_and(is_over));
        answer
    }
}

impl Slot {
    /// A connection for one call, and the guard of that call.
    async fn begin(self: &Arc<Self>) -> RedisResult<(Link, Call<'_>)> {
        let Attempt { number, until, link } = self.attempt();
        // Late calls wait as well: another one may be about to take the outcome.
        let until = until.max(Instant::now() + ATTEMPT_SLACK);
        let made = timeout_at(until, link).await.unwrap_or_else(|_elapsed| {
            let message = "no connection: the attempt does not end";
            Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
        });
        match made {
            Ok(link) => Ok((link, Call { slot: self, number, is_over: true })),
            Err(error) => {
                self.retire(number);
                Err(error)
            }
        }
    }

    /// The connection that there is, or an attempt to make one.
    fn attempt(self: &Arc<Self>) -> Attempt {
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
        // A separate task: the call that starts it may be dropped while others wait for it.
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
        let attempt = Attempt { number, until, link: link.boxed().shared() };
        state.current = Some(attempt.clone());
        attempt
    }

    /// Makes the next call connect again, unless another call has seen to that.
    fn retire(&self, number: u64) {
        let retired = {
            let mut state = self.lock();
            if state.number == number { state.current.take() } else { None }
        };
        // Not under the lock: it may close a socket, and wakes calls.
        if retired.is_some() {
            self.retired.send_replace(number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way. One that is dropped before its answer retires its connection, since the answer
/// may never come.
struct Call<'a> {
    slot: &'a Slot,
    number: u64,
    is_over: bool,
}

impl Call<'_> {
    /// Waits for an answer, no longer than [`LAST_ANSWERS`] after the connection was retired.
    async fn wait<T>(&self, answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let mut retired = self.slot.retired.subscribe();
        let given_up = async {
            // The slot outlives its calls, so this ends with a retirement alone.
            let _is_retired = retired.wait_for(|last| *last >= self.number).await.is_ok();
            sleep(LAST_ANSWERS).await;
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = given_up => {
                let message = "the connection was replaced before an answer came";
                Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
            }
        }
    }

    /// The call has ended, and its connection serves no longer where `is_over`.
    fn end(mut self, is_over: bool) {
        self.is_over = is_over;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.is_over {
            self.slot.retire(self.number);
        }
    }
}

/// Whether this answer, or a part of it, says that the connection serves no longer.
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

/// What a URL says. Neither the URL nor what the parser says of it is shown: it may hold a password.
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
            "the Redis URL is not valid; it must be like redis://user:password@host:6379/0, \
             rediss://… for TLS, or unix:///path",
        )
    })
}
