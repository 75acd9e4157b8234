use super::sequence_number::MAX_DIGITS;
use super::{Record, SequenceNumber, SharedText};

/// A copy of the place of a record, which there is one of for each that is finished: made and copied
/// without taking memory.
#[derive(Clone, Copy)]
pub(crate) struct PositionBuf {
    /// Which part of the record, where others follow it.
    part: Option<u64>,
    length: u8,
    digits: [u8; MAX_DIGITS],
}

impl PositionBuf {
    /// Becomes a copy of the place of the record.
    #[inline]
    pub(crate) fn set(&mut self, record: &Record) {
        self.part = record.is_inner.then_some(record.sub_sequence_number);
        self.set_number(&record.sequence_number);
    }

    /// The last part of the record that is finished, where that is not the whole.
    pub(crate) fn part(&self) -> Option<u64> {
        self.part
    }

    #[inline]
    fn set_number(&mut self, number: &SequenceNumber) {
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

impl Default for PositionBuf {
    fn default() -> Self {
        Self { part: None, length: 1, digits: [b'0'; MAX_DIGITS] }
    }
}

/// The whole record of that number.
impl From<&SequenceNumber> for PositionBuf {
    #[inline]
    fn from(number: &SequenceNumber) -> Self {
        let mut mark = Self::default();
        mark.set_number(number);
        mark
    }
}

impl From<&PositionBuf> for SequenceNumber {
    fn from(mark: &PositionBuf) -> Self {
        // Digits are text, so nothing is replaced.
        let digits = String::from_utf8_lossy(&mark.digits[..usize::from(mark.length)]);
        Self(SharedText::Own(digits.into_owned()))
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
            prop_assert_eq!(SequenceNumber::from(&PositionBuf::from(&number)), number);
        }
    }
}
