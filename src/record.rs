//! The record, its sequence number and its shard ID.

mod byte_range;
mod sequence_number;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_kinesis::primitives::DateTime;
use bytes::Bytes;

pub use crate::error::ShardId;
pub(crate) use byte_range::ByteRange;
pub use sequence_number::SequenceNumber;

/// The payloads up to this length, in bytes, that are copied out of every response. A copy that is
/// kept takes 0.1 µs per KiB, and thus less time than the record has taken so far.
const COPIED_LENGTH: usize = 4096;

/// A payload is copied out of a response that is more than this many times as long. To copy all
/// payloads of a response of 10 MiB takes 1 ms. With a factor of 16, no payload is copied in a
/// response of a few long records.
const MOST_KEPT: usize = 16;

/// One record of a stream.
///
/// A record is cheap to move. It is a part of the response that Kinesis sent, which is one buffer
/// for all records of the response.
///
/// # Memory
///
/// A record that is kept therefore keeps its whole response in memory: up to 10 MiB of payloads.
/// The response counts towards [`max_buffered_bytes`](crate::ConsumerBuilder::max_buffered_bytes)
/// until its last record is dropped. To keep a payload for long, keep the result of
/// [`into_data`](Self::into_data) and drop the record: a payload of up to 4 KiB then keeps nothing
/// else in memory, and a longer one at most 20 times its own length. To keep only the right to
/// acknowledge, use [`split`](Self::split).
///
/// With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack), a record that is dropped without
/// [`ack`](Self::ack) stops the checkpoint of its shard.
///
/// ```no_run
/// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use futures::StreamExt;
/// use kinestream::Consumer;
///
/// let mut records = Consumer::builder(client, "orders").build()?.records();
/// while let Some(record) = records.next().await {
///     let record = record?;
///     println!("{} {} {:?}", record.shard_id(), record.sequence_number(), record.data());
/// }
/// # Ok(()) }
/// ```
pub struct Record {
    pub(crate) data: ByteRange,
    pub(crate) partition_key: ByteRange,
    pub(crate) sequence_number: SequenceNumber,
    pub(crate) sub_sequence_number: u64,
    /// True for a user record of an aggregated record, except for the last one.
    pub(crate) is_inner: bool,
    pub(crate) encryption_type: EncryptionType,
    /// In milliseconds, the precision of Kinesis.
    pub(crate) arrival_millis: Option<i64>,
    /// The number in the order of delivery in this shard, from 0.
    pub(crate) number: u64,
    pub(crate) context: Arc<ResponseContext>,
}

/// The data that the records of one response share.
pub(crate) struct ResponseContext {
    pub(crate) stream: Arc<str>,
    pub(crate) shard_id: ShardId,
    pub(crate) millis_behind_latest: i64,
    pub(crate) epoch: u64,
    /// Receives the acknowledgements of the records.
    pub(crate) ack_sink: Arc<dyn AckSink>,
    /// The memory of the records.
    pub(crate) buffer: Bytes,
}

/// The position of a record in its shard.
#[derive(Clone)]
pub(crate) struct RecordPosition {
    pub(crate) number: SequenceNumber,
    /// The index of the user record, if other user records follow it in the aggregated record.
    pub(crate) part: Option<u64>,
}

/// A shard as named by a listing or by the end of its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownShard {
    pub(crate) id: ShardId,
    pub(crate) parents: Vec<ShardId>,
}

/// Receives delivery and acknowledgement of records: the only path from a record back to its shard.
pub(crate) trait AckSink: Send + Sync {
    /// Acknowledges record number `number` of the shard, in the order of delivery. `bytes` is its
    /// size. Repeated calls have no effect.
    fn acknowledge(&self, number: u64, position: &RecordPosition, bytes: usize);

    /// Notes that all records before number `next` are delivered.
    fn deliver(&self, next: u64);

    /// Returns the last `records` records with `bytes` bytes, which were counted as in flight and
    /// not delivered.
    fn take_back(&self, records: usize, bytes: usize);

