//! Drives a source in a separate task, as far as there is demand.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::CloseSignal;
use crate::error::{self, Error, ErrorKind, Panic};
use crate::source::{Demand, Fetched, Source};
use crate::telemetry::{Event, ShardTelemetry, Task};

/// Receives the batches of a source from the task that fetches them. A fetch in progress continues
/// while the caller is busy. Dropping the prefetcher ends the task.
pub(crate) struct Prefetcher {
    demand: Demand,
    /// The number of permits granted, less the number of batches received.
    outstanding: usize,
    received: u64,
    messages: mpsc::UnboundedReceiver<FetchMessage>,
    _task: JoinSet<()>,
}

/// A message of the task.
enum FetchMessage {
    Fetched(error::Result<Fetched>),
    /// The task ended without a panic.
    Ended,
    Panicked(Panic),
}

/// A result that the prefetcher received.
pub(crate) enum Received {
    Fetched(error::Result<Fetched>),
    /// The source or the lease ended.
    Ended,
    /// The task ended before the source did. The shard is read again from its checkpoint.
    Lost(Error),
}

impl Prefetcher {
    /// Starts the task. It fetches nothing until there is demand, nor after `over` is closed.
    pub(crate) fn start(
        mut source: Source,
        mut over: CloseSignal,
        telemetry: ShardTelemetry,
    ) -> Self {
        let demand = source.demand().clone();
        // Holds at most one message per permit, and the last message.
        let (sender, messages) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn({
            let (fetched, buffered) = (sender.clone(), telemetry.clone());
            let fetching = async move {
                // The item keeps the permit. A new one is granted after the item was received.
                while let Some(item) = source.next().await {
                    if let Ok(Fetched::Records(batch)) = &item {
                        buffered.fetched(batch.len(), batch.context().millis_behind_latest);
                    }
                    source.demand().sent();
                    if fetched.send(FetchMessage::Fetched(item)).is_err() {
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
                    Ok(()) => FetchMessage::Ended,
                    Err(panic) => {
                        let (shard_id, message) = (telemetry.shard_id().clone(), panic.to_string());
                        let (task, shard_id) = (Task::Fetch, Some(shard_id));
                        telemetry.emit(Event::TaskRestarted { task, shard_id, message });
                        FetchMessage::Panicked(panic)
                    }
                };
                let _dropped = sender.send(last);
            }
        });
        Self { demand, outstanding: 0, received: 0, messages, _task: task }
    }

    /// Requests the next batch, since the caller waits for it.
    pub(crate) fn urge(&mut self) {
        self.demand.urge(self.received);
        self.request(1);
    }

    /// Requests that at least `batches` batches are fetched, as far as memory is free.
    pub(crate) fn fetch_ahead(&mut self, batches: usize) {
        self.demand.fetch_ahead();
        self.request(batches);
    }

    fn request(&mut self, batches: usize) {
        let missing = batches.saturating_sub(self.outstanding);
        self.demand.add_permits(missing);
        self.outstanding += missing;
    }

    /// Prevents new fetches until a batch is requested again.
    pub(crate) fn hold(&mut self) {
        self.demand.hold();
        self.outstanding -= self.demand.forget_permits(self.outstanding);
    }

    /// Polls for the next batch, or the end of the task.
    pub(crate) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        Poll::Ready(match ready!(self.messages.poll_recv(context)) {
            Some(FetchMessage::Fetched(fetched)) => {
                self.outstanding = self.outstanding.saturating_sub(1);
                self.received += 1;
                Received::Fetched(fetched)
            }
            Some(FetchMessage::Ended) => Received::Ended,
            Some(FetchMessage::Panicked(panic)) => Received::Lost(panicked(panic)),
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
