//! A second consumer of the process. It shares the memory budget, and its caller has stopped
//! polling.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Kinesis, Stream};
use kinestream::{
    Consumer, Error, ErrorKind, MemoryBudget, Result, ShardId, ShardStream, StartingPosition,
};
use tokio::time::timeout;

use crate::checks::RESERVE;
use crate::plan::Plan;
use crate::reads::used;
use crate::simulated_clock::consumer_of;
use crate::truth::{Promise, Truth};

const SHARDS: usize = 3;
const RECORDS: usize = 12;

/// The size of a payload in bytes. Together with its text in the response, one record exceeds the
/// reserve of a shard.
const BYTES: usize = 100_000;

/// The number of records that the caller takes from each shard. Prefetching starts with the second
/// one.
const TAKEN: usize = 2;

pub(crate) struct Neighbour {
    /// Separate from the Kinesis of the scenario, because that one counts calls.
    kinesis: Kinesis,
    payments: Stream,
    _consumer: Consumer,
    _shards: Vec<ShardStream>,
}

impl Neighbour {
    pub(crate) async fn begin(memory_budget: &MemoryBudget, truth: &Truth, plan: &Plan) -> Self {
        let kinesis = Kinesis::new();
        kinesis.set_cbor(plan.cbor);
        let payments = kinesis.create_stream("payments", SHARDS);
        for shard in payments.shards() {
            for _ in 0..RECORDS {
                shard.put(vec![0; BYTES]);
            }
        }
        let consumer = consumer_of(&kinesis, kinesis.client(), "payments")
            .starting_position(StartingPosition::TrimHorizon)
            .memory_budget(memory_budget)
            .wire_format(plan.wire_format)
            .build()
            .expect("the options are valid");
        let streams = consumer.shards().filter_map(async |shard| without_panics(shard));
        let mut shards: Vec<ShardStream> = streams.take(SHARDS).collect().await;
        for shard in &mut shards {
            for _ in 0..TAKEN {
                let Ok(next) = timeout(Duration::from_secs(60), shard.next()).await else {
                    let of = format_args!(
                        "a consumer that shares the budget delivers no record for 60 s"
                    );
                    truth.breaks(Promise::Progress, of);
                    continue;
                };
                next.expect("the shard is open").expect("no call fails");
            }
        }
        Self { kinesis, payments, _consumer: consumer, _shards: shards }
    }

    /// Returns the bytes of the budget that the neighbour holds: all records that it has fetched
    /// and not delivered, less the reserve of each shard or the one record that may exceed it.
    pub(crate) fn buffered(&self) -> usize {
        let of_shard = |id: ShardId| {
            let calls = self.kinesis.calls();
            let calls = used(&calls);
            let read = calls.iter().filter(|call| {
                call.operation == "GetRecords"
                    && call.status == Some(200)
                    && call.shard_id.as_ref() == Some(&id)
            });
            let fetched: usize = read.map(|call| call.records).sum();
            (fetched.saturating_sub(TAKEN) * BYTES).saturating_sub(BYTES.max(RESERVE))
        };
        self.payments.shards().into_iter().map(|shard| of_shard(shard.id())).sum()
    }
}

/// Skips errors that report a panic of the metrics recorder or the tracing layer. Both belong to
/// the whole process and may panic while the neighbour starts.
fn without_panics<T>(next: Result<T>) -> Option<T> {
    let is_panic = |error: &Error| error.kind() == ErrorKind::Panicked;
    next.map_or_else(|error| if is_panic(&error) { None } else { panic!("{error}") }, Some)
}
