//! Checks of a fleet after all faults are over.

use std::time::Duration;

use kinestream::testing::Shard;
use kinestream::{Checkpoint, ShardState};
use tokio::time::{Instant, sleep};

use crate::left_running::left_running;
use crate::truth::{Promise, index_of};
use crate::world::World;

/// Longer than any back-off plus the rest of an attempt under way, for Kinesis and the store.
const PATIENCE: Duration = Duration::from_secs(120);

/// The maximum time from the acquisition of a shard to its first record, including the decision.
const START: Duration = Duration::from_secs(5);

/// The additional time with enhanced fan-out: the new owner may have to wait until it may
/// subscribe.
const TAKEOVER: Duration = Duration::from_secs(8);

/// The maximum pause of a failed shard, plus the maximum trial period of a worker.
const FAILED: Duration = Duration::from_secs(300 + 200);

/// The duration of the checks at rest.
const REST: Duration = Duration::from_secs(120);

impl World {
    pub(crate) async fn check_at_rest(&mut self) {
        self.heal_fleet().await;
        self.read_everything().await;
        self.rest().await;
        for _ in 0..2 {
            if self.truth.is_broken() {
                return;
            }
            match self.rng.u8(..3) {
                0 => self.lose_one(true).await,
                1 => self.lose_one(false).await,
                _ => self.gain_one().await,
            }
        }
        if !self.truth.is_broken() {
            self.lose_kinesis().await;
        }
        self.end().await;
    }

    /// Ends all faults, replaces the workers that cannot read everything, and waits for the
    /// operators.
    pub(crate) async fn heal_fleet(&mut self) {
        self.heal();
        // A worker that has dropped a record without an acknowledgement cannot advance its shard.
        while let Some(index) =
            self.workers.iter().position(|worker| worker.has_dropped_record || worker.has_ended)
        {
            self.workers.remove(index).close();
        }
        if self.workers.is_empty() {
            self.join();
        }
        while !self.operators.is_empty() && !self.truth.is_broken() {
            self.pass(Duration::from_secs(1)).await;
            while self.operators.try_join_next().is_some() {}
        }
    }

    /// Returns the maximum of a time over all workers.
    pub(crate) fn longest(&self, time: impl Fn(&crate::plan::Plan) -> Duration) -> Duration {
        self.workers.iter().map(|worker| time(&worker.plan)).max().unwrap_or_default()
    }

    pub(crate) fn start(&self) -> Duration {
        if self.scene.fan_out { START + TAKEOVER } else { START }
    }

    fn failed(&self) -> Duration {
        if self.truth.lock().were_blocked { FAILED } else { Duration::ZERO }
    }

    /// Returns the maximum time to the next finished record or shard after all faults are over.
    pub(crate) fn patience(&self) -> Duration {
        let lease = Duration::from_secs(30);
        PATIENCE + 2 * lease + self.longest(|plan| plan.handoff_timeout) + self.failed()
    }

    pub(crate) async fn read_everything(&mut self) {
        let patience = self.patience();
        let (mut quiet, mut left) = (Instant::now(), usize::MAX);
        while !self.truth.is_broken() {
            let unfinished = self.unfinished().await;
            if unfinished.is_empty() {
                return;
            }
            if unfinished.len() != left {
                (quiet, left) = (Instant::now(), unfinished.len());
            } else if quiet.elapsed() > patience {
                return self.breaks_progress(format_args!(
                    "no record is finished; unfinished: {unfinished:?}"
                ));
            }
            self.pass(Duration::from_secs(1)).await;
        }
    }

    /// Returns the unfinished records, and the closed shards with ends that are not stored.
    async fn unfinished(&self) -> Vec<(usize, Option<usize>)> {
        let table = self.table().await;
        let facts = self.truth.lock();
        let mut unfinished = Vec::new();
        for shard in self.orders.shards() {
            let records = facts.shards[shard.index()].records.iter().enumerate();
            let missing = records.filter(|(_, finished)| !**finished);
            unfinished.extend(missing.map(|(place, _)| (shard.index(), Some(place))));
            let lease = table.leases.get(&shard.id());
            let stored = lease.and_then(|lease| lease.checkpoint.as_ref());
            if !shard.is_open() && stored != Some(&Checkpoint::ShardEnd) {
                unfinished.push((shard.index(), None));
            }
        }
        unfinished
    }

    /// Returns the maximum time until the shards are balanced.
    pub(crate) fn settling(&self) -> Duration {
        2 * self.longest(crate::plan::Plan::renewal) + self.start()
    }

    /// Puts a record into each open shard, and checks that it is finished within `time`.
    pub(crate) async fn yields_within(&mut self, time: Duration, after: &str) {
        for shard in self.orders.open_shards() {
            self.put_into(shard.index());
        }
        self.pass(time).await;
        let unfinished = self.unfinished().await;
        if !unfinished.is_empty() {
            self.breaks_progress(format_args!(
                "{after}, records {unfinished:?} are not finished within {time:?}"
            ));
        }
    }

    /// Checks that the numbers of shards of any two workers that keep up differ by at most one.
    pub(crate) async fn is_even(&mut self, after: &str) {
        let table = self.table().await;
        let open: Vec<_> = self.orders.open_shards().iter().map(Shard::id).collect();
        let count = |name: &str| {
            let owner = |shard| table.leases.get(shard).and_then(|lease| lease.owner.as_deref());
            open.iter().filter(|shard| owner(shard) == Some(name)).count()
        };
        let shares: Vec<_> =
            self.workers.iter().map(|worker| (&worker.name, count(&worker.name))).collect();
        let load = |name: &str| table.workers.get(name).and_then(|worker| worker.load.as_ref());
        let keeps_up = |name: &str| load(name).is_none_or(|load| load.strain == 0);
        let even = shares.iter().filter(|(name, _)| keeps_up(name)).map(|(_, count)| *count);
        let (most, least) = (even.clone().max(), even.min());
        let held: usize = shares.iter().map(|(_, count)| *count).sum();
        if most.unwrap_or(0) > least.unwrap_or(0) + 1 || held < open.len() {
            self.truth.breaks(
                Promise::Evenness,
                format_args!("{after}, {} shards are distributed as {shares:?}", open.len()),
            );
        }
    }

