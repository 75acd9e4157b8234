//! Seeds that have found bugs before, which are tried first.
//!
//! Most bugs are found by few seeds, and a search through hundreds of seeds for each takes longer
//! than all other tests together. If its seed no longer finds a bug, the seeds of
//! [`SEEDS`](super::SEEDS) are searched. A remembered seed may be above that range: few scenarios
//! show a rare bug, and such a bug needs a new seed by hand after a change of the simulation.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Mistake, WOVEN, all_cores, for_each};

/// One line for each bug: a seed, and the description of the bug.
const FILE: &str = include_str!("seeds.txt");

/// Simulates each bug with its remembered seed, on all cores. Returns the output, by the number of
/// the bug.
pub(crate) fn try_each(test: &str, wanted: &[(usize, &Mistake)]) -> HashMap<usize, String> {
    let found = Mutex::new(HashMap::new());
    for_each(wanted, all_cores(), |(number, mistake)| {
        if let Some(report) = try_one(test, *number, mistake) {
            found.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, report);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Simulates one bug. Returns `None` if the seed does not find it through a promise that it breaks.
fn try_one(test: &str, number: usize, mistake: &Mistake) -> Option<String> {
    let seed = seed_of(mistake).filter(|_| !WOVEN.alone.contains(&number))?;
    let seeds = format!("{seed}..{}", seed + 1);
    let report = WOVEN.copy.simulate(&WOVEN.binaries[test], &seeds, Some(number))?;
    report.lines().any(|line| mistake.is_seen_in(line)).then_some(report)
}

fn seed_of(mistake: &Mistake) -> Option<u64> {
    FILE.lines().find_map(|line| {
        let (seed, what) = line.split_once(' ')?;
        (what == mistake.what).then(|| seed.parse().ok())?
    })
}

/// Writes the seed that found a bug into the file if `REMEMBER` is set.
pub(crate) fn keep(mistake: &Mistake, report: &str) {
    static WRITING: Mutex<()> = Mutex::new(());
    let seed: Option<u64> = report
        .split_once("seed ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok());
    let (Some(seed), Some(_)) = (seed, std::env::var_os("REMEMBER")) else { return };
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants/seeds.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: BTreeMap<&str, String> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(seed, what)| (what, seed.to_owned()))
        .collect();
    lines.insert(mistake.what, seed.to_string());
    // Bugs that no longer exist are removed from the file.
    lines.retain(|what, _| super::all().any(|(_, mistake)| mistake.what == *what));
    let lines: Vec<String> = lines.iter().map(|(what, seed)| format!("{seed} {what}")).collect();
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}
