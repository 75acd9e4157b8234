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
        position: RecordPosition,
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
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;
    use crate::record::SequenceNumber;

    fn whole(number: &SequenceNumber) -> RecordPosition {
        RecordPosition { number: number.clone(), part: None }
    }

    /// Returns `count` records: numbers from 0, and sequence numbers from 1007 in steps of 7.
    fn records(count: usize) -> Vec<(u64, SequenceNumber)> {
        (0..count as u64)
            .map(|number| (number, (1007 + 7 * number).to_string().parse().unwrap()))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn age_of_the_oldest_record_is_exact_with_1000_unacknowledged() {
        let watermark = Watermark::default();
        let second = Duration::from_secs(1);
        assert_eq!(watermark.unacknowledged(), (0, None));
        let records = records(1000);
        for (number, _) in &records {
            assert_eq!(watermark.begin_delivery(1, 0), Some(*number));
            watermark.deliver(number + 1);
            assert!(watermark.unacknowledged().0 > 0, "the record is unacknowledged");
            tokio::time::advance(second).await;
        }
        assert_eq!(watermark.unacknowledged(), (1000, Some(1000 * second)));
        // Records after the first do not change its age.
        for (number, place) in &records[1..] {
            let _advance = watermark.acknowledge(*number, whole(place), 0);
        }
        assert_eq!(watermark.unacknowledged(), (1, Some(1000 * second)));
        let _advance = watermark.acknowledge(0, whole(&records[0].1), 0);
        assert_eq!(watermark.unacknowledged(), (0, None));
        watermark.begin_delivery(2, 0);
        assert_eq!(watermark.unacknowledged(), (0, None), "neither record is delivered yet");
        watermark.deliver(1001);
        assert_eq!(watermark.unacknowledged().0, 1);
        tokio::time::advance(second).await;
        watermark.take_back(1, 0);
        watermark.begin_delivery(1, 0);
        watermark.deliver(1002);
        assert_eq!(watermark.unacknowledged(), (2, Some(second)));
    }

    #[tokio::test(start_paused = true)]
    async fn stall_is_reported_once_until_a_record_is_acknowledged() {
        let watermark = Watermark::default();
        watermark.set_limits(InFlightConfig { records: 2, bytes: usize::MAX });
        let (second, records) = (Duration::from_secs(1), records(4));
        let stalled = || watermark.stalled(30 * second);
        let deliver = || {
            let number = watermark.begin_delivery(1, 0).unwrap();
            watermark.deliver(number + 1);
            watermark.unacknowledged();
        };
        deliver();
        tokio::time::advance(31 * second).await;
        assert!(watermark.held_by().is_none() && stalled().is_none());
        deliver();
        tokio::time::advance(29 * second).await;
        assert!(watermark.held_by().is_some() && stalled().is_none());
        tokio::time::advance(second).await;
        assert_eq!(stalled(), Some((InFlightLimit::Records, 2, 61 * second)));
        tokio::time::advance(60 * second).await;
        assert_eq!(stalled(), None, "the stall is reported once");
        let _advance = watermark.acknowledge(1, whole(&records[1].1), 0);
        assert!(watermark.held_by().is_none());
        deliver();
        tokio::time::advance(30 * second).await;
        assert_eq!(
            stalled(),
            Some((InFlightLimit::Records, 2, 151 * second)),
            "a new stall is reported after an acknowledgement"
        );
    }

    proptest! {
        /// Compares with the simplest model: a list of flags.
        #[test]
        fn position_advances_over_the_acknowledged_prefix_only(
            count in 1..30_usize,
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
            end_after in 0..60_usize,
        ) {
            let records = records(count);
            let (watermark, mut ends) = (Watermark::default(), 0);
            watermark.begin_delivery(records.len(), 0);
            let mut flags = vec![false; records.len()];
            let mut ended = false;
            let mut last = None;
            for (step, pick) in picks.iter().enumerate() {
                if step == end_after {
                    ends += usize::from(watermark.end() == Some(Advance::End));
                    ended = true;
                }
                let (number, sequence_number) = pick.get(&records);
                let advance = watermark.acknowledge(*number, whole(sequence_number), 0);
                ends += usize::from(advance == Some(Advance::End));
                flags[usize::try_from(*number).unwrap()] = true;

                let prefix = flags.iter().take_while(|flag| **flag).count();
                let unacknowledged = flags.iter().filter(|flag| !**flag).count();
                let complete = ended && prefix == records.len();
                let expected = match prefix {
                    _ if complete => Some(Checkpoint::ShardEnd),
                    0 => None,
                    _ => Some(Checkpoint::AfterSequenceNumber {
                        sequence_number: records[prefix - 1].1.clone(),
                        sub_sequence_number: None,
                    }),
                };
                if let Some((checkpoint, _)) = watermark.take_changed() {
                    last = Some(checkpoint);
                }
                prop_assert_eq!(&last, &expected);
                prop_assert_eq!(watermark.lock().in_flight.records(), unacknowledged);
                prop_assert_eq!(ends, usize::from(complete));
            }
        }
    }

    #[test]
    fn passed_position_is_dropped_if_later_records_are_acknowledged_with_those_before_it() {
        let (watermark, records) = (Watermark::default(), records(3));
        watermark.begin_delivery(1, 0);
        let until = std::time::SystemTime::UNIX_EPOCH;
        let passed = QuietPosition { after: "1010".parse().ok(), until };
        assert!(watermark.note_passed(passed).is_none(), "the record before it is in flight");
        watermark.begin_delivery(2, 0);
        for (number, place) in [&records[1], &records[2], &records[0]] {
            let _advance = watermark.acknowledge(*number, whole(place), 0);
        }
        let last = "AFTER_SEQUENCE_NUMBER:1021".parse().ok();
        assert_eq!(watermark.position(), last);
    }

    #[test]
    fn acknowledged_record_makes_room_and_wakes_the_stream() {
        let watermark = Watermark::default();
        let (waker, count) = futures_test_waker();
        let mut context = Context::from_waker(&waker);
        let records = records(2);
        watermark.set_limits(InFlightConfig { records: 2, bytes: 100 });
        watermark.begin_delivery(2, 80);
        assert!(watermark.poll_allowance(&mut context).is_pending());
        let _advance = watermark.acknowledge(1, whole(&records[1].1), 0);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let Poll::Ready(allowance) = watermark.poll_allowance(&mut context) else {
            panic!("expected an allowance after a record was acknowledged")
        };
        assert_eq!(allowance.records, 1);
        watermark.refuse(21);
        assert!(watermark.poll_allowance(&mut context).is_pending(), "too many bytes");
    }

    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn futures_test_waker() -> (Waker, Arc<Count>) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Waker::from(Arc::clone(&count)), count)
    }
}
