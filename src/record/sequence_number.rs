use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// The longest number that the API's pattern, `0|([1-9]\d{0,128})`, lets through.
const MAX_DIGITS: usize = 129;

/// Numbers up to this length, as the 56 digits of Kinesis are, need no memory of their own.
const IN_PLACE: usize = 62;

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
pub struct SequenceNumber(Digits);

#[derive(Clone)]
enum Digits {
    InPlace { length: u8, bytes: [u8; IN_PLACE] },
    Boxed(Box<str>),
}

impl SequenceNumber {
    /// The number as Kinesis writes it.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // Digits are text, so there is no other case.
            Digits::InPlace { length, bytes } => {
                std::str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default()
            }
            Digits::Boxed(text) => text,
        }
    }

    /// What orders numbers without leading zeros: the longer one is the greater one.
    fn order(&self) -> (usize, &[u8]) {
        let digits = match &self.0 {
            Digits::InPlace { length, bytes } => &bytes[..usize::from(*length)],
            Digits::Boxed(text) => text.as_bytes(),
        };
        (digits.len(), digits)
    }
}

impl FromStr for SequenceNumber {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] where it is not a decimal number of at most 129 digits
    /// without leading zeros.
    fn from_str(text: &str) -> Result<Self, Error> {
        let digits = text.as_bytes();
        // What is left of the place is digits too, so that all of it is looked at in the same way.
        let mut bytes = [b'0'; IN_PLACE];
        let length = match (bytes.get_mut(..digits.len()), u8::try_from(digits.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(digits);
                Some(length)
            }
            _ => None,
        };
        let valid = matches!(digits, b"0" | [b'1'..=b'9', ..])
            && match length {
                Some(_) => all_digits(&bytes),
                None => digits.len() <= MAX_DIGITS && all_digits(digits),
            };
        if !valid {
            return Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "{text:?} is not a sequence number: a decimal number of at most 129 digits, \
                     without leading zeros"
                ),
            ));
        }
        Ok(Self(match length {
            Some(length) => Digits::InPlace { length, bytes },
            None => Digits::Boxed(text.into()),
        }))
    }
}

/// Looks at all of them, whatever the first ones are: that is many at a time, and there is one
/// such text for each record.
#[inline]
fn all_digits(text: &[u8]) -> bool {
    text.iter().fold(0, |most: u8, byte| most.max(byte.wrapping_sub(b'0'))) <= 9
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
        fn refuses_all_else(text in "|0[0-9]+|[1-9][0-9]{129,140}|[0-9]*[^0-9][0-9]*") {
            prop_assert!(text.parse::<SequenceNumber>().is_err());
        }
    }
}
