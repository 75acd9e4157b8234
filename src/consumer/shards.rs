use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;

use super::session::{Running, Session};
use crate::error::{Error, Result};
use crate::shard::{CloseSignal, PollMonitor, ShardStream};
use crate::telemetry::PollCounter;
use crate::wakers::CallerWaker;

/// A stream of shards, each as a [`ShardStream`]. It yields the shards that exist at the start, the
/// children of a reshard when their parents are finished, and shards acquired from other workers.
///
/// Returned by [`Consumer::shards`](crate::Consumer::shards). It ends like
/// [`Records`](crate::Records). Poll it continuously: new shards appear only while it is polled,
/// and none after it is dropped. Shards that it has yielded continue after the drop.
///
/// # Cancel safety
///
/// Dropping `next()` loses no shard.
///
/// # Panics
///
/// Panics if it is polled outside a tokio runtime with time enabled.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use futures::TryStreamExt;
///
/// let mut shards = consumer.shards();
/// while let Some(shard) = shards.try_next().await? {
///     println!("{} from {:?}", shard.shard_id(), shard.parents());
/// }
/// # Ok(()) }
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct Shards {
    state: ShardsState,
    polls: Arc<PollCounter>,
    caller: CallerWaker,
}

enum ShardsState {
    /// One error is left to yield.
    Refused(Error),
    /// Not polled yet.
    Idle(Arc<Session>),
    Running {
        running: Running,
        close_signal: CloseSignal,
        session: Arc<Session>,
    },
    /// Nothing is left to read. The worker keeps its leases as long as the session.
    Exhausted(Arc<Session>),
    Done,
}

impl Shards {
    pub(super) fn refused(error: Error) -> Self {
        // Polls of a refused stream are not monitored.
        Self::with(ShardsState::Refused(error), Arc::default())
    }

    pub(super) fn new(session: Session) -> Self {
        let polls = session.consumer().inner.telemetry.polls();
        polls.of_shards();
        Self::with(ShardsState::Idle(Arc::new(session)), polls)
    }

    fn with(state: ShardsState, polls: Arc<PollCounter>) -> Self {
        Self { state, polls, caller: CallerWaker::new() }
    }

    /// Returns the counter of this stream's polls.
    pub(super) fn polls(&self) -> Arc<PollCounter> {
        Arc::clone(&self.polls)
    }

    /// Returns the poll monitor of a merged stream; `None` without a `poll_timeout`.
    pub(super) fn poll_monitor(&self) -> Option<PollMonitor> {
        match &self.state {
            ShardsState::Idle(session) | ShardsState::Running { session, .. } => {
                session.poll_monitor()
            }
            ShardsState::Refused(_) | ShardsState::Exhausted(_) | ShardsState::Done => None,
        }
    }

    /// Returns true if the consumer is closed.
    pub(super) fn is_closed(&self) -> bool {
        match &self.state {
            ShardsState::Idle(session) | ShardsState::Running { session, .. } => {
                session.consumer().inner.close_signal.is_closed()
            }
            ShardsState::Refused(_) | ShardsState::Exhausted(_) | ShardsState::Done => false,
        }
    }

    /// Returns the session of a stream that has ended because nothing is left to read.
    pub(super) fn into_session(self) -> Option<Arc<Session>> {
        match self.state {
            ShardsState::Exhausted(session) => Some(session),
            _ => None,
        }
    }
}

impl Shards {
    /// Polls for the next shard. The waker of `context` must come from a [`CallerWaker`]. A panic
    /// does not change the state.
    pub(super) fn poll_shard(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<ShardStream>>> {
        loop {
            match &mut self.state {
                ShardsState::Exhausted(_) | ShardsState::Done => return Poll::Ready(None),
                ShardsState::Refused(_) => {
                    let refused = std::mem::replace(&mut self.state, ShardsState::Done);
                    let ShardsState::Refused(error) = refused else { continue };
                    return Poll::Ready(Some(Err(error)));
                }
                ShardsState::Idle(session) => {
                    let running = session.start();
                    let close_signal = session.consumer().inner.close_signal.clone();
                    let session = Arc::clone(session);
                    self.state = ShardsState::Running { running, close_signal, session };
                }
                ShardsState::Running { running, close_signal, session } => {
                    let assigned = match close_signal.poll_closed(context) {
                        Poll::Ready(()) => None,
                        Poll::Pending => ready!(running.poll_assigned(context)),
                    };
                    let Some(assigned) = assigned else {
                        self.state = if running.is_exhausted() {
                            ShardsState::Exhausted(Arc::clone(session))
                        } else {
                            ShardsState::Done
                        };
                        return Poll::Ready(None);
                    };
                    return Poll::Ready(Some(assigned.map(|assigned| running.open(assigned))));
                }
            }
        }
    }
}

impl Stream for Shards {
    type Item = Result<ShardStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let waker = self.caller.follow(context.waker());
        let polled = self.poll_shard(&mut Context::from_waker(&waker));
        self.polls.note(&polled);
        polled
    }
}

impl FusedStream for Shards {
    fn is_terminated(&self) -> bool {
        matches!(self.state, ShardsState::Exhausted(_) | ShardsState::Done)
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            ShardsState::Refused(_) => "refused",
            ShardsState::Idle(_) => "idle",
            ShardsState::Running { .. } => "running",
            ShardsState::Exhausted(_) => "exhausted",
            ShardsState::Done => "done",
        };
        formatter.debug_struct("Shards").field("state", &state).finish_non_exhaustive()
    }
}
