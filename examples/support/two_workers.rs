//! Two workers that share the shards of a stream through a store with leases. Kinesis runs in this
//! process.

// Tests include the stores of examples without running them.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use futures::{StreamExt, stream};
use kinestream::store::CheckpointStore;
use kinestream::testing::Kinesis;
use kinestream::{Consumer, StartingPosition};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

const RECORDS: usize = 3000;
const WORKERS: [&str; 2] = ["ada", "bob"];

/// Reads a stream of four shards with two workers, and prints how many records of each shard each
/// worker has read.
pub(crate) async fn read(store: impl CheckpointStore + Clone) -> Result<(), Failure> {
    let kinesis = Kinesis::new();
    let orders = kinesis.create_stream("orders", 4);
    let worker = |name: &str| {
        Consumer::builder(kinesis.client(), "orders")
            // The Kinesis of this run is new, and the positions of earlier runs do not belong to it.
            .application(format!("example-{}", std::process::id()))
            .starting_position(StartingPosition::TrimHorizon)
            .worker_id(name)
            .store(store.clone())
            .build()
    };
    let consumers = [worker(WORKERS[0])?, worker(WORKERS[1])?];
    let records = consumers.each_ref().map(|consumer| {
        let name = consumer.worker_id().to_owned();
        consumer.records().map(move |record| (name.clone(), record))
    });
    let writing = async {
        for number in 0..RECORDS {
            orders.put(&format!("customer-{number}"), number.to_string());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reading = async {
        let mut records = stream::select_all(records);
        let mut read = BTreeMap::<_, usize>::new();
        while read.values().sum::<usize>() < RECORDS {
            let (worker, record) = records.next().await.ok_or("the stream has ended")?;
            *read.entry((record?.shard_id().clone(), worker)).or_default() += 1;
        }
        Ok::<_, Failure>(read)
    };
    let ((), read) = futures::join!(writing, reading);
    for ((shard, worker), records) in read? {
        println!("{worker} has read {records} records of {shard}");
    }
    for consumer in consumers {
        consumer.close().await?;
    }
    Ok(())
}
