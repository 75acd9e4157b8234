//! Adapters of streams of records that keep acknowledgements correct.
//!
//! ```text
//!   records() ──► decode, ack_filter ──► buffer_by_key ──► outputs of handlers
//!                                   └──► batches ──────► batches
//! ```
//!
//! The adapters know records only by `AsRef<Record>`, and acknowledge only through the record. They
//! import nothing but [`record`](crate::record).
//!
//! With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull), a poll of the consumer's stream would
//! acknowledge a record that an adapter still holds. The adapter therefore defers the
//! acknowledgement when it receives the record, and makes it when it is polled after the item that
//! contained the record.

mod ack_filter;
mod batches;
mod buffer_by_key;
mod decode;
#[cfg(test)]
mod fixtures;
mod key_queue;
mod record_batch;
mod shard_epochs;

use std::time::Duration;

use futures::TryStream;

use crate::record::Record;

pub use ack_filter::AckFilter;
pub use batches::Batches;
pub use buffer_by_key::BufferByKey;
pub use decode::{Decode, DecodeError, Decoded};
pub use record_batch::RecordBatch;

/// The most items that an adapter takes from its stream in one poll before other tasks have a turn.
/// 256 records take about 50 µs.
const MAX_TAKEN_PER_POLL: usize = 256;

/// A record whose closure has not returned. A panic of the closure drops it, and the next poll of the
/// stream then does not acknowledge the record.
struct Unprocessed<'a>(&'a Record);

impl Drop for Unprocessed<'_> {
    fn drop(&mut self) {
        self.0.defer_ack();
    }
}

/// Calls the closure of an adapter for a record.
fn call_for<T>(record: &Record, closure: impl FnOnce() -> T) -> T {
    let unprocessed = Unprocessed(record);
    let result = closure();
    std::mem::forget(unprocessed);
    result
}

