//! Reads one shard as a `Stream`, from its checkpoint to its end or to the ending position.

mod delivery;
mod lease_handle;
mod poll_monitor;
mod prefetcher;
mod reader;
mod report;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::FusedStream;

pub(crate) use crate::close_signal::CloseSignal;
use crate::error::Result;
use crate::record::{Record, ShardId};
use crate::telemetry::PollCounter;
use crate::wakers::CallerWaker;

pub(crate) use delivery::Delivery;
pub(crate) use lease_handle::{LeaseDeadline, LeaseHandle, Moment};
pub(crate) use poll_monitor::PollMonitor;
pub(crate) use reader::{ReaderConfig, ShardReader};
pub(crate) use report::ReadReport;

/// The moment at which a record counts as acknowledged, so that the checkpoint may advance past it.
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
#[doc(alias("commit", "auto commit"))]
pub enum CheckpointOn {
    /// A record counts as acknowledged when the stream that yielded it is polled again. Use this
    /// with `while let`, `for_each` and `then`, which complete one record before they request the
    /// next.
    ///
    /// **Do not use** this where the next record is requested while this one is still processed:
    /// `buffered`, `buffer_unordered`, `for_each_concurrent`, `try_for_each_concurrent`,
    /// `ready_chunks`, `chunks`, `tokio::spawn`, a channel. A crash then loses the records being
    /// processed. Use [`Ack`](Self::Ack) there, or the adapters of
    /// [`RecordStreamExt`](crate::RecordStreamExt): they acknowledge their records when they are
    /// polled again themselves.
    #[default]
    Pull,
    /// A record is acknowledged when [`Record::ack`] is called, in any order and from any task. The
    /// checkpoint advances only while every record up to it is acknowledged. A record that is
    /// dropped without an acknowledgement therefore stops the checkpoint of its shard.
    #[doc(alias("retry", "dead letter", "negative acknowledgement"))]
    Ack,
}

/// A stream of the records of one shard, from its checkpoint to its end.
///
/// [`Consumer::shards`](crate::Consumer::shards) yields one for each shard, to be read in its own
/// task. The stream ends:
///
/// - when the shard is closed and read to its end,
/// - when it has reached the [ending position](crate::ConsumerBuilder::ending_position),
/// - when the consumer is closed,
/// - when the lease of the shard is released to another worker or lost: buffered records are
///   discarded, and after the end of the lease an acknowledgement of a delivered record has no
///   effect,
/// - after an error that ends the shard: its lease is released, and this consumer or another yields
///   the shard again after a pause of 10 s to 5 min.
///
/// The caller receives each kind of error once until a record of the shard is delivered again. If
/// the shard fails again with a kind that the caller has received, the stream ends without an
/// error, and [`Event::ShardFailed`](crate::Event::ShardFailed) reports it. After an error that
/// does not end the shard, the stream continues. Dropping the stream before its end releases the
/// shard; this consumer or another then yields it again.
///
/// Nothing is fetched before the first poll. After it, at most [`prefetch`] batches are fetched
/// ahead, in a task that ends when the stream is dropped.
///
/// # Cancel safety
///
/// Dropping the future of `next()` loses nothing: the stream owns all work in progress. Dropping
/// the stream discards its buffered records, which are read again from the checkpoint. With
/// [`CheckpointOn::Pull`], the last record yielded counts as acknowledged only when the stream is
/// polled again. If the stream is dropped instead, that record is redelivered.
///
/// # Panics
///
/// Panics when polled outside of a tokio runtime with time enabled.
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
    polls: Arc<PollCounter>,
    caller: CallerWaker,
}

impl ShardStream {
    /// Creates the stream. `poll_monitor` and `polls` are notified of each poll.
    pub(crate) fn new(
        reading: ShardReader,
        poll_monitor: Option<PollMonitor>,
        polls: Arc<PollCounter>,
    ) -> Self {
        let delivery = Delivery::new(reading.checkpoint_on());
        Self { reading, delivery, poll_monitor, polls, caller: CallerWaker::new() }
    }

    /// Returns the shard's ID.
    pub fn shard_id(&self) -> &ShardId {
        self.reading.shard_id()
    }

    /// Returns the shard's parents: none, the shard that was split, or the two shards that were
    /// merged. Parents that have left retention are included.
    pub fn parents(&self) -> &[ShardId] {
        self.reading.parents()
    }

    /// Returns the reader of the shard, which yields runs of records, for merging. From now on, the
    /// polls of the merged stream count as polls of this one.
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
        // Most polls return before this point.
        let waker = caller.follow(context.waker());
        let context = &mut Context::from_waker(&waker);
        loop {
            match ready!(reading.poll_run(context)) {
                Some(Ok(run)) => {
                    let record = delivery.start_run(run);
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
        self.polls.note(&polled);
        polled
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
