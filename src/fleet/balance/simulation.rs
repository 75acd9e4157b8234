//! Fleets with shifting load, by the rules of this crate and of a KCL 3, in simulated time.
//!
//! Each worker renews at its own times, sees the table as of then, and hands off what it is to hand
//! off. The rules are the real ones: [`LoadMeter`], [`MoveTimes`], [`Weights`] and [`balance`]. The
//! *spread* is the load of the busiest worker in relation to the mean, or to the busiest shard if that
//! is more, since one worker must read it.
//!
//! The table of the guide page on fleets:
//!
//! ```sh
//! cargo test --release --all-features --lib -- --ignored --nocapture spread_of_load
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::*;
use crate::fleet::load_meter::{LoadMeter, ReadShard};
use crate::fleet::moves::MoveTimes;
use crate::store::lease::WorkerEntry;
use crate::telemetry::Reading;

const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_millis(3333);
const TICK: Duration = Duration::from_millis(100);
/// The most that a shard takes in, in KiB per second.
const FULL: f64 = 1024.0;

/// A rule that moves leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Kinestream,
    /// The rule of a KCL 3, by its documentation and its defaults: each third run of its leader, one
    /// each 20 s, looks for workers with more than 1.1 times the mean load. From each of them it moves
    /// 60 % of the load above the mean, the heaviest leases first, and gives each to the worker with the least load. Loads
    /// are averages that halve with each renewal.
    Kcl,
}

struct Simulation {
    rule: Rule,
    random: Rng,
    now: Instant,
    table: LeaseTable,
    workers: Vec<Simulated>,
    shards: Vec<SimulatedShard>,
    /// The random change of the load from tick to tick, as a part of it.
    noise: f64,
    moves: usize,
    next_run: Instant,
}

struct Simulated {
    name: Arc<str>,
    /// The most that its caller takes, in KiB per second.
    most: f64,
    renew_at: Instant,
    seen: LeaseTable,
    meter: LoadMeter,
    times: MoveTimes,
}

struct SimulatedShard {
    id: ShardId,
    /// KiB per second.
    load: f64,
    /// The KiB that its owner has not read.
    backlog: f64,
    /// The KiB that its owner has read since it opened the shard.
    read: f64,
    /// The average of a KCL.
    average: f64,
    read_before: f64,
}

impl SimulatedShard {
    /// Returns what its owner has read, with one record per KiB.
    fn reading(&self, now: Instant) -> Reading {
        let lag = Duration::try_from_secs_f64(self.backlog / self.load).unwrap_or_default();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let (bytes, records) = ((self.read * 1024.0) as u64, self.read as u64);
        let is_held_up = self.backlog > 0.0;
        Reading { bytes, records, delivered: records, reached: Some(now - lag), is_held_up }
    }
}

impl Simulation {
    /// Returns a fleet at rest: each worker holds its share of shards.
    fn new(rule: Rule, workers: usize, shards: usize, seed: u64) -> Self {
        // The lag of a shard is less than a day.
        let now = Instant::now() + Duration::from_secs(24 * 60 * 60);
        let mut random = Rng::with_seed(seed);
        let mut simulation = Self {
            rule,
            now,
            table: LeaseTable { version: 1, ..LeaseTable::default() },
            workers: Vec::new(),
            shards: Vec::new(),
            noise: 0.0,
            moves: 0,
            next_run: now + RENEWAL.mul_f64(18.0 * random.f64()),
            random,
        };
        for number in 0..shards {
            let id: ShardId = format!("shardId-{number:012}").parse().unwrap();
            let owner = Some(format!("worker-{}", number % workers).into());
            let lease = Lease { epoch: 1, owner, parents: Some(Vec::new()), ..Lease::default() };
            simulation.table.leases.insert(id.clone(), lease);
            let [load, backlog, read, average, read_before] = [0.0; 5];
            let shard = SimulatedShard { id, load, backlog, read, average, read_before };
            simulation.shards.push(shard);
        }
        for number in 0..workers {
            simulation.join(number, 100);
        }
        simulation
    }

    fn join(&mut self, number: usize, size: u32) {
        let name: Arc<str> = format!("worker-{number}").into();
        let entry =
            WorkerEntry { size: size.try_into().ok(), ..WorkerEntry::new(1, number as u64, LEASE) };
        self.table.workers.insert(Arc::clone(&name), entry);
        self.table.version += 1;
        self.workers.push(Simulated {
            name,
            most: f64::INFINITY,
            renew_at: self.now + RENEWAL.mul_f64(self.random.f64()),
            seen: self.table.clone(),
            meter: LoadMeter::new(RENEWAL, self.now),
            times: MoveTimes::new(RENEWAL, self.now),
        });
    }

