//! Mutation tests: each deliberate bug must be found by one of the simulations, or by a named test of
//! the scripted suite, of the library or of the servers.
//!
//! Each bug is made in a copy of the crate, in a piece of source text that must occur exactly once,
//! so that no bug becomes outdated unnoticed. All bugs are compiled into one copy, each behind a
//! switch. A bug outside a function body gets a separate build. The copy is simulated until a
//! promise is broken, and that must be a promise that the bug breaks.
//!
//!     cargo test --features testing --test mutants -- --ignored
//!
//! `MISTAKE` selects the bugs with descriptions that contain its value. `REMEMBER=1` writes
//! `tests/mutants/seeds.txt`, which holds a seed that finds each bug and is tried before all
//! others. If a remembered seed no longer finds its bug, all seeds of the range are searched. A bug
//! that is remembered with a seed above that range may need a new seed.
// Tests and their helpers report a failed setup step by a panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod delivery;
mod dynamodb;
mod fleets;
mod kcl;
mod reader;
mod remembered;
mod scripted;
mod servers;
mod switch;
mod units;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

/// The seeds that are searched if the remembered seed does not find a bug. Rare bugs are found only
/// by remembered seeds above this range. A seed of the fleets takes as long as several seeds of the
/// other simulation.
const SEEDS: [(&str, &str); 3] =
    [("simulation", "0..1000"), ("fleets", "0..300"), ("servers", "0..20")];

struct Mistake {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The promises that the bug may break, or the named tests that it breaks.
    breaks: &'static [&'static str],
}

/// A copy of the crate, next to the build directories.
struct Copy {
    folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new(name: &str) -> Self {
        // The binary of this test is in target/<profile>/deps.
        let binary = std::env::current_exe().unwrap();
        let target = binary.ancestors().nth(3).unwrap().to_path_buf();
        let folder = target.join(name);
        let _not_there = fs::remove_dir_all(&folder);
        let origin = Path::new(env!("CARGO_MANIFEST_DIR"));
        for part in [
            "src",
            "tests",
            "examples",
            "benches",
            "dashboards",
            "Cargo.toml",
            "Cargo.lock",
            "README.md",
        ] {
            copy(&origin.join(part), &folder.join(part));
        }
        // A member of the workspace, which the published package does not contain.
        if origin.join("cli").exists() {
            copy(&origin.join("cli"), &folder.join("cli"));
            let manifest = folder.join("cli/Cargo.toml");
            let text = fs::read_to_string(&manifest).unwrap();
            let here = format!("path = \"..\", version = {:?}", env!("CARGO_PKG_VERSION"));
            assert!(text.contains(&here), "expected {here:?} in cli/Cargo.toml");
            fs::write(manifest, text.replace(&here, "path = \"..\"")).unwrap();
        }
        // The copy needs another version. Otherwise Cargo takes its build output for that of the
        // crate itself.
        let version = format!("version = {:?}", env!("CARGO_PKG_VERSION"));
        for file in ["Cargo.toml", "Cargo.lock"] {
            let name = "name = \"kinestream\"\n";
            let text = fs::read_to_string(folder.join(file)).unwrap();
            let here = format!("{name}{version}\n");
            assert!(text.contains(&here), "expected {here:?} in {file}");
            let other = format!("{name}version = \"0.0.0\"\n");
            fs::write(folder.join(file), text.replace(&here, &other)).unwrap();
        }
        Self { folder, target }
    }

    fn source(&self, file: &str) -> PathBuf {
        self.folder.join("src").join(file)
    }

