//! Checks the links in the Markdown pages. Rustdoc checks links into the code. Only the form of
//! external links is checked, since the test has no network.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = root.join("src/guide").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let beside = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "ARCHITECTURE.md",
        "examples/README.md",
        "tests/README.md",
    ];
    // The published package does not contain the command-line tool.
    let tool = Some(root.join("cli/README.md")).filter(|page| page.exists());
    beside.map(|name| root.join(name)).into_iter().chain(guide).chain(tool).collect()
}

/// Returns the targets of `[text](target)` in a page.
fn targets(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).map(|rest| rest.split(')').next().unwrap())
}

/// Returns the anchors of the headings, as GitHub derives them.
fn anchors(page: &str) -> impl Iterator<Item = String> {
    let lines = page.lines().map(|line| line.strip_prefix("//! ").unwrap_or(line));
    let headings = lines.filter(|line| line.starts_with('#'));
    headings.map(|heading| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
        text.chars().filter(kept).collect::<String>().replace(' ', "-")
    })
}

#[test]
fn every_link_has_a_target() {
    let mut checked = 0;
    for path in pages() {
        let page = read_to_string(&path).unwrap();
        for target in targets(&page) {
            let is_there = match target.split_once("://") {
                Some((scheme, rest)) => scheme == "https" && rest.contains('.'),
                None if target.starts_with("crate::") => true,
                None => match target.strip_prefix('#') {
                    Some(anchor) => anchors(&page).any(|it| it == anchor),
                    None => path.parent().unwrap().join(target).exists(),
                },
            };
            assert!(is_there, "expected the target {target} of {} to exist", path.display());
            checked += 1;
        }
    }
    assert!(checked > 20, "expected more than 20 links, found {checked}");
}
