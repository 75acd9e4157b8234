//! Records for unit tests.

use std::sync::{Arc, Mutex};

use crate::record::{
    AckSink, ByteRange, EncryptionType, Record, RecordPosition, ResponseContext, SequenceNumber,
};

/// Notes the acknowledged record numbers.
#[derive(Default)]
pub(super) struct Acks(Mutex<Vec<u64>>);

impl Acks {
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }
}

impl AckSink for Acks {
    fn acknowledge(&self, number: u64, _: &RecordPosition, _: usize) {
        self.0.lock().unwrap().push(number);
    }

    fn deliver(&self, _: u64) {}

    fn take_back(&self, _: usize, _: usize) {}
}

/// The fields of a record in which tests differ.
#[derive(Clone)]
pub(super) struct RecordFixture {
    pub(super) stream: &'static str,
    pub(super) shard: usize,
    pub(super) epoch: u64,
    pub(super) key: Option<&'static str>,
    pub(super) number: u64,
    pub(super) acks: Arc<Acks>,
}

impl Default for RecordFixture {
    fn default() -> Self {
        Self {
            stream: "orders",
            shard: 0,
            epoch: 1,
            key: Some("customer"),
            number: 0,
            acks: Arc::default(),
        }
    }
}

impl RecordFixture {
    pub(super) fn record(&self, data: &[u8]) -> Record {
        let key = self.key.unwrap_or_default();
        let buffer = [data, key.as_bytes()].concat();
        let whole = data.len() + key.len();
        let partition_key = match self.key {
            Some(_) => ByteRange::new(data.len(), whole).unwrap(),
            None => ByteRange::ABSENT,
        };
        Record {
            data: ByteRange::new(0, data.len()).unwrap(),
            partition_key,
            sequence_number: SequenceNumber::of_digits(self.number.to_string().as_bytes()),
            sub_sequence_number: 0,
            is_inner: false,
            encryption_type: EncryptionType::None,
            arrival_millis: None,
            number: self.number,
            context: Arc::new(ResponseContext {
                stream: self.stream.into(),
                shard_id: format!("shardId-{:012}", self.shard).parse().unwrap(),
                millis_behind_latest: 0,
                epoch: self.epoch,
                ack_sink: Arc::clone(&self.acks) as Arc<dyn AckSink>,
                buffer: buffer.into(),
            }),
        }
    }
}
