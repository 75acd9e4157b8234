//! Parses values in the form in which Kinesis writes them: maps without a length, strings with one,
//! and times of eight bytes with a tag.
//!
//! Each parser returns a value and the bytes after it, or `None` for a value of another form.

/// Parses the head of a map without a length.
#[inline]
pub(super) fn endless_map(rest: &[u8]) -> Option<((), &[u8])> {
    Some(((), rest.strip_prefix(&[0xbf])?))
}

/// Parses a text of less than 256 bytes, as nearly all are.
#[inline]
pub(super) fn text(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    match rest {
        [first @ 0x60..=0x77, rest @ ..] => rest.split_at_checked(usize::from(first - 0x60)),
        [0x78, length, rest @ ..] => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

/// Parses a byte string of less than 4 GiB.
#[inline]
pub(super) fn bytes(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match *rest {
        [first @ 0x40..=0x57, ref rest @ ..] => (u32::from(first - 0x40), rest),
        [0x58, length, ref rest @ ..] => (u32::from(length), rest),
        [0x59, a, b, ref rest @ ..] => (u32::from(u16::from_be_bytes([a, b])), rest),
        [0x5a, a, b, c, d, ref rest @ ..] => (u32::from_be_bytes([a, b, c, d]), rest),
        _ => return None,
    };
    rest.split_at_checked(usize::try_from(length).ok()?)
}

/// Parses an integer of eight bytes after the tag of a time.
#[inline]
pub(super) fn time(rest: &[u8]) -> Option<(i64, &[u8])> {
    let ([0xc1, 0x1b, time @ ..], rest) = rest.split_first_chunk::<10>()? else { return None };
    Some((i64::try_from(u64::from_be_bytes(*time)).ok()?, rest))
}
