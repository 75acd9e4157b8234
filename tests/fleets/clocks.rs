//! Clocks that are moved, hosts that stall, and workers that lose the store one after the other.
//!
//! A separate generator chooses these faults, for some seeds only, so that the other scenarios stay
//! the same.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, advance};

use crate::link::Condition;
use crate::world::World;

/// Mixed with the seed for the generator of these faults.
const MIX: u64 = 0x000c_10c5_5eed;

/// The generator of these faults, and whether they occur.
#[derive(Debug)]
pub(crate) struct Clocks {
    rng: Rng,
    is_on: bool,
}

impl Clocks {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ MIX);
        let is_on = rng.u8(..3) == 0;
        Self { rng, is_on }
    }

    fn time(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(..most))
    }
}

impl World {
    /// Injects faults of clocks and hosts in a step.
    pub(crate) async fn disturb_clocks(&mut self) {
        if !self.clocks.is_on || self.workers.is_empty() {
            return;
        }
        let index = self.clocks.rng.usize(..self.workers.len());
        match self.clocks.rng.u8(..12) {
            0 => {
                let time = self.clocks.time(40_000);
                self.move_wall(index, time);
            }
            1 => {
                let time = self.clocks.time(90_000);
                self.set_wall_back(index, time);
            }
            2 => {
                self.set_wall_back(index, Duration::from_secs(120));
                self.stall().await;
            }
            3 => self.lose_the_store_in_turn(index).await,
            4 => self.replace_while_suspended(index).await,
            _ => {}
        }
    }

    fn move_wall(&mut self, index: usize, time: Duration) {
        let worker = &self.workers[index];
        self.truth.log(format_args!("the host of {} sleeps for {time:?}", worker.name));
        worker.move_wall(time);
    }

    fn set_wall_back(&mut self, index: usize, time: Duration) {
        let worker = &self.workers[index];
        self.truth.log(format_args!("the clock of {} is set back by {time:?}", worker.name));
        worker.set_wall_back(time);
    }

    /// Stalls all processes, as on a paused host: the monotonic clock and the clock of the store
    /// advance, and a reader may be polled before any timer.
    async fn stall(&mut self) {
        let time = self.clocks.time(40_000);
        self.truth.log(format_args!("all processes stall for {time:?}"));
        self.truth.lock().begin_stall();
        let mut stalled = pin!(advance(time));
        let now = Instant::now();
        poll_fn(|context| {
            let _ = stalled.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
        debug_assert_eq!(now.elapsed().as_millis(), time.as_millis(), "the clock advances at once");
        self.truth.lock().update_reachability();
        for index in 0..self.workers.len() {
            let polled = poll_fn(|context| {
                Poll::Ready(match self.workers[index].poll(context) {
                    Poll::Ready(next) => Some(next),
                    Poll::Pending => None,
                })
            });
            if let Some(next) = polled.await {
                self.workers[index].take(&mut self.rng, next);
            }
        }
    }

    /// Disconnects one worker from the store until another has its shards, and then disconnects
    /// that one.
    async fn lose_the_store_in_turn(&mut self, index: usize) {
        let first = self.workers[index].ordinal;
        self.truth.lock().set_link(first, Condition::Down);
        let time = Duration::from_secs(5) + self.clocks.time(35_000);
        self.join_and_read(time).await;
        let others =
            self.workers.iter().map(|worker| worker.ordinal).filter(|ordinal| *ordinal != first);
        for ordinal in others.collect::<Vec<_>>() {
            self.truth.lock().set_link(ordinal, Condition::Down);
        }
        self.join_and_read(Duration::from_secs(10)).await;
        for worker in &self.workers {
            if worker.suspended_until.is_none() {
                self.truth.lock().set_link(worker.ordinal, Condition::Healthy);
            }
        }
    }

    /// Suspends one worker until another has its shards, and disconnects it from the store when it
    /// resumes.
    async fn replace_while_suspended(&mut self, index: usize) {
        if self.workers[index].suspended_until.is_some() {
            return;
        }
        let ordinal = self.workers[index].ordinal;
        let time = Duration::from_secs(5) + self.clocks.time(35_000);
        self.workers[index].suspend(time);
        self.workers[index].link_at_wake = Condition::Down;
        self.join_and_read(time + Duration::from_secs(10)).await;
        if self.workers.iter().any(|worker| worker.ordinal == ordinal) {
            self.truth.lock().set_link(ordinal, Condition::Healthy);
        }
    }

    /// Starts a worker, and lets time pass in which every shard has records to read.
    async fn join_and_read(&mut self, time: Duration) {
        let end = Instant::now() + time;
        if self.workers.len() < 3 {
            self.join();
        }
        while Instant::now() < end && !self.truth.is_broken() {
            for shard in self.orders.open_shards() {
                self.put_into(shard.index());
            }
            self.pass(Duration::from_secs(2)).await;
        }
    }
}
