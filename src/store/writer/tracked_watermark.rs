//! The watermark of a shard, with the writer that saves it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::WriterShared;
use super::tracked_shards::ShardEpoch;
use crate::checkpoint::{Advance, Checkpoint, QuietPosition, Watermark};
use crate::record::{AckSink, RecordPosition};

/// The watermark of a tracked shard. The writer is notified of each advance, after the lock of the
/// watermark is released.
///
/// It does not keep the writer's task alive, and neither do records that outlive their stream.
pub(crate) struct TrackedWatermark {
    watermark: Arc<Watermark>,
    writer: Arc<WriterShared>,
    shard_epoch: ShardEpoch,
}

impl TrackedWatermark {
    pub(super) fn new(
        watermark: Arc<Watermark>,
        writer: Arc<WriterShared>,
        shard_epoch: ShardEpoch,
    ) -> Self {
        Self { watermark, writer, shard_epoch }
    }

    pub(crate) fn watermark(&self) -> &Arc<Watermark> {
        &self.watermark
    }

    /// Sets the checkpoint to store before any record is acknowledged. The caller flushes the
    /// writer.
    pub(crate) fn start_at(&self, start: Checkpoint) {
        self.notify(Some(self.watermark.start_at(start)));
    }

    /// Notes that the shard has no record up to `passed` other than those in delivery.
    pub(crate) fn note_passed(&self, passed: QuietPosition) {
        self.notify(self.watermark.note_passed(passed));
    }

    /// Marks the shard as closed, with its last record delivered.
    pub(crate) fn end(&self) {
        self.notify(self.watermark.end());
    }

    /// Notifies the writer of an advance that it must save or count.
    #[inline]
    fn notify(&self, advance: Option<Advance>) {
        let saves_each = self.writer.flush.interval.is_zero();
        match advance {
            Some(Advance::Position { is_first }) if is_first || saves_each => {
                self.advanced(is_first, saves_each);
            }
            Some(Advance::Position { .. }) | None => {}
            Some(Advance::End) => {
                self.writer.lock().watched.note_changed(&self.shard_epoch);
                self.writer.urgent.notify_one();
            }
        }
    }

    #[inline(never)]
    fn advanced(&self, is_first: bool, saves_each: bool) {
        let mut state = self.writer.lock();
        if is_first {
            state.watched.note_changed(&self.shard_epoch);
        }
        if saves_each {
            state.advanced += 1;
            if state.failing {
                // A failing store does not delay readers until it has failed for `max_unflushed`.
                state.saved = state.advanced;
            }
            self.writer.update_attention(&state);
            drop(state);
            self.writer.urgent.notify_one();
        }
    }
}

impl AckSink for TrackedWatermark {
    fn acknowledge(&self, number: u64, position: &RecordPosition, bytes: usize) {
        self.notify(self.watermark.acknowledge(number, position, bytes));
    }

    #[inline]
    fn acknowledge_on_poll(&self, number: u64, position: &RecordPosition) {
        if !self.watermark.is_deferred(number) {
            self.acknowledge(number, position, 0);
        }
    }

    fn defer(&self, number: u64) -> bool {
        self.watermark.defer(number)
    }

    #[inline]
    fn deliver(&self, next: u64) {
        self.watermark.deliver(next);
    }

    fn take_back(&self, records: usize, bytes: usize) {
        self.watermark.take_back(records, bytes);
    }
}

impl Deref for TrackedWatermark {
    type Target = Watermark;

    fn deref(&self) -> &Watermark {
        &self.watermark
    }
}

impl fmt::Debug for TrackedWatermark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.watermark.fmt(formatter)
    }
}
