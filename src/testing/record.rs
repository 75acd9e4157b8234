use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use aws_sdk_kinesis::primitives::DateTime;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, FusedStream};

use crate::error::Result;
use crate::record::{
    AckSink, ByteRange, EncryptionType, Record, RecordPosition, ResponseContext, SequenceNumber,
    ShardId,
};

/// Returns a record with this payload, for the unit test of a handler.
///
/// Set the fields that the handler reads, [`build`](TestRecord::build) the [`Record`], and ask
/// [`is_acked`](TestRecord::is_acked) whether the handler has acknowledged it. No consumer, Kinesis
/// or runtime is needed.
///
/// ```
/// use kinestream::{Record, testing};
///
/// /// Acknowledges the records that are numbers.
/// fn handle(record: Record) {
///     if std::str::from_utf8(record.data()).is_ok_and(|text| text.parse::<u32>().is_ok()) {
///         record.ack();
///     }
/// }
///
/// let number = testing::record("17").partition_key("customer-7");
/// handle(number.build());
/// assert!(number.is_acked());
///
/// let text = testing::record("seventeen").sequence_number(2);
/// handle(text.build());
/// assert!(!text.is_acked());
/// ```
pub fn record(data: impl Into<Vec<u8>>) -> TestRecord {
    TestRecord {
        data: data.into(),
        partition_key: None,
        sequence_number: SequenceNumber::of_digits(b"1"),
        sub_sequence_number: None,
        encryption_type: EncryptionType::None,
        approximate_arrival: None,
        millis_behind_latest: 0,
        epoch: 0,
        shard_id: parsed("shardId-000000000000"),
        stream: "stream".into(),
        acked: Arc::default(),
    }
}

/// Returns a stream of these records, as [`Consumer::records`](crate::Consumer::records) yields them,
/// for the test of a pipeline of combinators. It ends after the last record.
///
/// ```
/// use futures::TryStreamExt;
/// use kinestream::{RecordStreamExt, testing};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kinestream::Result<()> {
/// let (order, other) = (testing::record("order 17"), testing::record("test"));
/// let orders = testing::records([&order, &other]).ack_filter(|it| it.data().starts_with(b"order"));
/// let orders: Vec<_> = orders.try_collect().await?;
/// assert_eq!(orders.len(), 1);
/// assert!(other.is_acked() && !order.is_acked());
/// # Ok(()) }
/// ```
pub fn records<'a>(
    records: impl IntoIterator<Item = &'a TestRecord>,
) -> impl FusedStream<Item = Result<Record>> + Unpin + Send {
    let records: Vec<_> = records.into_iter().map(|record| Ok(record.build())).collect();
    stream::iter(records).fuse()
}

/// A record for a unit test: the values of its fields, and whether it was acknowledged. Returned by
/// [`record`].
#[derive(Debug, Clone)]
#[must_use = "pass the result of `build` to the code under test"]
pub struct TestRecord {
    data: Vec<u8>,
    partition_key: Option<String>,
    sequence_number: SequenceNumber,
    /// The index among the user records of an aggregated record.
    sub_sequence_number: Option<u64>,
    encryption_type: EncryptionType,
    approximate_arrival: Option<SystemTime>,
    millis_behind_latest: i64,
    epoch: u64,
    shard_id: ShardId,
    stream: Arc<str>,
    acked: Arc<Acked>,
}

/// The acknowledgement of a test record.
#[derive(Debug, Default)]
struct Acked(AtomicBool);

impl AckSink for Acked {
    fn acknowledge(&self, _number: u64, _position: &RecordPosition, _bytes: usize) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn deliver(&self, _next: u64) {}

    fn take_back(&self, _records: usize, _bytes: usize) {}
}

impl TestRecord {
    /// Sets the partition key. Default: none.
    pub fn partition_key(mut self, key: impl Into<String>) -> Self {
        self.partition_key = Some(key.into());
        self
    }

    /// Sets the sequence number: a number, its text, or a [`SequenceNumber`]. Default: 1.
    ///
    /// # Panics
    ///
    /// Panics if `number` is not a sequence number: a decimal number of up to 129 digits.
    #[track_caller]
    pub fn sequence_number(mut self, number: impl fmt::Display) -> Self {
        self.sequence_number = parsed(&number.to_string());
        self
    }

    /// Makes the record a user record of an aggregated record, with this index in it. Other user
    /// records follow, so that its [`checkpoint`](Record::checkpoint) lies inside the aggregated
    /// record. Default: not aggregated, with the index 0.
    pub fn sub_sequence_number(mut self, number: u64) -> Self {
        self.sub_sequence_number = Some(number);
        self
    }

    /// Sets the shard: its ID, or a [`ShardId`]. Default: `shardId-000000000000`.
    ///
    /// # Panics
    ///
    /// Panics if `shard_id` is not the ID of a shard: 1 to 128 letters, digits, `_`, `.` and `-`.
    #[track_caller]
    pub fn shard_id(mut self, shard_id: impl fmt::Display) -> Self {
        self.shard_id = parsed(&shard_id.to_string());
        self
    }

    /// Sets the name of the stream. Default: `stream`.
    pub fn stream(mut self, name: impl AsRef<str>) -> Self {
        self.stream = name.as_ref().into();
        self
    }

    /// Sets the time at which Kinesis received the record, which is rounded down to the
    /// millisecond, the precision of Kinesis. Default: none.
    pub fn approximate_arrival(mut self, time: SystemTime) -> Self {
        self.approximate_arrival = Some(time);
        self
    }

    /// Sets the lag of the response that held the record, in milliseconds. Default: 0.
    pub fn millis_behind_latest(mut self, millis: i64) -> Self {
        self.millis_behind_latest = millis;
        self
    }

