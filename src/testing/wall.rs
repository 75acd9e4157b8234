use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// Whether any thread has ever had a clock of its own: where none has, none is looked for.
static HAS_BEEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static REPLACED: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// Another clock on the wall for this thread, by which leases are known to be over: it goes with
/// tokio's, so that it pauses with it, until it is moved. Dropped, it gives the machine's back.
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
    /// It is this thread's.
    _thread: std::marker::PhantomData<*const ()>,
}

impl WallClock {
    /// One that shows `time` now.
    pub fn at(time: SystemTime) -> Self {
        HAS_BEEN.store(true, Ordering::Relaxed);
        REPLACED.set(Some((time, Instant::now())));
        Self { _thread: std::marker::PhantomData }
    }

    /// The time that it shows.
    pub fn now(&self) -> SystemTime {
        time_on_the_wall().unwrap_or_else(SystemTime::now)
    }

    /// Moves it forwards.
    pub fn move_by(&self, time: Duration) {
        if let Some((began, since)) = REPLACED.get() {
            REPLACED.set(Some((began + time, since)));
        }
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        REPLACED.set(None);
    }
}

/// The time by the clock that has replaced the machine's on this thread.
#[inline]
pub(crate) fn time_on_the_wall() -> Option<SystemTime> {
    if HAS_BEEN.load(Ordering::Relaxed) { replaced() } else { None }
}

#[cold]
fn replaced() -> Option<SystemTime> {
    REPLACED.get().map(|(began, since)| began + since.elapsed())
}
