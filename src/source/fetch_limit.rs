//! How many records a call asks for: fewer while memory is short.

use super::response_memory::while_read;

/// The length that an answer is expected to have at least.
pub(super) const SMALL_ANSWER: usize = 32 * 1024;

/// The limit of one shard's calls, and how long their answers are expected to be.
#[derive(Debug)]
pub(super) struct FetchLimit {
    most: u32,
    limit: u32,
    expected: usize,
}

impl FetchLimit {
    pub(super) fn new(most: u32) -> Self {
        Self { most, limit: most, expected: SMALL_ANSWER }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether the option asks for single records.
    pub(super) fn is_one(&self) -> bool {
        self.most == 1
    }

    /// What the next answer is expected to take while it is read.
    pub(super) fn needed(&self) -> usize {
        while_read(self.expected)
    }

    /// Asks for so many fewer records that they should fit: at most half, at least one.
    pub(super) fn reduce(&mut self, taken: usize) {
        let fitting = u64::from(self.limit) * taken as u64 / (self.needed() as u64).max(1);
        let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
        self.limit = fitting.min(self.limit / 2).max(1);
        self.expected = (taken / while_read(1)).max(SMALL_ANSWER);
    }

    /// An answer of that length found no room.
    pub(super) fn turned_away(&mut self, length: usize) {
        self.expected = self.expected.max(length);
    }

    /// An answer of that length was read, and `free` bytes are left: asks for more records where
    /// twice as many would fit.
    pub(super) fn answered(&mut self, length: usize, free: usize) {
        self.expected = length.max(SMALL_ANSWER);
        if self.limit < self.most && while_read(self.expected.saturating_mul(2)) <= free {
            self.limit = self.limit.saturating_mul(2).min(self.most);
            self.expected = self.expected.saturating_mul(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1 << 20;

    #[test]
    fn limit_falls_in_proportion_and_at_least_by_half() {
        let mut portion = FetchLimit::new(10_000);
        portion.turned_away(10 * MEBIBYTE);
        portion.reduce(2 * MEBIBYTE);
        assert_eq!(portion.limit(), 1_000);
        portion.turned_away(MEBIBYTE + 1);
        portion.reduce(2 * MEBIBYTE);
        assert_eq!(portion.limit(), 500);
    }

    #[test]
    fn limit_reaches_one_record_within_few_calls() {
        let mut portion = FetchLimit::new(10_000);
        let mut calls = 0;
        while portion.limit() > 1 {
            portion.turned_away(10 * MEBIBYTE);
            portion.reduce(64 * 1024);
            calls += 1;
        }
        assert!(calls <= 3, "{calls} answers were turned away");
        portion.reduce(0);
        assert_eq!(portion.limit(), 1, "one record is always asked for");
    }

    #[test]
    fn limit_rises_while_twice_as_much_fits() {
        let mut portion = FetchLimit::new(10);
        portion.reduce(portion.needed());
        assert_eq!(portion.limit(), 5);
        portion.answered(MEBIBYTE, 4 * MEBIBYTE - 1);
        assert_eq!(portion.limit(), 5);
        portion.answered(MEBIBYTE, 4 * MEBIBYTE);
        assert_eq!(portion.limit(), 10);
        portion.answered(MEBIBYTE, usize::MAX);
        assert_eq!(portion.limit(), 10, "the option is never exceeded");
    }
}
