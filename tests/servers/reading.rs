//! A worker that reads records while its Redis has faults.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Shard};
use kinestream::{Consumer, Error, RedisStore, StartingPosition};
use tokio::time::{Instant, sleep};

pub(crate) const LEASE: Duration = Duration::from_secs(2);
const RENEWAL: Duration = LEASE.checked_div(3).unwrap();

/// The longest pause of reading after the end of a fault: a lease duration and two renewals.
pub(crate) const BOUND: Duration = LEASE.saturating_add(RENEWAL.saturating_mul(2));

/// An allowance for a poll, a put and a busy machine.
pub(crate) const DELAY: Duration = Duration::from_millis(1500);

/// A worker that has read at least one record.
pub(crate) struct ReadingWorker {
    shard: Shard,
    pub(crate) consumer: Consumer,
    records: kinestream::Records,
    put: usize,
}

impl ReadingWorker {
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

    /// Puts a record, and waits until it is delivered. Ignores redelivered records.
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

    /// Checks that the worker resumes. The caller calls this when the fault has ended.
    pub(crate) async fn reads_on(mut self) {
        let began = Instant::now();
        self.read_one().await;
        // Records fetched before the fault may be delivered at once. Only a later record shows that
        // the lease is valid again.
        sleep(LEASE).await;
        self.read_one().await;
        let took = began.elapsed().saturating_sub(LEASE);
        assert!(
            took < BOUND + DELAY,
            "expected the worker to resume within {:?}, took {took:?}",
            BOUND + DELAY
        );
        self.consumer.close().await.unwrap();
    }
}
