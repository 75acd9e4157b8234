//! Kinesis becomes unreachable, for one worker of a fleet or for all.
//!
//! A separate generator chooses this, at the end of a scenario and for some seeds only.

use std::collections::BTreeMap;
use std::time::Duration;

use kinestream::testing::{Outcome, Shard};

use crate::plan::Plan;
use crate::truth::{Promise, index_of};
use crate::world::World;

/// Mixed with the seed for this generator.
pub(crate) const MIX: u64 = 0x07ea_c4ed;

/// The maximum time from the start of an outage to a second failed call, and from its end to a
/// success: twice a call of 30 s and a back-off of 30 s.
const BETWEEN_FAILURES: Duration = Duration::from_secs(2 * (30 + 30));

/// The minimum time for which a worker must reach Kinesis before it takes over leases.
const TRIAL: Duration = Duration::from_secs(60);

impl Plan {
    /// Returns the time for which all calls must fail before a worker counts as disconnected.
    fn patience(&self) -> Duration {
        (3 * self.lease_duration).max(Duration::from_secs(30))
    }
}

impl World {
    /// Makes Kinesis unreachable for a while, for some seeds.
    pub(crate) async fn lose_kinesis(&mut self) {
        let mut rng = self.reachability_rng.clone();
        // An open subscription is served for five minutes, even if calls fail.
        if self.scene.fan_out || rng.u8(..3) > 0 {
            return;
        }
        while self.workers.len() < 2 {
            self.gain_one().await;
        }
        let outcomes =
            [Outcome::Refused, Outcome::Hangs, Outcome::failed(500, "InternalFailure", "")];
        let outcome = outcomes[rng.usize(..outcomes.len())].clone();
        if rng.u8(..3) > 0 {
            let worker = rng.usize(..self.workers.len());
            self.lose_kinesis_for_one(worker, outcome).await;
        } else {
            let time = Duration::from_secs(rng.u64(60..600));
            self.lose_kinesis_for_all(outcome, time).await;
        }
    }

    /// Makes Kinesis unreachable for one worker. Checks that the others read its shards within a
    /// bound and list the stream.
    async fn lose_kinesis_for_one(&mut self, index: usize, outcome: Outcome) {
        let (name, patience) =
            (self.workers[index].name.clone(), self.workers[index].plan.patience());
        let trial = self.longest(Plan::patience).max(TRIAL);
        let moved = 2 * self.longest(|plan| plan.lease_duration)
            + self.longest(|plan| plan.handoff_timeout);
        self.block_all(Some(&name), outcome);
        self.pass(patience + BETWEEN_FAILURES + trial + moved + self.settling()).await;
        let after = format!("{name} cannot reach Kinesis");
        let table = self.table().await;
        let holds = |shard: &Shard| {
            table.leases.get(&shard.id()).and_then(|lease| lease.owner.as_deref()) == Some(&*name)
        };
        if let Some(shard) = self.orders.open_shards().iter().find(|shard| holds(shard)) {
            self.breaks_progress(format_args!("{after}, but holds shard {}", shard.index()));
        }
        let (version, calls) = (table.version, self.kinesis.call_count());
        self.yields_within(Duration::from_secs(20), &after).await;
        self.pass(2 * self.scene.discovery_interval).await;
        if self.table().await.version != version {
            self.truth.breaks(Promise::Rest, format_args!("{after}, and the lease table changes"));
        }
        let calls = self.kinesis.calls_from(calls);
        let is_listed = calls.iter().any(|call| {
            call.operation == "ListShards" && call.access_key_id.as_deref() != Some(&*name)
        });
        if !is_listed {
            self.truth.breaks(
                Promise::FewListings,
                format_args!("{after}, but no other worker lists the shards"),
            );
        }
        self.blocks.clear();
        self.pass(BETWEEN_FAILURES + moved + self.settling()).await;
        self.is_even("a worker reaches Kinesis again").await;
        self.yields_within(self.start(), "a worker reaches Kinesis again").await;
    }

    /// Makes Kinesis unreachable for all workers. Checks that no lease moves and that all shards
    /// are read afterwards.
    async fn lose_kinesis_for_all(&mut self, outcome: Outcome, time: Duration) {
        // Balances the shards after a worker has joined.
        self.pass(self.settling()).await;
        let before = self.epochs().await;
        self.block_all(None, outcome);
        self.pass(time).await;
        self.blocks.clear();
        self.yields_within(BETWEEN_FAILURES, "after the outage of Kinesis").await;
        self.pass(Duration::from_secs(60)).await;
        let moved = self.epochs().await;
        if moved != before {
            self.truth.breaks(
                Promise::Rest,
                format_args!("leases move while no worker reaches Kinesis: {before:?}, {moved:?}"),
            );
        }
        self.is_even("after the outage of Kinesis").await;
    }

    fn block_all(&mut self, worker: Option<&str>, outcome: Outcome) {
        self.truth.log(format_args!("Kinesis is unreachable for {worker:?}: {outcome:?}"));
        self.blocks.block_all(worker, outcome);
    }

    /// Returns the epoch of each open shard.
    async fn epochs(&self) -> BTreeMap<usize, u64> {
        let table = self.table().await;
        let open: Vec<_> = self.orders.open_shards().iter().map(Shard::id).collect();
        let leases = table.leases.iter().filter(|(id, _)| open.contains(id));
        leases.map(|(id, lease)| (index_of(id), lease.epoch)).collect()
    }
}
