//! Walks over the values of a CBOR body (RFC 8949) in one pass.
//!
//! Each value is taken in whatever form it has: with or without a length, in pieces, and with any
//! tags. The form that Kinesis writes takes a few instructions per value; see [`plain`].

use super::head::{ARRAY, BYTES, END, MAP, NEGATIVE, TAG, TEXT, UNSIGNED, ValueHead};
use super::plain;
use crate::record::{ByteRange, SequenceNumber};
use crate::source::response::{Unreadable, assembly};

pub(super) type Read<T> = Result<T, Refused>;

/// States that the walk has refused the body, and holds the reason. An error without a size returns
/// in a register, and every value of a body returns through several results.
#[derive(Debug)]
pub(super) struct Refused;

/// The depth to which an unknown member may be nested. No member of Kinesis is nested deeper.
const MAX_DEPTH: u8 = 32;

/// Replaces the number of elements where an [`END`] follows the last one.
const UNTIL_END: u64 = u64::MAX;

const CUT_SHORT: &str = "the body is cut short";
const MALFORMED: &str = "the body is not CBOR";
const OUT_OF_RANGE: &str = "a number is out of range";
const EXTRA_BYTES: &str = "bytes follow the end of the body";
const WRONG_TYPE: &str = "a member has the wrong type";

/// The place of the walk in the body.
pub(super) struct Walk<'a> {
    body: &'a [u8],
    /// The body from the next value.
    rest: &'a [u8],
    /// The values that the body has only in pieces. Their ranges begin where the body ends.
    tail: Vec<u8>,
    /// The reason for which the body was refused.
    refusal: Unreadable,
}

/// A payload as the body has it.
#[derive(Clone, Copy)]
pub(super) struct Payload {
    pub(super) range: ByteRange,
    /// True for a text: it is the base64 of the payload.
    pub(super) is_base64: bool,
}

impl<'a> Walk<'a> {
    /// Walks over a whole body, which must be one map.
    pub(super) fn over<T: Default>(
        body: &'a [u8],
        mut member: impl FnMut(&mut Self, &[u8], &mut T) -> Read<()>,
    ) -> Result<(T, Vec<u8>), Unreadable> {
        assembly::check_length(body)?;
        let refusal = Unreadable(MALFORMED);
        let mut walk = Self { body, rest: body, tail: Vec::new(), refusal };
        let mut value = T::default();
        match walk.map(|walk, name| member(walk, name, &mut value)) {
            Err(Refused) => Err(walk.refusal),
            Ok(false) => Err(Unreadable(WRONG_TYPE)),
            Ok(true) if !walk.rest.is_empty() => Err(Unreadable(EXTRA_BYTES)),
            Ok(true) => Ok((value, walk.tail)),
        }
    }

    #[cold]
    fn refuse<T>(&mut self, reason: &'static str) -> Read<T> {
        self.check(Err(Unreadable(reason)))
    }

