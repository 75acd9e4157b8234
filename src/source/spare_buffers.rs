//! Keeps the buffers of dropped responses for the next ones.
//!
//! ```text
//!   response: take ──► read ──► records ──► the last one is dropped: give
//!               ▲                                                     │
//!               └────────────────────── spare ◄───────────────────────┘
//!                                         └── dropped if the budget needs the memory, at the first
//!                                             call after 10 s, or at the end of a shard
//! ```
//!
//! Only as many buffers are kept as were taken. Records that the SDK decodes take none: pushed ones,
//! and those of a client with another protocol.
//!
//! An allocator returns the memory of a long buffer to the system, and the system clears each page
//! of the next one. At 80 responses of 1 MB per second, that takes a seventh of the CPU time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::mutex::Mutex;

/// Shorter buffers are not kept: allocators reuse them. glibc maps buffers from 128 KiB on:
/// <https://man7.org/linux/man-pages/man3/mallopt.3.html>.
const MIN_BYTES: usize = 128 * 1024;

/// The most bytes of all spare buffers: the longest response, which has 10 MiB as base64 text.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The time for which a buffer is kept.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// A buffer may be longer than the response by this part of the response.
const SLACK_PART: usize = 4;

#[derive(Debug, Default)]
pub(super) struct SpareBuffers {
    lists: Mutex<Lists>,
    /// The bytes of the spare buffers.
    bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Lists {
    /// Buffers that no response uses, the newest last.
    spares: Vec<Spare>,
    /// The number of buffers taken and not returned. Those of broken responses never are.
    lent: usize,
}

#[derive(Debug)]
struct Spare {
    buffer: Vec<u8>,
    since: Instant,
}

impl SpareBuffers {
    /// Returns an empty buffer of at least `length` bytes, and at most a quarter more.
    pub(super) fn take(&self, length: usize) -> Vec<u8> {
        let fits = |spare: &Spare| {
            (length..=length.saturating_add(length / SLACK_PART)).contains(&spare.buffer.capacity())
        };
        if length >= MIN_BYTES {
            let mut lists = self.lists.lock();
            lists.lent += 1;
            if let Some(at) = lists.spares.iter().rposition(fits) {
                let Spare { buffer, .. } = lists.spares.remove(at);
                self.count(&lists.spares);
                return buffer;
            }
        }
        Vec::with_capacity(length)
    }

    /// Keeps a buffer if one was taken, and if it fits into `free` bytes.
    pub(super) fn give(&self, mut buffer: Vec<u8>, free: usize, now: Instant) {
        let bytes = buffer.capacity();
        if bytes < MIN_BYTES {
            return;
        }
        let mut lists = self.lists.lock();
        let Some(lent) = lists.lent.checked_sub(1) else { return };
        lists.lent = lent;
        self.drop_oldest(&mut lists.spares, |spare, _| is_old(spare, now));
        let Some(rest) = free.min(MAX_BYTES).checked_sub(bytes) else { return };
        self.drop_oldest(&mut lists.spares, |_, kept| kept > rest);
        buffer.clear();
        lists.spares.push(Spare { buffer, since: now });
        self.count(&lists.spares);
    }

    /// Drops the oldest buffers until the rest fits into `free` bytes.
    pub(super) fn shrink(&self, free: usize) {
        if self.bytes() > free {
            self.drop_oldest(&mut self.lists.lock().spares, |_, kept| kept > free);
        }
    }

