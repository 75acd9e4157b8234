//! The task that drives a source, as far as there is demand.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::CloseSignal;
use crate::error::{self, Error, ErrorKind, Panic};
use crate::source::{Demand, Fetched, Source};
use crate::telemetry::{Event, ShardTelemetry, Task};

/// How long nobody may ask for more until what is pushed is let go. To subscribe again takes as long,
/// at worst; and what is pushed and not read holds up others of the same connection.
const REST_AFTER: Duration = Duration::from_secs(10);

/// A permit, once there is demand. A source that waits long for it rests meanwhile.
async fn wanted<'a>(
    permits: &'a Semaphore,
    source: &mut Source,
) -> Result<SemaphorePermit<'a>, AcquireError> {
    if let Ok(permit) = timeout(REST_AFTER, permits.acquire()).await {
        return permit;
    }
    source.rest();
    permits.acquire().await
}

/// Batches of a source, fetched by a task of its own: a fetch under way goes on while the caller
/// is busy elsewhere. Dropping the feed ends the task.
pub(crate) struct Prefetcher {
    /// A permit for each batch that may be fetched.
    permits: Arc<Semaphore>,
    demand: Demand,
    /// Permits given out, less what has come in.
    outstanding: usize,
    received: u64,
    messages: mpsc::UnboundedReceiver<Message>,
    _task: JoinSet<()>,
}

/// A message of the task.
enum Message {
    Fetched(error::Result<Fetched>),
    /// The task ended in an orderly way.
    Ended,
    Panicked(Panic),
}

/// An outcome of a feed.
pub(crate) enum Received {
    Fetched(error::Result<Fetched>),
    /// The source ended, or the right to read it.
    Ended,
    /// The task ended before the source: the shard is read again from its checkpoint.
    Lost(Error),
}

impl Prefetcher {
    /// Fetches nothing until something is wanted, and nothing more when it is over.
    pub(crate) fn start(
        mut source: Source,
        mut over: CloseSignal,
        telemetry: ShardTelemetry,
    ) -> Self {
        let (permits, demand) = (Arc::new(Semaphore::new(0)), source.demand().clone());
        // Never holds more than what was wanted, plus the end.
        let (sender, messages) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn({
            let permits = Arc::clone(&permits);
            let (fetched, buffered) = (sender.clone(), telemetry.clone());
            let fetching = async move {
                // The permit stays with the item: it is given anew when the item was received.
                while let Ok(permit) = wanted(&permits, &mut source).await {
                    permit.forget();
                    let Some(item) = source.next().await else {
                        return;
                    };
                    if let Ok(Fetched::Records(batch, _)) = &item {
                        buffered.fetched(batch.len(), batch.origin().millis_behind_latest);
                    }
                    source.demand().sent();
                    if fetched.send(Message::Fetched(item)).is_err() {
                        return;
                    }
                }
            };
            let fetching = async move {
                tokio::select! {
                    biased;
                    () = poll_fn(|context| over.poll_closed(context)) => {}
                    () = fetching => {}
                }
            };
            let fetching = telemetry.within_span(fetching);
            async move {
                let last = match fetching.await {
                    Ok(()) => Message::Ended,
                    Err(panic) => {
                        let (shard_id, message) = (telemetry.shard_id().clone(), panic.to_string());
                        let (task, shard_id) = (Task::Fetch, Some(shard_id));
                        telemetry.emit(Event::TaskRestarted { task, shard_id, message });
                        Message::Panicked(panic)
                    }
                };
                let _nobody_reads = sender.send(last);
            }
        });
        Self { permits, demand, outstanding: 0, received: 0, messages, _task: task }
    }

    /// Has the next batch fetched, since the caller waits for it.
    pub(crate) fn urge(&mut self) {
        self.demand.urge(self.received);
        self.request(1);
    }

    /// Has at least so many batches fetched, as far as memory is free.
    pub(crate) fn fetch_ahead(&mut self, batches: usize) {
        self.demand.fetch_ahead();
        self.request(batches);
    }

    fn request(&mut self, batches: usize) {
        let missing = batches.saturating_sub(self.outstanding);
        self.permits.add_permits(missing);
        self.outstanding += missing;
    }

    /// Has no fetch begin until one is wanted again.
    pub(crate) fn hold(&mut self) {
        self.demand.hold();
        self.outstanding -= self.permits.forget_permits(self.outstanding);
    }

    /// The next batch, or how the task has ended.
    pub(crate) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        Poll::Ready(match ready!(self.messages.poll_recv(context)) {
            Some(Message::Fetched(fetched)) => {
                self.outstanding = self.outstanding.saturating_sub(1);
                self.received += 1;
                Received::Fetched(fetched)
            }
            Some(Message::Ended) => Received::Ended,
            Some(Message::Panicked(panic)) => Received::Lost(panicked(panic)),
            // Only the shutdown of its runtime ends the task without a message.
            None => Received::Lost(Error::runtime_shutdown()),
        })
    }
}

fn panicked(panic: Panic) -> Error {
    let message = format!(
        "the task that fetches the shard panicked; the shard is read again from its checkpoint: {panic}"
    );
    Error::new(ErrorKind::Panicked, message).with_source(panic)
}
