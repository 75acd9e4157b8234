//! Reads aggregated records, as written by the Kinesis Producer Library (KPL):
//! <https://github.com/awslabs/amazon-kinesis-producer/blob/master/aggregation-format.md>.
//!
//! ```text
//!   magic (4) │ message: keys, hash keys, parts │ MD5 of the message (16)
//! ```
//!
//! The parts are the user records. The message is checked once, on arrival. From then on, a cursor
//! walks over it, and each part is a range of the buffer that holds the message. Only the ranges of
//! the keys are kept, eight bytes each, and a mark for each part if some are dropped. A message with
//! more entries than its length allows, three bytes each, is not accepted as an aggregated record: the
//! ranges take at most three times its length.
//!
//! A record that is not valid in every part is treated as a plain record, since it may be one.

use md5::{Digest, Md5};

use super::hash_range::HashRange;
use crate::record::ByteRange;

/// The length of the shortest table entry in bytes, since no partition key is empty. The tables of
/// a message with shorter entries would take far more memory than the message.
const SHORTEST_ENTRY: usize = 3;

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
const DIGEST: usize = 16;

/// An aggregated record, in the buffer of its response.
#[derive(Debug)]
pub(super) struct Aggregate {
    message: ByteRange,
    /// The partition keys.
    keys: Vec<ByteRange>,
    /// The explicit hash keys.
    hash_keys: Vec<ByteRange>,
    /// The number of parts that are kept.
    kept: usize,
    /// The index of the last part that is kept.
    last: u64,
    /// True for each part that is dropped. Empty if none is.
    dropped: Vec<bool>,
}

/// A position among the parts of an aggregated record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PartCursor {
    /// The offset in the buffer of the next field of the message.
    offset: usize,
    /// The index of the next part.
    number: u64,
}

/// A user record of an aggregated record.
#[derive(Debug)]
pub(super) struct Part {
    /// The index of the part in the aggregated record.
    pub(super) number: u64,
    pub(super) key: ByteRange,
    pub(super) data: ByteRange,
    /// True if no other part is kept after this one.
    pub(super) is_last: bool,
}

/// A part as encoded in the message: the indexes of its keys, and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EncodedPart {
    key: usize,
    hash_key: Option<usize>,
    data: ByteRange,
}

impl Aggregate {
    /// Parses the record that is this range of the buffer. Returns `None` for a plain record.
    #[inline]
    pub(super) fn of(data: ByteRange, buffer: &[u8]) -> Option<Self> {
        // Nearly all plain records are ruled out here.
        if data.of(buffer).starts_with(&MAGIC) { Self::parse(data, buffer) } else { None }
    }

    #[inline(never)]
    fn parse(data: ByteRange, buffer: &[u8]) -> Option<Self> {
        let (start, end) = (data.start() + MAGIC.len(), data.end().checked_sub(DIGEST)?);
        let message = ByteRange::new(start, end)?;
        if Md5::digest(message.of(buffer))[..] != *buffer.get(end..data.end())? {
            return None;
        }
        let mut counts = [0_usize; 3];
        for field in fields(message, buffer) {
            if let Some(count) = counts.get_mut(field?.table) {
                *count += 1;
            }
        }
        let [keys, hash_keys, parts] = counts;
        if (keys + hash_keys + parts) * SHORTEST_ENTRY > message.len() || parts == 0 {
            return None;
        }
        let mut aggregate = Self {
            message,
            keys: Vec::with_capacity(keys),
            hash_keys: Vec::with_capacity(hash_keys),
            kept: parts,
            last: parts as u64 - 1,
            dropped: Vec::new(),
        };
        for field in fields(message, buffer) {
            let field = field?;
            match field.table {
                KEYS => aggregate.keys.push(field.value),
                HASH_KEYS => aggregate.hash_keys.push(field.value),
                _ => {}
            }
        }
        aggregate.is_valid(buffer).then_some(aggregate)
    }

    /// Returns the number of parts that are kept.
    pub(super) fn len(&self) -> usize {
        self.kept
    }

    /// Returns the bytes that the tables occupy.
    pub(super) fn memory(&self) -> usize {
        let ranges = self.keys.capacity() + self.hash_keys.capacity();
        ranges * size_of::<ByteRange>() + self.dropped.capacity()
    }

    /// Returns the position of the first part.
    pub(super) fn first(&self) -> PartCursor {
        PartCursor { offset: self.message.start(), number: 0 }
    }

