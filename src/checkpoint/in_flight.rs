//! The records of a shard that are in flight, and the limits of their number and bytes.
//!
//! ```text
//!            add: the last record reaches the limit of records
//!            refuse: the next record exceeds the limit of bytes
//!   Free ───────────────────────────────────────────────────────► Held
//!    ▲                                                              │
//!    └──── remove: fewer records are in flight, and the next fits ──┘
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// The limit that keeps a shard from delivering its next record.
///
/// ```
/// # use kinestream::{Event, InFlightLimit};
/// # fn example(event: &Event) {
/// if let Event::Stalled { limit: InFlightLimit::Bytes, .. } = event {
///     println!("raise max_in_flight_bytes, or acknowledge large records sooner");
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum InFlightLimit {
    /// [`max_in_flight`](crate::ConsumerBuilder::max_in_flight).
    Records,
    /// [`max_in_flight_bytes`](crate::ConsumerBuilder::max_in_flight_bytes).
    Bytes,
}

impl InFlightLimit {
    /// Returns the name of the builder's option.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Records => "max_in_flight",
            Self::Bytes => "max_in_flight_bytes",
        }
    }
}

/// The in-flight limits of one shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InFlightConfig {
    pub(crate) records: usize,
    /// The limit of payload and partition key bytes. One record may exceed it.
    pub(crate) bytes: usize,
}

/// The records that may be delivered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// The number of records, at least 1.
    pub(crate) records: usize,
    /// Their bytes; `None` without a limit.
    pub(crate) bytes: Option<ByteAllowance>,
}

/// The bytes that may be delivered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteAllowance {
    free: usize,
    /// No bytes are in flight, so one record of any size is allowed.
    is_first_free: bool,
}

/// Counts the records in flight of one shard.
#[derive(Debug, Default)]
pub(super) struct InFlightCounter {
    records: usize,
    /// Zero without limits: nothing counts the bytes then.
    bytes: usize,
    config: Option<InFlightConfig>,
    /// The bytes of the next record, if they exceeded the limit.
    refused: Option<usize>,
    held_since: Option<Instant>,
    /// This stall was reported.
    is_reported: bool,
}

impl ByteAllowance {
    /// Returns the number of next records that are allowed, with their bytes. Returns `Err` with the
    /// bytes of the first if that one exceeds the limit.
    pub(crate) fn fit(self, sizes: impl Iterator<Item = usize>) -> Result<(usize, usize), usize> {
        let (mut records, mut bytes) = (0, 0_usize);
        for size in sizes {
            let total = bytes.saturating_add(size);
            if total > self.free && !(self.is_first_free && records == 0) {
                return if records == 0 { Err(size) } else { Ok((records, bytes)) };
            }
            (records, bytes) = (records + 1, total);
        }
        Ok((records, bytes))
    }
}

impl InFlightCounter {
    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn set_limits(&mut self, config: InFlightConfig) {
        self.config = Some(config);
        self.update_held_since();
    }

    /// Returns what may be delivered now; `None` while a limit holds the shard.
    pub(super) fn allowance(&mut self) -> Option<Allowance> {
        let Some(config) = self.config else {
            return Some(Allowance { records: usize::MAX, bytes: None });
        };
        if self.limit().is_some() {
            return None;
        }
        self.refused = None;
        let records = config.records.saturating_sub(self.records);
        Some(Allowance { records, bytes: Some(self.byte_allowance(config)) })
    }

    fn byte_allowance(&self, config: InFlightConfig) -> ByteAllowance {
        let free = config.bytes.saturating_sub(self.bytes);
        ByteAllowance { free, is_first_free: self.bytes == 0 }
    }

    /// Adds delivered records.
    pub(super) fn add(&mut self, records: usize, bytes: usize) {
        self.records += records;
        self.bytes += bytes;
        self.update_held_since();
    }

    /// Notes that the next record has too many bytes to be delivered.
    pub(super) fn refuse(&mut self, bytes: usize) {
        self.refused = Some(bytes);
        self.update_held_since();
    }

