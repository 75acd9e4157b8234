//! The question before a change that cannot be undone.

use std::io::IsTerminal;

use crate::failure::{Failure, Outcome};
use crate::output::say;

/// Asks for the consent to the change on the terminal. Returns false for any answer but yes.
///
/// # Errors
///
/// Without a terminal there is no answer: the command needs `--yes`.
pub(crate) fn confirmed(question: &str, is_agreed: bool) -> Outcome<bool> {
    if is_agreed {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new("this change needs a confirmation, and stdin is not a terminal")
            .advise("Add --yes, or --dry-run to see what would change."));
    }
    say(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(format!("cannot read the answer: {error}")))?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_agreement() {
        assert_eq!(["y", "Yes\n", " YES "].map(is_yes), [true; 3]);
        assert_eq!(["", "\n", "n", "yess", "ok"].map(is_yes), [false; 5]);
    }
}