    /// Keeps the reason of a failed check.
    #[inline]
    pub(super) fn check<T>(&mut self, result: Result<T, Unreadable>) -> Read<T> {
        result.map_err(|refusal| {
            self.refusal = refusal;
            Refused
        })
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Returns the bytes of a value that was read before.
    #[inline]
    pub(super) fn get(&self, range: ByteRange) -> &[u8] {
        match range.start().checked_sub(self.body.len()) {
            None => range.of(self.body),
            Some(start) => self.tail.get(start..start + range.len()).unwrap_or_default(),
        }
    }

    /// Reads a map, one member after the other. Returns false for null.
    #[inline]
    pub(super) fn map(&mut self, member: impl FnMut(&mut Self, &[u8]) -> Read<()>) -> Read<bool> {
        self.map_by(|_| None, Self::name, member)
    }

    /// Reads a map, one member after the other. Returns false for null.
    ///
    /// `known` parses a name of a known form, and returns the bytes after it; `name` reads any other.
    #[inline]
    pub(super) fn map_by<N>(
        &mut self,
        known: impl Fn(&'a [u8]) -> Option<(N, &'a [u8])>,
        name: impl Fn(&mut Self) -> Read<N>,
        mut member: impl FnMut(&mut Self, N) -> Read<()>,
    ) -> Read<bool> {
        let left = match self.known(plain::endless_map) {
            Some(()) => Some(UNTIL_END),
            None => self.map_length()?,
        };
        let Some(mut left) = left else { return Ok(false) };
        while left != 0 {
            let name = match self.known(&known) {
                Some(name) => {
                    left -= u64::from(left != UNTIL_END);
                    name
                }
                None if self.has_another(&mut left) => name(self)?,
                None => break,
            };
            member(self, name)?;
        }
        Ok(true)
    }

    /// Reads the number of members of a map. Returns `None` for null.
    #[inline(never)]
    fn map_length(&mut self) -> Read<Option<u64>> {
        let head = self.value()?;
        match head.major() {
            MAP => self.count(head).map(Some),
            _ if head.is_null() => Ok(None),
            _ => self.refuse(WRONG_TYPE),
        }
    }

    /// Lets `parse` take a value of a known form, and return the bytes after it. Returns `None` for
    /// a value of another form, which is still to be read.
    #[allow(clippy::inline_always, reason = "measured: see `head`")]
    #[inline(always)]
    fn known<T>(&mut self, parse: impl FnOnce(&'a [u8]) -> Option<(T, &'a [u8])>) -> Option<T> {
        let (value, rest) = parse(self.rest)?;
        self.rest = rest;
        Some(value)
    }

    /// Reads a list, one element after the other. `element` gets the number of elements that
    /// follow, if the list states it. Returns false for null.
    #[inline]
    pub(super) fn list(
        &mut self,
        mut element: impl FnMut(&mut Self, Option<u64>) -> Read<()>,
    ) -> Read<bool> {
        let head = self.value()?;
        if head.major() != ARRAY {
            return if head.is_null() { Ok(false) } else { self.refuse(WRONG_TYPE) };
        }
        let mut left = self.count(head)?;
        while self.has_another(&mut left) {
            element(self, (left != UNTIL_END).then_some(left))?;
        }
        Ok(true)
    }

    /// Reads a text, or null, which is absent.
    #[inline]
    pub(super) fn text(&mut self) -> Read<ByteRange> {
        let Some(text) = self.known(plain::text) else { return self.other_text() };
        self.check(assembly::check_text(text))?;
        self.range_before(text.len())
    }

    /// Reads a text, or null, which is empty. Returns true if it is a sequence number, which needs
    /// no other check.
    #[inline]
    pub(super) fn sequence_number(&mut self) -> Read<(ByteRange, bool)> {
        let number = |rest| plain::text(rest).filter(|(text, _)| SequenceNumber::is_one(text));
        if let Some(text) = self.known(number) {
            return Ok((self.range_before(text.len())?, true));
        }
        let range = self.text()?;
        let range = if range.is_absent() { ByteRange::EMPTY } else { range };
        Ok((range, SequenceNumber::is_one(self.get(range))))
    }

    /// Reads a text, or null, and compares it with `expected`.
    #[inline]
    pub(super) fn is_text(&mut self, expected: &[u8]) -> Read<bool> {
        if let Some(text) = self.known(plain::text) {
            return Ok(text == expected);
        }
        let text = self.other_text()?;
        Ok(self.get(text) == expected)
    }

    #[cold]
    fn other_text(&mut self) -> Read<ByteRange> {
        let head = self.value()?;
        let range = match head.major() {
            TEXT if head.has_length() => {
                let length = self.take(head.argument)?.len();
                self.range_before(length)?
            }
            TEXT => self.pieces(TEXT)?,
            _ if head.is_null() => ByteRange::ABSENT,
            _ => return self.refuse(WRONG_TYPE),
        };
        self.check(assembly::check_text(self.get(range)))?;
        Ok(range)
    }

    /// Reads a text, or null, and copies it.
    pub(super) fn string(&mut self) -> Read<Option<String>> {
        let range = self.text()?;
        if range.is_absent() {
            return Ok(None);
        }
        Ok(Some(String::from_utf8_lossy(self.get(range)).into_owned()))
    }

    /// Reads a byte string, or a text that is its base64, or null, which is empty.
    #[inline]
    pub(super) fn payload(&mut self) -> Read<Payload> {
        match self.known(plain::bytes) {
            Some(bytes) => Ok(Payload { range: self.range_before(bytes.len())?, is_base64: false }),
            None => self.other_payload(),
        }
    }

    #[cold]
    fn other_payload(&mut self) -> Read<Payload> {
        let head = self.value()?;
        let is_base64 = head.major() == TEXT;
        if (head.major() == BYTES || is_base64) && head.has_length() {
            let length = self.take(head.argument)?.len();
            return Ok(Payload { range: self.range_before(length)?, is_base64 });
        }
        let range = match head.major() {
            BYTES | TEXT => self.pieces(head.major())?,
            _ if head.is_null() => ByteRange::EMPTY,
            _ => return self.refuse(WRONG_TYPE),
        };
        Ok(Payload { range, is_base64 })
    }

    /// Reads an integer, or null.
    pub(super) fn integer(&mut self) -> Read<Option<i64>> {
        let head = self.value()?;
        match head.major() {
            UNSIGNED | NEGATIVE => self.integer_of(head).map(Some),
            _ if head.is_null() => Ok(None),
            _ => self.refuse(WRONG_TYPE),
        }
    }

    /// Reads a time in milliseconds, or null.
    #[inline]
    pub(super) fn time(&mut self) -> Read<Option<i64>> {
        match self.known(plain::time) {
            Some(time) => Ok(Some(assembly::millis_of_integer(time))),
            None => self.other_time(),
        }
    }

    #[cold]
    fn other_time(&mut self) -> Read<Option<i64>> {
        let head = self.value()?;
        match head.major() {
            UNSIGNED | NEGATIVE => {
                self.integer_of(head).map(|time| Some(assembly::millis_of_integer(time)))
            }
            _ => self.float_time(head),
        }
    }

    #[inline]
    fn integer_of(&mut self, head: ValueHead) -> Read<i64> {
        match i64::try_from(head.argument) {
            Ok(number) if head.major() == UNSIGNED => Ok(number),
            Ok(number) => Ok(-1 - number),
            Err(_) => self.refuse(OUT_OF_RANGE),
        }
    }

    fn float_time(&mut self, head: ValueHead) -> Read<Option<i64>> {
        match head.float().map(assembly::millis_of_float) {
            Some(Some(millis)) => Ok(Some(millis)),
            Some(None) => self.refuse(OUT_OF_RANGE),
            None if head.is_null() => Ok(None),
            None => self.refuse(WRONG_TYPE),
        }
    }

    /// Skips a value of any type.
    pub(super) fn skip(&mut self) -> Read<()> {
        self.skip_nested(MAX_DEPTH)
    }

    fn skip_nested(&mut self, depth: u8) -> Read<()> {
        let Some(depth) = depth.checked_sub(1) else {
            return self.refuse("a member is nested too deeply");
        };
        let head = self.value()?;
        let elements = match head.major() {
            BYTES | TEXT if head.has_length() => return self.take(head.argument).map(drop),
            BYTES | TEXT => {
                while self.piece(head.major())?.is_some() {}
                return Ok(());
            }
            MAP => 2,
            ARRAY => 1,
            _ if head.first == END => return self.refuse(MALFORMED),
            _ => return Ok(()),
        };
        let mut left = self.count(head)?;
        while self.has_another(&mut left) {
            for _ in 0..elements {
                self.skip_nested(depth)?;
            }
        }
        Ok(())
    }

    /// Reads the name of a member.
    #[inline]
    pub(super) fn name(&mut self) -> Read<&'a [u8]> {
        match self.known(plain::text) {
            Some(name) => Ok(name),
            None => self.other_name(),
        }
    }

