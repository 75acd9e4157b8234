//! Computes how many records a call requests: fewer while memory is short.

use super::get_records::while_read;

/// The least memory that a response is expected to take while it is read: that of 32 KiB.
const LEAST_MEMORY: usize = while_read(32 * 1024);

/// The record limit of one shard's calls, and the memory that their responses take while they are
/// read.
#[derive(Debug)]
pub(super) struct FetchLimit {
    most: u32,
    limit: u32,
    needed: usize,
    /// The memory that the last response took.
    last: usize,
}

impl FetchLimit {
    pub(super) fn new(most: u32) -> Self {
        Self { most, limit: most, needed: LEAST_MEMORY, last: LEAST_MEMORY }
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
        self.needed
    }

    /// Lowers the limit so that the response should fit into `taken` bytes: to at most half, and at
    /// least one record. A response as small as the last one fits without that.
    pub(super) fn reduce(&mut self, taken: usize) {
        if self.needed == LEAST_MEMORY && taken >= self.last {
            return;
        }
        let fitting = u64::from(self.limit) * taken as u64 / (self.needed as u64).max(1);
        let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
        self.limit = fitting.min(self.limit / 2).max(1);
        self.needed = taken.max(LEAST_MEMORY);
    }

    /// Notes that there was not enough memory for a response that needs as much.
    pub(super) fn did_not_fit(&mut self, needed: usize) {
        self.needed = self.needed.max(needed);
        self.last = self.needed;
    }

    /// Notes that a response that needed as much memory was read, and that `free` bytes are left.
    /// Raises the limit if twice as many records would fit.
    pub(super) fn answered(&mut self, needed: usize, free: usize) {
        (self.needed, self.last) = (needed.max(LEAST_MEMORY), needed);
        if self.limit < self.most && self.needed.saturating_mul(2) <= free {
            self.limit = self.limit.saturating_mul(2).min(self.most);
            self.needed = self.needed.saturating_mul(2);
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
        assert_eq!(portion.limit(), 2_000);
        portion.did_not_fit(4 * MEBIBYTE);
        portion.reduce(2 * MEBIBYTE);
        assert_eq!(portion.limit(), 1_000);
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
    fn limit_stays_while_responses_as_small_as_the_last_one_fit() {
        let mut portion = FetchLimit::new(10_000);
        portion.answered(10_000, 0);
        portion.reduce(10_000);
        assert_eq!(portion.limit(), 10_000);
        portion.reduce(9_999);
        assert!(portion.limit() < 10_000);
    }

    #[test]
    fn limit_rises_while_twice_as_much_fits() {
        let mut portion = FetchLimit::new(10);
        portion.reduce(portion.needed() - 1);
        assert_eq!(portion.limit(), 5);
        portion.answered(MEBIBYTE, 2 * MEBIBYTE - 1);
        assert_eq!(portion.limit(), 5);
        portion.answered(MEBIBYTE, 2 * MEBIBYTE);
        assert_eq!(portion.limit(), 10);
        portion.answered(MEBIBYTE, usize::MAX);
        assert_eq!(portion.limit(), 10, "the configured limit is never exceeded");
    }
}
