//! A child shard that the caller starts at `Latest`, with readers that stop before a record of it
//! is acknowledged.

use std::time::Duration;

use kinestream::testing::{Outcome, Shard};
use kinestream::{CheckpointOn, OnTrimmed, ShardPosition, StartingPosition};
use tokio::time::sleep;

use super::Act;
use super::reader::ActReader;
use crate::truth::Promise;

/// A start at `Latest` is accurate to one second.
const EARLIER: Duration = Duration::from_secs(2);

impl Act {
    pub(super) async fn start_child_at_latest(&mut self) {
        self.plan.mode = CheckpointOn::Ack;
        let child = self.know_child().await;
        let first = self.puts.len();
        // The first record that is put after the start of a reader that has fetched the child.
        let mut required = None;
        for _ in 0..self.rng.usize(1..4) {
            sleep(EARLIER).await;
            let (since, calls) = (self.puts.len(), self.kinesis.call_count());
            let mut reader = self.begin_at_latest(&child);
            self.stop_early(&mut reader, &child).await;
            let calls = self.kinesis.calls().split_off(calls);
            let is_fetched = calls.iter().any(|call| {
                call.operation == self.plan.read_call() && call.shard_id == Some(child.id())
            });
            if is_fetched {
                required.get_or_insert(since);
            }
            self.kinesis.on_call(|_call| Outcome::Served);
            self.put_into(&child);
            drop(reader);
            let time = self.time(0..20_000);
            sleep(time).await;
        }
        self.check_starts(&child, first, required).await;
    }

    /// Adds a child to the store. A reader has either not started it, or has acknowledged none of
    /// its records.
    async fn know_child(&mut self) -> Shard {
        let parent = self.orders.shard(0);
        self.put_into(&parent);
        let mut reader = self.begin(StartingPosition::TrimHorizon, OnTrimmed::Fail);
        let mut held = reader.next(Duration::from_secs(60)).await;
        let [child, _] = parent.split();
        self.put_into(&child);
        if self.rng.bool()
            && let Some(record) = held.take()
        {
            record.ack();
        }
        let time = 3 * self.plan.discovery_interval + Duration::from_secs(20);
        let unacknowledged = reader.next(time).await;
        sleep(time).await;
        drop((held, unacknowledged, reader));
        sleep(EARLIER).await;
        child
    }

    fn begin_at_latest(&self, child: &Shard) -> ActReader {
        self.truth.log(format_args!("a reader starts child {} at Latest", child.index()));
        self.begin_with(|builder| {
            builder
                .starting_position(StartingPosition::TrimHorizon)
                .starting_position_for(child.id(), ShardPosition::Latest)
        })
    }

    /// Reads for a while, and acknowledges records of the parent at most and none of the child.
    async fn stop_early(&mut self, reader: &mut ActReader, child: &Shard) {
        if self.rng.bool() {
            let failure = Outcome::failed(500, "InternalFailureException", "");
            self.kinesis.next_calls(self.plan.read_call(), self.rng.usize(1..9), failure);
        }
        let acknowledges = self.rng.u8(..4) != 0;
        let mut held = Vec::new();
        for _ in 0..self.rng.usize(1..6) {
            let time = self.time(1..20_000);
            match reader.next(time).await {
                Some(record) if acknowledges && *record.shard_id() != child.id() => record.ack(),
                next => held.extend(next),
            }
            if self.rng.bool() {
                self.put_into(child);
            }
        }
    }

    async fn check_starts(&mut self, child: &Shard, first: usize, required: Option<usize>) {
        sleep(EARLIER).await;
        let since = required.unwrap_or(self.puts.len());
        let mut reader = self.begin_at_latest(child);
        reader.read_for(Duration::from_secs(30)).await;
        self.put_into(child);
        let of_child = |number: &usize| self.puts[*number].shard == child.index();
        let new: Vec<usize> = (since..self.puts.len()).filter(of_child).collect();
        self.read_all(&mut reader, &new).await;
        for number in reader.delivered.iter().filter(|number| of_child(number)) {
            if *number < first {
                let promise = Promise::NotBeforeTheStart;
                self.breaks(promise, format_args!("record {number} precedes the start"));
            }
        }
        self.check_errors(&reader, &[]);
        reader.close().await;
    }
}
