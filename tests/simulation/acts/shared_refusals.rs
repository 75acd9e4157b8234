//! A call that the readers of all shards share and that fails with an error that no retry can
//! resolve.

use std::collections::BTreeSet;
use std::time::Duration;

use kinestream::testing::{Outcome, Shard, aggregate};
use kinestream::{ErrorKind, OnTrimmed, ShardId, ShardOrdering, StartingPosition};
use tokio::time::Instant;

use super::reader::ActReader;
use super::{Act, PATIENCE, Put};
use crate::seeds::pick;
use crate::truth::{Promise, index_of};

/// The time within which every shard that is not read releases its lease: a minute of failures, a
/// back-off of up to half a minute before the first and the last of them, and the time in which the
/// parents end.
const RELEASED_WITHIN: Duration = Duration::from_secs(180);

/// The longest pause after the failure of a shard.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Act {
    pub(super) async fn refuse_shared_calls(&mut self) {
        self.kinesis.delete_stream("orders");
        self.orders = self.kinesis.create_stream("orders", self.rng.usize(4..12));
        let child_shards = self.later_rng.bool();
        self.kinesis.set_child_shards(child_shards);
        let refusal = match self.rng.u8(..3) {
            0 => Outcome::Garbled { status: 200, body: "{}".to_owned() },
            _ => Outcome::failed(400, "AccessDeniedException", "no"),
        };
        let (mut reader, shards) = if self.plan.fan_out && self.rng.bool() {
            self.put_each();
            let roots = self.orders.open_shards();
            self.close_some(&roots);
            self.refuse("DescribeStreamConsumer", refusal);
            let reader = self.begin(StartingPosition::TrimHorizon, OnTrimmed::Fail);
            let children = self.orders.shards().split_off(roots.len());
            // With `ShardOrdering::ParentFirst`, the children of an unread parent wait.
            let waits = self.plan.ordering == ShardOrdering::ParentFirst;
            (reader, if waits { roots } else { [roots, children].concat() })
        } else {
            let mut reader = self.begin(StartingPosition::TrimHorizon, OnTrimmed::Fail);
            reader.read_for(Duration::from_secs(60)).await;
            self.refuse("ListShards", refusal);
            let parents = self.orders.open_shards();
            let children: Vec<Shard> = parents.iter().flat_map(Shard::split).collect();
            for child in &children {
                self.put_packed_into(child);
            }
            // An end without children must be confirmed by a listing. Without one, the parents do
            // not end.
            (reader, if child_shards { children } else { parents })
        };
        self.watch_releases(&mut reader, &shards).await;
        let kinds = [ErrorKind::Denied, ErrorKind::Rejected, ErrorKind::Unavailable];
        self.check_errors(&reader, &kinds);
        self.check_reported_once(&reader);
        self.truth.log(format_args!("no call is refused from now on"));
        self.kinesis.on_call(|_| Outcome::Served);
        reader.read_for(pick(&mut self.rng, &[Duration::ZERO, LONGEST_PAUSE])).await;
        reader.read_for(LONGEST_PAUSE.saturating_sub(PATIENCE)).await;
        let due: Vec<usize> = (0..self.puts.len()).collect();
        self.read_all(&mut reader, &due).await;
        reader.close().await;
    }

    /// Closes some shards that hold records, and puts records into their children.
    fn close_some(&mut self, shards: &[Shard]) {
        for shard in shards {
            if self.later_rng.u8(..3) == 0 {
                self.truth.log(format_args!("shard {} is closed", shard.index()));
                for child in shard.split() {
                    self.put_into(&child);
                }
            }
        }
    }

    pub(super) fn refuse(&self, operation: &'static str, refusal: Outcome) {
        self.truth.log(format_args!("every call of {operation}: {refusal:?}"));
        self.kinesis.on_call(move |call| {
            if call.operation == operation { refusal.clone() } else { Outcome::Served }
        });
    }

    /// Puts an aggregated record. A reader needs the hash key range of the shard to read it.
    fn put_packed_into(&mut self, shard: &Shard) {
        let mut keys = (0..).map(|key: u64| format!("key-{key}"));
        let key = keys.find(|key| shard.has_key(key)).expect("some key belongs to the shard");
        let number = self.puts.len();
        shard.put(aggregate([(key, number.to_string())]));
        self.truth.log(format_args!("put: {number} into shard {}, aggregated", shard.index()));
        self.puts.push(Put { shard: shard.index(), at: Instant::now() });
    }

    /// Checks that the status shows every shard without an owner at some time, because it cannot be
    /// read.
    async fn watch_releases(&self, reader: &mut ActReader, shards: &[Shard]) {
        let mut held: BTreeSet<ShardId> = shards.iter().map(Shard::id).collect();
        let by = Instant::now() + RELEASED_WITHIN;
        while !held.is_empty() && Instant::now() < by {
            reader.read_for(Duration::from_secs(1)).await;
            let status = reader.consumer.status().await.expect("the store of an act does not fail");
            let is_released = |id: &ShardId| {
                let shard = status.shards.get(id);
                shard.is_some_and(|shard| shard.owner.is_none() && shard.failure.is_some())
            };
            held.retain(|id| !is_released(id));
        }
        if !held.is_empty() {
            let held: Vec<usize> = held.iter().map(index_of).collect();
            self.breaks(
                Promise::UnreadAreReleased,
                format_args!("the leases of shards {held:?} are not released"),
            );
        }
        if !reader.delivered.is_empty() {
            let delivered = &reader.delivered;
            self.breaks(
                Promise::Order,
                format_args!(
                    "records {delivered:?} are delivered, although their shards cannot be read"
                ),
            );
        }
    }

    /// Checks that the worker yields at most one error for its own listings, and that one shard
    /// yields the error that all shards share.
    fn check_reported_once(&self, reader: &ActReader) {
        let (shards, others): (Vec<_>, Vec<_>) =
            reader.errors.iter().partition(|error| error.shard_id().is_some());
        if shards.len() != 1 || others.len() > 1 {
            self.breaks(
                Promise::FewErrors,
                format_args!(
                    "one shard error and one worker error at most: {shards:?}, {others:?}"
                ),
            );
        }
    }
}
