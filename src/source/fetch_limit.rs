//! Computes how many records a call requests: fewer while memory is short.

use super::get_records::{readable, while_read};

/// The minimum expected length of a response, in bytes.
pub(super) const SMALL_RESPONSE: usize = 32 * 1024;

/// The record limit of one shard's calls, and the expected length of their responses.
#[derive(Debug)]
pub(super) struct FetchLimit {
    most: u32,
    limit: u32,
    expected: usize,
}

impl FetchLimit {
    pub(super) fn new(most: u32) -> Self {
        Self { most, limit: most, expected: SMALL_RESPONSE }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns true if the configured limit is one record.
    pub(super) fn is_single_record(&self) -> bool {
        self.most == 1
    }

    /// Returns the memory that the next response is expected to take while it is read.
    pub(super) fn needed(&self) -> usize {
        while_read(self.expected)
    }

    /// Lowers the limit so that the response should fit into `taken` bytes: to at most half, and at
    /// least one record.
    pub(super) fn reduce(&mut self, taken: usize) {
        let fitting = u64::from(self.limit) * taken as u64 / (self.needed() as u64).max(1);
        let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
        self.limit = fitting.min(self.limit / 2).max(1);
        self.expected = readable(taken).max(SMALL_RESPONSE);
    }

    /// Notes that there was not enough memory for a response of this length.
    pub(super) fn did_not_fit(&mut self, length: usize) {
        self.expected = self.expected.max(length);
    }

    /// Notes that a response of this length was read and that `free` bytes of memory are left.
    /// Raises the limit if twice as many records would fit.
    pub(super) fn answered(&mut self, length: usize, free: usize) {
        self.expected = length.max(SMALL_RESPONSE);
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
        portion.did_not_fit(10 * MEBIBYTE);
        portion.reduce(2 * MEBIBYTE);
        assert_eq!(portion.limit(), 1_600);
        portion.did_not_fit(MEBIBYTE + 1);
        portion.reduce(2 * MEBIBYTE);
        assert_eq!(portion.limit(), 800);
    }

    #[test]
    fn limit_reaches_one_record_within_few_calls() {
        let mut portion = FetchLimit::new(10_000);
        let mut calls = 0;
        while portion.limit() > 1 {
            portion.did_not_fit(10 * MEBIBYTE);
            portion.reduce(64 * 1024);
            calls += 1;
        }
        assert!(calls <= 3, "the limit took {calls} calls to fall to 1");
        portion.reduce(0);
        assert_eq!(portion.limit(), 1, "at least one record is requested");
    }

    #[test]
    fn limit_rises_while_twice_as_much_fits() {
        let mut portion = FetchLimit::new(10);
        portion.reduce(portion.needed());
        assert_eq!(portion.limit(), 5);
        portion.answered(MEBIBYTE, 5 * MEBIBYTE / 2 - 1);
        assert_eq!(portion.limit(), 5);
        portion.answered(MEBIBYTE, 5 * MEBIBYTE / 2);
        assert_eq!(portion.limit(), 10);
        portion.answered(MEBIBYTE, usize::MAX);
        assert_eq!(portion.limit(), 10, "the configured limit is never exceeded");
    }
}
