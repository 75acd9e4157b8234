use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::task;
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
pub struct WallClock(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// The time that the clock showed at `since`.
    began: SystemTime,
    since: Instant,
    /// The task whose next reads panic, and their number.
    panics: Option<(task::Id, u32)>,
}

impl WallClock {
    /// Creates a clock that shows `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(State { began: time, since: Instant::now(), panics: None })))
    }

    /// Returns the time of the clock.
    pub fn now(&self) -> SystemTime {
        let state = self.lock();
        state.began + state.since.elapsed()
    }

    /// Moves the clock forwards.
    ///
    /// # Panics
    ///
    /// Panics if [`SystemTime`] cannot represent the new time.
    pub fn move_by(&self, time: Duration) {
        self.lock().began += time;
    }

    /// Moves the clock backwards, as an administrator may.
    ///
    /// # Panics
    ///
    /// Panics if [`SystemTime`] cannot represent the new time.
    pub fn set_back(&self, time: Duration) {
        self.lock().began -= time;
    }

    /// Makes the next reads of a consumer in this task panic, like a fault of the crate in that
    /// task. A worker reads the clock before it renews its leases.
    pub fn panic_in(&self, task: task::Id, times: u32) {
        self.lock().panics = Some((task, times));
    }

    pub(crate) fn clock(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || {
            clock.maybe_panic();
            clock.now()
        })
    }

    fn maybe_panic(&self) {
        let is_due = match &mut self.lock().panics {
            Some((task, left)) if *left > 0 && task::try_id() == Some(*task) => {
                *left -= 1;
                true
            }
            _ => false,
        };
        assert!(!is_due, "deliberate: the wall clock of a test panics in this task");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}
