//! A simulated environment: its workers, and the passage of time.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use kinestream::MemoryStore;
use kinestream::store::Scope;
use kinestream::store::lease::LeaseTable;
use kinestream::testing::{Kinesis, Outcome, Stream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::blocks::Blocks;
use crate::clocks::Clocks;
use crate::damage::Damage;
use crate::jobs::Job;
use crate::late_ends::LateEnds;
use crate::lease_access::LeaseAccess;
use crate::panics::Panics;
use crate::plan::Scene;
use crate::records::PAYLOAD;
use crate::seeds::{SeedResult, pick};
use crate::truth::{Promise, Truth, index_of};
use crate::wire::Wire;
use crate::worker::Worker;

/// 2026-01-01. A fixed date makes runs independent of the current date.
pub(crate) const BEGINNING: Duration = Duration::from_secs(1_767_225_600);

const MAX_SHARDS: usize = 14;

/// The outcomes of the next calls to an operation; `None` means any operation.
pub(crate) type Faults = Arc<Mutex<VecDeque<(Option<&'static str>, Outcome)>>>;

pub(crate) struct World {
    pub(crate) scene: Scene,
    pub(crate) rng: Rng,
    /// Draws features that were added later, so that existing seeds keep their scenarios.
    pub(crate) added_rng: Rng,
    /// The percentage of steps in which calls are blocked.
    pub(crate) block_faults: u8,
    pub(crate) blocks: Blocks,
    pub(crate) kinesis: Kinesis,
    pub(crate) orders: Stream,
    pub(crate) truth: Truth,
    pub(crate) stored: MemoryStore,
    /// Copies of the store from earlier moments, the latest last.
    pub(crate) replicas: VecDeque<(Instant, MemoryStore)>,
    pub(crate) clocks: Clocks,
    pub(crate) damage: Damage,
    pub(crate) late_ends: LateEnds,
    pub(crate) workers: Vec<Worker>,
    /// The running tasks of operators.
    pub(crate) operators: JoinSet<()>,
    pub(crate) faults: Faults,
    /// True after all faults are over: callers are quick.
    pub(crate) faults_are_over: bool,
    pub(crate) panics: Panics,
    /// Chooses when and where a panic occurs.
    pub(crate) panic_rng: Rng,
    /// Chooses whether Kinesis becomes unreachable.
    pub(crate) reachability_rng: Rng,
    pub(crate) wire: Wire,
    /// The ending position of the fleet, if it is a job.
    pub(crate) job: Option<Job>,
}

impl World {
    pub(crate) fn new(seed: u64, panics: Panics, panic_rng: Rng) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut added_rng = Rng::with_seed(seed ^ 0x0062_6c6f_636b_6564);
        let block_faults = pick(&mut added_rng, &[0, 0, 0, 0, 0, 10]);
        let blocks = Blocks::default();
        // Seeds the generator that the crate itself uses.
        fastrand::seed(rng.u64(..));
        let mut scene = Scene::new(&mut rng);
        let wire = Wire::new(seed);
        (scene.wire_format, scene.cbor) = (wire.format, wire.support);
        let beginning = UNIX_EPOCH + BEGINNING;
        let kinesis = Kinesis::at(beginning);
        let orders = kinesis.create_stream("orders", scene.shards);
        kinesis.set_latency(scene.latency);
        kinesis.set_child_shards(scene.child_shards);
        kinesis.set_cbor(scene.cbor);
        let faults = Faults::default();
        kinesis.on_call({
            let (faults, blocks) = (Arc::clone(&faults), blocks.clone());
            move |call| {
                if let Some(outcome) = blocks.decide(call) {
                    return outcome;
                }
                let mut faults = faults.lock().unwrap();
                let applies = |(operation, _): &(Option<&'static str>, Outcome)| {
                    operation.is_none_or(|operation| operation == call.operation)
                };
                let next = faults.iter().position(applies);
                next.and_then(|next| faults.remove(next))
                    .map_or(Outcome::Served, |(_, outcome)| outcome)
            }
        });
        let truth = Truth::new(seed, scene.shards);
        truth.log(format_args!("{scene:?}"));
        Self {
            scene,
            rng,
            added_rng,
            block_faults,
            blocks,
            kinesis,
            orders,
            truth,
            stored: MemoryStore::at(beginning),
            replicas: VecDeque::new(),
            clocks: Clocks::new(seed),
            damage: Damage::new(seed),
            late_ends: LateEnds::new(seed),
            workers: Vec::new(),
            operators: JoinSet::new(),
            faults,
            faults_are_over: false,
            panics,
            panic_rng,
            reachability_rng: Rng::with_seed(seed ^ crate::reachability::MIX),
            wire,
            job: None,
        }
    }

    pub(crate) async fn run(&mut self) {
        for _ in 0..self.rng.usize(..10) {
            self.put();
        }
        for _ in 0..self.scene.workers {
            self.join();
        }
        for _ in 0..self.scene.steps {
            self.copy_for_stale_reads();
            self.step();
            self.outdate_listings();
            self.delay_ends();
            self.change_cbor();
            self.block_calls();
            self.disturb_clocks().await;
            self.damage_fields().await;
            self.stretch_time().await;
            if self.truth.is_broken() {
                return;
            }
        }
        match &self.job {
            Some(_job) => self.check_job().await,
            None => self.check_at_rest().await,
        }
    }

    fn change_cbor(&mut self) {
        if let Some(support) = self.wire.change() {
            self.truth.log(format_args!("the server's CBOR: {support:?}"));
            self.kinesis.set_cbor(support);
        }
    }

    /// Lets a random time pass for a step.
    async fn stretch_time(&mut self) {
        let most = [1, 100, 2000, 2000, 10_000, 60_000][self.rng.usize(..6)];
        let time = self.time(most);
        self.pass(time).await;
    }

    /// Returns a random duration of less than `most` milliseconds.
    pub(crate) fn time(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(..most))
    }

    /// Starts another worker, which may have the name of one that was killed.
    pub(crate) fn join(&mut self) {
        let plan = self.scene.plan(&mut self.rng);
        let name = {
            let facts = self.truth.lock();
            let gone = facts.workers.iter().find(|state| state.is_killed);
            match gone {
                Some(gone)
                    if self.rng.u8(..3) == 0
                        && self.workers.iter().all(|worker| worker.name != gone.name) =>
                {
                    gone.name.clone()
                }
                _ => format!("w{}", facts.workers.len()),
            }
        };
        let mut worker =
            Worker::begin(&self.kinesis, &self.stored, &self.truth, &self.panics, name, plan);
        worker.is_quick = self.faults_are_over;
        self.workers.push(worker);
    }

    /// Lets time pass, in which callers read and suspended workers resume.
    pub(crate) async fn pass(&mut self, time: Duration) {
        self.read_for(time).await;
        self.workers.iter().for_each(Worker::stop_polling);
    }

    async fn read_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while !self.truth.is_broken() {
            // A worker that resumes is polled before anything else happens to it.
            if let Some(index) = self.workers.iter_mut().position(Worker::wakes) {
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
            for worker in &mut self.workers {
                worker.ack_due();
                worker.events.lock().process_events();
            }
            let moments = self.workers.iter().filter_map(Worker::next_moment);
            let next_moment = moments.min().map_or(end, |moment| moment.min(end));
            let (first, workers) = (self.rng.usize(..), &mut self.workers);
            let polled = poll_fn(|context| {
                for offset in 0..workers.len() {
                    let index = (first % workers.len() + offset) % workers.len();
                    if let Poll::Ready(next) = workers[index].poll(context) {
                        return Poll::Ready((index, next));
                    }
                }
                Poll::Pending
            });
            match timeout_at(next_moment, polled).await {
                Ok((index, next)) => self.workers[index].take(&mut self.rng, next),
                Err(_elapsed) if Instant::now() >= end => return,
                Err(_elapsed) => {}
            }
        }
    }

    pub(crate) fn seed_result(&self) -> SeedResult {
        self.truth.lock().end(self.kinesis.call_count())
    }

    pub(crate) fn put(&mut self) {
        let open = self.orders.open_shards();
        let index = self.rng.usize(..open.len());
        self.put_into(open[index].index());
    }

    pub(crate) fn put_into(&mut self, shard: usize) {
        let number = self.orders.shard(shard).put(PAYLOAD);
        let mut facts = self.truth.lock();
        let place = facts.shards[shard].records.len();
        facts.log(format_args!("put: shard {shard} record {place}"));
        facts.put(shard, number, self.kinesis.now());
    }

    pub(crate) fn reshard(&mut self) {
        let open = self.orders.open_shards();
        if self.orders.shards().len() + 2 > MAX_SHARDS {
            return;
        }
        let low = self.rng.usize(..open.len());
        if open.len() > 1 && low + 1 < open.len() && self.rng.bool() {
            open[low].merge(&open[low + 1]);
        } else {
            open[low].split();
        }
        let mut facts = self.truth.lock();
        let known = facts.shards.len();
        for shard in &self.orders.shards()[known..] {
            let parents: Vec<usize> = shard.parents().iter().map(index_of).collect();
            facts.log(format_args!("reshard: shard {} of {parents:?}", shard.index()));
            facts.shards.push(crate::truth::Shard { parents, ..Default::default() });
        }
    }

    pub(crate) async fn table(&self) -> LeaseTable {
        let table = self.stored.table(&Scope::new("default", "orders")).await;
        table.expect("the memory store never fails")
    }

    pub(crate) fn breaks_progress(&self, detail: std::fmt::Arguments<'_>) {
        self.truth.breaks(Promise::Progress, detail);
    }
}