    /// Removes records that are acknowledged or were not delivered.
    pub(super) fn remove(&mut self, records: usize, bytes: usize) {
        self.records = self.records.saturating_sub(records);
        self.bytes = self.bytes.saturating_sub(bytes);
        // An acknowledgement ends a stall, even if the limit still holds the shard.
        if self.held_since.is_some() {
            (self.held_since, self.is_reported) = (None, false);
            self.update_held_since();
        }
    }

    /// Returns the limit that holds the shard.
    pub(super) fn limit(&self) -> Option<InFlightLimit> {
        let config = self.config?;
        if self.records >= config.records {
            return Some(InFlightLimit::Records);
        }
        let allowance = self.byte_allowance(config);
        let is_refused =
            self.refused.is_some_and(|size| allowance.fit([size].into_iter()).is_err());
        is_refused.then_some(InFlightLimit::Bytes)
    }

    /// Returns the limit that has held the shard for `time`, and for how long, once per stall.
    pub(super) fn stalled(&mut self, time: Duration) -> Option<(InFlightLimit, Duration)> {
        let held = self.held_since?.elapsed();
        if held < time || std::mem::replace(&mut self.is_reported, true) {
            return None;
        }
        Some((self.limit()?, held))
    }

    fn update_held_since(&mut self) {
        if self.limit().is_some() {
            self.held_since.get_or_insert_with(Instant::now);
        } else {
            (self.held_since, self.is_reported) = (None, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(records: usize, bytes: usize) -> InFlightCounter {
        let mut counter = InFlightCounter::default();
        counter.set_limits(InFlightConfig { records, bytes });
        counter
    }

    fn fit(counter: &mut InFlightCounter, sizes: &[usize]) -> Result<(usize, usize), usize> {
        let bytes = counter.allowance().and_then(|allowance| allowance.bytes);
        bytes.expect("a byte limit that does not hold the shard").fit(sizes.iter().copied())
    }

    #[tokio::test(start_paused = true)]
    async fn records_fit_up_to_the_last_byte_of_the_limit() {
        let mut counter = counter(10, 100);
        assert_eq!(fit(&mut counter, &[50, 50, 1]), Ok((2, 100)));
        assert_eq!(fit(&mut counter, &[50, 51]), Ok((1, 50)));
        counter.add(1, 50);
        assert_eq!(fit(&mut counter, &[51]), Err(51));
        counter.refuse(51);
        assert_eq!((counter.allowance(), counter.limit()), (None, Some(InFlightLimit::Bytes)));
        counter.remove(1, 50);
        assert_eq!(fit(&mut counter, &[51]), Ok((1, 51)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_record_of_any_size_fits() {
        let mut counter = counter(10, 1);
        assert_eq!(fit(&mut counter, &[usize::MAX, 1]), Ok((1, usize::MAX)));
        counter.add(1, 0);
        assert_eq!(fit(&mut counter, &[7]), Ok((1, 7)), "an empty record takes no bytes");
        counter.add(1, 7);
        assert_eq!(fit(&mut counter, &[1]), Err(1));
    }

    #[tokio::test(start_paused = true)]
    async fn stall_by_bytes_is_reported_again_only_after_an_acknowledgement() {
        let (mut counter, second) = (counter(10, 100), Duration::from_secs(1));
        counter.add(1, 30);
        counter.add(1, 40);
        counter.refuse(90);
        tokio::time::advance(29 * second).await;
        assert_eq!(counter.stalled(30 * second), None);
        tokio::time::advance(second).await;
        assert_eq!(counter.stalled(30 * second), Some((InFlightLimit::Bytes, 30 * second)));
        tokio::time::advance(60 * second).await;
        assert_eq!(counter.stalled(30 * second), None);
        counter.remove(1, 30);
        assert_eq!(counter.limit(), Some(InFlightLimit::Bytes), "the record does not fit yet");
        tokio::time::advance(30 * second).await;
        assert_eq!(counter.stalled(30 * second), Some((InFlightLimit::Bytes, 30 * second)));
        counter.remove(1, 40);
        assert_eq!(counter.limit(), None);
    }
}