    /// Gives the shards loads in proportion to `1 / rank ^ exponent`, in a random order; the heaviest
    /// one is full.
    fn shift(&mut self, exponent: f64) {
        let mut ranks: Vec<usize> = (1..=self.shards.len()).collect();
        self.random.shuffle(&mut ranks);
        for (shard, rank) in self.shards.iter_mut().zip(ranks) {
            #[allow(clippy::cast_precision_loss, reason = "a small number")]
            let rank = rank as f64;
            shard.load = FULL / rank.powf(exponent);
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += TICK;
            self.read();
            for worker in 0..self.workers.len() {
                if self.workers[worker].renew_at <= self.now {
                    self.workers[worker].renew_at += RENEWAL;
                    self.renew(worker);
                }
            }
            if self.rule == Rule::Kcl && self.next_run <= self.now {
                self.next_run += 6 * LEASE;
                self.run_leader();
            }
        }
    }

    /// Lets records arrive in all shards, and the workers read as much as their callers take.
    fn read(&mut self) {
        let tick = TICK.as_secs_f64();
        let mut waiting: BTreeMap<Arc<str>, Vec<&mut SimulatedShard>> = BTreeMap::new();
        for shard in &mut self.shards {
            let noise = 1.0 + self.noise * (2.0 * self.random.f64() - 1.0);
            shard.backlog += shard.load * noise * tick;
            let owner = self.table.leases[&shard.id].owner.clone().unwrap();
            waiting.entry(owner).or_default().push(shard);
        }
        for worker in &self.workers {
            let shards = waiting.remove(&worker.name).unwrap_or_default();
            let backlog: f64 = shards.iter().map(|shard| shard.backlog).sum();
            let part = (worker.most * tick / backlog.max(f64::MIN_POSITIVE)).min(1.0);
            for shard in shards {
                shard.read += part * shard.backlog;
                shard.backlog -= part * shard.backlog;
            }
        }
    }

    fn renew(&mut self, worker: usize) {
        let me = &mut self.workers[worker];
        let mut read = Vec::new();
        for shard in &mut self.shards {
            let lease = self.table.leases.get_mut(&shard.id).unwrap();
            if lease.owner.as_ref() != Some(&me.name) {
                continue;
            }
            if let Some(next) = lease.next_owner.take() {
                (lease.owner, lease.epoch) = (Some(next), lease.epoch + 1);
                (shard.read, shard.read_before) = (0.0, 0.0);
                self.table.version += 1;
                continue;
            }
            let rate = (shard.read - shard.read_before) / RENEWAL.as_secs_f64();
            shard.average = f64::midpoint(shard.average, rate);
            shard.read_before = shard.read;
            let reading = shard.reading(self.now);
            read.push(ReadShard { id: shard.id.clone(), epoch: lease.epoch, reading });
        }
        me.meter.measure(self.now, read, &me.seen);
        let entry = self.table.workers.get_mut(&me.name).unwrap();
        if entry.load.as_ref() != me.meter.stated() {
            entry.load = me.meter.stated().cloned();
            self.table.version += 1;
        }
        if me.seen.version != self.table.version {
            me.times.observe(&me.seen, &self.table, self.now);
            me.seen = self.table.clone();
        }
        if self.rule == Rule::Kinestream {
            let weights = Weights::of(&me.seen);
            let moves = me.times.allowed(&weights, self.now);
            let readable = me.seen.leases.keys().cloned().collect();
            let changes = balance(&me.seen, &readable, &Exclusions::default(), &weights, moves);
            self.apply(&changes);
        }
    }

    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::Offer { shard, to } = change else {
                unreachable!("all leases have owners")
            };
            let lease = self.table.leases.get_mut(shard).unwrap();
            lease.next_owner = (lease.owner.as_ref() != Some(to)).then(|| Arc::clone(to));
            self.table.version += 1;
            self.moves += 1;
        }
    }

    /// Runs the leader of a KCL.
    fn run_leader(&mut self) {
        let mut loads: BTreeMap<Arc<str>, f64> =
            self.table.workers.keys().map(|name| (Arc::clone(name), 0.0)).collect();
        let holder = |table: &LeaseTable, id: &ShardId| table.leases[id].holder().unwrap().clone();
        for shard in &self.shards {
            *loads.get_mut(&holder(&self.table, &shard.id)).unwrap() += shard.average;
        }
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        let mean = loads.values().sum::<f64>() / loads.len() as f64;
        let mut busy: Vec<Arc<str>> = loads
            .iter()
            .filter(|(_, load)| **load > 1.1 * mean)
            .map(|(name, _)| name.clone())
            .collect();
        busy.sort_by(|a, b| loads[b].total_cmp(&loads[a]));
        let mut changes = Vec::new();
        for name in busy {
            let mut to_take = 0.6 * (loads[&name] - mean);
            let of_it = |shard: &&SimulatedShard| holder(&self.table, &shard.id) == name;
            let mut held: Vec<&SimulatedShard> = self.shards.iter().filter(of_it).collect();
            held.sort_by(|a, b| b.average.total_cmp(&a.average));
            for shard in held {
                let least = loads.iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
                let to = least.map(|(to, _)| to.clone()).unwrap();
                if shard.average <= to_take && to != name {
                    to_take -= shard.average;
                    *loads.get_mut(&name).unwrap() -= shard.average;
                    *loads.get_mut(&to).unwrap() += shard.average;
                    changes.push(Change::Offer { shard: shard.id.clone(), to });
                }
            }
        }
        self.apply(&changes);
    }

    /// Returns the load of the busiest worker in relation to its share, or to the busiest shard.
    fn spread(&self) -> f64 {
        let mut loads: BTreeMap<&Arc<str>, f64> = BTreeMap::new();
        for shard in &self.shards {
            *loads.entry(self.table.leases[&shard.id].owner.as_ref().unwrap()).or_default() +=
                shard.load;
        }
        let size = |name: &Arc<str>| f64::from(self.table.workers[name].size.unwrap().get());
        let sizes: f64 = self.table.workers.keys().map(size).sum();
        let total: f64 = loads.values().sum();
        let heaviest = self.shards.iter().map(|shard| shard.load).fold(0.0, f64::max);
        let relative =
            |(name, load): (&&Arc<str>, &f64)| load / (total * size(name) / sizes).max(heaviest);
        loads.iter().map(relative).fold(0.0, f64::max)
    }

    fn counts(&self) -> Vec<usize> {
        let count = |name: &Arc<str>| {
            self.table.leases.values().filter(|lease| lease.owner.as_ref() == Some(name)).count()
        };
        self.table.workers.keys().map(count).collect()
    }
}

