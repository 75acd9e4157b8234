//! Runs the seeds of a simulation, and reports the first that breaks a promise.

use std::fmt::Write;
use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// Returns a random element of `choices`.
pub(crate) fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

/// Runs a simulated world on one thread with a paused clock.
pub(crate) fn on_a_paused_clock<F: Future>(world: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("expected a runtime").block_on(world)
}

/// The result of a seed.
pub(crate) struct SeedResult {
    pub(crate) trace: Vec<String>,
    /// The broken promise, and the details.
    pub(crate) broken: Option<(String, String)>,
    pub(crate) records: usize,
    pub(crate) calls: usize,
}

/// Panics if the traces of two runs of one seed differ, and shows the first difference.
pub(crate) fn assert_same_trace(seed: u64, first: &SeedResult, second: &SeedResult) {
    let lines = first.trace.len().max(second.trace.len());
    let differs = (0..lines).find(|&line| first.trace.get(line) != second.trace.get(line));
    if let Some(line) = differs {
        let around = |seed_result: &SeedResult| {
            let from = line.saturating_sub(5).min(seed_result.trace.len());
            let to = (line + 5).min(seed_result.trace.len());
            seed_result.trace[from..to].join("\n")
        };
        panic!(
            "the traces of seed {seed} differ from line {line}\nfirst:\n{}\nsecond:\n{}",
            around(first),
            around(second)
        );
    }
}

/// The seeds that are running. A seed takes about a second.
#[derive(Default)]
struct RunningSeeds(Mutex<Vec<Slot>>);

/// The current value of a thread, the value at the last check, and the time of its last change.
type Slot = (Arc<AtomicU64>, u64, Option<Instant>);

/// Returns the time limit of one seed: `SEED_SECONDS`, or 100 s, which suffices on a busy machine.
fn time_limit() -> Duration {
    let set = std::env::var("SEED_SECONDS").ok();
    Duration::from_secs(set.and_then(|seconds| seconds.parse().ok()).unwrap_or(100))
}

impl RunningSeeds {
    /// Returns a slot in which a thread stores its current seed plus one, or 0 between seeds.
    fn slot(&self) -> Arc<AtomicU64> {
        let slot = Arc::new(AtomicU64::new(0));
        self.0.lock().expect("expected no poisoned lock").push((Arc::clone(&slot), 0, None));
        slot
    }

    /// Returns a seed that has exceeded the time limit.
    fn stuck(&self) -> Option<u64> {
        for (slot, seen, since) in self.0.lock().expect("expected no poisoned lock").iter_mut() {
            let now = slot.load(Ordering::Relaxed);
            if now != *seen || now == 0 {
                (*seen, *since) = (now, Some(Instant::now()));
            } else if since.is_some_and(|since| since.elapsed() > time_limit()) {
                return Some(now - 1);
            }
        }
        None
    }
}

/// A simulation: the name of its test target, and the function that runs a seed.
pub(crate) struct Simulation {
    pub(crate) test: &'static str,
    pub(crate) simulate: fn(u64) -> SeedResult,
}

impl Simulation {
    /// Runs the seeds on all cores, up to the first that breaks a promise.
    pub(crate) fn run_seeds(&self, seeds: Range<u64>) {
        let (next, records, calls) =
            (AtomicU64::new(seeds.start), AtomicU64::new(0), AtomicU64::new(0));
        let began = Instant::now();
        let watched = RunningSeeds::default();
        let work = || {
            let slot = watched.slot();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return None;
                }
                slot.store(seed + 1, Ordering::Relaxed);
                let result = catch_unwind(|| (self.simulate)(seed));
                slot.store(0, Ordering::Relaxed);
                let report = match &result {
                    Ok(seed_result) => {
                        records.fetch_add(seed_result.records as u64, Ordering::Relaxed);
                        calls.fetch_add(seed_result.calls as u64, Ordering::Relaxed);
                        self.report(seed, seed_result)
                    }
                    Err(panic) => Some(match panic.downcast_ref::<String>() {
                        // The panic hook has not printed this message.
                        Some(message) if message.starts_with("deliberate: ") => format!(
                            "seed {seed} breaks PanicsAreContained: {message}\n{}",
                            self.rerun_command(seed)
                        ),
                        _ => format!(
                            "seed {seed} breaks off: it panicked\n{}",
                            self.rerun_command(seed)
                        ),
                    }),
                };
                if let Some(report) = report {
                    next.store(seeds.end, Ordering::Relaxed);
                    return Some(report);
                }
                let done = seed + 1 - seeds.start;
                if done.is_multiple_of(10_000) {
                    println!("{}", summary(done, &records, &calls, began));
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
                    // as finding a bug that breaks another promise.
                    eprintln!(
                        "seed {seed} breaks NoDeadlock: it has exceeded the time limit\n{}",
                        self.rerun_command(seed)
                    );
                    std::process::exit(1);
                }
            }
            threads
                .into_iter()
                .filter_map(|thread| thread.join().expect("expected no panic"))
                .collect()
        });
        println!("{}", summary(seeds.end - seeds.start, &records, &calls, began));
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    /// Runs the seeds in `SEEDS`.
    pub(crate) fn run_seeds_from_env(&self) {
        let seeds = std::env::var("SEEDS").expect("set SEEDS to a range such as 0..1000");
        let (first, end) = seeds.split_once("..").expect("set SEEDS to a range such as 0..1000");
        self.run_seeds(
            first.parse().expect("expected a number in SEEDS")
                ..end.parse().expect("expected a number in SEEDS"),
        );
    }

    /// Runs the seed in `SEED` and prints its trace.
    pub(crate) fn run_seed_from_env(&self) {
        let seed = std::env::var("SEED").expect("set SEED").parse().expect("SEED must be a number");
        let seed_result = (self.simulate)(seed);
        println!("{}", seed_result.trace.join("\n"));
        assert!(seed_result.broken.is_none(), "{:?}", seed_result.broken);
    }

    /// Returns the broken promise, the trace, and the command that reruns the seed.
    fn report(&self, seed: u64, seed_result: &SeedResult) -> Option<String> {
        let (promise, detail) = seed_result.broken.as_ref()?;
        let mut report = String::new();
        let _ = writeln!(report, "seed {seed} breaks {promise}: {detail}");
        for line in &seed_result.trace {
            let _ = writeln!(report, "{line}");
        }
        let again = self.rerun_command(seed);
        let _ = writeln!(report, "seed {seed} breaks {promise}: {detail}\n{again}");
        Some(report)
    }

    fn rerun_command(&self, seed: u64) -> String {
        format!(
            "rerun: SEED={seed} cargo test --features testing --test {} -- --ignored \
             --nocapture one",
            self.test
        )
    }
}

fn summary(seeds: u64, records: &AtomicU64, calls: &AtomicU64, began: Instant) -> String {
    let [records, calls] = [records, calls].map(|count| count.load(Ordering::Relaxed));
    format!("{seeds} seeds, {records} records, {calls} calls in {:.0?}", began.elapsed())
}
