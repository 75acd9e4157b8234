//! The prose of the repository: plain words, and doc comments that open with a verb or a noun.
// A test that cannot continue panics, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Turns of phrase that say less than the plain word, which CONTRIBUTING.md has in its glossary.
const TURNS: &[&str] = &[
    "who is",
    "whoever",
    "whom",
    "nobody",
    "somebody",
    "anybody",
    "one who",
    "he who",
    "anew",
    "thereof",
    "by now",
    "so many",
    "once more",
    "at hand",
    "for ever",
    "is told",
    "are told",
    "was told",
    "is said",
    "are said",
    "is asked for",
    "made again",
    "given back",
    "gives back",
    "looked at",
    "let go of",
    "come again",
    "comes again",
    "came again",
    "goes on",
    "go on",
    "went on",
    "gone on",
    "stands still",
    "that is none",
    "that are none",
    "such a one",
    "what comes",
    "what is there",
];

/// Words with which no doc comment opens: a clause where a verb or a noun belongs.
const OPENINGS: &[&str] =
    &["What", "Who", "Whose", "Whom", "How", "Where", "When", "Whether", "Why"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(|it| extensions.iter().any(|known| it == *known)) {
            found.push(path);
        }
    }
}

/// All files with prose, apart from this one and from pieces of source in `tests/mutants`.
fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "examples", "benches", "fuzz/fuzz_targets", "cli"] {
        let folder = root().join(folder);
        if folder.is_dir() {
            files(&folder, &["rs", "md", "lua"], &mut found);
        }
    }
    let here = root().read_dir().unwrap().map(|entry| entry.unwrap().path());
    found.extend(here.filter(|path| path.extension().is_some_and(|it| it == "md")));
    found.retain(|path| !path.ends_with("tests/prose.rs"));
    found
}

/// The prose in a line: a comment, strings, or in Markdown everything outside of code.
fn prose(line: &str, is_markdown: bool) -> String {
    if is_markdown {
        return line.split('`').step_by(2).collect();
    }
    let comment = ["//", "--"].iter().find_map(|lead| {
        let at = line.find(lead)?;
        let is_one = at == 0 || line[..at].ends_with(char::is_whitespace);
        is_one.then(|| &line[at + 2..])
    });
    match comment {
        Some(comment) => comment.split('`').step_by(2).collect(),
        None => line.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(" "),
    }
}

fn holds(prose: &str, turn: &str) -> bool {
    let is_letter = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
    prose.match_indices(turn).any(|(at, _)| {
        !is_letter(prose[..at].chars().next_back())
            && !is_letter(prose[at + turn.len()..].chars().next())
    })
}

#[test]
fn prose_uses_plain_words() {
    let mut found = Vec::new();
    for path in pages() {
        let is_markdown = path.extension().is_some_and(|it| it == "md");
        for (number, line) in read_to_string(&path).unwrap().lines().enumerate() {
            let prose = prose(line, is_markdown).to_lowercase();
            for turn in TURNS.iter().filter(|turn| holds(&prose, turn)) {
                let path = path.strip_prefix(root()).unwrap().display();
                found.push(format!("{path}:{}: {turn:?} in: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "say it plainly:\n{}", found.join("\n"));
}

#[test]
fn doc_comments_open_with_a_verb_or_a_noun() {
    let mut found = Vec::new();
    for path in pages().iter().filter(|path| path.extension().is_some_and(|it| it == "rs")) {
        let text = read_to_string(path).unwrap();
        let mut before = "";
        for (number, line) in text.lines().map(str::trim).enumerate() {
            let is_first = !before.starts_with("///") && !before.starts_with("//!");
            let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            let opening = comment.and_then(|comment| comment.split_whitespace().next());
            if is_first && opening.is_some_and(|word| OPENINGS.contains(&word)) {
                let path = path.strip_prefix(root()).unwrap().display();
                found.push(format!("{path}:{}: {line}", number + 1));
            }
            before = line;
        }
    }
    assert!(found.is_empty(), "open with a verb or a noun:\n{}", found.join("\n"));
}

#[test]
fn turns_are_found_as_whole_words_in_comments_and_strings() {
    assert!(holds(&prose("x(); // Whoever comes", false).to_lowercase(), "whoever"));
    assert!(holds(&prose("panic!(\"nobody\")", false), "nobody"));
    assert!(holds(&prose("the caller is told", true), "is told"));
    assert!(!holds(&prose("`is told`", true), "is told"));
    assert!(!holds(&prose("let nobody = 1;", false), "nobody"));
    assert!(!holds("renewal", "anew"));
}
