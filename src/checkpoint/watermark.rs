//! The position of one shard while it is read: delivery, acknowledgement and the writer share it.

mod state;
mod times;

use std::fmt;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::Checkpoint;
use super::in_flight::{Allowance, InFlightConfig, InFlightLimit};
use crate::mutex::Mutex;
use crate::record::RecordPosition;
use crate::wakers::wake_all;

use state::WatermarkState;
pub(crate) use state::{Advance, QuietPosition};

/// The position of one shard while it is read. The functions that advance it return the advance,
/// of which the caller notifies the writer.
#[derive(Default)]
pub(crate) struct Watermark {
    state: Mutex<WatermarkState>,
    /// Records below this number have been delivered, or were allowed and then returned.
    delivered: AtomicU64,
    /// True if the poll after a record acknowledges it.
    is_polled: AtomicBool,
    /// The number after the last record whose acknowledgement was deferred; 0 before the first.
    deferred: AtomicU64,
}

impl Watermark {
    /// Sets the checkpoint to store before any record is acknowledged.
    pub(crate) fn start_at(&self, start: Checkpoint) -> Advance {
        let mut state = self.lock();
        state.start = Some(start);
        Advance::Position { is_first: state.note_changed(true) }
    }

    /// Counts the next `records` as in flight and returns the number of the first. Returns `None`
    /// once the shard is retired. `bytes` is the size of payloads and partition keys, or 0 without
    /// a byte limit.
    pub(crate) fn begin_delivery(&self, records: usize, bytes: usize) -> Option<u64> {
        let mut state = self.lock();
        if state.retired {
            return None;
        }
        let first = state.numbered;
        state.note_delivered(self.delivered());
        state.numbered += records as u64;
        state.in_flight.add(records, bytes);
        Some(first)
    }

    /// Notes that the next record has too many bytes to be delivered.
    pub(crate) fn refuse(&self, bytes: usize) {
        self.lock().in_flight.refuse(bytes);
    }

    /// Returns the number of delivered records.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Returns the number of records that are delivered and not acknowledged, and the age of the
    /// oldest. The age is exact to one second if this is called every second.
    pub(crate) fn unacknowledged(&self) -> (usize, Option<Duration>) {
        self.lock().unacknowledged(self.delivered())
    }

    /// Sets the in-flight limits.
    pub(crate) fn set_limits(&self, limits: InFlightConfig) {
        self.lock().in_flight.set_limits(limits);
    }

    /// Notes that the poll after a record acknowledges it, unless [`defer`](Self::defer) was called.
    pub(crate) fn acknowledge_by_polls(&self) {
        self.is_polled.store(true, Ordering::Relaxed);
    }

    /// Implements [`AckSink::defer`](crate::record::AckSink::defer).
    #[inline]
    pub(crate) fn defer(&self, number: u64) -> bool {
        let is_polled = self.is_polled.load(Ordering::Relaxed);
        if is_polled {
            // The stream reads it on the task of this call, or on one that was awakened by it.
            self.deferred.store(number + 1, Ordering::Relaxed);
        }
        is_polled
    }

    /// Returns true if any acknowledgement was deferred.
    pub(crate) fn has_deferred(&self) -> bool {
        self.deferred.load(Ordering::Relaxed) > 0
    }

    /// Returns true if the acknowledgement of the last delivered record was deferred.
    #[inline]
    pub(crate) fn is_deferred(&self, number: u64) -> bool {
        self.deferred.load(Ordering::Relaxed) == number + 1
    }

    /// Returns the limit that holds the shard: while there is one, no record is delivered.
    pub(crate) fn held_by(&self) -> Option<InFlightLimit> {
        self.lock().in_flight.limit()
    }

    /// Returns the limit that has held the shard for `time`, the number of unacknowledged records
    /// and the age of the oldest. Returns it once, until a record is acknowledged.
    pub(crate) fn stalled(&self, time: Duration) -> Option<(InFlightLimit, usize, Duration)> {
        let mut state = self.lock();
        let (limit, held) = state.in_flight.stalled(time)?;
        let (records, oldest) = state.unacknowledged(self.delivered());
        Some((limit, records, oldest.unwrap_or(held)))
    }

    /// Returns for how long the position has differed from the one last taken.
    pub(crate) fn changed_for(&self) -> Option<Duration> {
        self.lock().changed_at.map(|at| at.elapsed())
    }

