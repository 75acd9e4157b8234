//! Counts the complete listings that lack a shard.

use std::time::Duration;

use tokio::time::Instant;

/// The number of complete listings that must lack a shard before it counts as gone.
const LISTINGS: u32 = 3;

/// Consecutive complete listings that lack a shard for which there is no iterator or subscription.
#[derive(Debug)]
pub(crate) struct AbsentListings {
    since: Instant,
    last: Instant,
    listings: u32,
}

impl AbsentListings {
    pub(crate) fn begin(now: Instant) -> Self {
        Self { since: now, last: now, listings: 0 }
    }

    /// Counts one more listing.
    pub(crate) fn note(&mut self, now: Instant) {
        (self.last, self.listings) = (now, self.listings + 1);
    }

    /// Returns the time at which the last listing arrived.
    pub(super) fn last(&self) -> Instant {
        self.last
    }

    /// Returns true if enough listings have arrived, over at least the discovery interval.
    pub(crate) fn is_proven(&self, discovery_interval: Duration, now: Instant) -> bool {
        self.listings >= LISTINGS && now.duration_since(self.since) >= discovery_interval
    }
}
