//! Goes through the seeds of a simulation, and tells of the first that breaks a promise.

use std::fmt::Write;
use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// One of them.
pub(crate) fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

/// Runs a world on one thread and a paused clock.
pub(crate) fn on_a_paused_clock<F: Future>(world: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime").block_on(world)
}

/// What came of a seed.
pub(crate) struct Story {
    pub(crate) trace: Vec<String>,
    /// The promise that was broken, and how.
    pub(crate) broken: Option<(String, String)>,
    pub(crate) records: usize,
    pub(crate) calls: usize,
}

/// Panics at the first line that two runs of one seed do not share.
pub(crate) fn assert_told_alike(seed: u64, first: &Story, second: &Story) {
    let lines = first.trace.len().max(second.trace.len());
    let differs = (0..lines).find(|&line| first.trace.get(line) != second.trace.get(line));
    if let Some(line) = differs {
        let around = |story: &Story| {
            let from = line.saturating_sub(5).min(story.trace.len());
            let to = (line + 5).min(story.trace.len());
            story.trace[from..to].join("\n")
        };
        panic!(
            "seed {seed} differs from line {line} on\nfirst:\n{}\nsecond:\n{}",
            around(first),
            around(second)
        );
    }
}

/// Seeds that are under way, which take a second or so each.
#[derive(Default)]
struct Watched(Mutex<Vec<Slot>>);

/// What a thread says, what it said when that was looked at, and since when it says so.
type Slot = (Arc<AtomicU64>, u64, Option<Instant>);

/// How long one seed may take: `SEED_SECONDS`, or long enough for a machine that is busy.
fn longest() -> Duration {
    let set = std::env::var("SEED_SECONDS").ok();
    Duration::from_secs(set.and_then(|seconds| seconds.parse().ok()).unwrap_or(100))
}

impl Watched {
    /// Where a thread says which seed it is at, and one more.
    fn slot(&self) -> Arc<AtomicU64> {
        let slot = Arc::new(AtomicU64::new(0));
        self.0.lock().expect("no panic").push((Arc::clone(&slot), 0, None));
        slot
    }

    /// A seed that takes longer than any does.
    fn stuck(&self) -> Option<u64> {
        for (slot, seen, since) in self.0.lock().expect("no panic").iter_mut() {
            let now = slot.load(Ordering::Relaxed);
            if now != *seen || now == 0 {
                (*seen, *since) = (now, Some(Instant::now()));
            } else if since.is_some_and(|since| since.elapsed() > longest()) {
                return Some(now - 1);
            }
        }
        None
    }
}

/// A simulation: the name of its test, and what a seed stands for in it.
pub(crate) struct Simulation {
    pub(crate) test: &'static str,
    pub(crate) simulate: fn(u64) -> Story,
}

impl Simulation {
    /// Goes through all seeds, on all cores, up to the first that breaks a promise.
    pub(crate) fn go_through(&self, seeds: Range<u64>) {
        let (next, records, calls) =
            (AtomicU64::new(seeds.start), AtomicU64::new(0), AtomicU64::new(0));
        let began = Instant::now();
        let watched = Watched::default();
        let work = || {
            let slot = watched.slot();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return None;
                }
                slot.store(seed + 1, Ordering::Relaxed);
                let told = catch_unwind(|| (self.simulate)(seed));
                slot.store(0, Ordering::Relaxed);
                let report = match &told {
                    Ok(story) => {
                        records.fetch_add(story.records as u64, Ordering::Relaxed);
                        calls.fetch_add(story.calls as u64, Ordering::Relaxed);
                        self.report(seed, story)
                    }
                    Err(panic) => Some(match panic.downcast_ref::<String>() {
                        // No message was printed of it.
                        Some(said) if said.starts_with("deliberate: ") => format!(
                            "seed {seed} breaks PanicsAreContained: {said}\n{}",
                            self.again(seed)
                        ),
                        _ => format!("seed {seed} breaks off\n{}", self.again(seed)),
                    }),
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
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(Duration::from_millis(20));
                if let Some(seed) = watched.stuck() {
                    // A deadlocked thread cannot be joined. NoDeadlock is a separate promise: on a
                    // busy machine this may report a seed that is only slow, which must not count
                    // as finding a mistake that breaks another promise.
                    eprintln!(
                        "seed {seed} breaks NoDeadlock: it does not end\n{}",
                        self.again(seed)
                    );
                    std::process::exit(1);
                }
            }
            threads.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect()
        });
        println!("{}", sum(seeds.end - seeds.start, &records, &calls, began));
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    /// Goes through the seeds in `SEEDS`.
    pub(crate) fn go_through_many(&self) {
        let seeds = std::env::var("SEEDS").expect("SEEDS is set, such as to 0..1000");
        let (first, end) = seeds.split_once("..").expect("SEEDS is like 0..1000");
        self.go_through(first.parse().expect("a number")..end.parse().expect("a number"));
    }

    /// Tells the story of the seed in `SEED`.
    pub(crate) fn tell_one(&self) {
        let seed = std::env::var("SEED").expect("SEED is set").parse().expect("SEED is a number");
        let story = (self.simulate)(seed);
        println!("{}", story.trace.join("\n"));
        assert!(story.broken.is_none(), "{:?}", story.broken);
    }

    /// What went wrong, how it came to that, and how to see it again.
    fn report(&self, seed: u64, story: &Story) -> Option<String> {
        let (promise, detail) = story.broken.as_ref()?;
        let mut report = String::new();
        let _ = writeln!(report, "seed {seed} breaks {promise}: {detail}");
        for line in &story.trace {
            let _ = writeln!(report, "{line}");
        }
        let again = self.again(seed);
        let _ = writeln!(report, "seed {seed} breaks {promise}: {detail}\n{again}");
        Some(report)
    }

    fn again(&self, seed: u64) -> String {
        format!(
            "again: SEED={seed} cargo test --features testing --test {} -- --ignored \
             --nocapture one",
            self.test
        )
    }
}

fn sum(seeds: u64, records: &AtomicU64, calls: &AtomicU64, began: Instant) -> String {
    let [records, calls] = [records, calls].map(|count| count.load(Ordering::Relaxed));
    format!("{seeds} seeds, {records} records, {calls} calls in {:.0?}", began.elapsed())
}
