use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::{FusedStream, SelectAll};

use super::Shards;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::shard::{CheckpointOn, Delivery, PollMonitor, ShardReader};
use crate::telemetry::Polls;
use crate::wakers::CallerWaker;

/// Every record of a stream: its shards, merged.
///
/// Made by [`Consumer::records`](crate::Consumer::records). Records of one shard come in order,
/// and shards take turns: a shard with much to say can't keep the others from speaking. Ends
/// when the consumer is closed and when the stream does not exist; after an `Err` it goes on with
/// what can go on.
///
/// Nothing is fetched before the first poll, and at most
/// [`prefetch`](crate::ConsumerBuilder::prefetch) batches a shard while nobody polls, so the
/// stream may be left alone for as long as its records are in retention.
///
/// # Cancel safety
///
/// Dropping `next()` loses nothing. Dropping the stream gives up what was buffered, which is read
/// again from the checkpoints; what was finished is still saved, if the runtime goes on.
///
/// # Panics
///
/// When polled outside of a tokio runtime with time enabled.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use futures::TryStreamExt;
///
/// let mut records = consumer.records();
/// while let Some(record) = records.try_next().await? {
///     println!("{} {:?}", record.shard_id(), record.data());
/// }
/// # Ok(()) }
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct Records {
    /// Where shards come from, until there are no more to come.
    shards: Option<Shards>,
    merged: SelectAll<ShardReader>,
    delivery: Delivery,
    poll_monitor: Option<PollMonitor>,
    polls: Arc<Polls>,
    caller: CallerWaker,
}

impl Records {
    pub(super) fn new(shards: Shards, checkpoint_on: CheckpointOn) -> Self {
        let polls = shards.polls();
        polls.of_records();
        Self {
            poll_monitor: shards.poll_monitor(),
            polls,
            shards: Some(shards),
            merged: SelectAll::new(),
            delivery: Delivery::new(checkpoint_on),
            caller: CallerWaker::new(),
        }
    }

    /// Takes in the shards that may be read now. An error is the caller's to see.
    fn poll_shards(&mut self, context: &mut Context<'_>) -> Result<()> {
        while let Some(shards) = &mut self.shards {
            match shards.poll_shard(context) {
                Poll::Ready(Some(shard)) => self.merged.push(shard?.into_runs(self.poll_monitor.as_ref())),
                Poll::Ready(None) => self.shards = None,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// What is left to read after an error: nothing, where the tasks of all shards are gone.
    fn after(&mut self, error: Error) -> Error {
        if error.kind() == ErrorKind::RuntimeShutdown {
            self.shards = None;
            self.merged = SelectAll::new();
        }
        error
    }
}

impl Records {
    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Record>>> {
        if let Some(poll_monitor) = &self.poll_monitor {
            poll_monitor.record_poll(&self.caller.follow(context.waker()));
        }
        let shards = self.shards.as_ref();
        let record = self.delivery.resume(|| shards.is_some_and(Shards::is_closed));
        if record.is_some() {
            return Poll::Ready(record);
        }
        // Most polls do not come so far.
        let waker = self.caller.follow(context.waker());
        let context = &mut Context::from_waker(&waker);
        loop {
            if let Err(error) = self.poll_shards(context) {
                return Poll::Ready(Some(Err(self.after(error))));
            }
            match Pin::new(&mut self.merged).poll_next(context) {
                Poll::Ready(Some(Ok(run))) => {
                    let record = self.delivery.give(run);
                    if record.is_some() {
                        return Poll::Ready(record);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(self.after(error)))),
                // Between a parent and its children there may be nothing to read for a while.
                Poll::Ready(None) if self.shards.is_some() => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Stream for Records {
    type Item = Result<Record>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.poll_record(context);
        self.polls.polled(polled)
    }
}

impl FusedStream for Records {
    fn is_terminated(&self) -> bool {
        self.shards.is_none() && self.merged.is_empty() && self.delivery.is_empty()
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Records")
            .field("shards", &self.merged.len())
            .finish_non_exhaustive()
    }
}