    #[cold]
    fn other_name(&mut self) -> Read<&'a [u8]> {
        let head = self.value()?;
        if head.major() != TEXT {
            return self.refuse(WRONG_TYPE);
        }
        if head.has_length() { self.take(head.argument) } else { self.pieced_name() }
    }

    #[cold]
    fn pieced_name(&mut self) -> Read<&'a [u8]> {
        let range = self.pieces(TEXT)?;
        let name = super::MEMBERS.iter().find(|name| **name == self.get(range));
        Ok(name.copied().unwrap_or_default())
    }

    /// Joins the pieces of a string in the tail.
    #[cold]
    fn pieces(&mut self, major: u8) -> Read<ByteRange> {
        let start = self.tail.len();
        while let Some(piece) = self.piece(major)? {
            self.tail.extend_from_slice(piece);
        }
        let before = self.body.len();
        ByteRange::new(before + start, before + self.tail.len()).ok_or(Refused)
    }

    /// Reads a piece of a string, or the end of it.
    fn piece(&mut self, major: u8) -> Read<Option<&'a [u8]>> {
        let head = self.head()?;
        if head.first == END {
            return Ok(None);
        }
        if head.major() != major || !head.has_length() {
            return self.refuse(MALFORMED);
        }
        self.take(head.argument).map(Some)
    }

    /// Returns the number of elements of a list, or of members of a map.
    #[inline]
    fn count(&mut self, head: ValueHead) -> Read<u64> {
        if !head.has_length() {
            return Ok(UNTIL_END);
        }
        // Each element takes a byte.
        if head.argument > self.rest.len() as u64 {
            return self.refuse(CUT_SHORT);
        }
        Ok(head.argument)
    }

    #[inline]
    fn has_another(&mut self, left: &mut u64) -> bool {
        if *left == UNTIL_END {
            let Some((&END, rest)) = self.rest.split_first() else { return true };
            self.rest = rest;
            return false;
        }
        let has_another = *left != 0;
        *left -= u64::from(has_another);
        has_another
    }

    #[inline]
    fn take(&mut self, length: u64) -> Read<&'a [u8]> {
        let split = usize::try_from(length).ok().and_then(|at| self.rest.split_at_checked(at));
        let Some((taken, rest)) = split else { return self.refuse(CUT_SHORT) };
        self.rest = rest;
        Ok(taken)
    }

    /// Returns the range of the last bytes that were read.
    #[inline]
    fn range_before(&self, length: usize) -> Read<ByteRange> {
        let end = self.body.len() - self.rest.len();
        ByteRange::new(end - length, end).ok_or(Refused)
    }

    /// Reads the head of a value after its tags.
    #[inline]
    fn value(&mut self) -> Read<ValueHead> {
        let mut head = self.head()?;
        while head.major() == TAG {
            head = self.head()?;
        }
        Ok(head)
    }

    #[allow(clippy::inline_always, reason = "measured: a call costs more than the whole head")]
    #[inline(always)]
    fn head(&mut self) -> Read<ValueHead> {
        let Some((&first, rest)) = self.rest.split_first() else { return self.refuse(CUT_SHORT) };
        self.rest = rest;
        let info = first & 31;
        let argument = if info < 24 { u64::from(info) } else { self.long_argument(first)? };
        Ok(ValueHead { first, argument })
    }

    #[inline(never)]
    fn long_argument(&mut self, first: u8) -> Read<u64> {
        match first & 31 {
            24 => self.array().map(|[byte]| u64::from(byte)),
            25 => self.array().map(|bytes| u64::from(u16::from_be_bytes(bytes))),
            26 => self.array().map(|bytes| u64::from(u32::from_be_bytes(bytes))),
            27 => self.array().map(u64::from_be_bytes),
            31 if matches!(first >> 5, BYTES | TEXT | ARRAY | MAP) || first == END => Ok(0),
            _ => self.refuse(MALFORMED),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else {
            return self.refuse(CUT_SHORT);
        };
        self.rest = rest;
        Ok(*bytes)
    }
}