/// The outcome of a shift of load.
struct Outcome {
    /// The renewals until the spread was at most 1.25 for good; `None` if it never was.
    renewals: Option<u32>,
    /// The spread ten renewals after the shift, and the largest one from then on.
    after_ten: f64,
    moves: usize,
    /// The moves from the twentieth renewal on.
    late_moves: usize,
}

/// Lets the load of a fleet shift.
fn shift(mut fleet: Simulation, exponent: f64) -> Outcome {
    fleet.shift(exponent);
    fleet.run(60 * RENEWAL);
    fleet.shift(exponent);
    let before = fleet.moves;
    let (mut even_since, mut after_ten, mut at_twenty) = (None, 0.0_f64, 0);
    for renewal in 0..60 {
        fleet.run(RENEWAL);
        let spread = fleet.spread();
        let since = even_since.unwrap_or(renewal + 1);
        even_since = (spread <= 1.25).then_some(since);
        if renewal + 1 >= 10 {
            after_ten = after_ten.max(spread);
        }
        if renewal + 1 == 20 {
            at_twenty = fleet.moves;
        }
    }
    let (moves, late_moves) = (fleet.moves - before, fleet.moves - at_twenty);
    Outcome { renewals: even_since, after_ten, moves, late_moves }
}

#[test]
fn load_that_shifts_is_even_within_ten_renewals() {
    for seed in 0..2 {
        for exponent in [0.5, 0.8, 1.0] {
            let mut fleet = Simulation::new(Rule::Kinestream, 10, 200, seed);
            fleet.noise = 0.5;
            let Outcome { after_ten, moves, late_moves, .. } = shift(fleet, exponent);
            assert!(after_ten <= 1.25, "seed {seed}, exponent {exponent}: spread {after_ten:.2}");
            assert!(moves <= 80, "seed {seed}, exponent {exponent}: {moves} moves");
            assert!(late_moves <= 4, "seed {seed}, exponent {exponent}: {late_moves} late moves");
        }
    }
}

#[test]
fn even_load_moves_nothing() {
    for exponent in [0.0, 0.8] {
        let mut fleet = Simulation::new(Rule::Kinestream, 10, 200, 1);
        fleet.noise = 0.5;
        fleet.shift(exponent);
        fleet.run(30 * RENEWAL);
        let before = fleet.moves;
        if exponent == 0.0 {
            assert_eq!(before, 0, "expected no move of shards with equal loads");
        }
        fleet.run(300 * RENEWAL);
        assert!(fleet.moves - before <= 2, "{} moves at rest", fleet.moves - before);
    }
    // A stream at rest.
    let mut fleet = Simulation::new(Rule::Kinestream, 10, 205, 1);
    fleet.run(60 * RENEWAL);
    assert_eq!(fleet.moves, 0);
}