    /// Acknowledges record number `number`, since the stream that delivered it was polled again.
    /// Has no effect if the acknowledgement was deferred. No limit counts bytes in this mode.
    fn acknowledge_on_poll(&self, number: u64, position: &RecordPosition) {
        self.acknowledge(number, position, 0);
    }

    /// Exempts record number `number`, the last one that was delivered, from acknowledgement by the
    /// next poll. Returns true if the next poll would have acknowledged it.
    fn defer(&self, _number: u64) -> bool {
        false
    }
}

/// The encryption of a record at rest.
///
/// ```
/// assert_eq!(kinestream::EncryptionType::Kms.to_string(), "KMS");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncryptionType {
    /// Not encrypted, or not reported.
    None,
    /// Encrypted with a key of the AWS Key Management Service.
    Kms,
}

impl fmt::Display for EncryptionType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "NONE",
            Self::Kms => "KMS",
        })
    }
}

impl Record {
    /// Returns the payload.
    pub fn data(&self) -> &[u8] {
        self.data.of(&self.context.buffer)
    }

    /// Returns the payload, to be kept apart from the record.
    ///
    /// A payload of up to 4 KiB, or of less than 1/16 of its response, is copied, so that it keeps
    /// nothing else in memory. A longer one is a part of the response, without a copy, and keeps the
    /// response: at most 20 times its own length, with a buffer that may be a quarter longer.
    pub fn bytes(&self) -> Bytes {
        let (length, response) = (self.data.len(), &self.context.buffer);
        if length <= COPIED_LENGTH || length.saturating_mul(MOST_KEPT) < response.len() {
            return Bytes::copy_from_slice(self.data());
        }
        response.slice(self.data.start()..self.data.end())
    }

    /// Returns the payload, as [`bytes`](Self::bytes) does.
    pub fn into_data(self) -> Bytes {
        self.bytes()
    }

    /// Returns the key that chose the shard. `None` if the producer set none, which is possible on
    /// a stream with the `AUTO` record distribution strategy.
    pub fn partition_key(&self) -> Option<&str> {
        if self.partition_key.is_absent() {
            return None;
        }
        std::str::from_utf8(self.partition_key.of(&self.context.buffer)).ok()
    }

    /// Returns the record's sequence number in its shard. The user records of an aggregated record
    /// share it.
    pub fn sequence_number(&self) -> &SequenceNumber {
        &self.sequence_number
    }

    /// Returns the record's index among the user records of an aggregated record. 0 if the record
    /// was not aggregated.
    #[doc(alias = "KPL")]
    pub fn sub_sequence_number(&self) -> u64 {
        self.sub_sequence_number
    }

    /// Returns the shard from which the record was read.
    pub fn shard_id(&self) -> &ShardId {
        &self.context.shard_id
    }

    /// Returns the name of the stream, even if the consumer was built with an ARN.
    pub fn stream(&self) -> &str {
        &self.context.stream
    }

    /// Returns the time at which Kinesis received the record, to the millisecond. It is not
    /// guaranteed to increase within a shard. `None` if the response did not contain it.
    pub fn approximate_arrival(&self) -> Option<SystemTime> {
        self.arrival_millis.and_then(|millis| DateTime::from_millis(millis).try_into().ok())
    }

    /// Returns the distance, in milliseconds, between the tip of the shard and the end of the
    /// response that held this record. 0 if the response reached the tip. If the response has no
    /// lag, this is the last known one, or 0 if none is known. Negative lags are returned as 0.
    #[doc(alias("lag", "iterator age"))]
    pub fn millis_behind_latest(&self) -> i64 {
        self.context.millis_behind_latest
    }

    /// Returns the epoch of the lease under which the shard is read. The epoch rises with every
    /// change of owner. It is a fencing token: a sink rejects a record with a lower epoch than one
    /// it has seen of the shard.
    #[doc(alias = "fencing token")]
    pub fn epoch(&self) -> u64 {
        self.context.epoch
    }

