//! Several consumers in one program.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Kinesis;
use kinestream::{CheckpointOn, MemoryBudget, MemoryStore, StartingPosition};
use tokio::time::timeout;

use crate::simulated_clock::consumer_of;
use crate::{next, number, shards};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn consumers_of_two_streams_share_a_store_and_a_budget() {
    let kinesis = Kinesis::new();
    let (store, budget) = (MemoryStore::new(), MemoryBudget::new(1));
    let consumer = |name: &str| {
        let stream = kinesis.create_stream(name, 1);
        stream.shard(0).put("0");
        stream.shard(0).put("1");
        consumer_of(&kinesis, kinesis.client(), name)
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoint_on(CheckpointOn::Ack)
            .max_in_flight(1)
            .store(store.clone())
            .memory_budget(&budget)
            .build()
            .unwrap()
    };
    let [orders, payments] = ["orders", "payments"].map(consumer);
    let mut records = orders.records();
    let first = next(&mut records).await;
    // The rest of the response takes the whole budget except for the reserve.
    let mut others = payments.records();
    for expected in 0..2 {
        let record = next(&mut others).await;
        assert_eq!((record.stream(), number(&record)), ("payments", expected));
        record.ack();
    }
    first.ack();
    next(&mut records).await.ack();
    for reading in [&mut records, &mut others] {
        assert!(timeout(10 * SECOND, reading.next()).await.is_err());
    }
    for consumer in [orders, payments] {
        consumer.close().await.unwrap();
        let positions = shards(&consumer).await;
        assert!(positions.values().all(|lease| lease.position.is_some()));
    }
}
