//! The parts that both decoders share: the buffer, the payloads and the times.

use base64_simd::STANDARD;

use super::{RecordRange, Unreadable};
use crate::record::ByteRange;

/// The most records that Kinesis returns for one call.
const MOST_RECORDS: usize = 10_000;

/// The fewest bytes of a body that one more record takes, with a sequence number of one digit.
const SHORTEST_RECORD: usize = 16;

/// The bytes of a record besides its values: the names of its members, and its time. JSON takes more.
const NAMES_BYTES: usize = 76;

/// The fewest bytes of a body for each record in the index before the record is read. The index
/// begins with at most a quarter of the length of the body.
const EXPECTED_RECORD: usize = 4 * size_of::<RecordRange>();

/// The most children of a shard, and parents of a child, that are read. Kinesis has two.
const MOST_RELATIVES: usize = 100;

/// Times below this are in seconds, others in milliseconds: 10^11 is the year 5138 in seconds, and
/// 1973 in milliseconds. Kinesis writes seconds in JSON and milliseconds in CBOR. Other servers write
/// seconds in both.
const FIRST_MILLIS: i64 = 100_000_000_000;

const TOO_LONG: Unreadable = Unreadable("the body is too long");

/// Refuses a body for which a range cannot be made.
pub(super) fn check_length(body: &[u8]) -> Result<(), Unreadable> {
    match ByteRange::new(0, body.len()) {
        Some(_) => Ok(()),
        None => Err(TOO_LONG),
    }
}

/// Refuses records that take far more memory in the index than in their body of `length` bytes.
/// Only records without a sequence number are that short.
#[inline]
pub(super) fn check_count(records: usize, length: usize) -> Result<(), Unreadable> {
    if records > MOST_RECORDS && records.saturating_mul(SHORTEST_RECORD) > length {
        return Err(Unreadable("the records are too many for the length of the body"));
    }
    Ok(())
}

/// Returns the number of records that a body of `length` bytes holds if all are as long as its first.
/// An index that grows instead is copied again and again, and takes up to twice its memory.
pub(super) fn expected_count(first: &RecordRange, length: usize) -> usize {
    let RecordRange { data, partition_key, sequence_number, .. } = first;
    let bytes = NAMES_BYTES + data.len() + partition_key.len() + sequence_number.len();
    length / bytes.max(EXPECTED_RECORD) + 1
}

/// Refuses a body with far more children or parents than a shard can have.
pub(super) fn check_relatives(count: usize) -> Result<(), Unreadable> {
    if count > MOST_RELATIVES {
        return Err(Unreadable("a shard has too many children or parents"));
    }
    Ok(())
}

/// Refuses a text that is not UTF-8. Nearly all texts are ASCII, for which this takes less time than
/// `from_utf8`.
#[inline]
pub(super) fn check_text(text: &[u8]) -> Result<(), Unreadable> {
    if is_ascii(text) || str::from_utf8(text).is_ok() {
        return Ok(());
    }
    Err(Unreadable("a text is not UTF-8"))
}

/// Does what `<[u8]>::is_ascii` does, in a third of the instructions for the texts of a record.
#[inline]
fn is_ascii(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk() else {
        return text.iter().fold(0, |all, byte| all | byte) < 0x80;
    };
    let words = text.as_chunks().0.iter().chain([last]);
    let all = words.fold(0, |all, word| all | u64::from_ne_bytes(*word));
    all & 0x8080_8080_8080_8080 == 0
}

/// Appends the tail to the body, in no more memory than both take.
pub(super) fn join(mut body: Vec<u8>, tail: &[u8]) -> Vec<u8> {
    body.reserve_exact(tail.len());
    body.extend_from_slice(tail);
    body
}

/// Appends `value` to the tail of a body of `length` bytes, and returns its range.
pub(super) fn append(
    tail: &mut Vec<u8>,
    length: usize,
    value: &[u8],
) -> Result<ByteRange, Unreadable> {
    let start = length + tail.len();
    let range = ByteRange::new(start, start + value.len());
    tail.extend_from_slice(value);
    range.ok_or(TOO_LONG)
}

/// Decodes the base64 text of a payload in place, and shortens the range to the payload.
#[inline]
pub(super) fn decode_payload(buffer: &mut [u8], data: &mut ByteRange) -> Result<(), Unreadable> {
    let not_base64 = Unreadable("a payload is not base64");
    let text = buffer.get_mut(data.start()..data.end()).ok_or(not_base64.clone())?;
    let payload = STANDARD.decode_inplace(text).map_err(|_| not_base64.clone())?;
    *data = ByteRange::new(data.start(), data.start() + payload.len()).ok_or(not_base64)?;
    Ok(())
}

/// Returns the time in milliseconds.
#[inline]
pub(super) fn millis_of_integer(time: i64) -> i64 {
    if time.unsigned_abs() < FIRST_MILLIS.unsigned_abs() { time * 1000 } else { time }
}

/// Returns the time in milliseconds, rounded to the nearest: a decimal fraction of a second has no
/// exact binary form. Returns `None` for a time that has no milliseconds.
#[inline]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "in range")]
pub(super) fn millis_of_float(time: f64) -> Option<i64> {
    if time.abs() < FIRST_MILLIS as f64 {
        return Some((time * 1000.0).round() as i64);
    }
    (time.abs() < i64::MAX as f64).then_some(time as i64)
}
