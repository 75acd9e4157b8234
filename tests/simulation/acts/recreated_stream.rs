//! A stream that is deleted and recreated with the same shard ids.

use std::collections::BTreeSet;
use std::time::Duration;

use kinestream::testing::Shard;
use kinestream::{ErrorKind, OnTrimmed, ShardId, StartingPosition};
use tokio::time::{Instant, sleep};

use super::reader::ActReader;
use super::{Act, PATIENCE, POLICIES};
use crate::seeds::pick;
use crate::truth::{Promise, index_of};

/// The longest time without the stream, in milliseconds. A stream that is not found for 30 s counts
/// as deleted.
const AWAY: u64 = 15_000;

/// The duration of one round of reads, after which the reported gaps are registered.
const ROUND: Duration = Duration::from_secs(20);

impl Act {
    pub(super) async fn recreate_stream(&mut self) {
        let policy = pick(&mut self.rng, &POLICIES);
        self.put_some(1..8);
        if self.rng.bool() {
            self.reshard();
            self.put_some(1..4);
        }
        let mut reader = self.begin(StartingPosition::TrimHorizon, policy);
        let all: Vec<usize> = (0..self.puts.len()).collect();
        self.read_all(&mut reader, &all).await;
        // The ends of closed shards are stored in this time.
        reader.read_for(Duration::from_secs(20)).await;
        self.check_errors(&reader, &[]);
        let known: BTreeSet<ShardId> = self.orders.shards().iter().map(Shard::id).collect();
        let is_down = self.rng.bool();
        let mut running = Some(reader);
        if is_down {
            running.take().expect("the reader is running").close().await;
        }
        if self.truth.is_broken() {
            return;
        }
        self.replace_stream().await;
        let mut reader = match running {
            Some(reader) => reader,
            None => self.begin(StartingPosition::TrimHorizon, policy),
        };
        self.read_new(&mut reader).await;
        self.check_new(&reader, policy, &known, is_down);
        reader.close().await;
    }

    /// Deletes the stream, and recreates it after a while with other records.
    pub(super) async fn replace_stream(&mut self) {
        self.truth.log(format_args!("the stream is deleted"));
        self.kinesis.delete_stream("orders");
        self.puts.clear();
        let away = self.time(1..AWAY);
        sleep(away).await;
        let shards = self.rng.usize(1..5);
        self.orders = self.kinesis.create_stream("orders", shards);
        self.recreated_at = Instant::now();
        self.truth.log(format_args!("the stream is recreated with {shards} shards"));
        self.put_some(0..6);
    }

    pub(super) async fn read_new(&mut self, reader: &mut ActReader) {
        reader.delivered.clear();
        reader.errors.clear();
        for _ in 0..self.rng.usize(1..6) {
            let time = self.time(100..20_000);
            reader.read_for(time).await;
            self.put_some(0..4);
        }
        let end = Instant::now() + PATIENCE + 2 * self.plan.discovery_interval;
        while Instant::now() < end && !self.truth.is_broken() {
            reader.read_for(ROUND).await;
        }
        self.put_each();
        reader.read_for(PATIENCE).await;
    }

    /// Checks that every new record is delivered, unless the policy skips it and a loss is
    /// reported.
    pub(super) fn check_new(
        &self,
        reader: &ActReader,
        policy: OnTrimmed,
        known: &BTreeSet<ShardId>,
        is_down: bool,
    ) {
        self.check_errors(reader, &[ErrorKind::Trimmed]);
        // A worker may read some records before a listing shows that the stream was recreated.
        self.check_order_but(reader, true, |id, number| {
            let gap = reader.gaps.iter().rfind(|(of, _)| of == id);
            policy == OnTrimmed::Latest && gap.is_some_and(|(_, at)| self.puts[number].at <= *at)
        });
        let listed = self.recreated_at + self.plan.discovery_interval + ROUND;
        for shard in self.orders.shards() {
            let id = shard.id();
            let is_known = known.contains(&id);
            let errors = reader.errors.iter();
            let errors = errors.filter(|error| error.shard_id() == Some(&id)).count();
            let gap = reader.gaps.iter().rfind(|(of, _)| *of == id).map(|(_, at)| *at);
            let is_refused = is_known && policy == OnTrimmed::Fail;
            if errors != usize::from(is_refused) {
                self.breaks(
                    Promise::LossesAreReported,
                    format_args!("{id}: unexpected number of errors: {errors}; down: {is_down}"),
                );
            }
            if gap.is_some() != (is_known && policy != OnTrimmed::Fail) {
                self.breaks(
                    Promise::LossesAreReported,
                    format_args!("{id}: unexpected gap: {gap:?}; down: {is_down}"),
                );
            }
            let is_due = |number: usize| match policy {
                OnTrimmed::Fail => !is_known,
                OnTrimmed::Latest if is_known => gap.is_some_and(|at| self.puts[number].at > at),
                _ => true,
            };
            for number in (0..self.puts.len()).filter(|it| self.puts[*it].shard == index_of(&id)) {
                if is_due(number) && !reader.delivered.contains(&number) {
                    self.breaks(
                        Promise::NothingIsLost,
                        format_args!("record {number} of {id} is not delivered; down: {is_down}"),
                    );
                }
                // A shard without a position in the old stream is read until the next listing.
                let is_excused = !is_down && self.puts[number].at < listed;
                if is_refused && !is_excused && reader.delivered.contains(&number) {
                    self.breaks(
                        Promise::NothingIsLost,
                        format_args!(
                            "record {number} of {id} is delivered, but the policy is to fail"
                        ),
                    );
                }
            }
        }
    }
}
