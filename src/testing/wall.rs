use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// True once any thread has had a replaced clock. Until then, no clock is looked up.
static WAS_EVER_REPLACED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static REPLACED: RefCell<Option<SharedClock>> = const { RefCell::new(None) };
}

/// A wall clock that a test has created: the time that it showed at an instant of tokio's clock.
#[derive(Debug, Clone)]
pub(crate) struct SharedClock(Arc<Mutex<(SystemTime, Instant)>>);

impl SharedClock {
    /// Returns the time of the clock.
    pub(crate) fn now(&self) -> SystemTime {
        let (began, since) = *self.lock();
        began + since.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, (SystemTime, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces the wall clock of this thread, by which leases expire. The clock follows tokio's clock,
/// and pauses with it, until it is moved. Dropping it restores the machine's clock.
///
/// A worker keeps the clock that its thread has when the worker's stream is first polled. So
/// several workers on one thread can have different clocks: see [`WallClock::enter`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
///
/// use kinestream::testing::WallClock;
///
/// let clock = WallClock::at(std::time::UNIX_EPOCH);
/// // As after a suspension of the machine, which timers do not notice.
/// clock.move_by(Duration::from_secs(60));
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping the clock restores the machine's clock"]
pub struct WallClock {
    clock: SharedClock,
    /// Binds the clock to its thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl WallClock {
    /// Creates a clock that shows `time` now and becomes the thread's clock.
    pub fn at(time: SystemTime) -> Self {
        WAS_EVER_REPLACED.store(true, Ordering::Relaxed);
        let clock = SharedClock(Arc::new(Mutex::new((time, Instant::now()))));
        let clock = Self { clock, _thread: std::marker::PhantomData };
        clock.enter();
        clock
    }

    /// Makes this clock the thread's clock again, in place of one that was created later.
    pub fn enter(&self) {
        REPLACED.set(Some(self.clock.clone()));
    }

    /// Returns the time of the clock.
    pub fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Moves the clock forwards.
    pub fn move_by(&self, time: Duration) {
        self.clock.lock().0 += time;
    }

    /// Moves the clock backwards, as an administrator may.
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

/// Returns the clock that has replaced the machine's on this thread, if any.
#[inline]
pub(crate) fn replaced_clock() -> Option<SharedClock> {
    if WAS_EVER_REPLACED.load(Ordering::Relaxed) {
        REPLACED.with_borrow(Option::clone)
    } else {
        None
    }
}