    /// Sets the encryption at rest. Default: [`EncryptionType::None`].
    pub fn encryption_type(mut self, encryption: EncryptionType) -> Self {
        self.encryption_type = encryption;
        self
    }

    /// Sets the epoch of the lease under which the record is read. Default: 0.
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Returns a record with these fields. Can be called again, for a second delivery of the record.
    pub fn build(&self) -> Record {
        let key = self.partition_key.as_deref().unwrap_or_default();
        let buffer = Bytes::from([key.as_bytes(), &self.data].concat());
        // A buffer of 4 GiB or more is beyond every record.
        let range = |start, end| ByteRange::new(start, end).unwrap_or(ByteRange::EMPTY);
        Record {
            data: range(key.len(), buffer.len()),
            partition_key: match self.partition_key {
                Some(_) => range(0, key.len()),
                None => ByteRange::ABSENT,
            },
            sequence_number: self.sequence_number.clone(),
            sub_sequence_number: self.sub_sequence_number.unwrap_or_default(),
            is_inner: self.sub_sequence_number.is_some(),
            encryption_type: self.encryption_type,
            arrival_millis: self
                .approximate_arrival
                .and_then(|time| DateTime::from(time).to_millis().ok()),
            number: 0,
            context: Arc::new(ResponseContext {
                stream: Arc::clone(&self.stream),
                shard_id: self.shard_id.clone(),
                millis_behind_latest: self.millis_behind_latest,
                epoch: self.epoch,
                ack_sink: Arc::clone(&self.acked) as _,
                buffer,
            }),
        }
    }

    /// Returns true if a record that was [built](Self::build) is acknowledged, by
    /// [`Record::ack`] or by the [`Acker`](crate::Acker) that was split from it.
    pub fn is_acked(&self) -> bool {
        self.acked.0.load(Ordering::SeqCst)
    }
}

/// Parses a value that the author of a test has written.
#[track_caller]
fn parsed<T: FromStr<Err = crate::Error>>(text: &str) -> T {
    match text.parse() {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn record_has_the_fields_that_were_set() {
        let arrival = UNIX_EPOCH + Duration::from_millis(1_767_225_600_125);
        let record = record("17")
            .partition_key("customer-7")
            .sequence_number("4957")
            .sub_sequence_number(3)
            .shard_id("shardId-000000000008")
            .stream("orders")
            .approximate_arrival(arrival + Duration::from_micros(1))
            .millis_behind_latest(1500)
            .encryption_type(EncryptionType::Kms)
            .epoch(9)
            .build();
        assert_eq!(record.data(), b"17");
        assert_eq!(record.bytes(), "17");
        assert_eq!(record.partition_key(), Some("customer-7"));
        assert_eq!(record.sequence_number().as_str(), "4957");
        assert_eq!(record.sub_sequence_number(), 3);
        assert_eq!(record.checkpoint().to_string(), "AFTER_SEQUENCE_NUMBER:4957:3");
        assert_eq!(record.shard_id().as_str(), "shardId-000000000008");
        assert_eq!(record.stream(), "orders");
        assert_eq!(record.approximate_arrival(), Some(arrival));
        assert_eq!(record.millis_behind_latest(), 1500);
        assert_eq!(record.encryption_type(), EncryptionType::Kms);
        assert_eq!(record.epoch(), 9);
    }

    #[test]
    fn record_without_fields_has_the_documented_defaults() {
        let record = record("").build();
        assert_eq!(record.data(), b"");
        assert_eq!(record.partition_key(), None);
        assert_eq!(record.checkpoint().to_string(), "AFTER_SEQUENCE_NUMBER:1");
        assert_eq!(record.sub_sequence_number(), 0);
        assert_eq!(record.shard_id().as_str(), "shardId-000000000000");
        assert_eq!((record.stream(), record.epoch()), ("stream", 0));
        assert_eq!((record.approximate_arrival(), record.millis_behind_latest()), (None, 0));
        assert_eq!(record.encryption_type(), EncryptionType::None);
    }

    #[test]
    fn fields_are_taken_from_other_records() {
        let first = record("a").sequence_number(7).shard_id("shardId-1").build();
        let second =
            record("b").sequence_number(first.sequence_number()).shard_id(first.shard_id()).build();
        assert_eq!(second.checkpoint(), first.checkpoint());
        assert_eq!(second.shard_id(), first.shard_id());
    }

    #[test]
    fn record_is_acked_by_itself_and_by_its_acker_only() {
        let dropped = record("a");
        drop(dropped.build());
        let (kept, acker) = dropped.build().split();
        drop((kept, acker));
        assert!(!dropped.is_acked());

        let twice = record("a");
        let built = twice.build();
        assert!(!twice.is_acked());
        built.ack();
        built.ack();
        assert!(twice.is_acked());
        assert!(!dropped.is_acked(), "expected each record to have its own acknowledgement");

        let split = record("a");
        let (built, acker) = split.build().split();
        drop(built);
        assert!(!split.is_acked());
        acker.ack();
        assert!(split.is_acked());
    }

    #[tokio::test]
    async fn stream_of_records_yields_them_in_order_and_ends() {
        let [first, second] = ["a", "b"].map(record);
        let mut records = records([&first, &second]);
        assert_eq!(records.next().await.unwrap().unwrap().data(), b"a");
        assert!(!records.is_terminated());
        records.next().await.unwrap().unwrap().ack();
        assert!(records.next().await.is_none() && records.is_terminated());
        assert!(second.is_acked() && !first.is_acked());
    }

    #[test]
    #[should_panic(expected = "invalid shard ID")]
    fn invalid_shard_id_is_refused() {
        let _record = record("").shard_id("no id");
    }
}