    async fn rest(&mut self) {
        // Covers the expiry of the leases of killed workers and the discovery of the last children.
        let before = self.settling()
            + Duration::from_secs(30)
            + self.longest(|plan| plan.poll_timeout.unwrap_or_default())
            + self.longest(|plan| plan.handoff_timeout)
            + 2 * self.scene.discovery_interval
            + self.failed();
        self.pass(before).await;
        self.is_even("at rest").await;
        self.check_events_and_status().await;
        let (version, calls) = (self.table().await.version, self.kinesis.call_count());
        let began = Instant::now();
        while began.elapsed() < REST && !self.truth.is_broken() {
            self.yields_within(Duration::from_secs(20), "at rest").await;
        }
        if self.table().await.version != version {
            self.truth
                .breaks(Promise::Rest, format_args!("the lease table of a fleet at rest changes"));
        }
        let calls = self.kinesis.calls_from(calls);
        let listings = calls.iter().filter(|call| call.operation == "ListShards").count();
        let seconds = began.elapsed().as_millis();
        let due = usize::try_from(seconds / self.scene.discovery_interval.as_millis()).unwrap_or(0);
        if !(due.saturating_sub(due / 10 + 1)..=due + 1).contains(&listings) {
            self.truth.breaks(
                Promise::FewListings,
                format_args!("{listings} listings in {:?}", began.elapsed()),
            );
        }
    }

    /// Checks the events of each worker about its leases, and the status that a worker reports for
    /// the fleet.
    async fn check_events_and_status(&mut self) {
        let table = self.table().await;
        for worker in &mut self.workers {
            worker.check_panics();
            let (name, held) = (&worker.name, worker.events.lock().held());
            let own = table
                .leases
                .iter()
                .filter(|(_, lease)| lease.owner.as_deref() == Some(name) && !lease.is_finished());
            let own: Vec<_> = own.map(|(id, lease)| (index_of(id), lease.epoch)).collect();
            if held != own {
                self.truth.breaks(
                    Promise::EventsAreTrue,
                    format_args!("{name} holds leases {own:?}, but its events report {held:?}"),
                );
            }
            let counted = worker.consumer.health().leases_held;
            if counted != own.len() {
                self.truth.breaks(
                    Promise::EventsAreTrue,
                    format_args!("{name} holds leases {own:?}, but its health shows {counted}"),
                );
            }
        }
        let Some(worker) = self.workers.first() else { return };
        let status = worker.consumer.status().await.expect("the store does not fail");
        for (id, seen) in &status.shards {
            let lease = &table.leases[id];
            let state =
                if lease.is_finished() { ShardState::Finished } else { ShardState::Reading };
            let is_own = lease.owner.as_deref() == Some(&worker.name);
            let is_true = seen.state == state
                && seen.owner.as_deref() == lease.owner.as_deref()
                && seen.position == lease.checkpoint
                && seen.millis_behind_latest == (is_own && !lease.is_finished()).then_some(0);
            if !is_true {
                self.truth.breaks(
                    Promise::EventsAreTrue,
                    format_args!("the status of {id} is {seen:?}, expected {lease:?}"),
                );
            }
        }
    }

    /// Kills or closes a worker, and checks that the others acquire its shards in time.
    async fn lose_one(&mut self, is_killed: bool) {
        if self.workers.len() < 2 {
            return;
        }
        let worker = self.workers.remove(self.rng.usize(..self.workers.len()));
        let lease = worker.plan.lease_duration;
        let after = if is_killed { "a worker was killed" } else { "a worker has left" };
        let time = if is_killed {
            worker.kill();
            lease
        } else {
            worker.close();
            Duration::ZERO
        };
        let time = time + self.longest(crate::plan::Plan::renewal) + self.start();
        self.yields_within(time, after).await;
        self.pass(self.settling()).await;
        self.is_even(after).await;
    }

    /// Starts a worker, and checks that it gets its share in time.
    pub(crate) async fn gain_one(&mut self) {
        self.join();
        let is_renamed = {
            let facts = self.truth.lock();
            let name = &facts.workers.last().expect("a worker has joined").name;
            facts.workers.iter().filter(|state| state.name == *name).count() > 1
        };
        if is_renamed {
            // Its name is free after the leases of the earlier worker of that name have expired.
            self.pass(Duration::from_secs(30) + self.settling()).await;
        }
        self.pass(self.settling()).await;
        self.is_even("a worker has joined").await;
        self.yields_within(self.start(), "a worker has joined").await;
    }

    pub(crate) async fn end(&mut self) {
        for worker in std::mem::take(&mut self.workers) {
            match self.rng.u8(..3) {
                0 => worker.close(),
                1 => worker.drop_all(),
                _ => worker.kill(),
            }
        }
        sleep(Duration::from_secs(60)).await;
        if let Some(left) = left_running(&self.kinesis) {
            self.truth.breaks(Promise::NothingLeftRunning, format_args!("{left}"));
        }
        // Each reader observes the call limit of a shard on its own. Together, the readers may
        // exceed it.
        for violation in self.kinesis.violations() {
            if !violation.contains(": more than ") {
                self.truth.breaks(Promise::CallLimits, format_args!("{violation}"));
            }
        }
    }
}
