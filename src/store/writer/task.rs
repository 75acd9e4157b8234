//! The task that saves, and its handling of a failing store.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::WriterShared;
use super::gate::Gate;
use crate::backoff::{Backoff, SAVES};
use crate::error::{Error, ErrorKind, Result, TOLERATED_PANICS, contain};
use crate::telemetry::{Event, Task, log_line};
use crate::wakers::wake_all;

/// The reply channel of a caller that waits until everything is saved.
pub(super) type Request = oneshot::Sender<Result<()>>;

/// The time limit for saving after the last handle is dropped.
const FINAL_SAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A series of consecutive failed saves.
struct Outage {
    since: Instant,
    backoff: Backoff,
    retry_at: Instant,
    /// True if any error was not temporary.
    is_permanent: bool,
    is_reported: bool,
}

/// The background task.
pub(super) struct FlushTask {
    shared: Arc<WriterShared>,
    requests: mpsc::UnboundedReceiver<Request>,
    /// The callers that wait until everything is saved.
    waiting_flushes: Vec<Request>,
    outage: Option<Outage>,
    /// The start time of the last save that has not failed.
    written: Instant,
}

impl FlushTask {
    pub(super) fn new(
        shared: &Arc<WriterShared>,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Self {
        let (shared, written) = (Arc::clone(shared), Instant::now());
        Self { shared, requests, waiting_flushes: Vec::new(), outage: None, written }
    }

    /// Runs until the last handle is dropped. Restarts after a panic.
    pub(super) async fn run(mut self) {
        let mut ends = EarlyEndGuard(Some(Arc::clone(&self.shared)));
        let (mut panics, mut backoff) = (0, Backoff::new(SAVES));
        while let Err(panic) = contain(self.work()).await {
            let message = panic.to_string();
            let event = Event::TaskRestarted { task: Task::Checkpoints, shard_id: None, message };
            self.shared.telemetry.emit(event);
            panics += 1;
            if panics == TOLERATED_PANICS + 1 {
                let _no_stream = self.shared.report(panicked(&panic).with_source(panic));
            }
            // Backs off as after a failed save. Pending positions stay pending.
            sleep(backoff.failed()).await;
        }
        let _panicked = contain(save_final(&self.shared)).await;
        ends.0 = None;
    }

    async fn work(&mut self) {
        loop {
            // While the store fails, only the back-off or a flush request starts the next attempt.
            let next = match &self.outage {
                Some(outage) => outage.retry_at,
                None => self.written + self.shared.flush.interval.max(Duration::from_millis(1)),
            };
            let resting = self.outage.is_none() && self.shared.flush.interval.is_zero();
            // Biased, so that the choice is deterministic.
            if self.waiting_flushes.is_empty() || self.outage.is_some() {
                tokio::select! {
                    biased;
                    request = self.requests.recv() => match request {
                        Some(flushed) => self.waiting_flushes.push(flushed),
                        None => return,
                    },
                    () = self.shared.urgent.notified(), if self.outage.is_none() => {}
                    () = sleep_until(next), if !resting => {}
                }
            }
            while let Ok(flushed) = self.requests.try_recv() {
                self.waiting_flushes.push(flushed);
            }
            if self.attempt().await.is_none() {
                return;
            }
        }
    }

    /// Saves once and handles the result. Returns `None` after the last handle was dropped.
    async fn attempt(&mut self) -> Option<()> {
        let started = Instant::now();
        // This save may not contain the positions of callers that request a flush from now on.
        let mut late = Vec::new();
        let saved = {
            let shared = Arc::clone(&self.shared);
            let mut saving = pin!(shared.save());
            loop {
                tokio::select! {
                    biased;
                    saved = &mut saving => break saved,
                    request = self.requests.recv() => late.push(request?),
                }
            }
        };
        match saved {
            Ok(()) => {
                if let Some(ended) = self.outage.take() {
                    let after = ended.since.elapsed();
                    self.shared.telemetry.emit(Event::StoreRecovered { after });
                }
                self.written = started;
                for flushed in self.waiting_flushes.drain(..) {
                    let _ = flushed.send(Ok(()));
                }
            }
            Err(error) => {
                self.waiting_flushes.retain(|flushed| !flushed.is_closed());
                fail(&self.shared, &mut self.outage, started, error, &mut self.waiting_flushes);
            }
        }
        self.waiting_flushes.append(&mut late);
        Some(())
    }
}

/// Closes `gone` if it is dropped with the runtime, so that readers notice that the task has ended.
struct EarlyEndGuard(Option<Arc<WriterShared>>);

impl Drop for EarlyEndGuard {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.gone.close();
        }
    }
}

fn panicked(panic: &dyn std::fmt::Display) -> Error {
    let message = format!(
        "the task that saves checkpoints panicked repeatedly; it is restarted, and records are \
         delivered until max_unflushed: {panic}"
    );
    Error::new(ErrorKind::Panicked, message)
}

/// Handles a failed save: schedules the next attempt and reports the error.
fn fail(
    shared: &WriterShared,
    outage: &mut Option<Outage>,
    started: Instant,
    error: Error,
    waiting_flushes: &mut Vec<Request>,
) {
    let error = error.in_stream(shared.scope.shared_stream_name());
    let curable = error.is_temporary();
    let is_new = outage.is_none();
    let outage = outage.get_or_insert_with(|| {
        let backoff = Backoff::new(SAVES);
        Outage {
            since: started,
            backoff,
            retry_at: started,
            is_permanent: false,
            is_reported: false,
        }
    });
    let is_worse = !curable && !std::mem::replace(&mut outage.is_permanent, !curable);
    if is_new || is_worse {
        shared.telemetry.emit(Event::StoreFailed { message: error.to_string() });
    }
    shared.telemetry.save_failed(outage.since);
    outage.retry_at = Instant::now() + outage.backoff.failed();
    let too_long = outage.since.elapsed() >= shared.flush.max_unflushed;
    let (mut refused, mut report) = (None, None);
    if !curable && let Some(flushed) = waiting_flushes.pop() {
        refused = Some((flushed, error));
    } else if !outage.is_reported && (too_long || !curable) {
        outage.is_reported = true;
        report = if curable {
            Some(overdue(error, shared.flush.max_unflushed))
        } else {
            // Readers that wait for records receive the error too.
            shared.report(error).err()
        };
    }
    let waiting = {
        let mut state = shared.lock();
        state.failing = true;
        state.saved = state.advanced;
        state.report = report.or(state.report.take());
        shared.set_gate(&mut state, if too_long { Gate::Shut } else { Gate::Open })
    };
    wake_all(waiting);
    if let Some((flushed, error)) = refused {
        let _dropped = flushed.send(Err(error));
    }
}

fn overdue(cause: Error, limit: Duration) -> Error {
    let message = format!(
        "the checkpoint store has been failing for longer than max_unflushed ({limit:?}); \
         delivery resumes when it answers: {cause}"
    );
    Error::new(ErrorKind::StoreUnavailable, message).with_source(cause)
}

/// Saves the positions of acknowledged records after the last handle was dropped, without reporting
/// errors.
async fn save_final(shared: &WriterShared) {
    let saved = timeout(FINAL_SAVE_TIMEOUT, async {
        let mut backoff = Backoff::new(SAVES);
        while let Err(error) = shared.save().await {
            log_line!(debug, scope = %shared.scope, %error, "final checkpoint save failed; retrying");
            sleep(backoff.failed()).await;
        }
    });
    if saved.await.is_err() {
        log_line!(warn, scope = %shared.scope, "final checkpoints not saved; some records will be redelivered");
    }
}
