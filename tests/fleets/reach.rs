//! Kinesis out of reach, for one worker of a fleet or for all.
//!
//! Chosen by a generator of its own, at the end of a story and in some worlds only.

use std::collections::BTreeMap;
use std::time::Duration;

use kinestream::testing::{Outcome, Shard};

use crate::plan::Plan;
use crate::truth::{Promise, index_of};
use crate::world::World;

/// What a seed is mixed with for these stories.
pub(crate) const MIX: u64 = 0x07ea_c4ed;

/// The longest time from the start of an outage to a second failure of a call, and from its end to a
/// success: twice a call of 30 s and a pause of 30 s.
const BETWEEN_FAILURES: Duration = Duration::from_secs(2 * (30 + 30));

/// How long a worker must reach Kinesis before it takes over leases, at least.
const TRIAL: Duration = Duration::from_secs(60);

impl Plan {
    /// The time for which all calls fail before a worker is out of reach.
    fn patience(&self) -> Duration {
        (3 * self.lease_duration).max(Duration::from_secs(30))
    }
}

impl World {
    /// Sometimes Kinesis is out of reach for a while.
    pub(crate) async fn lose_kinesis(&mut self) {
        let mut rng = self.reach_rng.clone();
        // An open subscription is served for five minutes whatever becomes of calls.
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

    /// One worker loses Kinesis: the others read its shards within a bound, and list the stream.
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
            self.breaks_progress(format_args!("{after}, and holds shard {}", shard.index()));
        }
        let (version, calls) = (table.version, self.kinesis.call_count());
        self.yields_within(Duration::from_secs(20), &after).await;
        self.pass(2 * self.scene.discovery_interval).await;
        if self.table().await.version != version {
            self.truth.breaks(Promise::Rest, format_args!("{after}, and the table changes"));
        }
        let calls = self.kinesis.calls_from(calls);
        let is_listed = calls.iter().any(|call| {
            call.operation == "ListShards" && call.access_key_id.as_deref() != Some(&*name)
        });
        if !is_listed {
            self.truth.breaks(Promise::FewListings, format_args!("{after}, and no other lists"));
        }
        self.blocks.clear();
        self.pass(BETWEEN_FAILURES + moved + self.settling()).await;
        self.is_even("a worker reaches Kinesis again").await;
        self.yields_within(self.start(), "a worker reaches Kinesis again").await;
    }

    /// All workers lose Kinesis: no lease moves, and all shards are read when it returns.
    async fn lose_kinesis_for_all(&mut self, outcome: Outcome, time: Duration) {
        // Until the fleet has its shares, whoever came last.
        self.pass(self.settling()).await;
        let before = self.epochs().await;
        self.block_all(None, outcome);
        self.pass(time).await;
        self.blocks.clear();
        self.yields_within(BETWEEN_FAILURES, "Kinesis has returned").await;
        self.pass(Duration::from_secs(60)).await;
        let moved = self.epochs().await;
        if moved != before {
            self.truth.breaks(
                Promise::Rest,
                format_args!("leases move while Kinesis is away for all: {before:?}, {moved:?}"),
            );
        }
        self.is_even("Kinesis has returned").await;
    }

    fn block_all(&mut self, worker: Option<&str>, outcome: Outcome) {
        self.truth.tell(format_args!("Kinesis is out of reach for {worker:?}: {outcome:?}"));
        self.blocks.block_all(worker, outcome);
    }

    /// The epoch of each open shard.
    async fn epochs(&self) -> BTreeMap<usize, u64> {
        let table = self.table().await;
        let open: Vec<_> = self.orders.open_shards().iter().map(Shard::id).collect();
        let leases = table.leases.iter().filter(|(id, _)| open.contains(id));
        leases.map(|(id, lease)| (index_of(id), lease.epoch)).collect()
    }
}
