//! The task that drives a source, as far as there is demand.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{Instrument, Span};

use super::Closing;
use crate::error;
use crate::source::{Fetched, Source};

/// How long nobody may ask for more until what is pushed is let go. To subscribe again takes as long,
/// at worst; and what is pushed and not read holds up others of the same connection.
const REST_AFTER: Duration = Duration::from_secs(10);

/// A permit, once there is demand. A source that waits long for it rests meanwhile.
async fn wanted<'a>(
    demand: &'a Semaphore,
    source: &mut Source,
) -> Result<SemaphorePermit<'a>, AcquireError> {
    if let Ok(permit) = timeout(REST_AFTER, demand.acquire()).await {
        return permit;
    }
    source.rest();
    demand.acquire().await
}

/// Batches of a source, fetched by a task of its own: a fetch under way goes on while the caller
/// is busy elsewhere. Dropping the feed ends the task.
pub(crate) struct Feed {
    /// A permit for each batch that may be fetched.
    demand: Arc<Semaphore>,
    /// Permits given out, less what has come in.
    outstanding: usize,
    received: mpsc::UnboundedReceiver<error::Result<Fetched>>,
    _task: JoinSet<()>,
}

impl Feed {
    /// Fetches nothing until something is wanted, and nothing more when it is over.
    pub(crate) fn start(mut source: Source, mut over: Closing, span: Span) -> Self {
        let demand = Arc::new(Semaphore::new(0));
        // Never holds more than what was wanted.
        let (sender, received) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn({
            let demand = Arc::clone(&demand);
            let fetching = async move {
                // The permit stays with the item: it is given anew when the item was received.
                while let Ok(permit) = wanted(&demand, &mut source).await {
                    permit.forget();
                    let Some(fetched) = source.next().await else {
                        return;
                    };
                    if sender.send(fetched).is_err() {
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
            fetching.instrument(span)
        });
        Self { demand, outstanding: 0, received, _task: task }
    }

    /// Has at least so many batches fetched or under way.
    pub(crate) fn want(&mut self, batches: usize) {
        let missing = batches.saturating_sub(self.outstanding);
        self.demand.add_permits(missing);
        self.outstanding += missing;
    }

    /// The next batch; `None` when the source has ended.
    pub(crate) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<error::Result<Fetched>>> {
        let received = self.received.poll_recv(context);
        if let Poll::Ready(Some(_)) = received {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        received
    }
}
