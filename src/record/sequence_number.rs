use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::SharedText;
use crate::error::{Error, ErrorKind};

/// The longest number that the API's pattern, `0|([1-9]\d{0,128})`, lets through.
pub(super) const MAX_DIGITS: usize = 129;

/// The place of a record in its shard: a decimal number of up to 129 digits, ordered as a number.
///
/// Sequence numbers rise along a shard, and with time; between shards they mean nothing.
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
pub struct SequenceNumber(pub(super) SharedText);

impl SequenceNumber {
    /// The number as Kinesis writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number that Kinesis has written, in the memory that it is in.
    #[inline]
    pub(crate) fn of(text: String) -> Result<Self, Error> {
        if is_valid(text.as_bytes()) { Ok(Self(text.into())) } else { Err(refused(&text)) }
    }

    /// Whether a text is one.
    #[inline]
    pub(crate) fn is_one(text: &str) -> bool {
        is_valid(text.as_bytes())
    }

    /// The same, for many records to have.
    pub(crate) fn into_shared(self) -> Self {
        Self(SharedText::Shared((*self.0).into()))
    }

    /// What orders numbers without leading zeros: the longer one is the greater one.
    fn order(&self) -> (usize, &str) {
        (self.0.len(), &self.0)
    }
}

impl FromStr for SequenceNumber {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] where it is not a decimal number of at most 129 digits
    /// without leading zeros.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::of(text.to_owned())
    }
}

#[inline]
fn is_valid(digits: &[u8]) -> bool {
    matches!(digits, b"0" | [b'1'..=b'9', ..]) && digits.len() <= MAX_DIGITS && all_digits(digits)
}

#[cold]
fn refused(text: &str) -> Error {
    Error::new(
        ErrorKind::Configuration,
        format!(
            "{text:?} is not a sequence number: a decimal number of at most 129 digits, without \
             leading zeros"
        ),
    )
}

/// Eight at a time, since there is one such text for each record.
#[inline]
fn all_digits(text: &[u8]) -> bool {
    let mut rest = text;
    // A pattern, since the checks of slices in a build with debug assertions cost more than the digits.
    while let [a, b, c, d, e, f, g, h, others @ ..] = rest {
        if !are_digits([*a, *b, *c, *d, *e, *f, *g, *h]) {
            return false;
        }
        rest = others;
    }
    rest.iter().all(u8::is_ascii_digit)
}

/// Whether all are from `0x30` to `0x39`: less `0x30` that is, and with `0x46` added the highest
/// bit of none is set. A borrow or a carry only comes from a byte that is none.
#[inline]
fn are_digits(text: [u8; 8]) -> bool {
    let word = u64::from_ne_bytes(text);
    let each = |byte| u64::from_ne_bytes([byte; 8]);
    let below = word.wrapping_sub(each(b'0'));
    let above = word.wrapping_add(each(0x7f - b'9'));
    (word | below | above) & each(0x80) == 0
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
        fn is_ordered_as_a_number(left: u128, right: u128) {
            let parse = |number: u128| number.to_string().parse::<SequenceNumber>().unwrap();
            prop_assert_eq!(parse(left).cmp(&parse(right)), left.cmp(&right));
        }

        #[test]
        fn is_read_back_as_it_was_written(text in "0|[1-9][0-9]{0,128}") {
            prop_assert_eq!(text.parse::<SequenceNumber>().unwrap().to_string(), text);
        }

        #[test]
        fn sees_what_is_no_digit_among_eight(text: [u8; 8], place in 0..8_usize, byte in b'0'..=b'9') {
            prop_assert_eq!(are_digits(text), text.iter().all(u8::is_ascii_digit));
            let mut nearly = [byte; 8];
            nearly[place] = text[0];
            prop_assert_eq!(are_digits(nearly), text[0].is_ascii_digit());
        }

        #[test]
        fn refuses_all_else(text in "|0[0-9]+|[1-9][0-9]{129,140}|[0-9]*[^0-9][0-9]*") {
            prop_assert!(text.parse::<SequenceNumber>().is_err());
        }
    }
}
