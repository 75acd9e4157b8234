//! Simulation: no schedule of faults loses a record.
//!
//! From a seed comes a world (how many shards, which options, how bad a network and store) and a
//! story in it: records are put, shards are split and merged, calls go wrong, the store comes and
//! goes, readers read, acknowledge, forget, close, are dropped and are killed. All of it happens
//! on one thread and a paused clock, so a seed tells the same story every time. What is true is
//! known, and whoever breaks one of the promises is found out.
//!
//! - `cargo test --features testing --test simulation` goes through the seeds of every day;
//! - `SEED=7 cargo test --features testing --test simulation -- --ignored --nocapture one` tells
//!   the story of one;
//! - `SEEDS=0..1000000 cargo test --release --features testing --test simulation -- --ignored
//!   --nocapture many` goes through as many as it is told, on all cores.
// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod acts;
mod checks;
mod database;
mod distortions;
mod faults;
mod inline;
#[path = "../support/listening.rs"]
mod listening;
mod merged;
mod neighbour;
mod panics;
mod plan;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
mod reader;
mod retention;
#[path = "../support/seeds.rs"]
mod seeds;
mod store;
#[path = "../support/trace.rs"]
mod trace;
mod truth;
mod world;

use std::ops::Range;

use fastrand::Rng;
use panics::Panics;
use seeds::{Simulation, Story};
use world::World;

/// The seeds that every run of the tests goes through.
const EVERY_DAY: Range<u64> = 0..600;

/// What panics is drawn from another generator than the rest of the story, of the seed and this.
const PANICS: u64 = 0x70_61_6e_69_63;

const SIMULATION: Simulation = Simulation { test: "simulation", simulate };

fn simulate(seed: u64) -> Story {
    let mut rng = Rng::with_seed(seed ^ PANICS);
    let panics = Panics::new(&mut rng);
    panics.around(|| {
        seeds::on_a_paused_clock(async {
            let mut world = World::new(seed, panics.clone(), rng);
            world.run().await;
            if !world.truth.is_broken() {
                acts::play(seed, world.plan.clone(), world.truth.clone()).await;
            }
            world.story()
        })
    })
}

#[test]
fn no_schedule_breaks_a_promise() {
    SIMULATION.go_through(EVERY_DAY);
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..20 {
        seeds::assert_told_alike(seed, &simulate(seed), &simulate(seed));
    }
}

#[test]
#[ignore = "tells the story of the seed in SEED"]
fn one() {
    SIMULATION.tell_one();
}

#[test]
#[ignore = "goes through the seeds in SEEDS, as many as wanted"]
fn many() {
    SIMULATION.go_through_many();
}
