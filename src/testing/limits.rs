//! The limits of one shard: calls and bytes per second, and records per response.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const CALLS_PER_SECOND: usize = 5;
const BYTES_PER_SECOND: u64 = 2 << 20;
pub(super) const MAX_RECORDS: u64 = 10_000;

/// The calls of one operation in the last second.
#[derive(Debug, Default)]
pub(super) struct CallWindow(VecDeque<Instant>);

impl CallWindow {
    /// Returns true, and counts the call, if one more call is within the limit.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|call| now - *call >= Duration::from_secs(1)) {
            self.0.pop_front();
        }
        let admitted = self.0.len() < CALLS_PER_SECOND;
        if admitted {
            self.0.push_back(now);
        }
        admitted
    }
}

/// The bytes of the last response, and the time at which they are paid for.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    paid: Option<Instant>,
    /// The response did not arrive, so the client cannot know its size.
    lost: bool,
}

impl Bytes {
    pub(super) fn admits(&self, now: Instant) -> bool {
        self.paid.is_none_or(|paid| now >= paid)
    }

    /// Returns true if the client knows the bytes that are not yet paid for.
    pub(super) fn are_known(&self) -> bool {
        !self.lost
    }

    pub(super) fn read(&mut self, now: Instant, bytes: usize, arrives: bool) {
        // In whole milliseconds, the resolution of the clock.
        let millis = bytes as u64 * 1000 / BYTES_PER_SECOND;
        self.paid = Some(now + Duration::from_millis(millis));
        self.lost = !arrives;
    }
}
