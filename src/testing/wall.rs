use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::clock::Clock;
use crate::mutex::Mutex;

/// A wall clock for a consumer under test, by which its leases expire. It follows tokio's clock, and
/// pauses with it, until it is moved. Clones share one clock.
///
/// Pass it to [`ConsumerBuilder::wall_clock`](crate::ConsumerBuilder::wall_clock).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> kinestream::Result<()> {
/// use std::time::Duration;
///
/// use kinestream::Consumer;
/// use kinestream::testing::{Kinesis, WallClock};
///
/// let kinesis = Kinesis::new();
/// let clock = WallClock::at(kinesis.now());
/// let consumer = Consumer::builder(kinesis.client(), "orders").wall_clock(&clock).build()?;
/// // As after a suspension of the machine, which timers do not notice.
/// clock.move_by(Duration::from_secs(60));
/// # drop(consumer);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct WallClock(Arc<Mutex<(SystemTime, Instant)>>);

impl WallClock {
    /// Creates a clock that shows `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new((time, Instant::now()))))
    }

    /// Returns the time of the clock.
    pub fn now(&self) -> SystemTime {
        let (began, since) = *self.lock();
        began + since.elapsed()
    }

    /// Moves the clock forwards.
    ///
    /// # Panics
    ///
    /// Panics if [`SystemTime`] cannot represent the new time.
    pub fn move_by(&self, time: Duration) {
        self.lock().0 += time;
    }

    /// Moves the clock backwards, as an administrator may.
    ///
    /// # Panics
    ///
    /// Panics if [`SystemTime`] cannot represent the new time.
    pub fn set_back(&self, time: Duration) {
        self.lock().0 -= time;
    }

    pub(crate) fn clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.now())
    }

    fn lock(&self) -> MutexGuard<'_, (SystemTime, Instant)> {
        self.0.lock()
    }
}
