//! The time that a busy machine takes from a test on real time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const STEP: Duration = Duration::from_millis(10);

/// The time by which tokio's timers already exceed their times on an idle machine: its resolution.
const USUAL: Duration = Duration::from_millis(2);

/// Measures how late a task wakes up, over and over. A time limit of a test grows by the time that was
/// lost within it, so that it is strict on an idle machine, and holds on one that is busy with other
/// builds and tests.
pub(crate) struct Slowness {
    lost: Arc<Mutex<Vec<(Instant, Duration)>>>,
    measuring: JoinHandle<()>,
}

impl Slowness {
    /// Starts to measure, within a runtime on real time.
    pub(crate) fn measure() -> Self {
        let lost = Arc::<Mutex<Vec<_>>>::default();
        let measured = Arc::clone(&lost);
        let measuring = tokio::spawn(async move {
            loop {
                let before = Instant::now();
                sleep(STEP).await;
                let late = before.elapsed().saturating_sub(STEP + USUAL);
                if !late.is_zero() {
                    measured.lock().unwrap().push((before, late));
                }
            }
        });
        Self { lost, measuring }
    }

    /// Returns the time lost since then.
    pub(crate) fn since(&self, since: Instant) -> Duration {
        let lost = self.lost.lock().unwrap();
        lost.iter().rev().take_while(|(at, _)| *at >= since).map(|(_, late)| *late).sum()
    }
}

impl Drop for Slowness {
    fn drop(&mut self) {
        self.measuring.abort();
    }
}
