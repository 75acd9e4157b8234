use super::SequenceNumber;

/// Numbers up to this length, as the 56 digits of Kinesis are, need no memory of their own.
const IN_PLACE: usize = 62;

/// A copy of a sequence number, which there is one of for each record that is finished: as long
/// as Kinesis's are, it is made without taking memory.
#[derive(Clone)]
pub(crate) struct Mark(Digits);

#[derive(Clone)]
enum Digits {
    InPlace { length: u8, bytes: [u8; IN_PLACE] },
    Boxed(Box<str>),
}

impl From<&SequenceNumber> for Mark {
    #[inline]
    fn from(number: &SequenceNumber) -> Self {
        let digits = number.as_str().as_bytes();
        let mut bytes = [0; IN_PLACE];
        Self(match (bytes.get_mut(..digits.len()), u8::try_from(digits.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(digits);
                Digits::InPlace { length, bytes }
            }
            _ => Digits::Boxed(number.as_str().into()),
        })
    }
}

impl From<&Mark> for SequenceNumber {
    fn from(mark: &Mark) -> Self {
        Self(match &mark.0 {
            // Digits are text, so nothing is replaced.
            Digits::InPlace { length, bytes } => {
                String::from_utf8_lossy(&bytes[..usize::from(*length)]).into_owned()
            }
            Digits::Boxed(text) => text.to_string(),
        })
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
