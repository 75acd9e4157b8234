use super::SequenceNumber;
use super::sequence_number::MAX_DIGITS;

/// A copy of a sequence number, which there is one of for each record that is finished: made and
/// copied without taking memory.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    length: u8,
    digits: [u8; MAX_DIGITS],
}

impl Mark {
    /// Becomes a copy of the number.
    #[inline]
    pub(crate) fn set(&mut self, number: &SequenceNumber) {
        let digits = number.as_str().as_bytes();
        // No number is longer.
        if let (Ok(length), Some(place)) =
            (u8::try_from(digits.len()), self.digits.get_mut(..digits.len()))
        {
            place.copy_from_slice(digits);
            self.length = length;
        }
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self { length: 1, digits: [b'0'; MAX_DIGITS] }
    }
}

impl From<&SequenceNumber> for Mark {
    #[inline]
    fn from(number: &SequenceNumber) -> Self {
        let mut mark = Self::default();
        mark.set(number);
        mark
    }
}

impl From<&Mark> for SequenceNumber {
    fn from(mark: &Mark) -> Self {
        // Digits are text, so nothing is replaced.
        Self(String::from_utf8_lossy(&mark.digits[..usize::from(mark.length)]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_number_it_was_made_of(text in "0|[1-9][0-9]{0,128}") {
            let number: SequenceNumber = text.parse().unwrap();
            prop_assert_eq!(SequenceNumber::from(&Mark::from(&number)), number);
        }
    }
}