    /// Drops the buffers that no response has needed for a while.
    pub(super) fn expire(&self, now: Instant) {
        if self.bytes() > 0 {
            self.drop_oldest(&mut self.lists.lock().spares, |spare, _| is_old(spare, now));
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// Drops buffers, the oldest first, while `is_surplus` of the oldest one and the bytes of all.
    fn drop_oldest(&self, spares: &mut Vec<Spare>, is_surplus: impl Fn(&Spare, usize) -> bool) {
        while let Some(oldest) = spares.first()
            && is_surplus(oldest, self.bytes())
        {
            spares.remove(0);
            self.count(spares);
        }
    }

    fn count(&self, spares: &[Spare]) {
        let bytes = spares.iter().map(|spare| spare.buffer.capacity()).sum();
        self.bytes.store(bytes, Ordering::Release);
    }
}

fn is_old(spare: &Spare, now: Instant) -> bool {
    now.saturating_duration_since(spare.since) >= KEPT_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1024 * 1024;

    fn spares(lengths: &[usize]) -> SpareBuffers {
        let spares = SpareBuffers::default();
        let mut buffers: Vec<_> = lengths.iter().map(|length| spares.take(*length)).collect();
        for buffer in &mut buffers {
            buffer.push(7);
        }
        for buffer in buffers {
            spares.give(buffer, usize::MAX, Instant::now());
        }
        spares
    }

    /// Takes and gives a buffer of another length than the spare ones.
    fn give(spares: &SpareBuffers, length: usize, free: usize, now: Instant) {
        spares.lists.lock().lent += 1;
        spares.give(Vec::with_capacity(length), free, now);
    }

    #[test]
    fn newest_buffer_of_suitable_length_is_used_again() {
        let spares = spares(&[4 * MEBIBYTE, MEBIBYTE, 5 * MEBIBYTE, 6 * MEBIBYTE]);
        let buffer = spares.take(4 * MEBIBYTE);
        assert_eq!((buffer.len(), buffer.capacity()), (0, 5 * MEBIBYTE));
        assert_eq!(spares.take(4 * MEBIBYTE).capacity(), 4 * MEBIBYTE);
        assert_eq!(spares.bytes(), 7 * MEBIBYTE);
        assert_eq!(spares.take(3 * MEBIBYTE).capacity(), 3 * MEBIBYTE, "a new one");
        assert_eq!(spares.bytes(), 7 * MEBIBYTE);
    }

    #[test]
    fn short_buffers_and_those_beyond_the_limit_are_not_kept() {
        let spares = spares(&[MIN_BYTES - 1]);
        assert_eq!(spares.bytes(), 0);
        give(&spares, MAX_BYTES + 1, usize::MAX, Instant::now());
        give(&spares, MEBIBYTE, MEBIBYTE - 1, Instant::now());
        assert_eq!(spares.bytes(), 0);
        for _ in 0..100 {
            give(&spares, 3 * MEBIBYTE, usize::MAX, Instant::now());
            assert!(spares.bytes() <= MAX_BYTES);
        }
        assert_eq!(spares.bytes(), 15 * MEBIBYTE);
    }

    #[test]
    fn oldest_buffers_make_room() {
        let spares = spares(&[MEBIBYTE, 2 * MEBIBYTE, 4 * MEBIBYTE]);
        give(&spares, MEBIBYTE, 6 * MEBIBYTE, Instant::now());
        assert_eq!(spares.bytes(), 5 * MEBIBYTE, "the two oldest were dropped");
        spares.shrink(5 * MEBIBYTE);
        assert_eq!(spares.bytes(), 5 * MEBIBYTE);
        spares.shrink(5 * MEBIBYTE - 1);
        assert_eq!(spares.bytes(), MEBIBYTE);
        spares.shrink(0);
        assert_eq!(spares.bytes(), 0);
    }

    #[test]
    fn buffer_is_dropped_after_its_time() {
        let spares = SpareBuffers::default();
        let start = Instant::now();
        give(&spares, MEBIBYTE, usize::MAX, start);
        give(&spares, 2 * MEBIBYTE, usize::MAX, start + KEPT_FOR / 2);
        spares.expire(start + KEPT_FOR / 2);
        assert_eq!(spares.bytes(), 3 * MEBIBYTE);
        spares.expire(start + KEPT_FOR);
        assert_eq!(spares.bytes(), 2 * MEBIBYTE);
        give(&spares, 4 * MEBIBYTE, usize::MAX, start + 2 * KEPT_FOR);
        assert_eq!(spares.bytes(), 4 * MEBIBYTE);
    }

    #[test]
    fn buffers_of_other_origin_are_not_kept() {
        let spares = SpareBuffers::default();
        let taken = spares.take(MEBIBYTE);
        for buffer in [taken, Vec::with_capacity(MEBIBYTE)] {
            spares.give(buffer, usize::MAX, Instant::now());
        }
        assert_eq!(spares.bytes(), MEBIBYTE);
    }
}
