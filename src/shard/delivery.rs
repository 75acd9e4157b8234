//! Splits batches into short runs, and delivers runs record by record.
//!
//! A merge allocates each time it takes a stream back, so it merges runs instead of records. A run
//! is short, so that a shard with many records lets the other shards have a turn. A run is a copy of
//! the batch's position; the records themselves are shared and are not moved.
//!
//! ```text
//!   CurrentBatch ──next_run──► RecordRun ──► records ──► caller
//!        ▲                         │ end: numbers of undelivered records are returned
//!        └──── watermark.delivered() ◄──┘
//! ```
//!
//! The next run begins at the first record that the watermark does not count as delivered.

use std::sync::Arc;

use super::CheckpointOn;
use super::lease_handle::{CachedDeadline, LeaseGuard, LeaseHandle};
use crate::checkpoint::{Allowance, Watermark};
use crate::error::Result;
use crate::record::{Record, RecordPosition};
use crate::source::Batch;

/// The most records that one shard delivers before the next shard's turn.
pub(super) const MAX_RUN_RECORDS: usize = 128;

/// The batch of a shard from which runs are taken one after the other.
pub(super) struct CurrentBatch {
    /// From the first record of the last run on.
    batch: Batch,
    /// The number of that record in its shard; `None` before the first run.
    first: Option<u64>,
}

/// The outcome of a request for the next run.
pub(super) enum NextRun {
    Run(RecordRun),
    /// No record is left.
    Empty,
    /// The next record exceeds the limit of bytes in flight.
    Refused,
    /// No further record may be delivered.
    Over,
}

/// The next records of a batch, in order.
pub(crate) struct RecordRun {
    batch: Batch,
    /// The number of the next record in its shard.
    next: u64,
    left: usize,
    /// The bytes of the records that are left; 0 without a limit of bytes in flight.
    left_bytes: usize,
    guard: Arc<LeaseGuard>,
    /// The end of the lease's validity, as last read.
    known: Option<CachedDeadline>,
}

impl CurrentBatch {
    pub(super) fn new(batch: Batch) -> Self {
        Self { batch, first: None }
    }

    /// Returns true if no record of the batch was delivered.
    pub(super) fn is_untouched(&self) -> bool {
        self.first.is_none()
    }

    /// Returns true if every record of the batch was delivered.
    pub(super) fn is_over(&self, watermark: &Watermark) -> bool {
        let delivered = |first| watermark.delivered().saturating_sub(first);
        self.first.is_some_and(|first| delivered(first) >= self.batch.len() as u64)
    }

    /// Drops the batch, whose records are all delivered.
    pub(super) fn end(self) {
        self.batch.end();
    }

    /// Takes the next records as a run: at most `most`, and no more than the allowance permits. The
    /// first record of a batch is a run by itself. The last run must have ended.
    pub(super) fn next_run(
        &mut self,
        most: usize,
        allowance: Allowance,
        lease_handle: &LeaseHandle,
        watermark: &Watermark,
    ) -> NextRun {
        if let Some(first) = &mut self.first {
            let delivered = watermark.delivered();
            let records = delivered.saturating_sub(std::mem::replace(first, delivered));
            self.batch.advance(usize::try_from(records).unwrap_or(usize::MAX));
        }
        if self.batch.len() == 0 {
            return NextRun::Empty;
        }
        let most = if self.is_untouched() { 1 } else { most };
        let most = most.min(allowance.records).min(self.batch.len());
        let fitting = match allowance.bytes {
            Some(bytes) => self.batch.fit(most, bytes),
            None => Ok((most, 0)),
        };
        let (left, left_bytes) = match fitting {
            Ok(fitting) => fitting,
            Err(bytes) => {
                watermark.refuse(bytes);
                return NextRun::Refused;
            }
        };
        let Some(next) = watermark.begin_delivery(left, left_bytes) else { return NextRun::Over };
        self.first = Some(next);
        let (batch, guard) = (self.batch.clone(), Arc::clone(lease_handle.guard()));
        NextRun::Run(RecordRun { batch, next, left, left_bytes, guard, known: None })
    }
}

impl RecordRun {
    #[inline]
    fn next(&mut self) -> Option<Record> {
        if self.is_over() || !self.guard.holds(&mut self.known) {
            return None;
        }
        let record = self.batch.next(self.next)?;
        self.next += 1;
        self.left -= 1;
        if self.left_bytes > 0 {
            self.left_bytes -= record.size();
        }
        self.batch.context().ack_sink.deliver(self.next);
        Some(record)
    }

    fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Returns the numbers of the records that were not delivered.
    fn end(self) {
        if self.left > 0 {
            self.batch.context().ack_sink.take_back(self.left, self.left_bytes);
        }
    }
}

/// Delivers a run record by record. With [`CheckpointOn::Pull`], acknowledges each record at the
/// next poll.
pub(crate) struct Delivery {
    run: Option<RecordRun>,
    on_pull: bool,
    /// The last record delivered, while it is not acknowledged. Set only with
    /// [`CheckpointOn::Pull`].
    unacknowledged: Option<(u64, RecordPosition)>,
}

impl Delivery {
    pub(crate) fn new(checkpoint_on: CheckpointOn) -> Self {
        let on_pull = checkpoint_on == CheckpointOn::Pull;
        Self { run: None, on_pull, unacknowledged: None }
    }

    /// Acknowledges the last record, since the caller has polled again.
    #[inline]
    fn acknowledge_last(&mut self) {
        // The record belongs to this run, which ends only when it is polled after its last record.
        if let (Some((number, position)), Some(run)) = (&self.unacknowledged, &self.run) {
            run.batch.context().ack_sink.acknowledge_on_poll(*number, position);
        }
        self.unacknowledged = None;
    }

    /// Returns the next record, wrapped as streams yield it: a later wrapping would move it again.
    #[inline]
    fn next(&mut self) -> Option<Result<Record>> {
        let Some(record) = self.run.as_mut().and_then(RecordRun::next) else {
            // The caller is done with the last record.
            self.clear();
            return None;
        };
        if self.on_pull {
            self.unacknowledged = Some((record.number, record.position()));
        }
        Some(Ok(record))
    }

    /// Begins a poll. Returns the next record of the current run, unless the stream is closed.
    #[inline]
    pub(crate) fn resume(&mut self, is_closed: impl FnOnce() -> bool) -> Option<Result<Record>> {
        self.acknowledge_last();
        if is_closed() {
            self.clear();
        }
        self.next()
    }

    /// Takes the next run, and returns its first record. The last record of the previous run is
    /// acknowledged, or the caller has it.
    pub(crate) fn start_run(&mut self, run: RecordRun) -> Option<Result<Record>> {
        self.run = Some(run);
        self.next()
    }

    fn clear(&mut self) {
        if let Some(run) = self.run.take() {
            run.end();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.run.as_ref().is_none_or(RecordRun::is_over)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.clear();
    }
}
