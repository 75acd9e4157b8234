//! Batches in short runs, and runs record by record.
//!
//! A merge allocates each time it takes a stream back, so it takes runs and not records; a run is
//! short, so that a shard with much to say lets the others speak. No record is moved for that: a
//! run is the batch itself, lent for so many of its records, and goes back behind the last.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CheckpointOn;
use super::lease_handle::{Known, LeaseGuard, LeaseHandle};
use crate::checkpoint::{Allowance, Watermark};
use crate::error::{Error, Result};
use crate::record::{PositionBuf, Record};
use crate::source::{Batch, Reservation};

/// The most records of one shard before the next shard's turn.
pub(super) const LONGEST_RUN: usize = 128;

/// Where the batch of a shard lies, of which runs are taken one after the other.
#[derive(Clone, Default)]
pub(crate) struct BatchSlot(Arc<Mutex<Place>>);

#[derive(Default)]
enum Place {
    #[default]
    Empty,
    Taken(Buffer),
    /// A run is handed out.
    Lent,
}

/// A batch, less what was handed out of it.
struct Buffer {
    batch: Batch,
    space: Reservation,
    /// What was wrong with the record behind the last one.
    wrong: Option<Error>,
    /// No record of it was handed out.
    is_untouched: bool,
}

/// The outcome of a request for the next run.
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once per run, and a box is an allocation"
)]
pub(super) enum Next {
    Run(RecordRun),
    /// The next record is wrong.
    Wrong(Error),
    /// There is no batch.
    Empty,
    /// The next record exceeds the limit of bytes in flight.
    Refused,
    /// No record may be delivered any more.
    Over,
}

/// The next records of a batch, in order.
pub(crate) struct RecordRun {
    buffer: Buffer,
    /// The number of the next record in its shard.
    next: u64,
    left: usize,
    /// The bytes of the records that are left; 0 without a limit of them.
    left_bytes: usize,
    slot: BatchSlot,
    hold: Arc<LeaseGuard>,
    /// Until when the lease is known to last.
    known: Option<Known>,
}

impl BatchSlot {
    /// A batch, and the memory that it was granted, for an empty desk.
    pub(crate) fn put(&self, batch: Batch, space: Reservation) {
        *self.lock() = Place::Taken(Buffer { batch, space, wrong: None, is_untouched: true });
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(*self.lock(), Place::Empty)
    }

    /// Whether no record of the batch was handed out.
    pub(super) fn is_untouched(&self) -> bool {
        matches!(&*self.lock(), Place::Taken(buffer) if buffer.is_untouched)
    }

    /// The next records, at most `most` of those allowed, and the first of a batch alone.
    pub(super) fn next_run(
        &self,
        most: usize,
        allowance: Allowance,
        lease_handle: &LeaseHandle,
        watermark: &Watermark,
    ) -> Next {
        let mut place = self.lock();
        let mut buffer = match mem::replace(&mut *place, Place::Lent) {
            Place::Taken(buffer) => buffer,
            Place::Empty => {
                *place = Place::Empty;
                return Next::Empty;
            }
            Place::Lent => unreachable!("a run ends before the next one is asked for"),
        };
        if let Some(wrong) = buffer.wrong.take() {
            *place = Place::Empty;
            return Next::Wrong(wrong);
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
                *place = Place::Taken(buffer);
                return Next::Refused;
            }
        };
        let Some(next) = watermark.hand_out(left, left_bytes) else {
            *place = Place::Taken(buffer);
            return Next::Over;
        };
        buffer.is_untouched = false;
        buffer.batch.look_ahead(left);
        let (slot, hold) = (self.clone(), Arc::clone(lease_handle.hold()));
        Next::Run(RecordRun { buffer, next, left, left_bytes, slot, hold, known: None })
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordRun {
    #[inline]
    fn next(&mut self) -> Option<Record> {
        if self.is_over() || !self.hold.holds(&mut self.known) {
            return None;
        }
        match self.buffer.batch.next(self.next)? {
            Ok(record) => {
                self.next += 1;
                self.left -= 1;
                if self.left_bytes > 0 {
                    self.left_bytes -= record.size();
                }
                self.buffer.batch.origin().finish.deliver(self.next);
                Some(record)
            }
            Err(error) => {
                // Its shard tells of it, where it is polled next.
                self.buffer.wrong = Some(error);
                None
            }
        }
    }

    fn is_over(&self) -> bool {
        self.left == 0 || self.buffer.wrong.is_some()
    }

    /// The batch goes back with what was not handed out, and the memory of what was is given back.
    fn end(mut self) {
        if self.left > 0 {
            self.buffer.batch.origin().finish.take_back(self.left, self.left_bytes);
        }
        let is_over = self.buffer.batch.len() == 0 && self.buffer.wrong.is_none();
        *self.slot.lock() = if is_over {
            Place::Empty
        } else {
            self.buffer.space.release(self.buffer.batch.take_bytes());
            Place::Taken(self.buffer)
        };
    }
}

/// Hands out a run record by record, and counts each as finished when the next poll comes, where
/// that is what finishing means.
#[derive(Default)]
pub(crate) struct Delivery {
    run: Option<RecordRun>,
    on_pull: bool,
    /// The number of the record that the caller has in hand.
    in_hand: Option<u64>,
    /// Where that record stands in its shard.
    mark: PositionBuf,
}

impl Delivery {
    pub(crate) fn new(checkpoint_on: CheckpointOn) -> Self {
        let on_pull = checkpoint_on == CheckpointOn::Pull;
        Self { run: None, on_pull, in_hand: None, mark: PositionBuf::default() }
    }

    /// The caller has polled again: it is done with the last record.
    fn finish_last(&mut self) {
        // With `Pull` no limit counts bytes. It is of this run, which ends only when it is polled beyond its last record.
        if let (Some(number), Some(run)) = (self.in_hand.take(), &self.run) {
            run.buffer.batch.origin().finish.finish(number, &self.mark, 0);
        }
    }

    /// The next record, as streams yield it: wrapped anew it would be moved once more.
    #[inline]
    fn next(&mut self) -> Option<Result<Record>> {
        let record = self.run.as_mut().and_then(RecordRun::next).map(Ok);
        match &record {
            Some(Ok(record)) if self.on_pull => {
                self.in_hand = Some(record.number);
                self.mark.set(record);
            }
            Some(_) => {}
            // The memory is given back as soon as the caller is done with the last record.
            None => self.clear(),
        }
        record
    }

    /// Begins a poll. Returns the next record of the run in hand, unless the stream is closed.
    #[inline]
    pub(crate) fn resume(&mut self, is_closed: impl FnOnce() -> bool) -> Option<Result<Record>> {
        self.finish_last();
        if is_closed() {
            self.clear();
        }
        self.next()
    }

    /// Takes the next run, and returns its first record. The last record of the run before is finished, or
    /// its caller has it.
    pub(crate) fn give(&mut self, run: RecordRun) -> Option<Result<Record>> {
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