    /// Builds tests of the copy, and returns their binaries.
    fn build(&self, tests: &[&str], optimisation: &str) -> HashMap<String, PathBuf> {
        let mut command = Command::new(env!("CARGO"));
        // The whole workspace, so that dependencies have the features of the build of this test.
        command.args(["test", "--locked", "--workspace", "--all-features", "--no-run"]);
        for test in tests {
            match *test {
                LIBRARY => command.arg("--lib"),
                test => command.args(["--test", test]),
            };
        }
        command
            .arg("--message-format=json-render-diagnostics")
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", optimisation);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "expected the copy to build:\n{errors}");
        let built: HashMap<_, _> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                let binary = line["executable"].as_str()?;
                Some((line["target"]["name"].as_str()?.to_owned(), PathBuf::from(binary)))
            })
            .collect();
        assert!(
            tests.iter().all(|test| built.contains_key(*test)),
            "expected a binary for each test: {errors}"
        );
        built
    }

    /// Runs a simulation. Returns its output if it fails, and `None` if it finds nothing.
    fn simulate(&self, binary: &Path, seeds: &str, number: Option<usize>) -> Option<String> {
        let mut command = Command::new(binary);
        command
            .args(["--ignored", "--nocapture", "many"])
            .current_dir(&self.folder)
            .env("SEEDS", seeds)
            // A seed takes about a second. A deadlock is reported earlier here than in the
            // simulation itself, because there the machine may be busy with other tests.
            .env("SEED_SECONDS", "20")
            .env("RUST_BACKTRACE", "0");
        if let Some(number) = number {
            command.env(switch::CHOICE, number.to_string());
        }
        let output = command.output().unwrap();
        let report = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(report.contains("running 1 test"), "expected the simulation to run:\n{report}");
        (!output.status.success()).then_some(report)
    }

    /// Runs one test of a suite. Returns true if it passes.
    fn passes(&self, binary: &Path, test: &str, number: Option<usize>) -> bool {
        let mut command = Command::new(binary);
        command.args(["--exact", test]).current_dir(&self.folder);
        if let Some(number) = number {
            command.env(switch::CHOICE, number.to_string());
        }
        let output = command.output().unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(report.contains("running 1 test\n"), "expected a test {test}:\n{report}");
        output.status.success()
    }
}

/// The copy with each bug behind its switch.
struct Woven {
    copy: Copy,
    binaries: HashMap<String, PathBuf>,
    /// The bugs that need a separate build.
    alone: Vec<usize>,
}

static WOVEN: LazyLock<Woven> = LazyLock::new(|| {
    let copy = Copy::new("mutants");
    let mut files: BTreeMap<&str, Vec<(usize, &Mistake)>> = BTreeMap::new();
    for (number, (_, mistake)) in all().enumerate() {
        files.entry(mistake.file).or_default().push((number, mistake));
    }
    let mut alone = Vec::new();
    for (file, mistakes) in files {
        let source = fs::read_to_string(copy.source(file)).unwrap();
        for (_, mistake) in &mistakes {
            mistake.check_place(&source);
        }
        let (woven, left) = switch::weave(&source, &mistakes);
        fs::write(copy.source(file), woven).unwrap();
        alone.extend(left);
    }
    let library = copy.source("lib.rs");
    let text = fs::read_to_string(&library).unwrap() + switch::SWITCH;
    fs::write(library, text).unwrap();
    let suites: BTreeSet<_> = LISTS.iter().map(|(suite, _)| *suite).collect();
    let binaries = copy.build(&Vec::from_iter(suites), "1");
    Woven { copy, binaries, alone }
});

/// The suite of the library's unit tests.
const LIBRARY: &str = "kinestream";

/// The suites, each with the bugs that it must find.
const LISTS: [(&str, &[Mistake]); 9] = [
    ("simulation", reader::MISTAKES),
    ("fleets", fleets::MISTAKES),
    ("servers", servers::MISTAKES),
    ("servers", dynamodb::MISTAKES),
    ("servers", kcl::MISTAKES),
    ("scripted", scripted::MISTAKES),
    ("scripted", bounds::MISTAKES),
    ("scripted", delivery::MISTAKES),
    (LIBRARY, units::MISTAKES),
];

fn all() -> impl Iterator<Item = (&'static str, &'static Mistake)> {
    LISTS.iter().flat_map(|(test, list)| list.iter().map(move |mistake| (*test, mistake)))
}

fn seeds(test: &str) -> &'static str {
    SEEDS.iter().find(|(of, _)| *of == test).unwrap().1
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

#[test]
#[ignore = "builds the crate with all bugs and simulates each, which takes minutes"]
fn reader_simulation_with_each_bug_breaks_its_promise() {
    find("simulation");
}

#[test]
#[ignore = "builds the crate with all bugs and simulates each, which takes minutes"]
fn fleet_simulation_with_each_bug_breaks_its_promise() {
    find("fleets");
}

