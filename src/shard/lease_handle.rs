//! The right to read a shard, valid until its lease ends or may have ended.
//!
//! ```text
//!            the worker did not renew in time
//!   valid ◄────────────────────────────────────► in doubt
//!     │            the worker has renewed            │
//!     └──► over: handed off, lost, finished ◄────────┘
//! ```
//!
//! The state is checked for each record. A process that was suspended must detect that before it
//! delivers another record. Only a clock can show it, since no task ran during the suspension.
//! Therefore two clocks are read for each record: the wall clock advances while the machine sleeps,
//! and the monotonic clock cannot be set back. The validity ends as soon as one of the clocks has
//! reached its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::CloseSignal;
use crate::clock::Clock;
use crate::mutex::Mutex;
use crate::wakers::{Waiters, wake_all};

/// A moment by both clocks of this host, the monotonic clock and the wall clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    /// Returns the moment that is `time` later by both clocks.
    fn after(self, time: Duration) -> Self {
        Self {
            monotonic: self.monotonic.checked_add(time).unwrap_or(self.monotonic),
            wall: self.wall.checked_add(time).unwrap_or(self.wall),
        }
    }

    /// Returns true if this moment precedes `end` by both clocks. The monotonic clock stops while
    /// some machines sleep, and the wall clock may be set back: the clock that has advanced further
    /// counts.
    fn is_before(self, end: Self) -> bool {
        self.monotonic < end.monotonic && self.wall < end.wall
    }
}

/// The right to read one shard. Each clone wakes the waker of its last poll.
#[derive(Debug)]
pub(crate) struct LeaseHandle {
    epoch: u64,
    guard: Arc<LeaseGuard>,
    over: CloseSignal,
    /// The key of this clone among those that wait for the same deadline.
    key: u64,
}

/// The end of the validity, as cached by a run of records.
#[derive(Debug, Clone, Copy)]
pub(super) struct CachedDeadline {
    until: Moment,
    /// The number of renewals when it was read.
    renewals: u64,
}

/// The state that a run of records checks for each record.
#[derive(Debug)]
pub(super) struct LeaseGuard {
    over: CloseSignal,
    validity: Arc<LeaseDeadline>,
}

impl LeaseGuard {
    /// Returns true if a record may be delivered now. `known` caches the end of the validity, since
    /// reading it costs more than reading the clocks.
    #[inline]
    pub(super) fn holds(&self, known: &mut Option<CachedDeadline>) -> bool {
        if self.over.is_closed() || self.validity.is_doubtful.load(Ordering::SeqCst) {
            return false;
        }
        // If the wall clock was set back, only the end set by the last renewal reveals a later
        // sleep.
        let renewals = self.validity.renewals.load(Ordering::SeqCst);
        if known.is_none_or(|known| known.renewals != renewals) {
            *known = self.validity.until().map(|until| CachedDeadline { until, renewals });
        }
        known.is_some_and(|known| self.validity.now().is_before(known.until))
    }
}

impl LeaseHandle {
    pub(crate) fn new(epoch: u64, validity: Arc<LeaseDeadline>) -> Self {
        let over = CloseSignal::new();
        let key = validity.new_key();
        Self { epoch, guard: Arc::new(LeaseGuard { over: over.clone(), validity }), over, key }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Ends the right to read the shard, for all clones.
    pub(crate) fn end(&self) {
        self.over.close();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_closed()
    }

    /// Returns the signal that is closed when the right to read the shard ends.
    pub(crate) fn over(&self) -> &CloseSignal {
        &self.over
    }

    pub(super) fn guard(&self) -> &Arc<LeaseGuard> {
        &self.guard
    }

    /// Ready with `true` when records may be delivered, and with `false` when the right has ended.
    pub(super) fn poll_holds(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.over.poll_closed(context).is_ready() {
            return Poll::Ready(false);
        }
        self.guard.validity.poll_holds(self.key, context).map(|()| true)
    }
}

impl Clone for LeaseHandle {
    fn clone(&self) -> Self {
        let (guard, over) = (Arc::clone(&self.guard), self.over.clone());
        Self { epoch: self.epoch, key: guard.validity.new_key(), guard, over }
    }
}

impl Drop for LeaseHandle {
    fn drop(&mut self) {
        let before = self.guard.validity.waiting().remove(self.key);
        drop(before);
    }
}

/// The time until which a worker may treat its leases as its own.
#[derive(Debug)]
pub(crate) struct LeaseDeadline {
    clock: Clock,
    until: Mutex<Option<Moment>>,
    /// The number of times that `until` was set.
    renewals: AtomicU64,
    /// The leases may have expired.
    is_doubtful: AtomicBool,
    keys: AtomicU64,
    /// The waiting wakers, by the keys of the handles.
    waiting: Mutex<Waiters>,
}

impl LeaseDeadline {
    /// Returns a deadline that has passed, by the wall clock of the worker's host.
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            until: Mutex::default(),
            renewals: AtomicU64::new(0),
            is_doubtful: AtomicBool::new(true),
            keys: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Returns the current moment by the clocks of the worker's host.
    #[inline]
    pub(crate) fn now(&self) -> Moment {
        Moment { monotonic: Instant::now(), wall: self.clock.now() }
    }

    /// Extends the validity to `time` after `from`, and wakes the handles that wait for it.
    pub(crate) fn extend(&self, from: Moment, time: Duration) {
        *self.until.lock() = Some(from.after(time));
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.is_doubtful.store(false, Ordering::SeqCst);
        let waiting = self.waiting().take();
        wake_all(waiting);
    }

    /// Notes that another worker may own the leases. No record is delivered until the next
    /// extension.
    pub(crate) fn suspend(&self) {
        self.is_doubtful.store(true, Ordering::SeqCst);
    }

