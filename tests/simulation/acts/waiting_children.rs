//! A child shard that is known long before its first read, because it waits for its parents or no
//! worker runs. Checks that records that are trimmed before the first read are reported as lost.

use std::ops::Range;
use std::time::Duration;

use futures::future::join;
use kinestream::store::Scope;
use kinestream::testing::{Outcome, Shard};
use kinestream::{
    Checkpoint, CheckpointOn, ErrorKind, IfLeased, OnTrimmed, Record, ShardId, ShardOrdering,
    StartingPosition,
};
use tokio::time::{Instant, sleep};

use super::horizon::{DAY, HOUR};
use super::reader::ActReader;
use super::{Act, PATIENCE, POLICIES};
use crate::lease_access::LeaseAccess;
use crate::seeds::pick;
use crate::truth::Promise;

const MINUTE: Duration = Duration::from_secs(60);

/// The maximum clock skew between hosts, plus a minute.
const CLOCKS_DIFFER: Duration = Duration::from_secs(6 * 60);
/// A record that is older than the shortest retention period by more than this proves that the
/// unknown period is longer. Includes a margin of a minute.
const NEAR_HORIZON: Duration = Duration::from_secs(11 * 60);

/// The maximum time from the first read to the last.
const READ_WITHIN: Duration = Duration::from_secs(50 * 60);

/// The range of the difference between the age of a shard at its first read and the retention
/// period, in milliseconds.
const APART: Range<u64> = 3_600_000..6 * 3_600_000;

/// The reason for which a child waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The caller holds a record of the parent and polls.
    Reading,
    /// The caller holds a record of the parent and does not poll.
    Hanging,
    /// The parents are finished, and no worker runs.
    Down,
}

/// The children, and the facts that apply to all of them.
struct Waited {
    children: Vec<Shard>,
    period: Duration,
    /// `DescribeStreamSummary` is allowed, so that readers know the retention period.
    is_known: bool,
    policy: OnTrimmed,
    /// The time of the split or merge.
    since: Instant,
    /// The time from which the store has had the children.
    added_by: Instant,
}

/// The expected reports for a child at its first read.
struct ExpectedLoss {
    /// Records have been trimmed since the child became known, and the reader can know it.
    is_loss: bool,
    /// As far as the reader can know, the child was known for longer than the retention period.
    may_be_loss: bool,
    /// The numbers of the records that are retained until they are read.
    kept: Vec<usize>,
    /// The numbers of the trimmed records.
    lost: Vec<usize>,
}

impl Act {
    pub(super) async fn wait_past_retention(&mut self) {
        (self.plan.ordering, self.plan.mode) = (ShardOrdering::ParentFirst, CheckpointOn::Ack);
        (self.plan.max_in_flight, self.plan.max_in_flight_bytes) = (10_000, 64 << 20);
        // Long intervals keep the number of calls in days of polling low.
        (self.plan.interval, self.plan.discovery_interval) = (MINUTE, 10 * MINUTE);
        let policy = pick(&mut self.rng, &POLICIES);
        // Enhanced fan-out needs this call for the ARN of the stream.
        let is_known = self.rng.u8(..4) != 0 || self.plan.fan_out;
        let wait = pick(&mut self.rng, &[Wait::Reading, Wait::Hanging, Wait::Down, Wait::Down]);
        // A running reader renews its leases all the time, which makes long periods slow to
        // simulate.
        let periods: &[u32] = if wait == Wait::Down { &[24, 25, 36, 72, 168] } else { &[24, 25] };
        let period = pick(&mut self.rng, periods) * HOUR;
        self.truth
            .log(format_args!("{wait:?}, retention {period:?}, known to readers: {is_known}"));
        self.set_retention(period);
        self.allow_period(is_known);
        let mut reader = self.begin(StartingPosition::TrimHorizon, policy);
        let (held, since, children) = self.know_children(&mut reader).await;
        let added_by = Instant::now();
        let waited = Waited { children, period, is_known, policy, since, added_by };
        if self.truth.is_broken() {
            return;
        }
        let apart = self.time(APART);
        let is_short = self.rng.u8(..3) == 0;
        let time = if is_short { period.saturating_sub(apart) } else { period + apart };
        if wait == Wait::Down {
            self.truth.log(format_args!("the reader stops after all parents are finished"));
            join(reader.close(), async { held.iter().for_each(Record::ack) }).await;
            if waited.children.iter().any(|child| self.first_read(child).is_some()) {
                // The children did not wait for a worker.
                return;
            }
            self.let_wait(&waited, time, None).await;
            reader = self.begin(StartingPosition::TrimHorizon, policy);
        } else {
            let read = (wait == Wait::Reading).then_some(&mut reader);
            self.let_wait(&waited, time, read).await;
            self.truth.log(format_args!("the parents are acknowledged"));
            held.iter().for_each(Record::ack);
        }
        for child in &waited.children {
            self.check_child(&mut reader, child, &waited).await;
        }
        self.check_errors(&reader, &[ErrorKind::Trimmed]);
        reader.close().await;
    }

