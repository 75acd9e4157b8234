//! The steps of the scenario of a fleet.

use std::time::Duration;

use kinestream::testing::{Interruption, Outcome};
use tokio::time::Instant;

use crate::link::Condition;
use crate::world::World;

const MAX_WORKERS: usize = 8;

impl World {
    pub(crate) fn step(&mut self) {
        self.keep_replica();
        if let Some((part, times)) = self.panics.arm(&mut self.panic_rng) {
            self.truth.log(format_args!("{part:?} panics {times} times"));
        }
        if self.rng.bool() {
            self.put();
        }
        let chance = self.rng.u8(..100);
        let scene = &self.scene;
        let (faults, links, store) = (scene.faults, scene.link_faults, scene.store_faults);
        if chance < faults {
            return self.fail_calls();
        }
        if chance < faults + links {
            return self.fail_link();
        }
        if chance < faults + links + store {
            return self.fail_store();
        }
        match self.rng.u8(..30) {
            0..=9 => (0..self.rng.usize(1..6)).for_each(|_| self.put()),
            10..=12 => self.reshard(),
            13..=15 if self.workers.len() < MAX_WORKERS => self.join(),
            16..=19 => self.lose_worker(),
            20 | 21 => self.occupy_caller(),
            22 | 23 => {
                if let Some(worker) = self.some_worker() {
                    self.workers[worker].forget(&mut self.rng);
                }
            }
            24 => {
                if let Some(worker) = self.some_worker() {
                    self.workers[worker].drop_one_stream(&mut self.rng);
                }
            }
            25 if self.rng.bool() => self.hosts_sleep(),
            26 => self.move_positions(),
            _ => {}
        }
    }

    fn some_worker(&mut self) -> Option<usize> {
        (!self.workers.is_empty()).then(|| self.rng.usize(..self.workers.len()))
    }

    fn lose_worker(&mut self) {
        let Some(index) = self.some_worker() else { return };
        let worker = self.workers.remove(index);
        match self.rng.u8(..5) {
            0 | 1 => worker.close(),
            2 => worker.drop_all(),
            _ => worker.kill(),
        }
    }

    fn occupy_caller(&mut self) {
        let time = self.time(60_000);
        if let Some(index) = self.some_worker() {
            let worker = &mut self.workers[index];
            self.truth.log(format_args!("the caller of {} is busy for {time:?}", worker.name));
            worker.occupy(time);
        }
    }

    /// Moves the wall clock of all hosts forward without their timers.
    fn hosts_sleep(&mut self) {
        let time = self.time(40_000);
        self.truth.log(format_args!("all hosts sleep for {time:?}"));
        for worker in &self.workers {
            worker.move_wall(time);
        }
    }

    fn fail_link(&mut self) {
        let Some(index) = self.some_worker() else { return };
        if self.workers[index].suspended_until.is_some() {
            return;
        }
        if self.rng.u8(..4) == 0 {
            let time = self.time(60_000);
            return self.workers[index].suspend(time);
        }
        let condition = self.condition();
        self.truth.lock().set_link(self.workers[index].ordinal, condition);
    }

    fn condition(&mut self) -> Condition {
        match self.rng.u8(..9) {
            0 => Condition::Slow(self.time(1500)),
            1 => Condition::Late(self.time(20_000)),
            2 | 3 => Condition::Down,
            4 => Condition::Forgetful,
            5 => Condition::Hangs,
            _ => Condition::Healthy,
        }
    }

    fn fail_store(&mut self) {
        match self.rng.u8(..4) {
            0 if self.scene.loses_data => self.lose_data(),
            1 if self.scene.clock_jumps => {
                let most = [100, 5000, 60_000][self.rng.usize(..3)];
                let millis = self.rng.i64(-most..most);
                self.truth.log(format_args!("the store's clock moves by {millis} ms"));
                self.truth.lock().clock_moved = true;
                self.stored.move_clock(millis);
            }
            _ => {
                let condition = self.condition();
                self.truth.lock().set_store(condition);
            }
        }
    }

