//! Supervision of the worker's task: after a panic the task restarts with its current state. A
//! worker that stopped would let its leases expire unnoticed.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::worker::{Worker, WorkerEnded};
use crate::backoff::{Backoff, EXCHANGES};
use crate::error::{Error, ErrorKind, Panic, TOLERATED_PANICS, contain};
use crate::telemetry::{Event, Task};
use crate::worker_message::WorkerMessage;

/// The time between two panics from which they do not count as consecutive.
const CONSECUTIVE_WITHIN: Duration = Duration::from_secs(60);

impl Worker {
    /// Runs the worker until it ends, and restarts it after a panic.
    pub(super) async fn supervise(
        &mut self,
        messages: &mut mpsc::UnboundedReceiver<WorkerMessage>,
    ) -> WorkerEnded {
        let mut panics = 0;
        let mut backoff = Backoff::new(EXCHANGES.capped(self.renewal()));
        loop {
            let began = Instant::now();
            let panic = match contain(self.work(messages)).await {
                Ok(over) => return over,
                Err(panic) => panic,
            };
            if began.elapsed() >= CONSECUTIVE_WITHIN {
                panics = 0;
                backoff.succeeded();
            }
            panics += 1;
            self.report_restart(Task::Leases, &panic);
            if panics == TOLERATED_PANICS + 1 {
                self.report_panic("renews the leases", panic);
            }
            // The whole table shows how to complete an interrupted change.
            self.request_full_table();
            sleep(backoff.failed()).await;
        }
    }

    /// Schedules another listing after a panic.
    pub(super) fn retry_listing_after(&mut self, panic: Panic) {
        self.report_restart(Task::Listing, &panic);
        self.listing.is_under_way = false;
        self.listing.panics += 1;
        if self.listing.panics == TOLERATED_PANICS + 1 {
            self.report_panic("lists the stream", panic);
        }
        self.request_listing();
    }

    fn report_restart(&self, task: Task, panic: &Panic) {
        let message = panic.to_string();
        self.deps.telemetry.emit(Event::TaskRestarted { task, shard_id: None, message });
    }

    fn report_panic(&self, what: &str, panic: Panic) {
        let message = format!(
            "the task that {what} panicked {} times in a row and is restarted: {panic}",
            TOLERATED_PANICS + 1
        );
        let error = Error::new(ErrorKind::Panicked, message).with_source(panic);
        self.report_error(error);
    }
}
