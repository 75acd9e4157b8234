use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::{FusedStream, SelectAll};

use super::Shards;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::shard::{CheckpointOn, Delivery, PollMonitor, ShardReader};
use crate::telemetry::PollCounter;
use crate::wakers::CallerWaker;

/// A stream of the records of all shards.
///
/// Returned by [`Consumer::records`](crate::Consumer::records). Records of one shard are delivered
/// in order. Shards take turns, so a busy shard does not starve the others. After an `Err` the
/// stream continues with the shards that can be read. It ends:
///
/// - when the consumer is closed,
/// - with [`ending_position`](crate::ConsumerBuilder::ending_position) or
///   [`only_shards`](crate::ConsumerBuilder::only_shards): when nothing is left to read,
/// - when the Kinesis stream does not exist,
/// - after an error of kind [`RuntimeShutdown`](ErrorKind::RuntimeShutdown), when the tokio runtime
///   has shut down,
/// - after an error of kind [`InUse`](ErrorKind::InUse), if the consumer was closed or already has
///   a stream.
///
/// No record is fetched before the first poll. While the caller does not poll, at most
/// [`prefetch`](crate::ConsumerBuilder::prefetch) batches of each shard are fetched. The caller can
/// therefore pause for as long as the records stay within retention.
///
/// # Cancel safety
///
/// Dropping `next()` loses no record. Dropping the stream discards the buffered records, which are
/// read again from the checkpoints. The checkpoints of acknowledged records are still saved if the
/// runtime continues to run.
///
/// # Panics
///
/// Panics if it is polled outside a tokio runtime with time enabled.
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
    /// The source of shards; `None` after its end.
    shards: Option<Shards>,
    merged: SelectAll<ShardReader>,
    delivery: Delivery,
    poll_monitor: Option<PollMonitor>,
    polls: Arc<PollCounter>,
    caller: CallerWaker,
    /// The session after the end of a bounded reading: the worker keeps its leases as long as the
    /// session, since records may be in flight.
    session: Option<Arc<Session>>,
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
            session: None,
        }
    }

    /// Adds the shards that can be read now. Returns an error that the caller must receive.
    fn poll_shards(&mut self, context: &mut Context<'_>) -> Result<()> {
        while let Some(shards) = &mut self.shards {
            match shards.poll_shard(context) {
                Poll::Ready(Some(shard)) => {
                    self.merged.push(shard?.into_runs(self.poll_monitor.as_ref()));
                }
                Poll::Ready(None) => {
                    self.session = self.shards.take().and_then(Shards::into_session);
                }
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Removes all shards after the shutdown of the runtime, since their tasks have ended. Returns
    /// the error.
    fn drop_shards_on_shutdown(&mut self, error: Error) -> Error {
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
        // Most polls return before this point, so the waker is cloned only here.
        let waker = self.caller.follow(context.waker());
        let context = &mut Context::from_waker(&waker);
        loop {
            if let Err(error) = self.poll_shards(context) {
                return Poll::Ready(Some(Err(self.drop_shards_on_shutdown(error))));
            }
            match Pin::new(&mut self.merged).poll_next(context) {
                Poll::Ready(Some(Ok(run))) => {
                    let record = self.delivery.start_run(run);
                    if record.is_some() {
                        return Poll::Ready(record);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Some(Err(self.drop_shards_on_shutdown(error))));
                }
                // Between a parent and its children there may be no shard to read.
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
        self.polls.note(&polled);
        polled
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
            .field("is_exhausted", &self.session.is_some())
            .finish_non_exhaustive()
    }
}
