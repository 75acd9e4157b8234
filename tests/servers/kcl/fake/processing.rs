//! The records of the held shards: how a worker reads them and saves its positions.

use aws_sdk_kinesis::operation::get_records::GetRecordsError;
use aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError;
use aws_sdk_kinesis::types::{Record, ShardIteratorType};
use tokio::time::{Duration, Instant};

use super::super::ledger::Ledger;
use super::worker::Worker;

/// The pause between two reads of a shard. Kinesis allows five in a second, by all readers.
const READ_INTERVAL: Duration = Duration::from_millis(230);

impl Worker {
    pub(super) async fn process(&mut self) {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            if self.held[&key].lease.is_ended() || !self.may_start(&key).await {
                continue;
            }
            let Some(held) = self.held.get_mut(&key) else { continue };
            if held.read_at > Instant::now() {
                continue;
            }
            held.read_at = Instant::now() + READ_INTERVAL;
            let iterator = match held.iterator.take() {
                Some(iterator) => Some(iterator),
                None => iterator(&self.kinesis, &key, &held.processed.0).await,
            };
            let Some(iterator) = iterator else { continue };
            let request = self.kinesis.get_records().shard_iterator(&iterator).limit(100);
            let records = match request.send().await {
                Ok(records) => records,
                Err(error) => {
                    let refused = error.as_service_error();
                    let is_throttled = refused
                        .is_some_and(GetRecordsError::is_provisioned_throughput_exceeded_exception);
                    assert!(is_throttled, "{error:?}");
                    held.iterator = Some(iterator);
                    continue;
                }
            };
            let after = held.processed.clone();
            for record in records.records() {
                for part in parts(&self.ledger, &key, record, &after) {
                    self.ledger.note(part.0);
                    held.processed = (record.sequence_number().to_owned(), part.1);
                }
            }
            held.iterator = records.next_shard_iterator().map(str::to_owned);
            if held.iterator.is_none() {
                let children: Vec<(String, Vec<String>)> = records
                    .child_shards()
                    .iter()
                    .map(|child| (child.shard_id().to_owned(), child.parent_shards().to_vec()))
                    .collect();
                self.end(&key, &children).await;
            } else if fastrand::u8(..5) == 0 {
                self.checkpoint(&key).await;
            }
        }
    }

    /// Saves the last processed user record of a shard.
    pub(super) async fn checkpoint(&mut self, key: &str) {
        let Some(held) = self.held.get_mut(key) else { return };
        let (number, part) = held.processed.clone();
        let is_same = (&number, part) == (&held.lease.checkpoint, held.lease.sub_sequence_number);
        if is_same || held.lease.is_ended() {
            return;
        }
        if self.table.checkpoint(&held.lease, &number, part).await {
            held.lease.counter += 1;
            (held.lease.checkpoint, held.lease.sub_sequence_number) = (number, part);
        } else {
            self.held.remove(key);
        }
    }

    pub(super) async fn checkpoint_all(&mut self) {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            self.checkpoint(&key).await;
        }
    }
}

/// Returns an iterator at a checkpoint; `None` if the call is throttled.
async fn iterator(
    kinesis: &aws_sdk_kinesis::Client,
    shard: &str,
    checkpoint: &str,
) -> Option<String> {
    let request = kinesis.get_shard_iterator().stream_name("orders").shard_id(shard);
    let request = match checkpoint {
        "TRIM_HORIZON" => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
        "LATEST" => request.shard_iterator_type(ShardIteratorType::Latest),
        number => request
            .shard_iterator_type(ShardIteratorType::AtSequenceNumber)
            .starting_sequence_number(number),
    };
    match request.send().await {
        Ok(answer) => answer.shard_iterator,
        Err(error) => {
            let refused = error.as_service_error();
            let is_throttled = refused
                .is_some_and(GetShardIteratorError::is_provisioned_throughput_exceeded_exception);
            assert!(is_throttled, "{error:?}");
            None
        }
    }
}

/// Returns the user records of a record after a position, each with its sub-sequence number.
fn parts(ledger: &Ledger, shard: &str, record: &Record, after: &(String, u64)) -> Vec<(u64, u64)> {
    let number = record.sequence_number();
    let is_past = |part: u64| {
        let order = |number: &str| (number.len(), number.to_owned());
        !after.0.starts_with(|letter: char| letter.is_ascii_digit())
            || (order(number), part) > (order(&after.0), after.1)
    };
    let parts = ledger.user_records(shard, number).into_iter().zip(0..);
    parts.filter(|(_, part)| is_past(*part)).collect()
}
