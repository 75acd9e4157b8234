//! Escapes characters that could control the terminal or hide text.

use std::fmt::Write;

/// Returns the bytes as text in which every control character, every character that changes the
/// direction of text, and every byte that is not UTF-8 is escaped. Tabs stay.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if is_harmless(letter) {
                text.push(letter);
            } else {
                text.extend(letter.escape_default());
            }
        }
        for byte in chunk.invalid() {
            let _never_fails = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Returns false for a character that could control the terminal or hide text.
pub(super) fn is_harmless(letter: char) -> bool {
    let hides_text = matches!(
        letter,
        // Marks and overrides of the direction, separators of lines, and the byte order mark.
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
    );
    letter == '\t' || !letter.is_control() && !hides_text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_of_any_script_stays() {
        let text = "Grüße, 日本語, עברית, 👩‍👩‍👧";
        assert_eq!(escape(text.as_bytes()), text);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape(b"a\x1b[31m\r\n\tb"), "a\\u{1b}[31m\\r\\n\tb");
        assert_eq!(escape("\u{061c}".as_bytes()), "\\u{61c}");
        assert_eq!(escape(b"\xff\xc3"), "\\xff\\xc3");
    }

    proptest! {
        #[test]
        fn no_bytes_leave_a_control_character(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let escaped = escape(&bytes);
            prop_assert!(!escaped.chars().any(|letter| letter.is_control() && letter != '\t'));
        }
    }
}
