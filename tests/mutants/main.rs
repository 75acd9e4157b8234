//! Proof that the simulations can see: deliberate mistakes, each of which one of them must find.
//!
//! Each mistake is made in a copy of the crate, in a text that must be found there once, so that
//! none goes out of date unnoticed. The copy is built and simulated until a promise is broken, and
//! it must be one that this mistake breaks.
//!
//!     cargo test --features testing --test mutants -- --ignored
//!
//! `MISTAKE` set to a part of a description makes only those mistakes whose descriptions hold it.
// A test that cannot go on says so by a panic, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fleets;
mod reader;
mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Every mistake is found within this many seeds, of which one of fleets takes as long as several of
/// the other simulation.
const SEEDS: [(&str, &str); 3] =
    [("simulation", "0..1000"), ("fleets", "0..300"), ("servers", "0..20")];

struct Mistake {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The promises that it may break.
    breaks: &'static [&'static str],
}

/// A copy of the crate, beside the builds.
struct Copy {
    folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new() -> Self {
        // The folder of this test's own binary is target/<profile>/deps.
        let binary = std::env::current_exe().unwrap();
        let target = binary.ancestors().nth(3).unwrap().to_path_buf();
        let folder = target.join("mutants");
        let _not_there = fs::remove_dir_all(&folder);
        let origin = Path::new(env!("CARGO_MANIFEST_DIR"));
        for part in ["src", "tests", "examples", "benches", "Cargo.toml", "Cargo.lock", "README.md"]
        {
            copy(&origin.join(part), &folder.join(part));
        }
        Self { folder, target }
    }

    /// What a simulation of the copy says; `None` where it finds nothing.
    fn simulate(&self, test: &str) -> Option<String> {
        let seeds = SEEDS.iter().find(|(of, _)| *of == test).unwrap().1;
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["test", "--locked", "--all-features"])
            .args(["--test", test, "--"])
            .args(["--ignored", "--nocapture", "many"])
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", &self.target)
            // The copy alone is built without optimisation: it is built often, and run once.
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "0")
            .env("SEEDS", seeds)
            .env("RUST_BACKTRACE", "0");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("running 1 test"), "the copy is not built:\n{said}");
        (!output.status.success()).then_some(said)
    }
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
#[ignore = "builds the crate once for each mistake, which takes minutes"]
fn the_simulation_finds_every_mistake() {
    find("simulation", reader::MISTAKES);
}

#[test]
#[ignore = "builds the crate once for each mistake, which takes minutes"]
fn the_simulation_of_fleets_finds_every_mistake() {
    find("fleets", fleets::MISTAKES);
}

#[test]
#[ignore = "builds the crate once for each mistake, which takes minutes"]
fn the_nemesis_of_redis_finds_every_mistake() {
    find("servers", servers::MISTAKES);
}

/// What takes minutes to find says at once whether it is still to be found.
#[test]
fn every_mistake_has_its_place() {
    for mistake in reader::MISTAKES.iter().chain(fleets::MISTAKES).chain(servers::MISTAKES) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        mistake.check_place(&fs::read_to_string(folder.join(mistake.file)).unwrap());
    }
}

impl Mistake {
    fn check_place(&self, text: &str) {
        let times = text.matches(self.right).count();
        assert_eq!(times, 1, "{}: {:?} stands {times} times in it", self.file, self.right);
    }
}

/// One after the other: a copy stands in one folder.
static COPY: Mutex<()> = Mutex::new(());

fn find(test: &str, mistakes: &[Mistake]) {
    let _alone = COPY.lock().unwrap_or_else(PoisonError::into_inner);
    let copy = Copy::new();
    let mut missed = Vec::new();
    let only = std::env::var("MISTAKE").unwrap_or_default();
    for mistake in mistakes.iter().filter(|mistake| mistake.what.contains(&only)) {
        let file = copy.folder.join("src").join(mistake.file);
        let right = fs::read_to_string(&file).unwrap();
        mistake.check_place(&right);
        fs::write(&file, right.replace(mistake.right, mistake.wrong)).unwrap();
        let found = copy.simulate(test);
        fs::write(&file, right).unwrap();
        let first =
            found.as_ref().and_then(|said| said.lines().find(|line| line.contains(" breaks ")));
        println!("{}: {}", mistake.what, first.unwrap_or("not found"));
        let seen = |line: &str| {
            mistake.breaks.iter().any(|promise| line.contains(&format!(" breaks {promise}:")))
        };
        if !first.is_some_and(seen) {
            missed.push(mistake.what);
        }
    }
    assert!(missed.is_empty(), "not found, or not for what they are: {missed:#?}");
}
