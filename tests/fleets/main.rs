//! Simulation of fleets: workers that share the shards of a stream, under faults.
//!
//! As in `tests/simulation`, each seed determines a scenario, which runs on one thread with a
//! paused clock. Two to eight workers of one application share a store. Each worker reaches the
//! store through its own connection, which is cut, loses responses, is slow or hangs, for one
//! worker or for all.
//!
//! The store restarts with its data, with older data or with none. Its clock is moved, and stored
//! leases and positions are damaged for a while. Workers join, close, are dropped, killed and
//! suspended. Their callers pause for a long time, drop records without an acknowledgement, and
//! acknowledge in any order. The store, the client, the metrics recorder and the tracing layer
//! panic. After all faults are over, the simulation checks the fleet at rest, and when a worker
//! joins, leaves and is killed. Some fleets are jobs with an ending position: their streams end.
//!
//! - `cargo test --features testing --test fleets` runs the seeds of the regular test run;
//! - `SEED=7 cargo test --features testing --test fleets -- --ignored --nocapture one` runs one
//!   seed and prints its trace;
//! - `SEEDS=0..100000 cargo test --release --features testing --test fleets -- --ignored
//!   --nocapture many` runs a range of seeds on all cores.
// Tests and their helpers report a failed setup step by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod at_rest;
mod blocks;
mod cleared;
mod clocks;
mod crashing_store;
mod damage;
mod delivery_checks;
mod events;
#[path = "../simulation/inline.rs"]
mod inline;
mod jobs;
mod late_ends;
mod latest;
#[path = "../support/lease_access.rs"]
mod lease_access;
mod ledger;
#[path = "../support/left_running.rs"]
mod left_running;
mod link;
#[path = "../support/listening.rs"]
mod listening;
#[path = "../simulation/merged.rs"]
mod merged;
mod operator;
#[path = "../simulation/panics.rs"]
mod panics;
mod plan;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
mod reachability;
mod records;
mod regions;
#[path = "../support/seeds.rs"]
mod seeds;
mod stale_reads;
mod starts;
mod steps;
mod store;
#[path = "../support/trace.rs"]
mod trace;
mod truth;
#[path = "../support/wire.rs"]
mod wire;
mod worker;
mod world;

use std::ops::Range;

use fastrand::Rng;
use panics::Panics;
use seeds::{SeedResult, Simulation};
use world::World;

/// The seeds of the regular test run.
const EVERY_DAY: Range<u64> = 0..150;

/// Mixed with the seed for the generator that chooses the panics, which is separate from the
/// generator of the scenario.
const PANICS: u64 = 0x70_61_6e_69_63;

const SIMULATION: Simulation = Simulation { test: "fleets", simulate };

fn simulate(seed: u64) -> SeedResult {
    let mut rng = Rng::with_seed(seed ^ PANICS);
    let panics = Panics::new(&mut rng);
    let mut seed_result = panics.around(|| {
        seeds::on_a_paused_clock(async {
            let mut world = World::new(seed, panics.clone(), rng);
            world.run().await;
            world.seed_result()
        })
    });
    for added in [regions_of as fn(u64) -> SeedResult, starts_of, latest_of, jobs::simulate] {
        if seed_result.broken.is_none() {
            let added = added(seed);
            seed_result.trace.extend(added.trace);
            seed_result.broken = added.broken;
            seed_result.records += added.records;
            seed_result.calls += added.calls;
        }
    }
    seed_result
}

fn regions_of(seed: u64) -> SeedResult {
    seeds::on_a_paused_clock(regions::simulate(seed))
}

fn starts_of(seed: u64) -> SeedResult {
    seeds::on_a_paused_clock(starts::simulate(seed))
}

fn latest_of(seed: u64) -> SeedResult {
    seeds::on_a_paused_clock(latest::simulate(seed))
}

#[test]
fn regular_seeds_break_no_promise() {
    SIMULATION.run_seeds(EVERY_DAY);
}

#[test]
fn seed_run_twice_gives_the_same_trace() {
    for seed in 0..10 {
        seeds::assert_same_trace(seed, &simulate(seed), &simulate(seed));
    }
}

#[test]
#[ignore = "runs the seed in SEED and prints its trace"]
fn one() {
    SIMULATION.run_seed_from_env();
}

#[test]
#[ignore = "runs the seeds in SEEDS"]
fn many() {
    SIMULATION.run_seeds_from_env();
}
