//! Checks that the minimum supported Rust version (MSRV) is the same wherever it is stated.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    let path = root().join(file);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("failed to read {}: {error}", path.display()))
}

/// Returns the version numbers that follow each occurrence of `label`.
fn versions_after(text: &str, label: &str) -> Vec<String> {
    let is_part = |letter: &char| letter.is_ascii_digit() || *letter == '.';
    let version = |rest: &str| rest.chars().take_while(is_part).collect::<String>();
    let versions = text.split(label).skip(1).map(version);
    let versions = versions.map(|version| version.trim_end_matches('.').to_owned());
    versions.filter(|version| !version.is_empty()).collect()
}

#[test]
fn msrv_in_workflow_and_readme_equals_that_of_the_manifest() {
    let msrv = env!("CARGO_PKG_RUST_VERSION");
    for (file, label) in [
        (".github/workflows/test.yml", "rust-toolchain@"),
        ("README.md", "[![MSRV "),
        ("README.md", "badge/rustc-"),
        ("README.md", "**MSRV**: "),
    ] {
        if file.starts_with(".github") && !root().join(".github").exists() {
            // The published package does not contain the workflows.
            continue;
        }
        let versions = versions_after(&read(file), label);
        assert_eq!(versions, [msrv], "expected one MSRV after {label:?} in {file}");
    }
}

#[test]
fn versions_are_found_after_each_label() {
    let text = "rust-toolchain@stable, rust-toolchain@1.94.1, rust-toolchain@2.";
    assert_eq!(versions_after(text, "rust-toolchain@"), ["1.94.1", "2"]);
    assert_eq!(versions_after(text, "MSRV "), [] as [&str; 0]);
}