/// Combinators that keep acknowledgements correct, for every stream of
/// `Result<`[`Record`]`, E>` or `Result<`[`Decoded`]`<T>, E>`.
///
/// | adapter | yields |
/// |---|---|
/// | [`buffer_by_key`](Self::buffer_by_key) | the outputs of concurrent handlers, one at a time per partition key |
/// | [`batches`](Self::batches) | batches by number of records and time |
/// | [`ack_filter`](Self::ack_filter) | some of the records, and acknowledges the others |
/// | [`decode`](Self::decode) | decoded values that carry their record |
///
/// They compose with each other and with the combinators of [`futures`]. A type of your own that
/// contains a record works as well, if it implements `AsRef<Record>`.
///
/// ```
/// use std::time::Duration;
///
/// use futures::{StreamExt, TryStreamExt, future};
/// use kinestream::{Consumer, Record, RecordStreamExt};
///
/// # async fn write(record: &Record) -> std::io::Result<()> { Ok(()) }
/// # async fn insert(batch: &[Record]) -> std::io::Result<()> { Ok(()) }
/// # async fn concurrent(consumer: Consumer) -> anyhow::Result<()> {
/// // Concurrent processing, ordered per partition key, acknowledged explicitly.
/// consumer.records()
///     .buffer_by_key(64, |record| async move { write(&record).await?; record.ack(); anyhow::Ok(()) })
///     .try_for_each(future::ok).await?;
/// # Ok(()) }
/// # async fn in_batches(consumer: Consumer) -> anyhow::Result<()> {
///
/// // Batches by size and time.
/// let mut batches = consumer.records().batches(500, Duration::from_secs(1));
/// while let Some(batch) = batches.next().await {
///     let batch = batch?;
///     insert(&batch).await?;
///     batch.ack();
/// }
/// # Ok(()) }
/// ```
///
/// # Acknowledgement
///
/// With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack), the program acknowledges each record, and
/// [`ack_filter`](Self::ack_filter) those that it drops.
///
/// With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull), the poll after an item acknowledges the
/// records of this item, as it does without an adapter: the whole batch, or the record of the
/// handler that returned this output, `Ok` or `Err`. A program that stops at an error therefore
/// receives the record again after a restart, and one that continues does not. To end without a
/// redelivery of the last item, acknowledge its records. Records that an adapter holds are not
/// acknowledged. Anything concurrent or buffered *behind* an adapter needs `Ack`, and so does
/// anything of this kind before it.
///
/// # Cancel safety
///
/// Dropping the future of `next()` loses nothing: an adapter owns the records, the handlers and the
/// errors that it has not yielded. Dropping the adapter drops them: such records are not
/// acknowledged, and are delivered again after a restart. So create an adapter once, and keep it: an
/// adapter of `by_ref()` that is dropped before its stream ends stops the checkpoints of the shards
/// whose records it held or had yielded last.
///
/// # Panics
///
/// A panic in a closure or handler passes through the adapter's `poll_next`. The record of this
/// call is dropped and not acknowledged. If the adapter is polled again, it continues with the next
/// record.
///
/// # End
///
/// All adapters are fused. They end when their stream has ended and everything before its end is
/// yielded. [`Consumer::close`](crate::Consumer::close) ends the stream and does not wait for the
/// records that an adapter still holds: poll the adapter to its end, and call `close` again to save
/// the acknowledgements.
pub trait RecordStreamExt: TryStream<Ok: AsRef<Record>> {
    /// Runs up to `limit` handlers at once, and the records of one partition key one after another,
    /// in the order of their delivery. Yields the outputs of the handlers as they complete.
    ///
    /// `f` is called for each record and returns the future that handles it. Its error is a type of
    /// the program, into which errors of the stream are converted: `anyhow::Error`,
    /// `Box<dyn Error + Send + Sync>`, or an enum with a `From<kinestream::Error>`.
    ///
    /// ```
    /// use futures::{TryStreamExt, future};
    /// use kinestream::{Consumer, Record, RecordStreamExt};
    ///
    /// #[derive(Debug)]
    /// enum OrderError {
    ///     Kinesis(kinestream::Error),
    ///     Database(std::io::Error),
    /// }
    ///
    /// impl From<kinestream::Error> for OrderError {
    ///     fn from(error: kinestream::Error) -> Self {
    ///         Self::Kinesis(error)
    ///     }
    /// }
    ///
    /// # async fn write(data: &[u8]) -> std::io::Result<()> { Ok(()) }
    /// async fn handle(record: Record) -> Result<(), OrderError> {
    ///     write(record.data()).await.map_err(OrderError::Database)?;
    ///     record.ack();
    ///     Ok(())
    /// }
    ///
    /// # async fn example(consumer: Consumer) -> Result<(), OrderError> {
    /// consumer.records().buffer_by_key(64, handle).try_for_each(future::ok).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Order
    ///
    /// Two records have the same key if their stream and their
    /// [`partition_key`](Record::partition_key) are equal, also in different shards: the order
    /// holds over a reshard and in aggregated records. The records of a shard that have no
    /// partition key count as records of one key.
    ///
    /// # Errors
    ///
    /// An error of the stream is yielded at once; handlers that run continue. An error of a handler
    /// is yielded as its output, and does not hold up its key: the next record of the key is
    /// handled all the same. To keep a later record from overtaking a failed one, retry inside `f`,
    /// or stop at the error: a dropped adapter drops all handlers.
    ///
    /// # Busy keys
    ///
    /// A record waits while its key is busy, and occupies no slot. At most 16 × `limit` records
    /// wait, in all keys together; then no record is taken from the stream until one of them
    /// starts. A burst of one key up to this bound slows down no other key. A key that always has
    /// more records than one handler at a time can complete slows down the whole stream. A reader
    /// with bounded memory cannot avoid this, since each shard delivers its records in order.
    /// Waiting records count towards [`max_in_flight`](crate::ConsumerBuilder::max_in_flight) with
    /// [`CheckpointOn::Ack`](crate::CheckpointOn::Ack).
    ///
    /// While one handler hangs, the other keys continue, but the checkpoint of its shard does not:
    /// after a crash, every later record is delivered again. With `Ack`, `max_in_flight` limits
    /// their number. With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) nothing does, so give
    /// each handler a time limit.
    ///
    /// A key occupies one slot at most. Keys with waiting records take turns, one record each.
    /// While all slots are occupied, nothing is taken from the stream, so a
    /// [`poll_timeout`](crate::ConsumerBuilder::poll_timeout) must be longer than a handler takes.
    ///
    /// # Panics
    ///
    /// Panics if `limit` is 0.
    #[doc(alias("parallelization factor", "concurrency", "order per key"))]
    #[track_caller]
    fn buffer_by_key<Fut, T, E, F>(self, limit: usize, f: F) -> BufferByKey<Self, F, Fut>
    where
        Self: Sized,
        F: FnMut(Self::Ok) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Self::Error>,
    {
        BufferByKey::new(self, limit, f)
    }

