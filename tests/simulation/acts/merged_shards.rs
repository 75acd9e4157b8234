//! Merged shards that listings, or the ends of their parents, report with only one of their
//! parents.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kinestream::testing::{Outcome, Shard, WrongListing};
use kinestream::{CheckpointOn, OnTrimmed, Record, ShardId, ShardOrdering, StartingPosition};
use tokio::time::{Instant, sleep};

use super::reader::ActReader;
use super::{Act, POLICIES};
use crate::seeds::pick;
use crate::truth::{Promise, index_of};

/// The maximum number of wrong listings: too few for the retries to yield an error, which takes 60
/// s.
const MAX_LISTINGS: usize = 7;

/// A parent and its child. The end of the shard names this parent as the only one.
type Named = Arc<Mutex<Vec<(ShardId, ShardId)>>>;

/// The delivered records that are not acknowledged, and the numbers of the acknowledged ones.
#[derive(Default)]
struct Handled {
    held: Vec<(usize, Record)>,
    acknowledged: BTreeSet<usize>,
}

impl Act {
    pub(super) async fn merge_shards(&mut self) {
        (self.plan.ordering, self.plan.mode) = (ShardOrdering::ParentFirst, CheckpointOn::Ack);
        (self.plan.max_in_flight, self.plan.max_in_flight_bytes) = (10_000, 64 << 20);
        let policy = pick(&mut self.rng, &POLICIES);
        let (mut reader, mut handled) = (None, Handled::default());
        for _ in 0..self.rng.usize(1..4) {
            if let Some(running) = reader.take_if(|_| self.rng.u8(..3) == 0) {
                self.stop(running, &mut handled).await;
            }
            reader = Some(self.merge_two(reader, policy, &mut handled).await);
            if self.truth.is_broken() {
                return;
            }
        }
        if let Some(reader) = reader {
            self.stop(reader, &mut handled).await;
        }
    }