    /// Stops delivery: no further record is delivered.
    pub(crate) fn retire(&self) {
        self.lock().retired = true;
    }

    /// Completes when every record in flight is acknowledged or returned.
    pub(crate) fn poll_settled(&self, context: &mut Context<'_>) -> Poll<()> {
        let before = {
            let mut state = self.lock();
            if state.in_flight.records() == 0 {
                return Poll::Ready(());
            }
            state.settling.replace(context.waker().clone())
        };
        // Not under the lock: dropping a waker may run user code.
        drop(before);
        Poll::Pending
    }

    /// Returns the current checkpoint.
    pub(crate) fn position(&self) -> Option<Checkpoint> {
        let state = self.lock();
        state.checkpoint()
    }

    /// Returns what may be delivered within the limits. Pending while a limit holds the shard.
    pub(crate) fn poll_allowance(&self, context: &mut Context<'_>) -> Poll<Allowance> {
        let before = {
            let mut state = self.lock();
            match state.in_flight.allowance() {
                None => state.waiting.replace(context.waker().clone()),
                Some(allowance) => return Poll::Ready(allowance),
            }
        };
        // Not under the lock: dropping a waker may run user code.
        drop(before);
        Poll::Pending
    }

    /// Notes that the shard has no record up to `passed` other than those in delivery.
    #[must_use = "notify the writer"]
    pub(crate) fn note_passed(&self, passed: QuietPosition) -> Option<Advance> {
        let mut state = self.lock();
        state.passed = Some((state.numbered, passed));
        let advanced = state.reach_passed();
        let is_first = state.note_changed(advanced);
        advanced.then_some(Advance::Position { is_first })
    }

    /// Marks the shard as closed, with its last record delivered.
    #[must_use = "notify the writer"]
    pub(crate) fn end(&self) -> Option<Advance> {
        let mut state = self.lock();
        state.ended = true;
        let is_complete = state.is_complete();
        state.note_changed(is_complete);
        is_complete.then_some(Advance::End)
    }

    /// Returns the checkpoint and the time of its change, if it has changed since it was last
    /// taken.
    pub(crate) fn take_changed(&self) -> Option<(Checkpoint, Instant)> {
        let mut state = self.lock();
        let since = state.changed_at.take()?;
        Some((state.checkpoint()?, since))
    }

    /// Implements [`AckSink::acknowledge`](crate::record::AckSink::acknowledge).
    #[must_use = "notify the writer"]
    pub(crate) fn acknowledge(
        &self,
        number: u64,
        position: &RecordPosition,
        bytes: usize,
    ) -> Option<Advance> {
        let (advance, wakers) = {
            let mut state = self.lock();
            if state.is_acknowledged(number) {
                return None;
            }
            state.in_flight.remove(1, bytes);
            let advanced = state.insert(number, position);
            state.reach_passed();
            let is_first = state.note_changed(advanced);
            let advance = match advanced {
                true if state.is_complete() => Some(Advance::End),
                true => Some(Advance::Position { is_first }),
                false => None,
            };
            (advance, [state.waiting.take(), state.settled()])
        };
        // This runs for each record, and rarely has a waker.
        if wakers.iter().any(Option::is_some) {
            wake_all(wakers.into_iter().flatten());
        }
        advance
    }

    /// Implements [`AckSink::deliver`](crate::record::AckSink::deliver).
    #[inline]
    pub(crate) fn deliver(&self, next: u64) {
        self.delivered.store(next, Ordering::Relaxed);
    }

    /// Implements [`AckSink::take_back`](crate::record::AckSink::take_back).
    pub(crate) fn take_back(&self, records: usize, bytes: usize) {
        let wakers = {
            let mut state = self.lock();
            state.numbered -= records as u64;
            state.in_flight.remove(records, bytes);
            [state.waiting.take(), state.settled()]
        };
        wake_all(wakers.into_iter().flatten());
    }

    fn lock(&self) -> MutexGuard<'_, WatermarkState> {
        // No code under the lock panics. If it did, the position would be too early, which is safe.
        self.state.lock()
    }
}

impl fmt::Debug for Watermark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        formatter
            .debug_struct("Watermark")
            .field("prefix", &state.prefix)
            .field("islands", &state.islands.len())
            .field("numbered", &state.numbered)
            .field("in_flight", &state.in_flight.records())
            .field("ended", &state.ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