#[test]
#[ignore = "builds the crate with all bugs and simulates each, which takes minutes"]
fn redis_nemesis_with_each_bug_breaks_its_promise() {
    find("servers");
}

/// Shows that the simulations find the bugs and not the switches.
#[test]
#[ignore = "builds the crate with all bugs, which takes minutes"]
fn copy_without_a_bug_breaks_no_promise() {
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (test, seeds) in [("simulation", "0..100"), ("fleets", "0..20")] {
        let report = WOVEN.copy.simulate(&WOVEN.binaries[test], seeds, None);
        assert_eq!(report, None);
    }
}

/// Checks in the regular test run that each bug still has its place in the source.
#[test]
fn bug_text_occurs_once_in_the_source() {
    for (_, mistake) in all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        mistake.check_place(&fs::read_to_string(folder.join(mistake.file)).unwrap());
    }
}

impl Mistake {
    fn check_place(&self, text: &str) {
        let times = text.matches(self.right).count();
        assert_eq!(
            times, 1,
            "expected one occurrence in {} of {:?}, found {times}",
            self.file, self.right
        );
    }

    /// Returns true if named tests must find the bug, and not a simulation.
    fn names_tests(&self) -> bool {
        self.breaks.iter().all(|name| name.contains("::"))
    }

    /// Returns true if a simulation has reported a broken promise that this bug may break.
    fn is_seen_in(&self, report: &str) -> bool {
        self.breaks.iter().any(|promise| report.contains(&format!(" breaks {promise}:")))
    }
}

/// Returns the number of cores.
fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does the work for each of the items, on this number of cores.
fn for_each<T: Sync>(items: &[T], cores: usize, work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let take = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(take);
        }
    });
}

/// Runs one simulation at a time: each of them uses all cores.
static ONE: Mutex<()> = Mutex::new(());

fn find(test: &str) {
    // The nemesis waits for real servers most of the time and leaves the cores to the others.
    let waits = test == "servers";
    let _alone = (!waits).then(|| ONE.lock().unwrap_or_else(PoisonError::into_inner));
    let only = std::env::var("MISTAKE").unwrap_or_default();
    let wanted: Vec<(usize, &Mistake)> = all()
        .enumerate()
        .filter(|(_, (of, mistake))| *of == test && !mistake.names_tests())
        .filter(|(_, (_, mistake))| mistake.what.contains(&only))
        .map(|(number, (_, mistake))| (number, mistake))
        .collect();
    let mut found = remembered::try_each(test, &wanted);
    let mut missed = Vec::new();
    for (number, mistake) in wanted {
        let began = Instant::now();
        let report = found.remove(&number).or_else(|| search(test, number, mistake));
        let first = report
            .as_ref()
            .and_then(|report| report.lines().find(|line| line.contains(" breaks ")));
        let line = first.unwrap_or("not found");
        println!("{}: {line} (searched for {:.0?})", mistake.what, began.elapsed());
        if first.is_some_and(|line| mistake.is_seen_in(line)) {
            remembered::keep(mistake, line);
        } else {
            missed.push(mistake.what);
        }
    }
    assert!(
        missed.is_empty(),
        "expected each bug to be found by a promise that it breaks, missed: {missed:#?}"
    );
}

/// Searches all seeds for one that finds a bug.
fn search(test: &str, number: usize, mistake: &Mistake) -> Option<String> {
    if WOVEN.alone.contains(&number) {
        simulate_alone(test, mistake)
    } else {
        WOVEN.copy.simulate(&WOVEN.binaries[test], seeds(test), Some(number))
    }
}

/// Builds a copy with one bug, without optimisation, because it is built often and run once.
fn simulate_alone(test: &str, mistake: &Mistake) -> Option<String> {
    static COPY: LazyLock<Mutex<Copy>> = LazyLock::new(|| Mutex::new(Copy::new("mutants-alone")));
    let copy = COPY.lock().unwrap_or_else(PoisonError::into_inner);
    let file = copy.source(mistake.file);
    let right = fs::read_to_string(&file).unwrap();
    fs::write(&file, right.replace(mistake.right, mistake.wrong)).unwrap();
    let binaries = copy.build(&[test], "0");
    fs::write(&file, right).unwrap();
    copy.simulate(&binaries[test], seeds(test), None)
}
