use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Whether any thread has ever had a clock of its own: where none has, none is looked for.
static HAS_BEEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static REPLACED: RefCell<Option<SharedClock>> = const { RefCell::new(None) };
}

/// A wall clock that a test has made: what it showed at a moment of tokio's clock.
#[derive(Debug, Clone)]
pub(crate) struct SharedClock(Arc<Mutex<(SystemTime, Instant)>>);

impl SharedClock {
    /// The time that it shows.
    pub(crate) fn now(&self) -> SystemTime {
        let (began, since) = *self.lock();
        began + since.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, (SystemTime, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Another clock on the wall for this thread, by which leases are known to be over: it goes with
/// tokio's, so that it pauses with it, until it is moved. Dropped, it gives the machine's back.
///
/// A worker keeps the clock that its thread has when its stream is polled first. So workers on one
/// thread can have a clock each: see [`WallClock::enter`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
///
/// use kinestream::testing::WallClock;
///
/// let clock = WallClock::at(std::time::UNIX_EPOCH);
/// // As after a sleep of the machine, of which no timer has heard.
/// clock.move_by(Duration::from_secs(60));
/// # }
/// ```
#[derive(Debug)]
#[must_use = "the machine's clock is back when it is dropped"]
pub struct WallClock {
    clock: SharedClock,
    /// It is this thread's.
    _thread: std::marker::PhantomData<*const ()>,
}

impl WallClock {
    /// One that shows `time` now, and is the thread's from now on.
    pub fn at(time: SystemTime) -> Self {
        HAS_BEEN.store(true, Ordering::Relaxed);
        let clock = SharedClock(Arc::new(Mutex::new((time, Instant::now()))));
        let clock = Self { clock, _thread: std::marker::PhantomData };
        clock.enter();
        clock
    }

    /// Makes it the thread's clock, in the place of one that was made later.
    pub fn enter(&self) {
        REPLACED.set(Some(self.clock.clone()));
    }

    /// The time that it shows.
    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Moves it forwards.
    pub fn move_by(&self, time: Duration) {
        self.clock.lock().0 += time;
    }

    /// Moves it backwards, as an administrator may.
    pub fn set_back(&self, time: Duration) {
        self.clock.lock().0 -= time;
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        REPLACED.with_borrow_mut(|replaced| {
            replaced.take_if(|replaced| Arc::ptr_eq(&replaced.0, &self.clock.0));
        });
    }
}

/// The clock that has replaced the machine's on this thread.
#[inline]
pub(crate) fn replaced_clock() -> Option<SharedClock> {
    if HAS_BEEN.load(Ordering::Relaxed) { REPLACED.with_borrow(Option::clone) } else { None }
}
