//! The values of a JSON body, as ranges of the body where it has them whole.

use std::fmt;
use std::marker::PhantomData;

use serde_core::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::record::ByteRange;
use crate::source::response::{Unreadable, assembly};

/// The body, and what the values of it need besides the parser.
pub(super) struct Context<'a> {
    body: &'a [u8],
    /// The values that contain escapes in the body. Their ranges begin where the body ends.
    pub(super) tail: Vec<u8>,
    /// The reason for which the body was refused, unless the parser refused it.
    pub(super) refusal: Option<Unreadable>,
}

/// A value that is read with a [`Context`].
pub(super) trait Value<'a>: Sized {
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error>;
}

/// An element of a list.
pub(super) trait Element<'a>: Value<'a> {
    /// Refuses a list that is too long for a body of `length` bytes.
    fn check_count(count: usize, length: usize) -> Result<(), Unreadable>;

    /// Returns the number of elements for which memory is reserved, once the first is read.
    fn expected_count(&self, length: usize) -> usize;
}

/// A text.
pub(super) struct Text(pub(super) ByteRange);

/// The text of a payload: base64 if it is valid, which is not checked yet.
pub(super) struct Base64Text(pub(super) ByteRange);

/// A time in milliseconds.
pub(super) struct Millis(pub(super) i64);

impl<'a> Context<'a> {
    pub(super) fn new(body: &'a [u8]) -> Result<Self, Unreadable> {
        assembly::check_length(body)?;
        Ok(Self { body, tail: Vec::new(), refusal: None })
    }

    /// Reads the value of a member; null is absent.
    #[inline]
    pub(super) fn member<V: Value<'a>, M: MapAccess<'a>>(
        &mut self,
        map: &mut M,
    ) -> Result<Option<V>, M::Error> {
        map.next_value_seed(Seed(self, PhantomData))
    }

    /// Returns the bytes of a value that was read before.
    #[inline]
    pub(super) fn get(&self, range: ByteRange) -> &[u8] {
        match range.start().checked_sub(self.body.len()) {
            None => range.of(self.body),
            Some(start) => self.tail.get(start..start + range.len()).unwrap_or_default(),
        }
    }

    /// Returns the range of a part of the body.
    #[inline]
    fn borrowed<E: Error>(&mut self, value: &'a [u8]) -> Result<ByteRange, E> {
        let start = (value.as_ptr() as usize).wrapping_sub(self.body.as_ptr() as usize);
        let range = start.checked_add(value.len()).filter(|end| *end <= self.body.len());
        self.checked(
            range
                .and_then(|end| ByteRange::new(start, end))
                .ok_or(Unreadable("a value is outside of the body")),
        )
    }

    #[cold]
    fn copied<E: Error>(&mut self, value: &[u8]) -> Result<ByteRange, E> {
        let range = assembly::append(&mut self.tail, self.body.len(), value);
        self.checked(range)
    }

    /// Keeps the reason of a failed check, since the parser only has errors of type `E`.
    #[inline]
    fn checked<T, E: Error>(&mut self, result: Result<T, Unreadable>) -> Result<T, E> {
        result.map_err(|refusal| {
            self.refusal = Some(refusal);
            E::custom("refused")
        })
    }
}

/// Reads a value, or null.
struct Seed<'c, 'a, V>(&'c mut Context<'a>, PhantomData<V>);

impl<'a, V: Value<'a>> DeserializeSeed<'a> for Seed<'_, 'a, V> {
    type Value = Option<V>;

    #[inline]
    fn deserialize<D: Deserializer<'a>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_option(self)
    }
}

impl<'a, V: Value<'a>> Visitor<'a> for Seed<'_, 'a, V> {
    type Value = Option<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value or null")
    }

    #[inline]
    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    #[inline]
    fn visit_some<D: Deserializer<'a>>(self, from: D) -> Result<Self::Value, D::Error> {
        V::read(self.0, from).map(Some)
    }
}

/// Reads a list; elements that are null are skipped.
impl<'a, V: Element<'a>> Value<'a> for Vec<V> {
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        struct Elements<'c, 'a, V>(&'c mut Context<'a>, PhantomData<V>);

        impl<'a, V: Element<'a>> Visitor<'a> for Elements<'_, 'a, V> {
            type Value = Vec<V>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<Self::Value, S::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element_seed(Seed::<V>(self.0, PhantomData))? {
                    let length = self.0.body.len();
                    if let Some(first) = element.as_ref().filter(|_| elements.capacity() == 0) {
                        elements.reserve_exact(first.expected_count(length));
                    }
                    elements.extend(element);
                    self.0.checked(V::check_count(elements.len(), length))?;
                }
                Ok(elements)
            }
        }

        from.deserialize_seq(Elements(context, PhantomData))
    }
}

/// Reads a string as a range, without a check for UTF-8.
struct Range<'c, 'a>(&'c mut Context<'a>);

impl<'a> Visitor<'a> for Range<'_, 'a> {
    type Value = ByteRange;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    #[inline]
    fn visit_borrowed_bytes<E: Error>(self, value: &'a [u8]) -> Result<ByteRange, E> {
        self.0.borrowed(value)
    }

    #[inline]
    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<ByteRange, E> {
        self.0.copied(value)
    }
}

impl<'a> Value<'a> for Text {
    #[inline]
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        let range = from.deserialize_bytes(Range(context))?;
        let check = assembly::check_text(context.get(range));
        context.checked(check)?;
        Ok(Self(range))
    }
}

impl<'a> Value<'a> for Base64Text {
    #[inline]
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        from.deserialize_bytes(Range(context)).map(Self)
    }
}

impl<'a> Value<'a> for String {
    fn read<D: Deserializer<'a>>(_: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        serde_core::Deserialize::deserialize(from)
    }
}

impl<'a> Value<'a> for i64 {
    fn read<D: Deserializer<'a>>(_: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        serde_core::Deserialize::deserialize(from)
    }
}

impl<'a> Value<'a> for Millis {
    #[inline]
    fn read<D: Deserializer<'a>>(_: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        struct Time;

        impl Visitor<'_> for Time {
            type Value = Millis;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a time")
            }

            fn visit_u64<E: Error>(self, time: u64) -> Result<Millis, E> {
                i64::try_from(time).map_err(E::custom).and_then(|time| self.visit_i64(time))
            }

            fn visit_i64<E: Error>(self, time: i64) -> Result<Millis, E> {
                Ok(Millis(assembly::millis_of_integer(time)))
            }

            #[inline]
            fn visit_f64<E: Error>(self, time: f64) -> Result<Millis, E> {
                let millis = assembly::millis_of_float(time);
                millis.map(Millis).ok_or_else(|| E::custom("out of range"))
            }
        }

        // Not `deserialize_any`, for which the feature `arbitrary_precision` of `serde_json` changes
        // the type of a number.
        from.deserialize_f64(Time)
    }
}
