//! Reads aggregated records, as written by the Kinesis Producer Library (KPL):
//! <https://github.com/awslabs/amazon-kinesis-producer/blob/master/aggregation-format.md>.
//!
//! ```text
//!   magic (4) │ message: keys, hash keys, parts │ MD5 of the message (16)
//! ```
//!
//! The parts are the user records. The message is scanned once on arrival, and each part is decoded
//! when it is delivered. Apart from the record itself, only the offsets of its keys and parts are
//! kept, four bytes each. A message with more entries than its length allows, three bytes each, is not
//! accepted as an aggregated record: the offsets take at most four thirds of its length.
//!
//! A record that is not valid in every part is treated as a plain record, since it may be one.

use std::sync::Arc;

use bytes::Bytes;
use md5::{Digest, Md5};
use prost::Message;

use super::hash_range::HashRange;

/// The length of the shortest table entry in bytes, since no partition key is empty. The tables of
/// a message with shorter entries would take far more memory than the message.
const SHORTEST_ENTRY: usize = 3;

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
const DIGEST: usize = 16;

/// Replaces the offset of a part that is not delivered.
const DROPPED: u32 = u32::MAX;

/// A user record as encoded in the message. Fields that proto2 requires are optional here, so that
/// a missing one is detected.
#[derive(Clone, PartialEq, Message)]
struct EncodedPart {
    #[prost(uint64, optional, tag = "1")]
    key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    hash_key: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    data: Option<Bytes>,
}

/// An aggregated record.
pub(super) struct Aggregate {
    message: Bytes,
    /// The offset of the length prefix of each partition key.
    keys: Vec<u32>,
    /// The offset of the length prefix of each explicit hash key.
    hash_keys: Vec<u32>,
    /// The offset of the length prefix of each part, or [`DROPPED`].
    parts: Vec<u32>,
    /// The index of the next part that may be delivered.
    next: usize,
    /// The number of parts left to deliver.
    left: usize,
    /// The partition key of the last delivered part, with its index. The next part may share it.
    last_key: Option<(u64, Arc<str>)>,
}

/// A user record of an aggregated record.
pub(super) struct Part {
    /// The index of the part in the aggregated record.
    pub(super) number: u64,
    pub(super) key: Arc<str>,
    /// A slice of the memory of the aggregated record.
    pub(super) data: Bytes,
    /// True if no other part is delivered after this one.
    pub(super) is_last: bool,
}

impl Aggregate {
    /// Returns true if `data` may be an aggregated record. Nearly all plain records are ruled out.
    #[inline]
    pub(super) fn may_be_aggregate(data: &[u8]) -> bool {
        data.starts_with(&MAGIC)
    }

    /// Parses an aggregated record. Returns `None` for a plain record.
    pub(super) fn of(data: &Bytes) -> Option<Self> {
        let end = data.len().checked_sub(DIGEST)?;
        let message = data.get(MAGIC.len()..end)?;
        if !Self::may_be_aggregate(data) || Md5::digest(message)[..] != data[end..] {
            return None;
        }
        let message = data.slice(MAGIC.len()..end);
        let mut counts = [0_usize; 3];
        for field in fields(&message) {
            if let Some(count) = counts.get_mut(field?.table) {
                *count += 1;
            }
        }
        if counts.iter().sum::<usize>() * SHORTEST_ENTRY > message.len() || counts[PARTS] == 0 {
            return None;
        }
        let mut tables = counts.map(Vec::with_capacity);
        for field in fields(&message) {
            let field = field?;
            if let Some(table) = tables.get_mut(field.table) {
                table.push(field.start);
            }
        }
        let [keys, hash_keys, parts] = tables;
        let left = parts.len();
        let aggregate = Self { message, keys, hash_keys, parts, next: 0, left, last_key: None };
        aggregate.is_valid().then_some(aggregate)
    }

    /// Returns the number of parts left to deliver.
    pub(super) fn len(&self) -> usize {
        self.left
    }