    /// Merges two shards before the reader starts, or while the caller holds their records.
    async fn merge_two(
        &mut self,
        running: Option<ActReader>,
        policy: OnTrimmed,
        handled: &mut Handled,
    ) -> ActReader {
        if self.orders.open_shards().len() == 1 {
            self.orders.open_shards()[0].split();
        }
        let open = self.orders.open_shards();
        let low = self.rng.usize(..open.len() - 1);
        let mut parents = [open[low].clone(), open[low + 1].clone()];
        if self.rng.bool() {
            parents.reverse();
        }
        self.put_each();
        let first_call = self.kinesis.call_count();
        let is_before_start = running.is_none() && self.rng.bool();
        let (mut reader, child) = if is_before_start {
            let child = self.merge(&parents);
            self.list_one_parent();
            let mut reader = self.begin(StartingPosition::TrimHorizon, policy);
            self.hold_all(&mut reader, &parents, handled).await;
            (reader, child)
        } else {
            let begin = || self.begin(StartingPosition::TrimHorizon, policy);
            let mut reader = running.unwrap_or_else(begin);
            self.hold_all(&mut reader, &parents, handled).await;
            let child = self.merge(&parents);
            self.name_one_parent(&parents, &child);
            self.list_one_parent();
            (reader, child)
        };
        if self.rng.bool() {
            parents.reverse();
        }
        // This is often before the next listing, which shows both parents.
        self.keep_holding(&mut reader, 1..6000, handled).await;
        self.acknowledge(&parents[0], handled);
        self.keep_holding(&mut reader, 1000..30_000, handled).await;
        if self.rng.u8(..4) == 0 {
            // The next reader reads the other parent again, and the child still waits for it.
            self.stop(reader, handled).await;
            // The next reader then gets records of the other parent before its end.
            self.kinesis.on_call(|_call| Outcome::Served);
            self.list_one_parent();
            reader = self.begin(StartingPosition::TrimHorizon, policy);
            self.hold_all(&mut reader, &parents[1..], handled).await;
            self.keep_holding(&mut reader, 1000..30_000, handled).await;
        }
        self.check_unfetched(&child, first_call);
        self.acknowledge(&parents[1], handled);
        self.read_merged(&mut reader, handled).await;
        // A record that is delivered again would be delivered in this time.
        self.keep_holding(&mut reader, 1000..30_000, handled).await;
        self.kinesis.on_call(|_call| Outcome::Served);
        self.kinesis.set_child_shards(self.plan.child_shards);
        self.check_order(&reader, true);
        self.check_errors(&reader, &[]);
        if let Some((shard, _)) = reader.gaps.first() {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("a gap is reported for {shard}, which has none"),
            );
        }
        reader
    }

    fn merge(&mut self, parents: &[Shard; 2]) -> Shard {
        let child = parents[0].merge(&parents[1]);
        let [one, other] = [parents[0].index(), parents[1].index()];
        let merged = child.index();
        self.truth.log(format_args!("shards {one} and {other} are merged: shard {merged}"));
        (0..self.rng.usize(1..4)).for_each(|_| self.put_into(&child));
        child
    }

    fn list_one_parent(&mut self) {
        let times = self.rng.usize(1..=MAX_LISTINGS);
        self.truth.log(format_args!("the next {times} listings name one parent of merged shards"));
        let wrong = Outcome::Mislisted(WrongListing::OneParent);
        self.kinesis.next_calls("ListShards", times, wrong);
    }

    /// Makes the ends of the parents name no child, both parents or one parent. All records of the
    /// parents have been delivered.
    fn name_one_parent(&mut self, parents: &[Shard; 2], child: &Shard) {
        // The model can alter responses of `GetRecords` only.
        let is_one = self.rng.bool() && !self.plan.fan_out;
        // An end that names no child is read again, and the altered response lacks the members that
        // the second read would show.
        self.kinesis.set_child_shards(is_one || self.rng.bool());
        if !is_one {
            return;
        }
        self.truth.log(format_args!("shard ends name one parent of shard {}", child.index()));
        let both = Named::default();
        *both.lock().unwrap() = parents.iter().map(|parent| (parent.id(), child.id())).collect();
        self.kinesis.on_call(move |call| {
            let named = both.lock().unwrap();
            let of_parent = |(parent, _): &&(ShardId, ShardId)| {
                call.operation == "GetRecords" && call.shard_id.as_ref() == Some(parent)
            };
            named.iter().find(of_parent).map_or(Outcome::Served, |(parent, child)| {
                Outcome::Garbled { status: 200, body: end_naming(child, parent) }
            })
        });
    }

    /// Reads until the caller holds every unacknowledged record of these shards.
    async fn hold_all(&mut self, reader: &mut ActReader, shards: &[Shard], handled: &mut Handled) {
        let is_of = |number: usize| shards.iter().any(|it| it.index() == self.puts[number].shard);
        let mut due: BTreeSet<usize> =
            (0..self.puts.len()).filter(|number| is_of(*number)).collect();
        due.retain(|number| !handled.acknowledged.contains(number));
        let held = |handled: &Handled| {
            due.iter().all(|due| handled.held.iter().any(|(number, _)| number == due))
        };
        let by = self.deadline();
        while !held(handled) && Instant::now() < by && !self.truth.is_broken() {
            self.handle_for(reader, Duration::from_secs(1), &shards_of(shards), handled).await;
        }
        if !held(handled) {
            self.breaks(Promise::NothingIsLost, format_args!("records {due:?} are not delivered"));
        }
    }

    /// Reads for a random time, and keeps holding the records of the shards that are held already.
    async fn keep_holding(
        &mut self,
        reader: &mut ActReader,
        millis: Range<u64>,
        handled: &mut Handled,
    ) {
        let time = self.time(millis);
        let shards = handled.held.iter().map(|(number, _)| self.puts[*number].shard).collect();
        self.handle_for(reader, time, &shards, handled).await;
    }

    /// Reads until all records are acknowledged.
    async fn read_merged(&self, reader: &mut ActReader, handled: &mut Handled) {
        let by = self.deadline();
        let is_over = || Instant::now() >= by || self.truth.is_broken();
        while handled.acknowledged.len() < self.puts.len() && !is_over() {
            self.handle_for(reader, Duration::from_secs(1), &BTreeSet::new(), handled).await;
        }
        let all = 0..self.puts.len();
        let left: Vec<usize> = all.filter(|it| !handled.acknowledged.contains(it)).collect();
        if !left.is_empty() {
            self.breaks(Promise::NothingIsLost, format_args!("records {left:?} are not delivered"));
        }
    }

    /// Reads for this time, holds the records of these shards, and acknowledges all others.
    async fn handle_for(
        &self,
        reader: &mut ActReader,
        time: Duration,
        shards: &BTreeSet<usize>,
        handled: &mut Handled,
    ) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.truth.is_broken() {
            let Some(record) = reader.next(end - Instant::now()).await else {
                // More records may follow an error.
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            let number = *reader.delivered.last().expect("the delivered record was noted");
            let is_held = handled.held.iter().any(|(held, _)| *held == number);
            if is_held || handled.acknowledged.contains(&number) {
                let promise = Promise::FewRepeats;
                return self.breaks(promise, format_args!("record {number} is delivered again"));
            }
            if shards.contains(&index_of(record.shard_id())) {
                handled.held.push((number, record));
            } else {
                record.ack();
                handled.acknowledged.insert(number);
            }
        }
        reader.note_gaps();
    }

    fn acknowledge(&self, shard: &Shard, handled: &mut Handled) {
        self.truth.log(format_args!("the records of shard {} are acknowledged", shard.index()));
        let is_of = |(number, _): &mut (usize, Record)| self.puts[*number].shard == shard.index();
        for (number, record) in handled.held.extract_if(.., is_of) {
            record.ack();
            handled.acknowledged.insert(number);
        }
    }

    /// Checks that no reader reads a merged shard while records of a parent are unacknowledged.
    fn check_unfetched(&self, child: &Shard, first_call: usize) {
        let calls = self.kinesis.calls_from(first_call);
        let is_read = calls.iter().any(|call| {
            call.operation == self.plan.read_call() && call.shard_id == Some(child.id())
        });
        if is_read {
            self.breaks(
                Promise::ParentsFirst,
                format_args!("shard {} is read before both parents are finished", child.index()),
            );
        }
    }

    async fn stop(&self, reader: ActReader, handled: &mut Handled) {
        self.truth.log(format_args!("the reader stops"));
        handled.held.clear();
        reader.close().await;
    }
}

fn shards_of(shards: &[Shard]) -> BTreeSet<usize> {
    shards.iter().map(Shard::index).collect()
}

/// Returns the response at the end of a shard that names a child with this parent only.
fn end_naming(child: &ShardId, parent: &ShardId) -> String {
    format!(
        r#"{{"Records":[],"MillisBehindLatest":0,"ChildShards":[{{"ShardId":"{child}","ParentShards":["{parent}"],"HashKeyRange":{{"StartingHashKey":"0","EndingHashKey":"9"}}}}]}}"#
    )
}
