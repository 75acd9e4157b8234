//! Compiles many deliberate bugs into one copy, each behind a switch.
//!
//! A build for each bug takes longer than the simulation that finds it. So the body of a function
//! with bugs is written once for each of them and once without, and an environment variable chooses
//! between them at run time.

use std::fmt::Write;
use std::ops::Range;

use super::Mistake;

/// The environment variable that selects the bug of a binary.
pub(crate) const CHOICE: &str = "MISTAKE_MADE";

/// The module that is appended to the copy's `lib.rs`.
pub(crate) const SWITCH: &str = r#"
#[doc(hidden)]
#[allow(missing_docs)]
pub mod mistake {
    use std::sync::LazyLock;

    static MADE: LazyLock<Option<usize>> =
        LazyLock::new(|| std::env::var("MISTAKE_MADE").ok()?.parse().ok());

    #[must_use]
    pub fn is(number: usize) -> bool {
        *MADE == Some(number)
    }
}
"#;

/// Returns the byte range of the body of the innermost function around a text, braces included.
///
/// The source is formatted: the last line of a function is a brace with the indentation of its
/// first line. Returns `None` if no function is around the text, or if the body cannot be written
/// twice: a `const fn` cannot read the choice, and two bodies of an `impl` type are two types.
fn body_around(source: &str, text: &Range<usize>) -> Option<Range<usize>> {
    let mut start = source[..text.start].rfind('\n')?;
    loop {
        let line = source[start + 1..].lines().next()?;
        let indentation = &line[..line.len() - line.trim_start().len()];
        if is_header(line) {
            let open = start + 1 + source[start + 1..].find("{\n")?;
            let last = format!("\n{indentation}}}\n");
            let close = open + source[open..].find(&last)? + last.len() - 1;
            if open < text.start && text.end < close {
                let header = &source[start..open];
                // The types of parameters have arrows too.
                let result = header.rsplit_once("->").map(|(_, result)| result);
                let is_opaque = result.is_some_and(|result| result.contains("impl "));
                return (!is_opaque && !header.contains("const fn")).then_some(open..close);
            }
        }
        start = source[..start].rfind('\n')?;
    }
}

fn is_header(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_before = |word: &&str| {
        word.starts_with("pub") || word.ends_with(')') || ["async", "const", "in"].contains(word)
    };
    words.iter().find(|word| !is_before(word)) == Some(&"fn")
}

/// The body of a function, and the bugs in it with their numbers.
struct Place<'a> {
    body: Range<usize>,
    bugs: Vec<(usize, &'a Mistake)>,
}

impl Place<'_> {
    /// Returns the body once for each bug, and once without.
    fn choices(&self, source: &str) -> String {
        let right = &source[self.body.clone()];
        let mut choices = String::from("{ ");
        for (number, bug) in &self.bugs {
            let wrong = right.replacen(bug.right, bug.wrong, 1);
            let _ = write!(choices, "if crate::mistake::is({number}) {wrong} else ");
        }
        choices + right + " }"
    }
}

/// Writes the bugs of one file into its source, each behind the switch of its number.
///
/// Returns the source, and the numbers of the bugs that need a separate build.
pub(crate) fn weave(source: &str, mistakes: &[(usize, &Mistake)]) -> (String, Vec<usize>) {
    let mut alone = Vec::new();
    let mut places: Vec<Place<'_>> = Vec::new();
    for (number, mistake) in mistakes {
        let start = source.find(mistake.right).unwrap();
        let Some(body) = body_around(source, &(start..start + mistake.right.len())) else {
            alone.push(*number);
            continue;
        };
        match places.iter_mut().find(|place| overlap(&place.body, &body)) {
            Some(place) if place.body == body => place.bugs.push((*number, mistake)),
            // One body is within another: the text would be replaced twice.
            Some(_) => alone.push(*number),
            None => places.push(Place { body, bugs: vec![(*number, mistake)] }),
        }
    }
    places.sort_by_key(|place| std::cmp::Reverse(place.body.start));
    let mut woven = source.to_owned();
    for place in places {
        woven.replace_range(place.body.clone(), &place.choices(source));
    }
    (woven, alone)
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}
