//! One shard as a `Stream`, from its checkpoint to its end.

mod delivery;
mod lease_handle;
mod poll_monitor;
mod prefetcher;
mod reader;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;

pub(crate) use crate::close_signal::CloseSignal;
use crate::error::Result;
use crate::record::{Record, ShardId};
use crate::telemetry::Polls;
use crate::wakers::CallerWaker;

pub(crate) use delivery::Delivery;
pub(crate) use lease_handle::{LeaseDeadline, LeaseHandle, Moment, time_on_the_wall};
pub(crate) use poll_monitor::PollMonitor;
pub(crate) use reader::{Plan, ReadOutcome, ShardReader};

/// When a record counts as finished, so that the checkpoint may pass it.
///
/// ```no_run
/// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use futures::TryStreamExt;
/// use kinestream::{CheckpointOn, Consumer};
///
/// let consumer =
///     Consumer::builder(client, "orders").checkpoint_on(CheckpointOn::Ack).build()?;
/// consumer
///     .records()
///     .try_for_each_concurrent(64, |record| async move {
///         println!("{:?}", record.data());
///         record.ack();
///         Ok(())
///     })
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CheckpointOn {
    /// When the stream that yielded it is polled again. Right for `while let`, `for_each` and
    /// `then`, where a record is done with before the next one is asked for.
    ///
    /// **Wrong** for whatever asks for the next record while it still works on this one:
    /// `buffered`, `buffer_unordered`, `for_each_concurrent`, `try_for_each_concurrent`,
    /// `ready_chunks`, `chunks`, `tokio::spawn`, a channel. A crash then loses the records under
    /// way. Use [`Ack`](Self::Ack) there.
    #[default]
    Pull,
    /// When [`Record::ack`] was called, in any order, from any task. The position advances over
    /// records that are all acknowledged and no further, so a record that is dropped without it
    /// holds the position of its shard where it is.
    Ack,
}

/// One shard, from its checkpoint to its end.
///
/// Yielded by [`Consumer::shards`](crate::Consumer::shards), to be read in a task of its own.
/// Ends when the shard was closed and is read to its end, when the consumer is closed, when the
/// shard goes to another worker, and after an error that ends the shard: its lease is released, and the
/// shard is yielded again after a pause of 10 s to 5 min, by this consumer or another. The caller receives
/// each kind of error once until a record of the shard is delivered again; a stream that fails with a known
/// error ends without it, and [`Event::ShardFailed`](crate::Event::ShardFailed) tells of it. After an error
/// that does not end the shard, the stream goes on. Dropped before its end, it gives the shard back, which is then yielded once more,
/// by this consumer or another.
///
/// Nothing is read before the first poll. Then at most [`prefetch`] batches are read ahead, in
/// a task that ends when the stream is dropped.
///
/// # Cancel safety
///
/// Dropping `next()` loses nothing: what is under way lives in the stream. Dropping the stream
/// gives up what was buffered; it is read again from the checkpoint. With
/// [`CheckpointOn::Pull`] the last record yielded counts as finished only when the stream is
/// polled once more, so a stream that is dropped instead has it repeated.
///
/// # Panics
///
/// When polled outside of a tokio runtime with time enabled.
///
/// ```no_run
/// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use futures::{StreamExt, TryStreamExt};
/// use kinestream::Consumer;
///
/// let consumer = Consumer::builder(client, "orders").build()?;
/// consumer
///     .shards()
///     .try_for_each(|mut shard| async {
///         tokio::spawn(async move {
///             while let Some(Ok(record)) = shard.next().await {
///                 println!("{}: {:?}", shard.shard_id(), record.data());
///             }
///         });
///         Ok(())
///     })
///     .await?;
/// # Ok(()) }
/// ```
///
/// [`prefetch`]: crate::ConsumerBuilder::prefetch
#[must_use = "streams do nothing unless polled"]
pub struct ShardStream {
    reading: ShardReader,
    delivery: Delivery,
    poll_monitor: Option<PollMonitor>,
    polls: Arc<Polls>,
    caller: CallerWaker,
}

impl ShardStream {
    /// `poll_monitor` and `polls` are told of each poll.
    pub(crate) fn new(reading: ShardReader, poll_monitor: Option<PollMonitor>, polls: Arc<Polls>) -> Self {
        let delivery = Delivery::new(reading.checkpoint_on());
        Self { reading, delivery, poll_monitor, polls, caller: CallerWaker::new() }
    }

    /// The shard's name.
    pub fn shard_id(&self) -> &ShardId {
        self.reading.shard_id()
    }

    /// The shards it was split or merged from: none, one, or the two of a merge. They are named
    /// also where they have left retention.
    pub fn parents(&self) -> &[ShardId] {
        self.reading.parents()
    }

    /// The same shard in runs of records, for merging: the merged stream's polls count for it.
    pub(crate) fn into_runs(self, merged: Option<&PollMonitor>) -> ShardReader {
        if let (Some(poll_monitor), Some(merged)) = (&self.poll_monitor, merged) {
            poll_monitor.merge_into(merged);
        }
        self.reading
    }

    fn poll_record(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Record>>> {
        let Self { reading, delivery, poll_monitor, caller, .. } = self;
        if let Some(poll_monitor) = poll_monitor {
            poll_monitor.record_poll(&caller.follow(context.waker()));
        }
        let record = delivery.resume(|| reading.is_closed());
        if record.is_some() {
            return Poll::Ready(record);
        }
        // Most polls do not come so far.
        let waker = caller.follow(context.waker());
        let context = &mut Context::from_waker(&waker);
        loop {
            match ready!(reading.poll_run(context)) {
                Some(Ok(run)) => {
                    let record = delivery.give(run);
                    if record.is_some() {
                        return Poll::Ready(record);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl Stream for ShardStream {
    type Item = Result<Record>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.poll_record(context);
        self.polls.polled(polled)
    }
}

impl FusedStream for ShardStream {
    fn is_terminated(&self) -> bool {
        self.reading.is_done() && self.delivery.is_empty()
    }
}

impl fmt::Debug for ShardStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ShardStream")
            .field("shard_id", self.shard_id())
            .field("parents", &self.parents())
            .finish_non_exhaustive()
    }
}
