//! Shards that are not read because of an error.

use std::collections::BTreeMap;

use super::{Telemetry, lock};
use crate::error::{Error, ErrorKind, ErrorKindSet};
use crate::mutex::Mutex;
use crate::record::ShardId;

/// The error that keeps a shard from being read.
///
/// Part of [`ShardStatus`](crate::ShardStatus). With the cargo feature `serde` it can be
/// serialized and deserialized.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// for (shard, status) in &consumer.status().await?.shards {
///     if let Some(failure) = &status.failure {
///         println!("{shard}: {}", failure.message);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ShardFailure {
    /// The kind of the error.
    pub kind: ErrorKind,
    /// The text of the error.
    pub message: String,
}

/// The failures by shard. Each is kept until the shard is read again.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<BTreeMap<ShardId, KnownFailure>>);

#[derive(Debug)]
struct KnownFailure {
    last: ShardFailure,
    kinds: ErrorKindSet,
}

impl Failures {
    /// Notes a failure. Returns true if no failure of this kind was known for the shard.
    pub(super) fn note(&self, shard: &ShardId, error: &Error) -> bool {
        let failure = ShardFailure { kind: error.kind(), message: error.to_string() };
        let mut failures = lock(&self.0);
        let mut kinds = failures.get(shard).map(|known| known.kinds).unwrap_or_default();
        let is_new = kinds.insert(error);
        failures.insert(shard.clone(), KnownFailure { last: failure, kinds });
        is_new
    }

    pub(super) fn kinds(&self, shard: &ShardId) -> ErrorKindSet {
        lock(&self.0).get(shard).map(|known| known.kinds).unwrap_or_default()
    }

    pub(super) fn clear(&self, shard: &ShardId) {
        lock(&self.0).remove(shard);
    }

    pub(super) fn clear_all(&self) {
        lock(&self.0).clear();
    }

    pub(super) fn contain(&self, shard: &ShardId) -> bool {
        lock(&self.0).contains_key(shard)
    }
}

impl Telemetry {
    /// Notes an error that keeps a shard from being read. Returns true if the caller has not
    /// received an error of this kind for the shard.
    pub(crate) fn note_failure(&self, shard: &ShardId, error: &Error) -> bool {
        self.0.failures.note(shard, error)
    }

    /// Returns the error that keeps this worker from reading a shard.
    pub(crate) fn failure(&self, shard: &ShardId) -> Option<ShardFailure> {
        lock(&self.0.failures.0).get(shard).map(|known| known.last.clone())
    }

    /// Forgets the failures of shards that no longer exist.
    pub(crate) fn retain_failures(&self, exists: impl Fn(&ShardId) -> bool) {
        lock(&self.0.failures.0).retain(|shard, _| exists(shard));
    }
}
