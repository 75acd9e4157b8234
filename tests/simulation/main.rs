//! Simulation of a single reader: no schedule of faults breaks a promise.
//!
//! Each seed determines a scenario: the shards, the options, the faults of the network and of the
//! store, and the order of events. Records are put, shards are split and merged, calls fail, the
//! store fails and recovers. Readers read, acknowledge records, drop records without an
//! acknowledgement, close, are dropped and are killed. The server speaks CBOR, speaks it
//! with faults, or does not speak it, and changes that. Everything runs on one thread with a paused
//! clock, so a seed always produces the same run. The model knows the expected result, and each
//! violation of a promise (`truth::Promise`) fails the run.
//!
//! - `cargo test --features testing --test simulation` runs the seeds of the regular test run;
//! - `SEED=7 cargo test --features testing --test simulation -- --ignored --nocapture one` runs one
//!   seed and prints its trace;
//! - `SEEDS=0..1000000 cargo test --release --features testing --test simulation -- --ignored
//!   --nocapture many` runs a range of seeds on all cores.
// Tests and their helpers report a failed setup step by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acts;
mod checks;
mod database;
mod distortions;
mod faults;
mod inline;
#[path = "../support/lease_access.rs"]
mod lease_access;
#[path = "../support/left_running.rs"]
mod left_running;
#[path = "../support/listening.rs"]
mod listening;
mod merged;
mod neighbour;
mod panics;
mod plan;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
mod reader;
mod reads;
mod retention;
#[path = "../support/seeds.rs"]
mod seeds;
#[path = "../support/simulated_clock.rs"]
mod simulated_clock;
mod store;
#[path = "../support/trace.rs"]
mod trace;
mod truth;
#[path = "../support/wire.rs"]
mod wire;
mod world;

use std::ops::Range;

use fastrand::Rng;
use panics::Panics;
use seeds::{SeedResult, Simulation};
use world::World;

/// The seeds of the regular test run.
const EVERY_DAY: Range<u64> = 0..600;

/// Mixed with the seed for the generator that chooses the panics, which is separate from the
/// generator of the scenario.
const PANICS: u64 = 0x70_61_6e_69_63;

const SIMULATION: Simulation = Simulation { test: "simulation", simulate };

fn simulate(seed: u64) -> SeedResult {
    let mut rng = Rng::with_seed(seed ^ PANICS);
    let panics = Panics::new(&mut rng);
    panics.around(|| {
        seeds::on_a_paused_clock(async {
            let mut world = World::new(seed, panics.clone(), rng);
            world.run().await;
            if !world.truth.is_broken() {
                acts::play(seed, world.plan.clone(), world.truth.clone()).await;
            }
            world.seed_result()
        })
    })
}

#[test]
fn regular_seeds_break_no_promise() {
    SIMULATION.run_seeds(EVERY_DAY);
}

#[test]
fn seed_run_twice_gives_the_same_trace() {
    for seed in 0..20 {
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
