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

mod checks;
mod merged;
mod plan;
mod reader;
mod store;
mod truth;
mod world;

use std::fmt::Write;
use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use truth::Broken;
use world::World;

/// The seeds that every run of the tests goes through.
const EVERY_DAY: Range<u64> = 0..1500;

struct Story {
    trace: Vec<String>,
    broken: Option<Broken>,
    records: usize,
    calls: usize,
}

fn simulate(seed: u64) -> Story {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed);
        world.run().await;
        let records = world.truth.lock().shards.iter().map(|shard| shard.records.len()).sum();
        let calls = world.kinesis.call_count();
        let (trace, broken) = world.truth.end();
        Story { trace, broken, records, calls }
    })
}

/// What went wrong, how it came to that, and how to see it again.
fn report(seed: u64, story: &Story) -> Option<String> {
    let Broken { promise, detail } = story.broken.as_ref()?;
    let mut report = String::new();
    let _ = writeln!(report, "seed {seed} breaks {promise:?}: {detail}");
    for line in &story.trace {
        let _ = writeln!(report, "{line}");
    }
    let _ = writeln!(report, "seed {seed} breaks {promise:?}: {detail}\n{}", again(seed));
    Some(report)
}

fn again(seed: u64) -> String {
    format!(
        "again: SEED={seed} cargo test --features testing --test simulation -- --ignored \
         --nocapture one"
    )
}

fn sum(seeds: u64, records: &AtomicU64, calls: &AtomicU64, began: Instant) -> String {
    let [records, calls] = [records, calls].map(|count| count.load(Ordering::Relaxed));
    format!("{seeds} seeds, {records} records, {calls} calls in {:.0?}", began.elapsed())
}

/// Goes through all seeds, on all cores, up to the first that breaks a promise.
fn go_through(seeds: Range<u64>) {
    let (next, records, calls) =
        (AtomicU64::new(seeds.start), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return None;
            }
            let told = catch_unwind(|| simulate(seed));
            let report = match &told {
                Ok(story) => {
                    records.fetch_add(story.records as u64, Ordering::Relaxed);
                    calls.fetch_add(story.calls as u64, Ordering::Relaxed);
                    report(seed, story)
                }
                Err(_said_already) => Some(format!("seed {seed} breaks off\n{}", again(seed))),
            };
            if let Some(report) = report {
                next.store(seeds.end, Ordering::Relaxed);
                return Some(report);
            }
            let done = seed + 1 - seeds.start;
            if done.is_multiple_of(10_000) {
                println!("{}", sum(done, &records, &calls, began));
            }
        }
    };
    let found: Vec<String> = std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect()
    });
    println!("{}", sum(seeds.end - seeds.start, &records, &calls, began));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn seeds_of_environment() -> Range<u64> {
    let seeds = std::env::var("SEEDS").expect("SEEDS is set, such as to 0..1000");
    let (first, end) = seeds.split_once("..").expect("SEEDS is like 0..1000");
    first.parse().expect("a number")..end.parse().expect("a number")
}

#[test]
fn no_schedule_breaks_a_promise() {
    go_through(EVERY_DAY);
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..20 {
        assert_eq!(simulate(seed).trace, simulate(seed).trace, "seed {seed}");
    }
}

#[test]
#[ignore = "tells the story of the seed in SEED"]
fn one() {
    let seed = std::env::var("SEED").expect("SEED is set").parse().expect("SEED is a number");
    let story = simulate(seed);
    println!("{}", story.trace.join("\n"));
    assert!(story.broken.is_none(), "{:?}", story.broken);
}

#[test]
#[ignore = "goes through the seeds in SEEDS, as many as wanted"]
fn many() {
    go_through(seeds_of_environment());
}
