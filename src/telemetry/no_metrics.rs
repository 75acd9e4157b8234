//! Metrics without the cargo feature `metrics`: every operation is a no-op.
#![allow(clippy::unused_self, reason = "same signatures as with the feature")]

use std::sync::Arc;
use std::time::Duration;

use super::Event;
use crate::record::ShardId;

pub(super) struct ConsumerMetrics;

impl ConsumerMetrics {
    pub(super) fn new(_stream: &Arc<str>, _application: &Arc<str>) -> Self {
        Self
    }

    pub(super) fn none(_stream: &Arc<str>, _application: &Arc<str>) -> Self {
        Self
    }

    pub(super) fn shard(&self, _id: &ShardId) -> ShardMetrics {
        ShardMetrics
    }

    pub(super) fn count(&self, _event: &Event) {}

    pub(super) fn saved(&self, _positions: usize) {}

    pub(super) fn save_failed(&self) {}

    pub(super) fn measure(&self, _leases: usize, _buffered: usize, _unsaved: Duration) {}
}

pub(super) struct ShardMetrics;

impl ShardMetrics {
    pub(super) fn none() -> Self {
        Self
    }

    pub(super) fn answered(&self, _records: usize, _bytes: usize, _millis_behind_latest: i64) {}

    pub(super) fn left_out(&self, _records: usize) {}

    pub(super) fn behind(&self, _millis_behind_latest: i64) {}

    pub(super) fn measure(&self, _unacknowledged: usize, _oldest: Option<Duration>) {}
}
