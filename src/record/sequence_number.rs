use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// The maximum length by the API's pattern, `0|([1-9]\d{0,128})`.
const MAX_DIGITS: usize = 129;

/// The digits that a number holds without an allocation. Kinesis writes 56, and with 62 the number
/// takes 64 bytes.
const INLINE_DIGITS: usize = 62;

/// The sequence number of a record in its shard: a decimal number of up to 129 digits, ordered as a
/// number.
///
/// Sequence numbers increase within a shard, and over time. Numbers of different shards are
/// unrelated.
///
/// ```
/// use kinestream::SequenceNumber;
///
/// let nine: SequenceNumber = "9".parse()?;
/// let ten: SequenceNumber = "10".parse()?;
/// assert!(nine < ten);
/// assert_eq!(ten.to_string(), "10");
/// assert!("-1".parse::<SequenceNumber>().is_err());
/// # Ok::<(), kinestream::Error>(())
/// ```
#[derive(Clone)]
#[doc(alias = "offset")]
pub struct SequenceNumber(Digits);

#[derive(Clone)]
enum Digits {
    Inline { length: u8, digits: [u8; INLINE_DIGITS] },
    Long(Arc<[u8]>),
}

impl SequenceNumber {
    /// Returns the number as Kinesis writes it.
    pub fn as_str(&self) -> &str {
        // Digits are ASCII.
        std::str::from_utf8(self.digits()).unwrap_or_default()
    }

    /// Returns the number with these digits, which must be those of a sequence number.
    #[inline]
    pub(crate) fn of_digits(text: &[u8]) -> Self {
        debug_assert!(is_valid(text), "expected a sequence number");
        let mut digits = [0; INLINE_DIGITS];
        match (digits.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text);
                Self(Digits::Inline { length, digits })
            }
            _ => Self(Digits::Long(text.into())),
        }
    }

    /// Parses a number; `None` if the text is not one.
    pub(crate) fn parse_digits(text: &[u8]) -> Option<Self> {
        is_valid(text).then(|| Self::of_digits(text))
    }

    /// Returns true if the text is a sequence number.
    #[inline]
    pub(crate) fn is_one(text: &[u8]) -> bool {
        is_valid(text)
    }

    #[inline]
    fn digits(&self) -> &[u8] {
        match &self.0 {
            Digits::Inline { length, digits } => {
                digits.get(..usize::from(*length)).unwrap_or_default()
            }
            Digits::Long(digits) => digits,
        }
    }

    /// Returns the order of numbers without leading zeros: the longer one is the greater one.
    fn order(&self) -> (usize, &[u8]) {
        (self.digits().len(), self.digits())
    }
}

impl FromStr for SequenceNumber {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] if the text is not a decimal number of at most 129 digits
    /// without leading zeros.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse_digits(text.as_bytes()).ok_or_else(|| invalid(text))
    }
}

#[inline]
fn is_valid(digits: &[u8]) -> bool {
    matches!(digits, b"0" | [b'1'..=b'9', ..]) && digits.len() <= MAX_DIGITS && all_digits(digits)
}

#[cold]
fn invalid(text: &str) -> Error {
    Error::new(
        ErrorKind::Configuration,
        format!(
            "invalid sequence number {text:?}; expected a decimal number of at most 129 digits \
             without leading zeros"
        ),
    )
}

/// Returns true if all bytes are digits. Tests eight at a time, since this runs for every record.
#[inline]
fn all_digits(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk() else { return text.iter().all(u8::is_ascii_digit) };
    let words = text.as_chunks().0.iter();
    words.fold(other_bytes(*last), |others, word| others | other_bytes(*word)) & HIGHEST_BITS == 0
}

const HIGHEST_BITS: u64 = 0x8080_8080_8080_8080;

/// Marks the other bytes than digits by their highest bits. The highest bit of a byte from `0x30` to
/// `0x39` stays clear when `0x30` is subtracted and when `0x46` is added. Only other bytes cause a
/// borrow or a carry.
#[inline]
fn other_bytes(text: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(text);
    let each = |byte| u64::from_ne_bytes([byte; 8]);
    word | word.wrapping_sub(each(b'0')) | word.wrapping_add(each(0x7f - b'9'))
}

impl PartialEq for SequenceNumber {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for SequenceNumber {}

impl Hash for SequenceNumber {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.order().hash(state);
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SequenceNumber({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_is_numeric(left: u128, right: u128) {
            let parse = |number: u128| number.to_string().parse::<SequenceNumber>().unwrap();
            prop_assert_eq!(parse(left).cmp(&parse(right)), left.cmp(&right));
        }

        #[test]
        fn long_number_parses_to_the_same_text(text in "[1-9][0-9]{55,128}") {
            let number: SequenceNumber = text.parse().unwrap();
            prop_assert_eq!(number.as_str(), text);
        }

        #[test]
        fn text_form_parses_to_the_same_number(text in "0|[1-9][0-9]{0,128}") {
            prop_assert_eq!(text.parse::<SequenceNumber>().unwrap().to_string(), text);
        }

        #[test]
        fn other_byte_is_found_at_any_place(number in "[0-9]{1,129}", place: usize, byte: u8) {
            let mut text = number.into_bytes();
            let place = place % text.len();
            text[place] = byte;
            prop_assert_eq!(all_digits(&text), byte.is_ascii_digit());
        }

        #[test]
        fn one_other_byte_among_eight_is_found(text: [u8; 8], place in 0..8_usize, byte in b'0'..=b'9') {
            prop_assert_eq!(all_digits(&text), text.iter().all(u8::is_ascii_digit));
            let mut nearly = [byte; 8];
            nearly[place] = text[0];
            prop_assert_eq!(all_digits(&nearly), text[0].is_ascii_digit());
        }

        #[test]
        fn other_text_is_rejected(text in "|0[0-9]+|[1-9][0-9]{129,140}|[0-9]*[^0-9][0-9]*") {
            prop_assert!(text.parse::<SequenceNumber>().is_err());
        }
    }
}