    /// Returns the encryption of the record at rest.
    pub fn encryption_type(&self) -> EncryptionType {
        self.encryption_type
    }

    /// Returns the bytes that count as in flight: payload and partition key.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }

    /// Acknowledges the record. Can be called from any task and in any order.
    ///
    /// With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack) the position of the shard advances up
    /// to the first record that is not acknowledged. With
    /// [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) no call is needed, since the next poll
    /// acknowledges the record. Call it there to acknowledge the last record before you leave the
    /// loop. Repeated calls have no effect, and a call never blocks.
    #[doc(alias("commit", "acknowledge", "nack"))]
    #[doc(alias("retry", "dead letter", "negative acknowledgement"))]
    pub fn ack(&self) {
        self.context.ack_sink.acknowledge(self.number, &self.position(), self.size());
    }

    /// Separates the right to acknowledge from the record.
    ///
    /// Use it to send a value that was made from the record through channels and combinators, and
    /// to acknowledge the record when the value is done. The [`Acker`] does not keep the response
    /// in memory. The record can still be acknowledged too.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// use futures::TryStreamExt;
    ///
    /// let lengths = consumer.records().map_ok(|record| {
    ///     let (record, acker) = record.split();
    ///     (record.data().len(), acker)
    /// });
    /// lengths
    ///     .try_for_each_concurrent(64, |(length, acker)| async move {
    ///         println!("{length} bytes");
    ///         acker.ack();
    ///         Ok(())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn split(self) -> (Self, Acker) {
        let acker = self.acker();
        (self, acker)
    }

    /// Returns the right to acknowledge the record.
    pub(crate) fn acker(&self) -> Acker {
        Acker {
            number: self.number,
            position: self.position(),
            bytes: self.size(),
            ack_sink: Arc::clone(&self.context.ack_sink),
        }
    }

    /// Exempts the record from acknowledgement by the next poll of its stream. Returns true if the
    /// next poll would have acknowledged it: the caller then does so.
    ///
    /// Has an effect on the last record that the stream has delivered.
    pub(crate) fn defer_ack(&self) -> bool {
        self.context.ack_sink.defer(self.number)
    }

    /// Returns true if both records are parts of one response, and thus of one shard and epoch.
    pub(crate) fn is_of_response_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.context, &other.context)
    }

    pub(crate) fn position(&self) -> RecordPosition {
        RecordPosition {
            number: self.sequence_number.clone(),
            part: self.is_inner.then_some(self.sub_sequence_number),
        }
    }
}

/// Acknowledges one record, which it does not contain.
///
/// Returned by [`Record::split`]. With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack), an acker
/// that is dropped without [`ack`](Self::ack) stops the checkpoint of its shard.
#[must_use = "the record is not acknowledged until `ack` is called"]
pub struct Acker {
    number: u64,
    position: RecordPosition,
    bytes: usize,
    ack_sink: Arc<dyn AckSink>,
}

impl Acker {
    /// Acknowledges the record, as [`Record::ack`] does.
    pub fn ack(&self) {
        self.ack_sink.acknowledge(self.number, &self.position, self.bytes);
    }
}

/// Lets the adapters of [`RecordStreamExt`](crate::RecordStreamExt) take records, and values that
/// contain one.
impl AsRef<Record> for Record {
    fn as_ref(&self) -> &Record {
        self
    }
}

impl fmt::Debug for Acker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Acker")
            .field("sequence_number", &self.position.number)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Record {
    /// Omits the payload, which may be confidential.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Record")
            .field("stream", &self.stream())
            .field("shard_id", self.shard_id())
            .field("sequence_number", self.sequence_number())
            .field("sub_sequence_number", &self.sub_sequence_number())
            .field("partition_key", &self.partition_key())
            .field("bytes", &self.data().len())
            .finish_non_exhaustive()
    }
}