    /// Drops the parts from `from` on with hash keys of another shard, and returns their number.
    /// Such parts were put again after a reshard, and the other shard holds them as well.
    pub(super) fn retain(&mut self, range: &HashRange, from: PartCursor, buffer: &[u8]) -> usize {
        if *range == HashRange::WHOLE {
            return 0;
        }
        // Adjacent parts usually have the same key.
        let mut known = None;
        let (mut at, mut dropped, mut last) = (from, Vec::new(), None);
        let mut removed = 0;
        while let Some((part, number)) = self.encoded(&mut at, buffer) {
            let keys = (part.key, part.hash_key);
            let is_inside = match known {
                Some((of, is_inside)) if of == keys => is_inside,
                _ => self.hash(&part, buffer).is_none_or(|hash| range.contains(hash)),
            };
            known = Some((keys, is_inside));
            if is_inside {
                last = Some(number);
                continue;
            }
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            dropped.resize(index, false);
            dropped.push(true);
            removed += 1;
        }
        if removed > 0 {
            (self.dropped, self.kept) = (dropped, self.kept - removed);
            self.last = last.unwrap_or(self.last);
        }
        removed
    }

    /// Returns the next kept part from `at` on, and the position after it.
    #[inline]
    pub(super) fn part(&self, mut at: PartCursor, buffer: &[u8]) -> Option<(Part, PartCursor)> {
        loop {
            let (part, number) = self.encoded(&mut at, buffer)?;
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            if self.dropped.get(index).is_some_and(|is_dropped| *is_dropped) {
                continue;
            }
            let key = *self.keys.get(part.key)?;
            let is_last = number == self.last;
            return Some((Part { number, key, data: part.data, is_last }, at));
        }
    }

    /// Returns the next part, dropped or not, with its index, and moves the position past it.
    #[inline]
    fn encoded(&self, at: &mut PartCursor, buffer: &[u8]) -> Option<(EncodedPart, u64)> {
        while at.offset < self.message.end() {
            let field = Field::read(at.offset, self.message.end(), buffer)?;
            at.offset = field.value.end();
            if field.table == PARTS {
                let number = at.number;
                at.number += 1;
                return Some((EncodedPart::read(field.value, buffer)?, number));
            }
        }
        None
    }

    /// Returns true if every part is complete and every key is valid.
    fn is_valid(&self, buffer: &[u8]) -> bool {
        let text = |range: &ByteRange| std::str::from_utf8(range.of(buffer)).ok();
        let is_hash = |range: &ByteRange| text(range).is_some_and(|text| hash_of(text).is_some());
        let is_whole = |part: EncodedPart| {
            part.key < self.keys.len() && part.hash_key.is_none_or(|key| key < self.hash_keys.len())
        };
        let parts = fields(self.message, buffer).flatten().filter(|field| field.table == PARTS);
        self.keys.iter().all(|key| text(key).is_some())
            && self.hash_keys.iter().all(is_hash)
            && parts
                .map(|part| EncodedPart::read(part.value, buffer))
                .all(|part| part.is_some_and(is_whole))
    }

    /// Returns the hash key that selects the shard of a part.
    fn hash(&self, part: &EncodedPart, buffer: &[u8]) -> Option<u128> {
        if let Some(index) = part.hash_key {
            let text = self.hash_keys.get(index)?.of(buffer);
            return hash_of(std::str::from_utf8(text).ok()?);
        }
        let digest = Md5::digest(self.keys.get(part.key)?.of(buffer));
        Some(u128::from_be_bytes(digest.into()))
    }
}

impl EncodedPart {
    /// Reads a part. Returns `None` if it is malformed, or lacks its key or its payload.
    #[inline]
    fn read(part: ByteRange, buffer: &[u8]) -> Option<Self> {
        let (mut key, mut hash_key, mut data) = (None, None, None);
        let mut at = part.start();
        while at < part.end() {
            let field = Field::read(at, part.end(), buffer)?;
            at = field.value.end();
            match (field.table, field.number) {
                (KEYS, Some(index)) => key = Some(usize::try_from(index).ok()?),
                (HASH_KEYS, Some(index)) => hash_key = Some(usize::try_from(index).ok()?),
                (DATA, None) if field.is_delimited => data = Some(field.value),
                (KEYS | HASH_KEYS | DATA, _) => return None,
                _ => {}
            }
        }
        Some(Self { key: key?, hash_key, data: data? })
    }
}