    fn until(&self) -> Option<Moment> {
        *self.until.lock()
    }

    fn holds(&self) -> bool {
        !self.is_doubtful.load(Ordering::SeqCst)
            && self.until().is_some_and(|until| self.now().is_before(until))
    }

    fn new_key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    fn poll_holds(&self, key: u64, context: &mut Context<'_>) -> Poll<()> {
        if self.holds() {
            return Poll::Ready(());
        }
        let before = self.waiting().wait(key, context.waker());
        drop(before);
        // The validity may have been extended before the waker was registered.
        if self.holds() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiters> {
        self.waiting.lock()
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::task::{Wake, Waker};

    use futures::FutureExt;

    use super::*;
    use crate::testing::WallClock;

    const LONG: Duration = Duration::from_secs(60);

    fn lease_handle() -> (LeaseHandle, Arc<LeaseDeadline>) {
        lease_handle_by(Clock::default())
    }

    fn lease_handle_by(clock: Clock) -> (LeaseHandle, Arc<LeaseDeadline>) {
        let validity = Arc::new(LeaseDeadline::new(clock));
        (LeaseHandle::new(7, Arc::clone(&validity)), validity)
    }

    fn holds(lease_handle: &LeaseHandle) -> bool {
        lease_handle.guard().holds(&mut None)
    }

    #[test]
    fn lease_holds_from_a_renewal_until_a_doubt_or_the_end() {
        let (lease_handle, validity) = lease_handle();
        assert!(!holds(&lease_handle));
        validity.extend(validity.now(), LONG);
        assert!(holds(&lease_handle));
        validity.suspend();
        assert!(!holds(&lease_handle));
        validity.extend(validity.now(), LONG);
        lease_handle.end();
        assert!(!holds(&lease_handle));
    }

    #[tokio::test(start_paused = true)]
    async fn lease_ends_by_the_clock_that_advanced_further() {
        let clock = WallClock::at(SystemTime::UNIX_EPOCH + LONG);
        let (lease_handle, validity) = lease_handle_by(clock.clock());
        let mut until = None;
        validity.extend(validity.now(), LONG);
        assert!(lease_handle.guard().holds(&mut until));
        // As after a sleep of the machine, in which the monotonic clock stops.
        clock.move_by(LONG);
        assert!(!lease_handle.guard().holds(&mut until));
        validity.extend(validity.now(), LONG);
        assert!(lease_handle.guard().holds(&mut until));
        // The wall clock is set back while the process is suspended.
        clock.set_back(LONG);
        tokio::time::advance(LONG).await;
        assert!(!lease_handle.guard().holds(&mut until));
        assert!(!holds(&lease_handle));
    }

    #[tokio::test(start_paused = true)]
    async fn sleep_after_the_wall_clock_was_set_back_ends_the_lease() {
        let clock = WallClock::at(SystemTime::UNIX_EPOCH + 2 * LONG);
        let (lease_handle, validity) = lease_handle_by(clock.clock());
        let mut known = None;
        validity.extend(validity.now(), LONG);
        assert!(lease_handle.guard().holds(&mut known));
        clock.set_back(LONG);
        validity.extend(validity.now(), LONG);
        assert!(lease_handle.guard().holds(&mut known));
        // As after a sleep of the machine, in which only the wall clock advances.
        clock.move_by(LONG);
        assert!(!lease_handle.guard().holds(&mut known));
    }

    #[tokio::test]
    async fn poll_is_ready_after_a_renewal_or_the_end() {
        let (first, validity) = lease_handle();
        let wait = |mut lease_handle: LeaseHandle| {
            tokio::spawn(std::future::poll_fn(move |context| lease_handle.poll_holds(context)))
        };
        let mut waiting = wait(first.clone());
        tokio::task::yield_now().await;
        assert!((&mut waiting).now_or_never().is_none());
        validity.extend(validity.now(), LONG);
        assert!(waiting.await.unwrap());
        validity.suspend();
        let waiting = wait(first.clone());
        tokio::task::yield_now().await;
        first.end();
        assert!(!waiting.await.unwrap());
    }

    /// Polls its lease handle as soon as it is woken, on the thread that wakes it.
    struct PollsInline(Mutex<Option<LeaseHandle>>, AtomicBool);

    impl Wake for PollsInline {
        fn wake(self: Arc<Self>) {
            let Some(mut lease_handle) = self.0.lock().take() else { return };
            let waker = Waker::from(Arc::clone(&self));
            let polled = lease_handle.poll_holds(&mut Context::from_waker(&waker));
            self.1.store(polled == Poll::Ready(true), Ordering::SeqCst);
        }
    }

    #[test]
    fn waker_that_polls_inline_does_not_deadlock() {
        let (mut lease_handle, validity) = lease_handle();
        let woken = Arc::new(PollsInline(Mutex::default(), AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        assert!(lease_handle.poll_holds(&mut Context::from_waker(&waker)).is_pending());
        *woken.0.lock() = Some(lease_handle);
        validity.extend(validity.now(), LONG);
        assert!(woken.1.load(Ordering::SeqCst), "the poll within the wake is ready");
    }

    struct Unwoken;

    impl Wake for Unwoken {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn deadline_in_doubt_keeps_one_waker_per_handle() {
        let (mut first, validity) = lease_handle();
        let mut second = first.clone();
        for _ in 0..1000 {
            for lease_handle in [&mut first, &mut second] {
                let waker = Waker::from(Arc::new(Unwoken));
                assert!(lease_handle.poll_holds(&mut Context::from_waker(&waker)).is_pending());
            }
        }
        assert_eq!(validity.waiting().len(), 2);
        drop(second);
        assert_eq!(validity.waiting().len(), 1);
    }
}