#[test]
fn newcomer_receives_its_share_of_load_and_not_of_shards() {
    let mut fleet = Simulation::new(Rule::Kinestream, 4, 100, 1);
    fleet.shift(0.8);
    fleet.run(30 * RENEWAL);
    let before = fleet.moves;
    fleet.join(4, 100);
    fleet.run(10 * RENEWAL);
    assert!(fleet.spread() <= 1.25, "spread {:.2}", fleet.spread());
    assert!(fleet.moves - before <= 40, "{} moves", fleet.moves - before);
    assert!(fleet.counts().iter().all(|count| *count > 0), "{:?}", fleet.counts());
}

#[test]
fn worker_of_twice_the_capacity_receives_twice_the_load() {
    let mut fleet = Simulation::new(Rule::Kinestream, 3, 120, 1);
    fleet.join(3, 200);
    fleet.shift(0.5);
    fleet.run(30 * RENEWAL);
    assert!(fleet.spread() <= 1.1, "spread {:.2}", fleet.spread());
    // An idle stream is shared by capacity as well.
    let mut fleet = Simulation::new(Rule::Kinestream, 3, 100, 1);
    fleet.join(3, 200);
    fleet.run(30 * RENEWAL);
    let counts = fleet.counts();
    let expected = [20, 20, 20, 40];
    let is_near = counts.iter().zip(expected).all(|(count, even)| count.abs_diff(even) <= 1);
    assert!(is_near, "expected about {expected:?} shards, got {counts:?}");
}

#[test]
fn slow_worker_gives_leases_away_until_it_keeps_up() {
    let mut fleet = Simulation::new(Rule::Kinestream, 10, 200, 1);
    fleet.noise = 0.5;
    fleet.shift(0.5);
    fleet.run(30 * RENEWAL);
    let mean = fleet.shards.iter().map(|shard| shard.load).sum::<f64>() / 10.0;
    fleet.workers[0].most = 0.7 * mean;
    let backlog = |fleet: &Simulation| fleet.shards.iter().map(|shard| shard.backlog).sum::<f64>();
    let before = fleet.moves;
    fleet.run(60 * RENEWAL);
    let (moves, waiting) = (fleet.moves - before, backlog(&fleet));
    assert!(moves <= 30, "expected few moves, got {moves}");
    fleet.run(60 * RENEWAL);
    assert!(backlog(&fleet) < waiting.max(1.0), "expected a worker that catches up");
    // Within an hour no lease moves to the worker. After it, the worker receives a few.
    let before = fleet.moves;
    fleet.run(Duration::from_secs(3000));
    assert!(fleet.moves - before <= 4, "{} moves at rest", fleet.moves - before);
    fleet.run(Duration::from_secs(3600));
    assert!(fleet.moves - before <= 40, "{} moves in two hours", fleet.moves - before);
}

#[test]
fn fleet_of_which_all_workers_fall_behind_moves_nothing() {
    let mut fleet = Simulation::new(Rule::Kinestream, 10, 200, 1);
    fleet.shift(0.5);
    fleet.run(60 * RENEWAL);
    let mean = fleet.shards.iter().map(|shard| shard.load).sum::<f64>() / 10.0;
    fleet.workers.iter_mut().for_each(|worker| worker.most = 0.8 * mean);
    let before = fleet.moves;
    fleet.run(120 * RENEWAL);
    assert!(fleet.moves - before <= 20, "{} moves", fleet.moves - before);
    for worker in fleet.table.workers.values() {
        assert_eq!(worker.load.as_ref().unwrap().strain, 5);
    }
}

#[test]
#[ignore = "prints the table of the guide, by a release build"]
fn spread_of_load() {
    println!("| exponent | rule | renewals until the spread is 1.25 | spread after ten | moves |");
    println!("|---|---|---|---|---|");
    for exponent in [0.5, 0.8, 1.0] {
        for rule in [Rule::Kinestream, Rule::Kcl] {
            let outcomes: Vec<Outcome> = (0..100)
                .map(|seed| {
                    let mut fleet = Simulation::new(rule, 10, 200, seed);
                    fleet.noise = 0.5;
                    shift(fleet, exponent)
                })
                .collect();
            let worst = outcomes.iter().map(|it| it.after_ten).fold(0.0, f64::max);
            let mut renewals: Vec<u32> =
                outcomes.iter().map(|it| it.renewals.unwrap_or(u32::MAX)).collect();
            renewals.sort_unstable();
            let never = renewals.iter().filter(|it| **it == u32::MAX).count();
            let moves: usize = outcomes.iter().map(|it| it.moves).sum();
            let late: usize = outcomes.iter().map(|it| it.late_moves).sum();
            println!(
                "| {exponent:.1} | {rule:?} | median {}, at most {}, never {never} | {worst:.2} | {} \
                 ({} late) |",
                renewals[50],
                renewals[99 - never],
                moves / 100,
                late / 100,
            );
        }
    }
}
