use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// The longest number that the API's pattern, `0|([1-9]\d{0,128})`, lets through.
const MAX_DIGITS: usize = 129;

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
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SequenceNumber(String);

impl SequenceNumber {
    /// The number as Kinesis writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SequenceNumber {
    type Error = Error;

    /// Takes the string without a copy.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] where it is not a decimal number of at most 129 digits
    /// without leading zeros.
    fn try_from(text: String) -> Result<Self, Error> {
        let digits = text.as_bytes();
        let valid = !digits.is_empty()
            && digits.len() <= MAX_DIGITS
            && digits.iter().all(u8::is_ascii_digit)
            && (digits[0] != b'0' || digits.len() == 1);
        if valid {
            Ok(Self(text))
        } else {
            Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "{text:?} is not a sequence number: a decimal number of at most 129 digits, \
                     without leading zeros"
                ),
            ))
        }
    }
}

impl FromStr for SequenceNumber {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.to_owned().try_into()
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        // Without leading zeros the longer number is the greater one.
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SequenceNumber({})", self.0)
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
