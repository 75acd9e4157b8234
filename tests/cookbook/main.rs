//! The programs of the guide's cookbook, on the in-memory Kinesis and a paused clock.
//!
//! Each module includes one program as it is on the page, and calls its functions. Only `main` does
//! not run.
// Tests report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// The `main` of each program, and fields that only its reader uses.
#![allow(dead_code)]
// A handler of a program stands for one that awaits.
#![allow(clippy::unused_async)]

mod assumed_role;
mod backfill;
mod batches;
mod dead_letter_table;
mod exactly_once;
mod integration_tests;
mod local_endpoint;
mod memory_budget;
mod one_shard;
mod order_per_key;
mod own_errors;
mod page;
mod retry;
mod shutdown;
mod typed_json;
mod unit_tests;

use std::time::Duration;

use kinestream::testing::{Kinesis, Stream};
use kinestream::{Consumer, ConsumerBuilder, MemoryStore, StartingPosition};
use tokio::time::timeout;

const SECOND: Duration = Duration::from_secs(1);

/// A stream `orders` and a store, which outlive a run of a program.
struct World {
    kinesis: Kinesis,
    orders: Stream,
    store: MemoryStore,
}

impl World {
    fn new(shards: usize) -> Self {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", shards);
        Self { kinesis, orders, store: MemoryStore::new() }
    }

    /// Returns the builder that a program receives.
    fn builder(&self) -> ConsumerBuilder {
        Consumer::builder(self.kinesis.client(), "orders")
            .application("billing")
            .starting_position(StartingPosition::TrimHorizon)
            .store(self.store.clone())
    }

    /// Returns the payloads in a stream.
    async fn payloads(&self, stream: &str) -> Vec<String> {
        let consumer = Consumer::builder(self.kinesis.client(), stream)
            .starting_position(StartingPosition::TrimHorizon);
        let mut records = consumer.build().unwrap().records();
        let mut payloads = Vec::new();
        while let Ok(Some(record)) =
            timeout(5 * SECOND, futures::StreamExt::next(&mut records)).await
        {
            payloads.push(String::from_utf8(record.unwrap().data().to_vec()).unwrap());
        }
        payloads
    }
}

/// Runs a program for a time, and then drops it, like a crash.
async fn run_for<T: std::fmt::Debug>(time: Duration, program: impl Future<Output = T>) {
    let ended = timeout(time, program).await;
    assert!(ended.is_err(), "expected the program to run on: {ended:?}");
}

/// Creates a folder for the files of a test, which removes it.
fn temporary_folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("kinestream-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