    /// Drops the parts with hash keys of another shard. Such parts were put again after a reshard, and
    /// the other shard holds them as well.
    pub(super) fn retain(&mut self, range: &HashRange) {
        if *range == HashRange::WHOLE {
            return;
        }
        // Adjacent parts usually have the same key.
        let mut last = None;
        for number in self.next..self.parts.len() {
            let Some(stored) = self.stored(number) else { continue };
            let keys = (stored.key, stored.hash_key);
            let is_inside = match last {
                Some((of, is_inside)) if of == keys => is_inside,
                _ => self.hash(&stored).is_none_or(|hash| range.contains(hash)),
            };
            last = Some((keys, is_inside));
            if !is_inside {
                self.parts[number] = DROPPED;
                self.left -= 1;
            }
        }
    }

    /// Skips the parts up to and including `part`, which are acknowledged.
    pub(super) fn skip_through(&mut self, part: u64) {
        let end = usize::try_from(part).map_or(usize::MAX, |part| part.saturating_add(1));
        let end = end.clamp(self.next, self.parts.len());
        let passed = self.parts[self.next..end].iter();
        self.left -= passed.filter(|start| **start != DROPPED).count();
        self.next = end;
    }

    pub(super) fn next(&mut self) -> Option<Part> {
        let rest = self.parts.get(self.next..)?;
        let number = self.next + rest.iter().position(|start| *start != DROPPED)?;
        let stored = self.stored(number)?;
        let key = self.shared_key(stored.key?)?;
        (self.next, self.left) = (number + 1, self.left - 1);
        let is_last = self.left == 0;
        Some(Part { number: number as u64, key, data: stored.data?, is_last })
    }

    /// Returns the bytes of payload and partition key for each part left to deliver.
    pub(super) fn sizes(&self) -> impl Iterator<Item = usize> {
        (self.next..self.parts.len()).filter_map(|number| {
            let stored = self.stored(number)?;
            let key = *self.keys.get(usize::try_from(stored.key?).ok()?)?;
            Some(stored.data?.len() + self.text(key)?.len())
        })
    }

    /// Returns true if every part is complete and every key is valid.
    fn is_valid(&self) -> bool {
        let [keys, hash_keys] = [self.keys.len() as u64, self.hash_keys.len() as u64];
        let is_text = |start: &u32| self.text(*start).is_some();
        let is_hash = |start: &u32| self.text(*start).is_some_and(|text| hash_of(text).is_some());
        let is_whole = |stored: &EncodedPart| {
            stored.data.is_some()
                && stored.key.is_some_and(|key| key < keys)
                && stored.hash_key.is_none_or(|key| key < hash_keys)
        };
        self.keys.iter().all(is_text)
            && self.hash_keys.iter().all(is_hash)
            && (0..self.parts.len()).all(|part| self.stored(part).as_ref().is_some_and(is_whole))
    }

    fn stored(&self, number: usize) -> Option<EncodedPart> {
        let start = *self.parts.get(number).filter(|start| **start != DROPPED)?;
        let (start, end) = delimited(&self.message, start as usize)?;
        EncodedPart::decode(self.message.slice(start..end)).ok()
    }

    fn text(&self, start: u32) -> Option<&str> {
        let (start, end) = delimited(&self.message, start as usize)?;
        std::str::from_utf8(&self.message[start..end]).ok()
    }

    fn shared_key(&mut self, index: u64) -> Option<Arc<str>> {
        if let Some((last, key)) = &self.last_key
            && *last == index
        {
            return Some(Arc::clone(key));
        }
        let key: Arc<str> = self.text(*self.keys.get(usize::try_from(index).ok()?)?)?.into();
        self.last_key = Some((index, Arc::clone(&key)));
        Some(key)
    }

