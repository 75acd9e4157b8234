//! Splits batches into short runs, and delivers runs record by record.
//!
//! A merge allocates each time it takes a stream back, so it merges runs instead of records. A run
//! is short, so that a shard with many records lets the other shards have a turn. No record is
//! moved for this: a run is the batch itself, lent for a number of its records and returned after
//! the last.

use std::mem;
use std::sync::{Arc, MutexGuard};

use super::CheckpointOn;
use super::lease_handle::{CachedDeadline, LeaseGuard, LeaseHandle};
use crate::checkpoint::{Allowance, Watermark};
use crate::error::{Error, Result};
use crate::mutex::Mutex;
use crate::record::{PositionBuf, Record};
use crate::source::{Batch, Reservation};

/// The most records that one shard delivers before the next shard's turn.
pub(super) const MAX_RUN_RECORDS: usize = 128;

/// Holds the current batch of a shard, from which runs are taken one after the other.
#[derive(Clone, Default)]
pub(crate) struct BatchSlot(Arc<Mutex<SlotState>>);

#[derive(Default)]
enum SlotState {
    #[default]
    Empty,
    Taken(Buffer),
    /// A run holds the batch.
    Lent,
}

/// The records of a batch that are not delivered yet, and their memory.
struct Buffer {
    batch: Batch,
    space: Reservation,
    /// The error of the record after the last one delivered.
    error: Option<Error>,
    /// No record of the batch was delivered yet.
    is_untouched: bool,
}

/// The outcome of a request for the next run.
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once per run, and a box is an allocation"
)]
pub(super) enum NextRun {
    Run(RecordRun),
    /// The next record is invalid.
    Wrong(Error),
    /// There is no batch.
    Empty,
    /// The next record exceeds the limit of bytes in flight.
    Refused,
    /// No further record may be delivered.
    Over,
}

/// The next records of a batch, in order.
pub(crate) struct RecordRun {
    buffer: Buffer,
    /// The number of the next record in its shard.
    next: u64,
    left: usize,
    /// The bytes of the records that are left; 0 without a limit of bytes in flight.
    left_bytes: usize,
    slot: BatchSlot,
    guard: Arc<LeaseGuard>,
    /// The end of the lease's validity, as last read.
    known: Option<CachedDeadline>,
}

impl BatchSlot {
    /// Stores a batch and the memory that it was granted. The slot must be empty.
    pub(crate) fn put(&self, batch: Batch, space: Reservation) {
        *self.lock() = SlotState::Taken(Buffer { batch, space, error: None, is_untouched: true });
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(*self.lock(), SlotState::Empty)
    }

    /// Returns true if the slot holds a batch of which no record was delivered.
    pub(super) fn is_untouched(&self) -> bool {
        matches!(&*self.lock(), SlotState::Taken(buffer) if buffer.is_untouched)
    }

    /// Takes the next records as a run: at most `most`, and no more than the allowance permits. The
    /// first record of a batch is a run by itself.
    pub(super) fn next_run(
        &self,
        most: usize,
        allowance: Allowance,
        lease_handle: &LeaseHandle,
        watermark: &Watermark,
    ) -> NextRun {
        let mut place = self.lock();
        let mut buffer = match mem::replace(&mut *place, SlotState::Lent) {
            SlotState::Taken(buffer) => buffer,
            SlotState::Empty => {
                *place = SlotState::Empty;
                return NextRun::Empty;
            }
            SlotState::Lent => unreachable!("a run ends before the next one is taken"),
        };
        if let Some(wrong) = buffer.error.take() {
            *place = SlotState::Empty;
            return NextRun::Wrong(wrong);
        }
        let most = if buffer.is_untouched { 1 } else { most };
        let most = most.min(allowance.records).min(buffer.batch.len());
        let fitting = match allowance.bytes {
            Some(bytes) => buffer.batch.fit(most, bytes),
            None => Ok((most, 0)),
        };
        let (left, left_bytes) = match fitting {
            Ok(fitting) => fitting,
            Err(bytes) => {
                watermark.refuse(bytes);
                *place = SlotState::Taken(buffer);
                return NextRun::Refused;
            }
        };
        let Some(next) = watermark.begin_delivery(left, left_bytes) else {
            *place = SlotState::Taken(buffer);
            return NextRun::Over;
        };
        buffer.is_untouched = false;
        buffer.batch.prefetch_sequence_numbers(left);
        let (slot, guard) = (self.clone(), Arc::clone(lease_handle.guard()));
        NextRun::Run(RecordRun { buffer, next, left, left_bytes, slot, guard, known: None })
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock()
    }
}

impl RecordRun {
    #[inline]
    fn next(&mut self) -> Option<Record> {
        if self.is_over() || !self.guard.holds(&mut self.known) {
            return None;
        }
        match self.buffer.batch.next(self.next)? {
            Ok(record) => {
                self.next += 1;
                self.left -= 1;
                if self.left_bytes > 0 {
                    self.left_bytes -= record.size();
                }
                self.buffer.batch.origin().ack_sink.deliver(self.next);
                Some(record)
            }
            Err(error) => {
                // The shard reader returns the error on its next poll.
                self.buffer.error = Some(error);
                None
            }
        }
    }

    fn is_over(&self) -> bool {
        self.left == 0 || self.buffer.error.is_some()
    }

    /// Returns the batch to its slot with the records that were not delivered, and releases the
    /// memory of those that were.
    fn end(mut self) {
        if self.left > 0 {
            self.buffer.batch.origin().ack_sink.take_back(self.left, self.left_bytes);
        }
        let is_over = self.buffer.batch.len() == 0 && self.buffer.error.is_none();
        *self.slot.lock() = if is_over {
            SlotState::Empty
        } else {
            self.buffer.space.release(self.buffer.batch.take_bytes());
            SlotState::Taken(self.buffer)
        };
    }
}

/// Delivers a run record by record. With [`CheckpointOn::Pull`], acknowledges each record at the
/// next poll.
#[derive(Default)]
pub(crate) struct Delivery {
    run: Option<RecordRun>,
    on_pull: bool,
    /// The number of the last record delivered, while it is not acknowledged. Set only with
    /// [`CheckpointOn::Pull`].
    unacknowledged: Option<u64>,
    /// The position of that record in its shard.
    position: PositionBuf,
}

impl Delivery {
    pub(crate) fn new(checkpoint_on: CheckpointOn) -> Self {
        let on_pull = checkpoint_on == CheckpointOn::Pull;
        Self { run: None, on_pull, unacknowledged: None, position: PositionBuf::default() }
    }

    /// Acknowledges the last record, since the caller has polled again.
    fn acknowledge_last(&mut self) {
        // With `Pull`, no limit counts bytes. The record belongs to this run, which ends only when
        // it is polled after its last record.
        if let (Some(number), Some(run)) = (self.unacknowledged.take(), &self.run) {
            run.buffer.batch.origin().ack_sink.acknowledge(number, &self.position, 0);
        }
    }

    /// Returns the next record, wrapped as streams yield it: a later wrapping would move it again.
    #[inline]
    fn next(&mut self) -> Option<Result<Record>> {
        let record = self.run.as_mut().and_then(RecordRun::next).map(Ok);
        match &record {
            Some(Ok(record)) if self.on_pull => {
                self.unacknowledged = Some(record.number);
                self.position.set(record);
            }
            Some(_) => {}
            // Releases the memory as soon as the caller is done with the last record.
            None => self.clear(),
        }
        record
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