    /// Allows or denies `DescribeStreamSummary` from now on, after up to two throttled calls.
    fn allow_period(&mut self, is_known: bool) {
        self.kinesis.on_call(move |call| match call.operation.as_str() {
            "DescribeStreamSummary" if !is_known => {
                Outcome::failed(400, "AccessDeniedException", "no")
            }
            _ => Outcome::Served,
        });
        let fails = self.rng.usize(..3);
        self.kinesis.next_calls("DescribeStreamSummary", fails, Outcome::throttled());
    }

    /// Splits or merges a shard of which the caller holds a record, and waits until the store has
    /// the children. Returns the held records, the time of the change, and the children.
    async fn know_children(
        &mut self,
        reader: &mut ActReader,
    ) -> (Vec<Record>, Instant, Vec<Shard>) {
        self.put_each();
        let mut held = Vec::new();
        let by = Instant::now() + PATIENCE;
        while held.len() < self.puts.len() && Instant::now() < by {
            held.extend(reader.next(MINUTE).await);
        }
        let known = self.orders.shards().len();
        let (since, parent) = (Instant::now(), self.reshard());
        held.retain(|record| {
            let is_of_parent = *record.shard_id() == parent.id();
            if !is_of_parent {
                record.ack();
            }
            is_of_parent
        });
        if held.is_empty() {
            self.breaks(Promise::NothingIsLost, format_args!("the parent is not delivered"));
        }
        let children = self.orders.shards().split_off(known);
        // Some records are put before the store has the children.
        if self.rng.bool() {
            self.put_into(&children[0]);
        }
        // The ends of the parents are read in this time, too.
        reader.read_for(2 * self.plan.discovery_interval).await;
        let table = self
            .store
            .table(&Scope::new("default", "orders"))
            .await
            .expect("the memory store never fails");
        if children.iter().any(|child| !table.leases.contains_key(&child.id())) {
            self.breaks(Promise::Progress, format_args!("the store does not have the children"));
        }
        (held, since, children)
    }

    /// Puts records into the children while they wait.
    async fn let_wait(
        &mut self,
        waited: &Waited,
        time: Duration,
        mut reader: Option<&mut ActReader>,
    ) {
        let parts = self.rng.u32(1..5);
        for part in 0..=parts {
            for child in &waited.children {
                // In a long wait the first records are trimmed, and some children stay without
                // records.
                for _ in 0..self.rng.usize(..3) {
                    self.put_into(child);
                }
            }
            if part == parts {
                break;
            }
            match &mut reader {
                Some(reader) => reader.read_for(time / parts).await,
                None => sleep(time / parts).await,
            }
        }
    }

