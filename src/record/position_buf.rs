use super::sequence_number::MAX_DIGITS;
use super::{Record, SequenceNumber, SharedText};

/// A copy of a record's position, made and copied without an allocation. There is one for each
/// acknowledged record.
#[derive(Clone, Copy)]
pub(crate) struct PositionBuf {
    /// The index of the user record, if other user records follow it in the aggregated record.
    part: Option<u64>,
    length: u8,
    digits: [u8; MAX_DIGITS],
}

impl PositionBuf {
    /// Copies the position of the record.
    #[inline]
    pub(crate) fn set(&mut self, record: &Record) {
        self.part = record.is_inner.then_some(record.sub_sequence_number);
        self.set_number(&record.sequence_number);
    }

    /// Returns the last acknowledged user record, if not all of the aggregated record is
    /// acknowledged.
    pub(crate) fn part(&self) -> Option<u64> {
        self.part
    }

    #[inline]
    fn set_number(&mut self, number: &SequenceNumber) {
        let digits = number.as_str().as_bytes();
        // A sequence number is never longer than the buffer.
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

/// The position of the whole record with that number.
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
        // Digits are ASCII, so nothing is replaced.
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
        fn converts_back_to_the_same_number(text in "0|[1-9][0-9]{0,128}") {
            let number: SequenceNumber = text.parse().unwrap();
            prop_assert_eq!(SequenceNumber::from(&PositionBuf::from(&number)), number);
        }
    }
}
