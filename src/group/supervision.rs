//! What becomes of a worker's task when something in it panics: it goes on with what it knows. A worker
//! that stopped would let its leases expire in silence.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::Word;
use super::worker::{Over, Worker};
use crate::backoff::{Backoff, EXCHANGES};
use crate::error::{Error, ErrorKind, Panic, TOLERATED, contain};
use crate::observe::{Event, Task};

/// Panics that lie further apart than this are not one row.
const SAME_ROW: Duration = Duration::from_secs(60);

impl Worker {
    /// Works until the worker's time is over, whatever panics meanwhile.
    pub(super) async fn supervise(&mut self, words: &mut mpsc::UnboundedReceiver<Word>) -> Over {
        let mut panics = 0;
        let mut backoff = Backoff::new(EXCHANGES.capped(self.renewal()));
        loop {
            let began = Instant::now();
            let panic = match contain(self.work(words)).await {
                Ok(over) => return over,
                Err(panic) => panic,
            };
            if began.elapsed() >= SAME_ROW {
                panics = 0;
                backoff.succeeded();
            }
            panics += 1;
            self.tell_restarted(Task::Leases, &panic);
            if panics == TOLERATED + 1 {
                self.tell_panicked("renews the leases", panic);
            }
            // What it had begun with is found in the table.
            self.look_whole();
            sleep(backoff.failed()).await;
        }
    }

    /// Lists again after a listing that panicked.
    pub(super) fn list_after(&mut self, panic: Panic) {
        self.tell_restarted(Task::Listing, &panic);
        self.listing.is_under_way = false;
        self.listing.panics += 1;
        if self.listing.panics == TOLERATED + 1 {
            self.tell_panicked("lists the stream", panic);
        }
        self.ask_for_listing();
    }

    fn tell_restarted(&self, task: Task, panic: &Panic) {
        let message = panic.to_string();
        self.plan.observer.tell(Event::TaskRestarted { task, shard_id: None, message });
    }

    fn tell_panicked(&self, what: &str, panic: Panic) {
        let message =
            format!("what {what} has panicked again and again, and is restarted: {panic}");
        let error = Error::new(ErrorKind::Panicked, message).with_source(panic);
        // A caller's waker may be what panics.
        let told = error.in_stream(self.plan.scope.stream_name());
        let _ = crate::error::contain_call(|| (self.plan.lister.tell)(told));
    }
}