    /// Reads a child, and compares the reported losses with the expected ones.
    async fn check_child(&mut self, reader: &mut ActReader, child: &Shard, waited: &Waited) {
        let by = self.deadline();
        while self.first_read(child).is_none() && Instant::now() < by {
            reader.read_for(MINUTE).await;
        }
        let Some(first) = self.first_read(child) else {
            let promise = Promise::Progress;
            return self.breaks(promise, format_args!("{} is not read", child.id()));
        };
        let expected = self.expected_loss(child, first, waited);
        let id = child.id();
        // The reader needs a few calls to detect a loss.
        reader.read_for(5 * MINUTE).await;
        let gap = reader.gaps.iter().find(|(of, _)| *of == id).map(|(_, at)| *at);
        let is_reported = reports(reader, &id) > 0;
        self.truth
            .log(format_args!("{id}: loss reported: {is_reported}, lost {:?}", expected.lost));
        if is_reported && !expected.may_be_loss || !is_reported && expected.is_loss {
            return self.breaks(
                Promise::LossesAreReported,
                format_args!("{id}: loss reported: {is_reported}, lost {:?}", expected.lost),
            );
        }
        if is_reported && waited.policy == OnTrimmed::Fail {
            let to = Checkpoint::TrimHorizon;
            let set = reader.consumer.set_position(&id, to, IfLeased::Force).await;
            set.expect("the store of an act does not fail");
        }
        self.put_into(child);
        let mut due = expected.kept.clone();
        due.retain(|number| {
            gap.is_none_or(|at| waited.policy != OnTrimmed::Latest || self.puts[*number].at > at)
        });
        due.push(self.puts.len() - 1);
        self.read_all(reader, &due).await;
        self.check_order_but(reader, false, |of, number| *of != id || !due.contains(&number));
        if reports(reader, &id) != usize::from(is_reported) {
            let promise = Promise::LossesAreReported;
            self.breaks(
                promise,
                format_args!("{id}: one loss is reported {} times", reports(reader, &id)),
            );
        }
    }

    /// Returns the time of the first successful read of the child.
    fn first_read(&self, child: &Shard) -> Option<Instant> {
        let calls = self.kinesis.calls().into_iter();
        let mut reads = calls.filter(|call| {
            call.operation == self.plan.read_call() && call.shard_id == Some(child.id())
        });
        reads.find(|call| call.status == Some(200)).map(|call| call.at)
    }

    fn expected_loss(&self, child: &Shard, first: Instant, waited: &Waited) -> ExpectedLoss {
        let Waited { period, is_known, .. } = *waited;
        let of_child = |number: &usize| self.puts[*number].shard == child.index();
        let numbers: Vec<usize> = (0..self.puts.len()).filter(of_child).collect();
        let age = |number: &usize| first.saturating_duration_since(self.puts[*number].at);
        let (lost, kept): (Vec<_>, Vec<_>) =
            numbers.into_iter().partition(|number| age(number) + READ_WITHIN > period);
        // The oldest retained record shows that an unknown period is longer than the shortest one.
        let is_longer = kept.first().is_some_and(|it| age(it) > DAY + NEAR_HORIZON);
        let assumed = if is_known { period } else { DAY };
        let is_known_since = |number: &usize| self.puts[*number].at >= waited.added_by;
        let is_over = |number: &usize| age(number) > period + MINUTE;
        let has_lost = lost.iter().any(|number| is_known_since(number) && is_over(number));
        let is_hidden = !is_known && is_longer;
        let is_older = first - waited.since + CLOCKS_DIFFER >= assumed;
        let (is_loss, may_be_loss) = (has_lost && !is_hidden, is_older && !is_hidden);
        ExpectedLoss { is_loss, may_be_loss, kept, lost }
    }
}

/// Returns the number of reported losses of a shard.
fn reports(reader: &ActReader, shard: &ShardId) -> usize {
    let gaps = reader.gaps.iter().filter(|(of, _)| of == shard).count();
    let errors = reader.errors.iter();
    gaps + errors.filter(|error| error.shard_id() == Some(shard)).count()
}