    fn keep_replica(&mut self) {
        if self.scene.loses_data {
            self.replicas.push_back((Instant::now(), self.stored.replica()));
            if self.replicas.len() > 8 {
                self.replicas.pop_front();
            }
        }
    }

    /// Resets the store to an earlier state, or to an empty one.
    fn lose_data(&mut self) {
        {
            // Moved positions may be back at their earlier values.
            let mut facts = self.truth.lock();
            facts.lost_data = true;
            for shard in &mut facts.shards {
                shard.records.clone_from(&shard.ever);
                shard.since = 0;
            }
            // A worker that knows an earlier epoch continues at its position in that epoch, or at
            // the one it was moved to.
            facts.bases.values_mut().for_each(|base| *base = 0);
            facts.workers.iter_mut().for_each(|state| state.seek_epochs.clear());
        }
        if self.rng.u8(..3) == 0 {
            self.truth.log(format_args!("the store has lost everything"));
            let empty = kinestream::MemoryStore::new();
            return self.stored.replace_with_copy_of(&empty);
        }
        let index = self.rng.usize(..self.replicas.len());
        let (at, replica) = &self.replicas[index];
        self.truth.log(format_args!("the store has lost the last {:?}", at.elapsed()));
        self.stored.replace_with_copy_of(replica);
    }

    fn fail_calls(&mut self) {
        let read = if self.scene.fan_out { "SubscribeToShard" } else { "GetRecords" };
        let begin = if self.scene.fan_out { "DescribeStreamConsumer" } else { "GetShardIterator" };
        let mut operation =
            [None, None, Some("ListShards"), Some(begin), Some(read)][self.rng.usize(..5)];
        if self.scene.fan_out && self.rng.bool() {
            return self.interrupt();
        }
        let outcome = match self.rng.u8(..10) {
            0 => Outcome::throttled(),
            1 => Outcome::failed(500, "InternalFailureException", ""),
            2 => Outcome::failed(400, "ExpiredIteratorException", "expired"),
            3 => Outcome::Refused,
            4 => Outcome::Lost,
            5 => Outcome::Cut,
            6 => Outcome::Hangs,
            7 => Outcome::Delayed(self.time(40_000)),
            8 => {
                operation = Some(read);
                Outcome::failed(400, "AccessDeniedException", "no")
            }
            _ => {
                self.truth.log(format_args!("all iterators expire"));
                return self.kinesis.expire_iterators();
            }
        };
        let times = self.rng.usize(1..5);
        self.truth.log(format_args!("next {times} calls of {operation:?}: {outcome:?}"));
        let mut faults = self.faults.lock().unwrap();
        faults.extend(std::iter::repeat_n((operation, outcome), times));
    }

    /// Interrupts the subscriptions of a shard.
    fn interrupt(&mut self) {
        let interruption = match self.rng.u8(..4) {
            0 => Interruption::Ends,
            1 => Interruption::Resets,
            2 => Interruption::Stalls,
            _ => Interruption::fails("InternalFailureException", "ours"),
        };
        let shard = self.rng.usize(..self.orders.shards().len());
        self.truth.log(format_args!("subscriptions of shard {shard}: {interruption:?}"));
        self.orders.shard(shard).interrupt(&interruption);
    }

    /// Ends all faults, and makes callers quick.
    pub(crate) fn heal(&mut self) {
        self.truth.log(format_args!("all faults are over"));
        self.faults.lock().unwrap().clear();
        self.repair(true);
        self.blocks.clear();
        self.panics.disarm();
        self.faults_are_over = true;
        let mut facts = self.truth.lock();
        facts.late_end = None;
        facts.stale_reads.end();
        facts.set_store(Condition::Healthy);
        for worker in &self.workers {
            facts.set_link(worker.ordinal, Condition::Healthy);
        }
        drop(facts);
        for worker in &mut self.workers {
            worker.is_quick = true;
            worker.suspended_until = None;
            worker.occupy(Duration::from_millis(1));
            worker.ack_all();
        }
    }
}
