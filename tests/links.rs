//! What the pages beside the code point at is there. Links into the code are rustdoc's to check, and
//! whether a page elsewhere is still there is nobody's who has no network.
// A test that cannot go on says so by a panic, in its helpers too.
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
    beside.map(|name| root.join(name)).into_iter().chain(guide).collect()
}

/// The targets of `[text](target)` in a page.
fn targets(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).map(|rest| rest.split(')').next().unwrap())
}

/// The anchors of the headings, as GitHub makes them.
fn anchors(page: &str) -> impl Iterator<Item = String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings.map(|heading| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
        text.chars().filter(kept).collect::<String>().replace(' ', "-")
    })
}

#[test]
fn every_link_points_at_something() {
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
            assert!(is_there, "{target} in {}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked} links were found");
}
