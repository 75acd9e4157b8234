//! Proof that the simulation can see: deliberate mistakes, each of which it must find.
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

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every mistake is found within this many seeds.
const SEEDS: &str = "0..1000";

struct Mistake {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The promises that it may break.
    breaks: &'static [&'static str],
}

const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "a record is finished as soon as it is handed out",
        file: "shard/run.rs",
        right: "self.in_hand = Some(record.number);",
        wrong: "record.ack();",
        breaks: &["NotPastUnfinished"],
    },
    Mistake {
        what: "an acknowledgement finishes all records before it",
        file: "checkpoint/watermark.rs",
        right: "if number == self.prefix {",
        wrong: "if number >= self.prefix {",
        breaks: &["NotPastUnfinished"],
    },
    Mistake {
        what: "the end of a shard does not wait for its unfinished records",
        file: "checkpoint/watermark.rs",
        right: "self.ended && self.prefix == self.handed_out",
        wrong: "self.ended",
        breaks: &["NotPastUnfinished", "ParentsFirst"],
    },
    Mistake {
        what: "children begin when their parents are opened",
        file: "lineage.rs",
        right: "is_none_or(Lease::is_finished)",
        wrong: "is_none_or(|parent| parent.owner.is_some() || parent.is_finished())",
        breaks: &["ParentsFirst"],
    },
    Mistake {
        what: "a merged child waits for one of its parents",
        file: "lineage.rs",
        right: "|| parents.iter().all(|parent|",
        wrong: "|| parents.is_empty() || parents.iter().any(|parent|",
        breaks: &["ParentsFirst"],
    },
    Mistake {
        what: "a new iterator begins where the reader began",
        file: "source/polling.rs",
        right: "if let (1.., Some(Ok(last))) = (batch.len(), last) {",
        wrong: "if let (1.., Some(Ok(last))) = (batch.len() * 0, last) {",
        breaks: &["Order"],
    },
    Mistake {
        what: "an expired iterator is used again",
        file: "source/polling.rs",
        right: "if failure.remedy != Remedy::RestartIterator {",
        wrong: "if failure.remedy != Remedy::Gone {",
        breaks: &["Progress"],
    },
    Mistake {
        what: "the end of a closed shard is not looked for behind its last record",
        file: "source/polling.rs",
        right: "self.again = true;\n",
        wrong: "self.again = true;\n return Recovery::End(error);\n",
        breaks: &["FewErrors"],
    },
    Mistake {
        what: "what only the caller can cure is told at every attempt",
        file: "source/polling.rs",
        right: "Some(kind) if kind == error.kind() => Recovery::Again,",
        wrong: "Some(kind) if kind == ErrorKind::InUse => Recovery::Again,",
        breaks: &["FewErrors"],
    },
    Mistake {
        what: "an outage of the store is told of when it is over",
        file: "store/writer.rs",
        right: "state.report = None;",
        wrong: "",
        breaks: &["FewErrors"],
    },
    Mistake {
        what: "unfinished records are not counted",
        file: "shard/reading.rs",
        right: "CheckpointOn::Ack => plan.max_in_flight,",
        wrong: "CheckpointOn::Ack => plan.max_in_flight.max(usize::MAX),",
        breaks: &["InFlight"],
    },
    Mistake {
        what: "the budget is ignored",
        file: "source/budget.rs",
        right: ".min(self.units)\n",
        wrong: ".min(self.units.min(0))\n",
        breaks: &["MemoryBudget"],
    },
    Mistake {
        what: "an answer is read without room for it",
        file: "source/room.rs",
        right: "if self.fit(length) {",
        wrong: "if self.fit(length) || length > 0 {",
        breaks: &["MemoryBudget"],
    },
    Mistake {
        what: "what a run leaves of its batch is dropped",
        file: "shard/run.rs",
        right: "Place::Taken(self.buffer)\n",
        wrong: "Place::Empty\n",
        breaks: &["NothingIsLost"],
    },
    Mistake {
        what: "a position goes back to the beginning at every third record",
        file: "checkpoint/watermark.rs",
        right: "self.position = *mark;",
        wrong: "self.position = if self.prefix % 3 == 2 { Mark::default() } else { *mark };",
        breaks: &["NeverBackwards", "FewRepeats"],
    },
    Mistake {
        what: "the latest is found anew at every start",
        file: "lineage/start.rs",
        right: "ShardPosition::Latest => Pin::Kept(Checkpoint::AtTimestamp(now)),",
        wrong: "ShardPosition::Latest => Pin::Named(Position::AtTimestamp(now)),",
        breaks: &["NothingIsLost", "NotBeforeTheStart", "FewRepeats"],
    },
    Mistake {
        what: "the end of a shard is not stored",
        file: "checkpoint/watermark.rs",
        right: "std::mem::take(&mut state.changed).then(|| state.checkpoint())",
        wrong: "(std::mem::take(&mut state.changed) && !state.is_complete()).then(|| state.checkpoint())",
        breaks: &["EndsAreKept"],
    },
    Mistake {
        what: "calls are not paced",
        file: "pace.rs",
        right: "self.ticks.reset_at((self.asked + pause).max(Instant::now()));",
        wrong: "self.ticks.reset_at((self.asked + pause / 4).max(Instant::now()));",
        breaks: &["CallLimits"],
    },
    Mistake {
        what: "bytes are not paid for",
        file: "pace.rs",
        right: "self.pause(earned.max(wanted).max(self.throttle()));",
        wrong: "self.pause(wanted.max(self.throttle() + earned / 1000));",
        breaks: &["CallLimits"],
    },
    Mistake {
        what: "what a failing store was to save is forgotten",
        file: "store/writer.rs",
        right: "state.failing = true;",
        wrong: "state.failing = true; state.pending.clear();",
        breaks: &["EndsAreKept", "FewRepeats", "Progress"],
    },
    Mistake {
        what: "a close does not save",
        file: "store/writer.rs",
        right: "self.requests.send(answer).map_err(|_closed| gone())?;",
        wrong: "if self.is_running() { return Ok(()) } self.requests.send(answer).map_err(|_closed| gone())?;",
        breaks: &["FewRepeats"],
    },
    Mistake {
        what: "a drop does not save",
        file: "store/writer.rs",
        right: "    last_words(&shared).await;",
        wrong: "    if false { last_words(&shared).await; }",
        breaks: &["FewRepeats"],
    },
    Mistake {
        what: "a shard is read on when its stream is dropped",
        file: "shard/feed.rs",
        right: "        task.spawn({",
        wrong: "        tokio::spawn({",
        breaks: &["NothingLeftRunning"],
    },
    Mistake {
        what: "shards are listed once",
        file: "group/duties.rs",
        right: "self.list_at = now + self.plan.rules.discovery_interval;",
        wrong: "self.list_at = now + Duration::from_secs(1_000_000);",
        breaks: &["Progress"],
    },
    Mistake {
        what: "a store that does not answer is waited for",
        file: "store.rs",
        right: "timeout(LONGEST_CALL, call)",
        wrong: "timeout(LONGEST_CALL * 10_000, call)",
        breaks: &["Progress", "FewErrors", "FewRepeats", "NothingLeftRunning"],
    },
];

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

    /// What the simulation of the copy says; `None` where it finds nothing.
    fn simulate(&self) -> Option<String> {
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["test", "--locked", "--all-features"])
            .args(["--test", "simulation", "--"])
            .args(["--ignored", "--nocapture", "many"])
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", &self.target)
            // The copy alone is built without optimisation: it is built often, and run once.
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "0")
            .env("SEEDS", SEEDS)
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
    let copy = Copy::new();
    let mut missed = Vec::new();
    let only = std::env::var("MISTAKE").unwrap_or_default();
    for mistake in MISTAKES.iter().filter(|mistake| mistake.what.contains(&only)) {
        let file = copy.folder.join("src").join(mistake.file);
        let right = fs::read_to_string(&file).unwrap();
        let times = right.matches(mistake.right).count();
        assert_eq!(times, 1, "{}: {:?} stands {times} times in it", mistake.file, mistake.right);
        fs::write(&file, right.replace(mistake.right, mistake.wrong)).unwrap();
        let found = copy.simulate();
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