    /// Collects records into batches of at most `max` records. A batch is yielded when it has `max`
    /// records or `max_age` after its first record arrived, whichever is first.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use futures::TryStreamExt;
    /// use kinestream::{Consumer, Record, RecordStreamExt};
    ///
    /// # async fn insert(rows: Vec<&[u8]>) -> std::io::Result<()> { Ok(()) }
    /// # async fn example(consumer: Consumer) -> anyhow::Result<()> {
    /// let mut batches = consumer.records().batches(500, Duration::from_secs(1));
    /// while let Some(batch) = batches.try_next().await? {
    ///     insert(batch.iter().map(Record::data).collect()).await?;
    ///     batch.ack();
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Batches
    ///
    /// A batch has at least one record, and keeps the order of delivery. It contains:
    ///
    /// - **No two epochs of a shard.** A shard whose lease is lost and acquired again, or whose
    ///   position is set by a [`seek`](crate::Consumer::seek), delivers records again in a new
    ///   [`epoch`](Record::epoch). A batch contains each record once, its records of a shard are in
    ///   order, and a transaction has one epoch per shard to check. The records of the old epoch
    ///   are yielded first.
    /// - **No records from before and after an error.** The records before an error of the stream
    ///   are yielded first, then the error.
    ///
    /// Records of several shards are mixed. A parent and its child are mixed only with
    /// [`ShardOrdering::Unordered`](crate::ShardOrdering::Unordered), since otherwise the child is
    /// read when all records of the parent are acknowledged.
    ///
    /// # Time
    ///
    /// `max_age` is measured while the stream is polled and while it is not: a batch that is due is
    /// yielded at the next poll. With zero, a batch contains the records that are ready, at most
    /// 256. If [`max_in_flight`](crate::ConsumerBuilder::max_in_flight) or
    /// `max_in_flight_bytes` stops a shard before a batch is full, the batch is yielded at
    /// `max_age`.
    ///
    /// Collected records are in flight. A `max_age` of 10 s or less leaves time to process them
    /// before the limits of [`handoff_timeout`](crate::ConsumerBuilder::handoff_timeout), 30 s by
    /// default, and of [`Health::is_ready`](crate::Health::is_ready), 60 s.
    ///
    /// # Panics
    ///
    /// Panics if `max` is 0. The stream panics if it is polled outside a tokio runtime with time
    /// enabled.
    #[doc(alias("chunks", "chunks_timeout", "buffer by time"))]
    #[track_caller]
    fn batches(self, max: usize, max_age: Duration) -> Batches<Self>
    where
        Self: Sized,
    {
        Batches::new(self, max, max_age)
    }

    /// Yields the records for which `predicate` returns true, and acknowledges the others.
    ///
    /// `try_filter` would drop them without an acknowledgement, which stops the checkpoint of their
    /// shard with [`CheckpointOn::Ack`](crate::CheckpointOn::Ack).
    ///
    /// ```
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// use futures::TryStreamExt;
    /// use kinestream::RecordStreamExt;
    ///
    /// let mut orders = consumer.records().ack_filter(|record| record.data().starts_with(b"order"));
    /// while let Some(order) = orders.try_next().await? {
    ///     println!("{:?}", order.data());
    ///     order.ack();
    /// }
    /// # Ok(()) }
    /// ```
    fn ack_filter<F>(self, predicate: F) -> AckFilter<Self, F>
    where
        Self: Sized,
        F: FnMut(&Self::Ok) -> bool,
    {
        AckFilter::new(self, predicate)
    }

    /// Decodes each record by `f`. Yields values that carry their record, to be acknowledged when
    /// the value is processed.
    ///
    /// Where `f` fails, the stream yields [`DecodeError::Undecodable`], which contains the record:
    /// it can be sent to a dead-letter queue and acknowledged, and then does not come back after a
    /// restart. The stream continues. The error of `f` can be of any type with `Display` and
    /// `Debug`.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use kinestream::{Consumer, DecodeError, Record, RecordStreamExt};
    ///
    /// fn parse(record: &Record) -> anyhow::Result<u64> {
    ///     Ok(str::from_utf8(record.data())?.parse()?)
    /// }
    ///
    /// # async fn send_to_dead_letters(record: &Record, why: &str) -> std::io::Result<()> { Ok(()) }
    /// # async fn example(consumer: Consumer) -> anyhow::Result<()> {
    /// let mut numbers = consumer.records().decode(parse);
    /// while let Some(number) = numbers.next().await {
    ///     match number {
    ///         Ok(number) => {
    ///             println!("{}: {}", number.record().shard_id(), *number + 1);
    ///             number.ack();
    ///         }
    ///         Err(DecodeError::Undecodable { record, cause }) => {
    ///             send_to_dead_letters(&record, &cause.to_string()).await?;
    ///             record.ack();
    ///         }
    ///         Err(error) => return Err(error.into()),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    #[doc(alias("deserialize", "parse", "json", "poison record"))]
    fn decode<T, D, F>(self, f: F) -> Decode<Self, F>
    where
        Self: Sized + TryStream<Ok = Record>,
        F: FnMut(&Record) -> Result<T, D>,
    {
        Decode::new(self, f)
    }
}

impl<S> RecordStreamExt for S where S: TryStream<Ok: AsRef<Record>> + ?Sized {}
