//! Simulation of fleets: workers that share the shards of a stream, and whatever befalls them.
//!
//! As in `tests/simulation` a seed stands for a world and a story in it, on one thread and a paused
//! clock. Here two to eight workers of one application have one store between them, which each sees
//! through a connection of its own: it is cut, loses answers, is slow or hangs, for one or for all.
//! The store restarts, with its data, with older data or with none, its clock is moved, and stored
//! leases and positions are damaged for a while. Workers
//! join, close, are dropped, killed and suspended; their callers are busy for long, forget records
//! and acknowledge in any order. The store, the client, the metrics recorder and the tracing layer
//! panic. When everything is well again, the fleet is watched at rest, and
//! when a worker comes, goes and dies.
//!
//! - `cargo test --features testing --test fleets` goes through the seeds of every day;
//! - `SEED=7 cargo test --features testing --test fleets -- --ignored --nocapture one` tells the
//!   story of one;
//! - `SEEDS=0..100000 cargo test --release --features testing --test fleets -- --ignored
//!   --nocapture many` goes through as many as it is told, on all cores.
// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod blocks;
mod calm;
mod cleared;
mod clocks;
mod damage;
mod hearing;
#[path = "../simulation/inline.rs"]
mod inline;
mod judged;
mod latest;
mod ledger;
mod link;
#[path = "../support/listening.rs"]
mod listening;
#[path = "../simulation/merged.rs"]
mod merged;
mod mortal;
mod operator;
#[path = "../simulation/panics.rs"]
mod panics;
mod plan;
#[path = "../support/raw_waker.rs"]
mod raw_waker;
mod reach;
mod records;
mod regions;
#[path = "../support/seeds.rs"]
mod seeds;
mod starts;
mod store;
#[path = "../support/trace.rs"]
mod trace;
mod troubles;
mod truth;
mod worker;
mod world;

use std::ops::Range;

use fastrand::Rng;
use panics::Panics;
use seeds::{Simulation, Story};
use world::World;

/// The seeds that every run of the tests goes through.
const EVERY_DAY: Range<u64> = 0..150;

/// What panics is drawn from another generator than the rest of the story, of the seed and this.
const PANICS: u64 = 0x70_61_6e_69_63;

const SIMULATION: Simulation = Simulation { test: "fleets", simulate };

fn simulate(seed: u64) -> Story {
    let mut rng = Rng::with_seed(seed ^ PANICS);
    let panics = Panics::new(&mut rng);
    let mut story = panics.around(|| {
        seeds::on_a_paused_clock(async {
            let mut world = World::new(seed, panics.clone(), rng);
            world.run().await;
            world.story()
        })
    });
    for added in [regions_of as fn(u64) -> Story, starts_of, latest_of] {
        if story.broken.is_none() {
            let added = added(seed);
            story.trace.extend(added.trace);
            story.broken = added.broken;
            story.records += added.records;
            story.calls += added.calls;
        }
    }
    story
}

fn regions_of(seed: u64) -> Story {
    seeds::on_a_paused_clock(regions::simulate(seed))
}

fn starts_of(seed: u64) -> Story {
    seeds::on_a_paused_clock(starts::simulate(seed))
}

fn latest_of(seed: u64) -> Story {
    seeds::on_a_paused_clock(latest::simulate(seed))
}

#[test]
fn no_schedule_breaks_a_promise() {
    SIMULATION.go_through(EVERY_DAY);
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..10 {
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
