//! A worker that reads while its Redis has faults.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Shard};
use kinestream::{Consumer, Error, RedisStore, StartingPosition};
use tokio::time::{Instant, sleep};

pub(crate) const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// How long reading may stop after a fault has ended: a lease duration and two renewals.
pub(crate) const BOUND: Duration = LEASE.saturating_add(RENEWAL.saturating_mul(2));

/// What a poll, a put and a busy machine may add.
pub(crate) const DELAY: Duration = Duration::from_millis(1500);

/// A worker that has read a record.
pub(crate) struct Reading {
    shard: Shard,
    pub(crate) consumer: Consumer,
    records: kinestream::Records,
    put: usize,
}

impl Reading {
    pub(crate) async fn start(store: RedisStore) -> Self {
        let kinesis = Kinesis::new();
        let shard = kinesis.create_stream("orders", 1).shard(0);
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .application("billing")
            .starting_position(StartingPosition::TrimHorizon)
            .interval(Duration::from_millis(200))
            .checkpoint_interval(Duration::from_millis(100))
            .lease_duration(LEASE)
            .store(store)
            .build()
            .unwrap();
        let records = consumer.records();
        let mut reading = Self { shard, consumer, records, put: 0 };
        reading.read_one().await;
        reading
    }

    /// Puts a record, and waits for it. Redelivered records are ignored.
    async fn read_one(&mut self) {
        self.put += 1;
        let expected = self.put.to_string();
        self.shard.put(&*expected);
        while self.records.next().await.unwrap().unwrap().data() != expected.as_bytes() {}
    }

    /// Puts a record, and returns the first error that is reported to the caller afterwards.
    pub(crate) async fn error(&mut self) -> Error {
        self.put += 1;
        self.shard.put(self.put.to_string());
        loop {
            if let Err(error) = self.records.next().await.unwrap() {
                return error;
            }
        }
    }

    /// Reads on from the moment at which the fault has ended.
    pub(crate) async fn reads_on(mut self) {
        let began = Instant::now();
        self.read_one().await;
        // What was fetched before may come at once: the lease is valid again with a later one.
        sleep(LEASE).await;
        self.read_one().await;
        let took = began.elapsed().saturating_sub(LEASE);
        assert!(took < BOUND + DELAY, "the worker reads on after {took:?}");
        self.consumer.close().await.unwrap();
    }
}
