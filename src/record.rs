//! One record, and the names of where it stands.

mod position_buf;
mod sequence_number;
mod shard_id;
mod shared_text;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use aws_sdk_kinesis::primitives::DateTime;
use bytes::Bytes;

pub(crate) use position_buf::PositionBuf;
pub use sequence_number::SequenceNumber;
pub use shard_id::ShardId;
pub(crate) use shared_text::SharedText;

/// One record of a stream, in the order of its shard.
///
/// Cheap to move, and to keep: the payload and the partition key are the SDK's own allocations, and
/// what all records of one `GetRecords` answer share stands in one place behind an [`Arc`].
///
/// A record that a producer has [packed](crate::ConsumerBuilder::deaggregate) with others shares its
/// memory with them: who keeps one of them keeps the memory of all.
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
    /// It was packed with others, of which more are to be handed out.
    pub(crate) is_inner: bool,
    /// In milliseconds, which is all that Kinesis says: a record is moved from hand to hand, and
    /// up to 128 bytes are moved at once.
    pub(crate) arrival_millis: Option<i64>,
    pub(crate) encryption_type: EncryptionType,
    /// In the order of delivery in this shard, from 0.
    pub(crate) number: u64,
    pub(crate) origin: Arc<BatchContext>,
}

/// What the records of one answer share.
pub(crate) struct BatchContext {
    pub(crate) stream: Arc<str>,
    pub(crate) shard_id: ShardId,
    pub(crate) millis_behind_latest: i64,
    pub(crate) epoch: u64,
    /// Where it is said that a record is finished.
    pub(crate) finish: Arc<dyn AckSink>,
}

/// The way back for acknowledgements: the only thing that points backwards.
pub(crate) trait AckSink: Send + Sync {
    /// Record number `number` of the shard, in order of delivery, which stands at this sequence
    /// number and has so many bytes, is done with. Saying it twice changes nothing.
    fn finish(&self, number: u64, mark: &PositionBuf, bytes: usize);

    /// Notes that all records before number `next` are delivered.
    fn deliver(&self, next: u64);

    /// The last so many records and bytes of those handed out were not: they are still to come.
    fn take_back(&self, records: usize, bytes: usize);
}

/// How a record is encrypted at rest.
///
/// ```
/// assert_eq!(kinestream::EncryptionType::Kms.to_string(), "KMS");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncryptionType {
    /// Not encrypted, or not said.
    None,
    /// By a key of the AWS Key Management Service.
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
    /// The payload.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The payload, taken out without a copy.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The key that chose the shard. `None` where the producer gave none, as it may on a stream
    /// with the `AUTO` record distribution strategy.
    pub fn partition_key(&self) -> Option<&str> {
        self.partition_key.as_deref()
    }

    /// The place of the record in its shard, which those that a producer has packed into one share.
    pub fn sequence_number(&self) -> &SequenceNumber {
        &self.sequence_number
    }

    /// The place of the record among those that a producer packed into one: 0 where it was not
    /// aggregated.
    pub fn sub_sequence_number(&self) -> u64 {
        self.sub_sequence_number
    }

    /// The shard it was read from.
    pub fn shard_id(&self) -> &ShardId {
        &self.origin.shard_id
    }

    /// The name of the stream, also where the consumer was built with an ARN.
    pub fn stream(&self) -> &str {
        &self.origin.stream
    }

    /// When Kinesis took the record in, to the millisecond, without a promise that it rises
    /// along a shard.
    pub fn approximate_arrival(&self) -> Option<SystemTime> {
        self.arrival_millis.and_then(|millis| DateTime::from_millis(millis).try_into().ok())
    }

    /// How far, in milliseconds, the answer that held this record was from the tip of the shard:
    /// 0 where it reached the tip. For an answer without a lag, the last known one, or 0 while none is
    /// known.
    pub fn millis_behind_latest(&self) -> i64 {
        self.origin.millis_behind_latest
    }

    /// The epoch of the lease under which the shard is read, which rises with every change of
    /// owner: a fencing token for sinks, which refuse what comes with a lower one than they have
    /// seen of the shard.
    pub fn epoch(&self) -> u64 {
        self.origin.epoch
    }

    /// How the record is encrypted at rest.
    pub fn encryption_type(&self) -> EncryptionType {
        self.encryption_type
    }

    /// The bytes that count as in flight: payload and partition key.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.data.len() + self.partition_key().map_or(0, str::len)
    }

    /// Says that this record is done with, from any task and in any order.
    ///
    /// With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack) the position of the shard advances
    /// over records that are all acknowledged, and no further. With
    /// [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) nobody needs to call it: use it to say
    /// early that the record in hand is done with, before leaving the loop. Calling it twice
    /// changes nothing, and it never blocks.
    pub fn ack(&self) {
        let mut mark = PositionBuf::default();
        mark.set(self);
        self.origin.finish.finish(self.number, &mark, self.size());
    }
}

impl fmt::Debug for Record {
    /// Without the payload, which is the caller's secret to keep.
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
