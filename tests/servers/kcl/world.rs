//! A stream, a lease table, and consumers of this crate.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures::StreamExt;
use kinestream::testing::{Kinesis, Stream};
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, DynamoDbStore, StartingPosition};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::fake::{FakeKcl, Version};
use super::ledger::Ledger;
use super::requests::{Item, Lease, LeaseTable};
use crate::dynamodb_kcl_layout::create_lease_table;
use crate::dynamodb_server::DynamoDbServer;

/// The lease duration of this crate's workers.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// The longest time that a test waits for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

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

    pub(crate) async fn put_row(&self, item: Item) {
        let request = self.table.client.put_item().table_name(&self.table.name);
        request.set_item(Some(item)).send().await.unwrap();
    }

    pub(crate) async fn row(&self, key: &str) -> Option<Item> {
        let request = self.table.client.get_item().table_name(&self.table.name);
        request.key("leaseKey", string(key)).send().await.unwrap().item
    }

    /// Runs a KCL until the only shard and both of its children are finished and without rows. Leaves
    /// the rows of four grandchildren.
    pub(crate) async fn finish_two_generations(&self) {
        let kcl = FakeKcl::start(Version::Two, 1, &self.table, &self.kinesis, &self.ledger);
        let mut youngest = vec![self.stream.shard(0)];
        for _ in 0..2 {
            youngest = youngest.iter().flat_map(kinestream::testing::Shard::split).collect();
            for shard in &youngest {
                self.ledger.put(shard, 1);
            }
            self.drain(LIMIT).await;
        }
        self.wait_for_rows(4).await;
        kcl.stop().await;
    }

    /// Waits until a KCL has deleted the rows of finished shards but for this number.
    pub(crate) async fn wait_for_rows(&self, number: usize) {
        let what = "the KCL has deleted the rows of finished shards";
        self.wait_until(what, |rows| rows.len() <= number).await;
    }

    /// Waits until the rows are as expected.
    pub(crate) async fn wait_until(&self, what: &str, is_met: impl Fn(&[Lease]) -> bool) {
        let begun = Instant::now();
        loop {
            let rows = self.table.scan().await;
            if is_met(&rows) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "expected that {what}: {rows:#?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Reads the only shard with a worker of this crate, so that it has a lease.
    pub(crate) async fn read_the_root(&self) {
        let fleet = self.start(1);
        sleep(Duration::from_secs(1)).await;
        self.ledger.put(&self.stream.shard(0), 1);
        self.drain(LIMIT).await;
        fleet.close().await;
    }

    /// Returns the data of the records that a worker of this crate delivers within a time.
    pub(crate) async fn delivered(&self, time: Duration) -> Vec<String> {
        self.delivered_by(self.consumer(), time).await
    }

    /// Returns the data of the records that this consumer delivers within a time.
    pub(crate) async fn delivered_by(
        &self,
        consumer: ConsumerBuilder,
        time: Duration,
    ) -> Vec<String> {
        let consumer = consumer.build().unwrap();
        let mut records = consumer.records();
        let mut found = Vec::new();
        let _over = timeout(time, async {
            while let Some(record) = records.next().await {
                let record = record.unwrap();
                found.push(String::from_utf8(record.data().to_vec()).unwrap());
                record.ack();
            }
        })
        .await;
        consumer.close().await.unwrap();
        found
    }
}

pub(crate) fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

/// Returns the row of a lease without an owner.
pub(crate) fn row(key: &str, checkpoint: &str) -> Item {
    let number = || AttributeValue::N("0".to_owned());
    let attributes = [
        ("leaseKey", string(key)),
        ("leaseCounter", number()),
        ("ownerSwitchesSinceCheckpoint", number()),
        ("checkpoint", string(checkpoint)),
        ("checkpointSubSequenceNumber", number()),
    ];
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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
