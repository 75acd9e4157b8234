//! The record, its sequence number and its shard ID.

mod byte_range;
mod position_buf;
mod sequence_number;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_kinesis::primitives::DateTime;
use bytes::Bytes;

pub use crate::error::ShardId;
pub(crate) use byte_range::ByteRange;
pub(crate) use position_buf::PositionBuf;
pub use sequence_number::SequenceNumber;

/// One record of a stream.
///
/// A record is cheap to move and to keep. The payload and the partition key are the SDK's own
/// allocations, and the records of one `GetRecords` response share their common data behind an
/// [`Arc`].
///
/// A user record of an [aggregated record](crate::ConsumerBuilder::deaggregate) shares its memory
/// with the others: keeping one of them keeps the memory of all.
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
    pub(crate) data: Bytes,
    pub(crate) partition_key: Option<SharedText>,
    pub(crate) sequence_number: SequenceNumber,
    pub(crate) sub_sequence_number: u64,
    /// True for a user record of an aggregated record, except for the last one.
    pub(crate) is_inner: bool,
    /// In milliseconds, the precision of Kinesis. An integer keeps the record within 128 bytes: it
    /// is moved often, and moves up to that size are inlined.
    pub(crate) arrival_millis: Option<i64>,
    pub(crate) encryption_type: EncryptionType,
    /// The number in the order of delivery in this shard, from 0.
    pub(crate) number: u64,
    pub(crate) origin: Arc<BatchContext>,
}

/// The data that the records of one response share.
pub(crate) struct BatchContext {
    pub(crate) stream: Arc<str>,
    pub(crate) shard_id: ShardId,
    pub(crate) millis_behind_latest: i64,
    pub(crate) epoch: u64,
    /// Receives the acknowledgements of the records.
    pub(crate) ack_sink: Arc<dyn AckSink>,
}

/// Receives delivery and acknowledgement of records: the only path from a record back to its shard.
pub(crate) trait AckSink: Send + Sync {
    /// Acknowledges record number `number` of the shard, in the order of delivery. `mark` is its
    /// position and `bytes` its size. Repeated calls have no effect.
    fn acknowledge(&self, number: u64, mark: &PositionBuf, bytes: usize);

    /// Notes that all records before number `next` are delivered.
    fn deliver(&self, next: u64);

    /// Returns the last `records` records with `bytes` bytes, which were counted as in flight and
    /// not delivered.
    fn take_back(&self, records: usize, bytes: usize);
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
        &self.data
    }

    /// Returns the payload without a copy.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// Returns the key that chose the shard. `None` if the producer set none, which is possible on
    /// a stream with the `AUTO` record distribution strategy.
    pub fn partition_key(&self) -> Option<&str> {
        self.partition_key.as_deref()
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
        &self.origin.shard_id
    }

    /// Returns the name of the stream, even if the consumer was built with an ARN.
    pub fn stream(&self) -> &str {
        &self.origin.stream
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
        self.origin.millis_behind_latest
    }

    /// Returns the epoch of the lease under which the shard is read. The epoch rises with every
    /// change of owner. It is a fencing token: a sink rejects a record with a lower epoch than one
    /// it has seen of the shard.
    #[doc(alias = "fencing token")]
    pub fn epoch(&self) -> u64 {
        self.origin.epoch
    }

    /// Returns the encryption of the record at rest.
    pub fn encryption_type(&self) -> EncryptionType {
        self.encryption_type
    }

    /// Returns the bytes that count as in flight: payload and partition key.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.data.len() + self.partition_key().map_or(0, str::len)
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
        let mut mark = PositionBuf::default();
        mark.set(self);
        self.origin.ack_sink.acknowledge(self.number, &mark, self.size());
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

/// A short text that belongs to one record, or is shared by several.
#[derive(Clone)]
pub(crate) enum SharedText {
    Own(String),
    Shared(Arc<str>),
}

impl Deref for SharedText {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<String> for SharedText {
    #[inline]
    fn from(text: String) -> Self {
        Self::Own(text)
    }
}