/// Parses an explicit hash key: `0|([1-9]\d{0,38})`.
fn hash_of(text: &str) -> Option<u128> {
    let is_number = matches!(text.as_bytes(), b"0" | [b'1'..=b'9', ..]);
    is_number.then(|| text.parse().ok()).flatten()
}

/// The tables of a message, and the fields of a part. The index is one less than the number of the
/// field.
const KEYS: usize = 0;
const HASH_KEYS: usize = 1;
const PARTS: usize = 2;
const DATA: usize = 2;

/// A field of a message or of a part, in Protocol Buffers:
/// <https://protobuf.dev/programming-guides/encoding/>.
struct Field {
    /// One less than the number of the field.
    table: usize,
    /// The bytes of the value.
    value: ByteRange,
    /// The value, if it is a varint.
    number: Option<u64>,
    is_delimited: bool,
}

impl Field {
    /// Reads the field at `start`. Returns `None` if it is malformed or does not end before `end`.
    #[inline]
    fn read(start: usize, end: usize, buffer: &[u8]) -> Option<Self> {
        let buffer = buffer.get(..end)?;
        let (key, start) = varint(buffer, start)?;
        let table = (u32::try_from(key).ok()? >> 3).checked_sub(1)? as usize;
        let (mut number, mut is_delimited) = (None, false);
        let (start, end) = match key & 7 {
            0 => {
                let (value, end) = varint(buffer, start)?;
                number = Some(value);
                (start, end)
            }
            1 => (start, start.checked_add(8)?),
            2 => {
                is_delimited = true;
                let (length, start) = varint(buffer, start)?;
                (start, start.checked_add(usize::try_from(length).ok()?)?)
            }
            5 => (start, start.checked_add(4)?),
            // Groups are obsolete, and no producer writes them.
            _ => return None,
        };
        if end > buffer.len() {
            return None;
        }
        Some(Self { table, value: ByteRange::new(start, end)?, number, is_delimited })
    }
}

/// Iterates over the top-level fields of a message. Yields `None` and ends at an invalid field.
fn fields(message: ByteRange, buffer: &[u8]) -> impl Iterator<Item = Option<Field>> {
    let mut at = Some(message.start());
    std::iter::from_fn(move || {
        let start = at.filter(|start| *start < message.end())?;
        let field = Field::read(start, message.end(), buffer);
        let field = field.filter(|field| field.table > PARTS || field.is_delimited);
        at = field.as_ref().map(|field| field.value.end());
        Some(field)
    })
}

/// Decodes a number, and returns it with its end.
#[inline]
fn varint(buffer: &[u8], start: usize) -> Option<(u64, usize)> {
    let first = *buffer.get(start)?;
    if first < 0x80 { Some((first.into(), start + 1)) } else { long_varint(buffer, start) }
}

fn long_varint(buffer: &[u8], start: usize) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for (index, byte) in buffer.get(start..)?.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7F);
        // The tenth byte holds the last bit.
        if index == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * index);
        if *byte < 0x80 {
            return Some((number, start + index + 1));
        }
    }
    None
}

/// Reads an arbitrary message as an aggregated record with a valid checksum.
#[cfg(fuzzing)]
pub(super) fn fuzz(message: &[u8]) {
    let data = [&MAGIC, message, &Md5::digest(message)[..]].concat();
    let Some(range) = ByteRange::new(0, data.len()) else { return };
    let Some(mut aggregate) = Aggregate::of(range, &data) else { return };
    let entries = aggregate.keys.capacity() + aggregate.hash_keys.capacity() + aggregate.len();
    assert!(
        entries * SHORTEST_ENTRY <= message.len(),
        "the message must have room for its entries"
    );
    let all = aggregate.len();
    let range = HashRange { first: 0, last: u128::MAX / 2 };
    let dropped = aggregate.retain(&range, aggregate.first(), &data);
    assert_eq!(aggregate.len() + dropped, all);
    let (mut at, mut left) = (aggregate.first(), aggregate.len());
    while let Some((part, after)) = aggregate.part(at, &data) {
        left -= 1;
        assert_eq!(part.is_last, left == 0);
        assert!(part.data.end() <= data.len() && part.key.end() <= data.len());
        at = after;
    }
    assert_eq!(left, 0);
}

#[cfg(test)]
mod tests;
