//! A stream, a lease table, and consumers of this crate.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Stream};
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, DynamoDbStore, StartingPosition};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::ledger::Ledger;
use super::requests::LeaseTable;
use crate::dynamodb_kcl_layout::create_lease_table;
use crate::dynamodb_server::DynamoDbServer;

/// The lease duration of this crate's workers.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

pub(crate) struct World {
    pub(crate) server: DynamoDbServer,
    pub(crate) kinesis: Kinesis,
    pub(crate) stream: Stream,
    pub(crate) table: LeaseTable,
    pub(crate) ledger: Ledger,
}

impl World {
    pub(crate) async fn new(shards: usize) -> Self {
        let (server, _store) = DynamoDbServer::with_table().await;
        let (client, name) = (server.client(), "leases".to_owned());
        create_lease_table(&client, &name).await;
        let kinesis = Kinesis::new();
        let stream = kinesis.create_stream("orders", shards);
        let table = LeaseTable { client, name };
        Self { server, kinesis, stream, table, ledger: Ledger::default() }
    }

    pub(crate) fn store(&self) -> DynamoDbStore {
        self.server.store().kcl_table(&*self.table.name)
    }

    pub(crate) fn consumer(&self) -> ConsumerBuilder {
        Consumer::builder(self.kinesis.client(), "orders")
            .application("billing")
            .store(self.store())
            .starting_position(StartingPosition::Latest)
            .checkpoint_on(CheckpointOn::Ack)
            .checkpoint_interval(Duration::from_millis(200))
            .discovery_interval(Duration::from_secs(1))
            .interval(Duration::from_millis(200))
            .lease_duration(LEASE)
    }

    /// Starts this number of workers.
    pub(crate) fn start(&self, workers: usize) -> Fleet {
        let workers = (0..workers).map(|_| {
            let consumer = self.consumer().build().unwrap();
            let (reader, ledger) = (consumer.clone(), self.ledger.clone());
            let reading = tokio::spawn(async move {
                let mut records = reader.records();
                while let Some(record) = records.next().await {
                    let record = record.unwrap();
                    let number = std::str::from_utf8(record.data()).unwrap().parse().unwrap();
                    ledger.note(number);
                    record.ack();
                }
            });
            (consumer, reading)
        });
        Fleet { workers: workers.collect() }
    }

    /// Waits until every user record was processed.
    pub(crate) async fn drain(&self, limit: Duration) {
        let begun = Instant::now();
        while !self.ledger.missing().is_empty() {
            if begun.elapsed() >= limit {
                let missing = self.ledger.missing();
                let rows = self.table.scan().await;
                panic!(
                    "{} records were passed over, first {:?}: {rows:#?}",
                    missing.len(),
                    missing[0]
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The workers of this crate.
pub(crate) struct Fleet {
    workers: Vec<(Consumer, JoinHandle<()>)>,
}

impl Fleet {
    /// Closes the consumers.
    pub(crate) async fn close(mut self) {
        for (consumer, reading) in std::mem::take(&mut self.workers) {
            consumer.close().await.unwrap();
            reading.await.unwrap();
        }
    }

    /// Drops the consumers without a last save.
    pub(crate) async fn kill(mut self) {
        for (_, reading) in std::mem::take(&mut self.workers) {
            reading.abort();
            let is_panic = reading.await.is_err_and(|error| error.is_panic());
            assert!(!is_panic, "expected no failure of a consumer");
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.workers.iter().for_each(|(_, reading)| reading.abort());
    }
}
