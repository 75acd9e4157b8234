//! The right to read a shard: for as long as its lease lasts, and while that is known.
//!
//! ```text
//!            the worker could not renew in time
//!   holds ◄──────────────────────────────────────► in doubt
//!     │              it has renewed                    │
//!     └──► over: handed over, lost, finished ◄─────────┘
//! ```
//!
//! Both are looked at for each record. A process that was suspended must notice before it hands out
//! another one, and then nothing but a clock tells: no task of it has run meanwhile. So the clock is
//! read for each record, and it is the one on the wall, which alone goes on in a machine that sleeps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Closing;

/// The right to read one shard. Each clone wakes whoever polled it last.
#[derive(Debug, Clone)]
pub(crate) struct Tenure {
    epoch: u64,
    hold: Arc<Hold>,
    over: Closing,
}

/// What a run of records looks at for each of them.
#[derive(Debug)]
pub(super) struct Hold {
    over: Closing,
    validity: Arc<Validity>,
}

impl Hold {
    /// Whether a record may be handed out now. `until` is what was known of that when it was asked
    /// last, since to ask is dearer than to look at the clock.
    #[inline]
    pub(super) fn holds(&self, until: &mut SystemTime) -> bool {
        if self.over.is_closed() || self.validity.is_doubtful.load(Ordering::SeqCst) {
            return false;
        }
        let now = time_on_the_wall();
        if now < *until {
            return true;
        }
        *until = self.validity.until();
        now < *until
    }
}

impl Tenure {
    pub(crate) fn new(epoch: u64, validity: Arc<Validity>) -> Self {
        let over = Closing::new();
        Self { epoch, hold: Arc::new(Hold { over: over.clone(), validity }), over }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The shard is read no more.
    pub(crate) fn end(&self) {
        self.over.close();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_closed()
    }

    /// When the shard is read no more.
    pub(super) fn over(&self) -> &Closing {
        &self.over
    }

    pub(super) fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// Ready with `true` when records may be handed out, with `false` when none will be any more.
    pub(super) fn poll_holds(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.over.poll_closed(context).is_ready() {
            return Poll::Ready(false);
        }
        self.hold.validity.poll_holds(context).map(|()| true)
    }
}

/// Until when a worker may take its leases to be its own.
#[derive(Debug)]
pub(crate) struct Validity {
    /// By the clock on the wall.
    until: Mutex<SystemTime>,
    /// It is not known to be any longer.
    is_doubtful: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Default for Validity {
    fn default() -> Self {
        Self {
            until: Mutex::new(UNIX_EPOCH),
            is_doubtful: AtomicBool::new(true),
            waiting: Mutex::default(),
        }
    }
}

impl Validity {
    /// The leases are the worker's for so long after that moment.
    pub(crate) fn extend(&self, from: SystemTime, time: Duration) {
        let until = from.checked_add(time).unwrap_or(from);
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.is_doubtful.store(false, Ordering::SeqCst);
        self.waiting().drain(..).for_each(Waker::wake);
    }

    /// The leases may be another's by now.
    pub(crate) fn doubt(&self) {
        self.is_doubtful.store(true, Ordering::SeqCst);
    }

    fn until(&self) -> SystemTime {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self) -> bool {
        !self.is_doubtful.load(Ordering::SeqCst) && time_on_the_wall() < self.until()
    }

    fn poll_holds(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.holds() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        // It may have been extended before the waker was there.
        if self.holds() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time by the clock on the wall, which a test may have replaced.
#[inline]
pub(crate) fn time_on_the_wall() -> SystemTime {
    #[cfg(feature = "testing")]
    if let Some(time) = crate::testing::time_on_the_wall() {
        return time;
    }
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn tenure() -> (Tenure, Arc<Validity>) {
        let validity = Arc::new(Validity::default());
        (Tenure::new(7, Arc::clone(&validity)), validity)
    }

    #[test]
    fn is_in_doubt_before_the_first_renewal_and_after_the_last() {
        let (tenure, validity) = tenure();
        assert!(!tenure.hold().holds(&mut UNIX_EPOCH.clone()));
        validity.extend(SystemTime::now(), LONG);
        assert!(tenure.hold().holds(&mut UNIX_EPOCH.clone()));
        // As after a sleep: nobody has said anything, and the time is over.
        validity.extend(SystemTime::now() - 2 * LONG, LONG);
        assert!(!tenure.hold().holds(&mut UNIX_EPOCH.clone()));
        validity.extend(SystemTime::now(), LONG);
        validity.doubt();
        assert!(!tenure.hold().holds(&mut UNIX_EPOCH.clone()));
        validity.extend(SystemTime::now(), LONG);
        tenure.end();
        assert!(!tenure.hold().holds(&mut UNIX_EPOCH.clone()));
    }

    #[tokio::test]
    async fn waits_for_the_next_renewal_or_the_end() {
        let (first, validity) = tenure();
        let wait = |mut tenure: Tenure| {
            tokio::spawn(std::future::poll_fn(move |context| tenure.poll_holds(context)))
        };
        let mut waiting = wait(first.clone());
        tokio::task::yield_now().await;
        assert!((&mut waiting).now_or_never().is_none());
        validity.extend(SystemTime::now(), LONG);
        assert!(waiting.await.unwrap());
        validity.doubt();
        let waiting = wait(first.clone());
        tokio::task::yield_now().await;
        first.end();
        assert!(!waiting.await.unwrap());
    }
}