    /// Returns the hash key that selects the shard of a part.
    fn hash(&self, stored: &EncodedPart) -> Option<u128> {
        let text = |table: &Vec<u32>, index: u64| {
            table.get(usize::try_from(index).ok()?).and_then(|start| self.text(*start))
        };
        if let Some(index) = stored.hash_key {
            return hash_of(text(&self.hash_keys, index)?);
        }
        let digest = Md5::digest(text(&self.keys, stored.key?)?);
        Some(u128::from_be_bytes(digest.into()))
    }
}

/// Parses an explicit hash key: `0|([1-9]\d{0,38})`.
fn hash_of(text: &str) -> Option<u128> {
    let is_number = matches!(text.as_bytes(), b"0" | [b'1'..=b'9', ..]);
    is_number.then(|| text.parse().ok()).flatten()
}

/// The index of the table of parts. The index of a table is one less than the number of its field.
const PARTS: usize = 2;

/// A field of the message.
struct Field {
    /// The index of the table that holds the field, or a larger number if no table does.
    table: usize,
    /// The offset of its length prefix.
    start: u32,
}

/// Iterates over the top-level fields of a message without decoding their contents. Yields `None`
/// and ends at an invalid field.
fn fields(message: &[u8]) -> impl Iterator<Item = Option<Field>> {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let begin = at.filter(|begin| *begin < message.len())?;
        let field = field(message, begin);
        at = field.as_ref().map(|(_, end)| *end);
        Some(field.map(|(field, _)| field))
    })
}

fn field(message: &[u8], begin: usize) -> Option<(Field, usize)> {
    let (key, start) = varint(message, begin)?;
    let (number, wire_type) = (key >> 3, key & 7);
    let end = match wire_type {
        0 => varint(message, start)?.1,
        1 => start.checked_add(8)?,
        2 => delimited(message, start)?.1,
        5 => start.checked_add(4)?,
        // Groups are obsolete, and no producer writes them.
        _ => return None,
    };
    if number == 0 || end > message.len() {
        return None;
    }
    let is_table = (1..=3).contains(&number);
    if is_table && wire_type != 2 {
        return None;
    }
    let table = if is_table { number - 1 } else { usize::MAX };
    Some((Field { table, start: u32::try_from(start).ok()? }, end))
}

/// Returns the start and end of a value, from the offset `start` of its length prefix.
fn delimited(message: &[u8], start: usize) -> Option<(usize, usize)> {
    let (length, start) = varint(message, start)?;
    let end = start.checked_add(length)?;
    (end <= message.len()).then_some((start, end))
}

/// Decodes a number, and returns it with its end.
fn varint(message: &[u8], start: usize) -> Option<(usize, usize)> {
    let mut rest = message.get(start..)?;
    let number = prost::decode_length_delimiter(&mut rest).ok()?;
    Some((number, message.len() - rest.len()))
}

/// Reads an arbitrary message as an aggregated record with a valid checksum.
#[cfg(fuzzing)]
pub(super) fn fuzz(message: &[u8]) {
    let data = [&MAGIC, message, &Md5::digest(message)[..]].concat().into();
    let Some(mut aggregate) = Aggregate::of(&data) else { return };
    let Aggregate { keys, hash_keys, parts, .. } = &aggregate;
    let entries = keys.capacity() + hash_keys.capacity() + parts.capacity();
    assert!(
        entries * SHORTEST_ENTRY <= message.len(),
        "the message must have room for its entries"
    );
    let (all, middle) = (aggregate.len(), message.len() as u64 % 3);
    aggregate.skip_through(middle);
    aggregate.retain(&HashRange { first: 0, last: u128::MAX / 2 });
    let left = aggregate.len();
    assert!(left <= all);
    for last in (0..left).rev() {
        let part = aggregate.next();
        assert!(part.is_some_and(|part| part.number > middle && part.is_last == (last == 0)));
    }
    assert!(aggregate.next().is_none() && aggregate.len() == 0);
}

#[cfg(test)]
mod tests;
