//! What a worker and its store say to each other.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::worker::{Worker, runs_out};
use crate::backoff::{Backoff, CONFLICTS};
use crate::discovery::Changes;
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Moment;
use crate::store::lease::{HeartbeatResponse, Change, HeartbeatRequest, Membership, LeaseTable};
use crate::store::{LONGEST_CALL, with_timeout};
use crate::telemetry::{Event, log_line};

/// How long the worker tries to save what is finished and to leave, when its time is over.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(10);

/// How many rounds of one exchange may change nothing: two more than the first, for a store that shows
/// a change late.
const MOST_VAIN_ROUNDS: u32 = 3;

/// Whether a table lacks a shard that was to be added.
fn lacks_added(table: &LeaseTable, changes: &[Change]) -> bool {
    changes.iter().any(|change| match change {
        Change::Add { shard, .. } => !table.leases.contains_key(shard),
        _ => false,
    })
}

/// Whether changes move leases: others say nothing of whether the table is even.
fn is_balance(changes: &[Change]) -> bool {
    let moves = |change: &Change| matches!(change, Change::Assign { .. } | Change::Offer { .. });
    changes.iter().any(moves)
}

impl Worker {
    /// Renews, and goes on until there is nothing to be changed any more.
    pub(super) async fn exchange(&mut self) {
        let mut is_due = true;
        let (mut conflicts, mut vain) = (Backoff::new(CONFLICTS), 0);
        loop {
            let decided_at = Instant::now();
            let decided = if self.pending.is_empty() { self.decide() } else { Changes::default() };
            let only_if_unchanged = !decided.list.is_empty();
            if !is_due && !only_if_unchanged && self.pending.is_empty() {
                return;
            }
            is_due = false;
            if decided.are_listed {
                self.losses = decided.losses;
            }
            let changes = if only_if_unchanged { decided.list } else { self.pending.clone() };
            let sent = self.pending.len();
            let request = self.request(changes, only_if_unchanged);
            let asked = self.validity.now();
            let answer = match self.ask(&request).await {
                Ok(answer) => answer,
                Err(error) => return self.fail(error, asked),
            };
            if answer.standing == Membership::Occupied {
                return self.wait_for_worker_id(asked.monotonic);
            }
            self.pending.drain(..sent);
            let is_conflict = only_if_unchanged && !answer.applied;
            // Asked again, a store that changes nothing would change nothing.
            let is_in_vain = only_if_unchanged
                && answer.applied
                && answer.table.as_ref().is_none_or(|table| lacks_added(table, &request.changes));
            if only_if_unchanged && answer.applied {
                self.exclusions.assigned(&request.changes);
                if decided.are_listed {
                    self.apply_listing();
                }
            }
            self.note_members(answer);
            self.deps.telemetry.renewed(self.owned.len());
            // Only now: what is lost must not be taken for valid again. What the store has still to
            // be told of may go to another before.
            let restores = |change: &Change| matches!(change, Change::Restore { .. });
            if self.pending.iter().any(restores) {
                self.doubt();
            } else if self.pending.is_empty() {
                self.extend(asked);
            }
            self.renew_at = asked.monotonic + self.renewal();
            self.backoff.succeeded();
            (self.failing_since, self.error_reported) = (None, false);
            self.deps.writer.store_answered();
            if is_in_vain {
                if is_balance(&request.changes) {
                    self.balanced = Some(self.evenness(decided_at));
                }
                vain += 1;
                if vain >= MOST_VAIN_ROUNDS {
                    // The worker has more to do. The next renewal tries again.
                    return;
                }
            }
            if is_conflict || is_in_vain {
                sleep(conflicts.failed()).await;
            }
        }
    }

    /// The pause between renewals.
    pub(super) fn renewal(&self) -> Duration {
        self.deps.config.lease_duration / 3
    }

    fn request(&self, changes: Vec<Change>, only_if_unchanged: bool) -> HeartbeatRequest {
        // Positions alone make no new version: now and then they are asked for all the same, for
        // a store that forgets.
        let each = self.deps.config.discovery_interval;
        let is_known = self.joined && self.seen_whole.is_some_and(|seen| seen.elapsed() < each);
        let known = (self.table.generation, self.table.version);
        HeartbeatRequest {
            worker: self.deps.config.worker_id.clone(),
            incarnation: self.incarnation,
            lease_duration: self.deps.config.lease_duration,
            capacity: self.capacity(),
            leaving: false,
            known: (is_known || only_if_unchanged).then_some(known),
            only_if_unchanged,
            changes,
        }
    }

    /// Asks the store, no longer than until the next renewal is due. Meanwhile the worker's leases
    /// may run out. One that has none has the time for three calls where it joins or asks for changes,
    /// which is what the start of an application takes in a store that keeps positions alone. To
    /// renew it waits no longer than others: it must be there to take over their leases.
    async fn ask(&mut self, request: &HeartbeatRequest) -> Result<HeartbeatResponse> {
        let is_renewal = self.joined && request.changes.is_empty();
        let has_time = self.owned.len() == 0 && !is_renewal;
        let limit = if has_time { 3 * LONGEST_CALL } else { self.renewal() };
        let valid_until = self.valid_until;
        let asked = async {
            let exchanged = self.deps.leases.exchange(&self.deps.scope, request);
            timeout(limit, exchanged).await.unwrap_or_else(|elapsed| {
                let message = format!("the checkpoint store did not answer within {limit:?}");
                Err(Error::store_unavailable(message, elapsed))
            })
        };
        let mut asked = pin!(asked);
        tokio::select! {
            biased;
            answer = &mut asked => return answer,
            () = runs_out(valid_until) => self.validity.doubt(),
        }
        asked.await
    }

    /// The leases are the worker's for their duration from that moment on.
    fn extend(&mut self, asked: Moment) {
        let duration = self.deps.config.lease_duration;
        self.valid_until = Some(asked.monotonic + duration);
        self.validity.extend(asked, duration);
    }

    /// Another may have the worker's leases by now.
    pub(super) fn doubt(&mut self) {
        if self.valid_until.take().is_some() {
            self.deps.telemetry.emit(Event::LeasesSuspended);
            self.validity.doubt();
        }
    }

    /// The store has not answered, or not as it should.
    ///
    /// The leases are valid as long as they were: only the store knows who else is there by now. So
    /// reading stops when they expire, also where this worker was the only one.
    fn fail(&mut self, error: Error, asked: Moment) {
        let error = error.in_stream(self.deps.scope.shared_stream_name());
        log_line!(debug, %error, "cannot renew yet");
        if self.joined && self.deps.config.has_own_leases && error.is_temporary() {
            // No other worker sees the table, which is in this process.
            self.extend(asked);
        }
        let failing = self.failing_since.get_or_insert(asked.monotonic).elapsed();
        // Who may not read hears nothing of the writer that has something to save, if it has.
        let is_overdue = self.valid_until.is_none() && failing >= self.deps.config.max_unflushed;
        if (is_overdue || !error.is_temporary())
            && !std::mem::replace(&mut self.error_reported, true)
            && self.deps.writer.claim_outage_report()
        {
            (self.deps.discovery.report_error)(error);
        }
        self.renew_at = Instant::now() + self.backoff.failed();
    }

    /// Another worker has this one's name: an earlier life of it, or a mistake.
    fn wait_for_worker_id(&mut self, asked: Instant) {
        self.renew_at = asked + self.renewal();
        let patience = 2 * self.deps.config.lease_duration;
        if self.started_at.elapsed() >= patience && !std::mem::replace(&mut self.error_reported, true) {
            let message = format!(
                "another worker is called {:?}: each needs a worker_id of its own",
                self.deps.config.worker_id
            );
            let error = Error::new(ErrorKind::Configuration, message);
            (self.deps.discovery.report_error)(error.in_stream(self.deps.scope.shared_stream_name()));
        }
    }

    /// Adds the children that were named last, to the table as it is by now. Where that fails, whoever
    /// lists the stream next finds them.
    async fn add_children(&mut self) {
        loop {
            let children = self.children();
            if children.is_empty() {
                return;
            }
            let request = self.request(children, true);
            match with_timeout(self.deps.leases.exchange(&self.deps.scope, &request)).await {
                Ok(HeartbeatResponse { applied: false, table: Some(table), .. }) => {
                    self.table = Arc::new(table);
                }
                _ => return,
            }
        }
    }

    /// Saves what is finished, and gives back what there is.
    pub(super) async fn leave(mut self) {
        self.owned.stop_all();
        // What streams have said last is said by the positions that are saved.
        let pending = std::mem::take(&mut self.pending);
        let mut request = self.request(pending, false);
        request.leaving = true;
        let left = timeout(LAST_WORDS, async {
            // Whoever asks for it is told what stands against it, by the writer.
            let _told_elsewhere = self.deps.writer.flush().await;
            self.add_children().await;
            self.backoff.succeeded();
            while let Err(error) =
                with_timeout(self.deps.leases.exchange(&self.deps.scope, &request)).await
            {
                log_line!(debug, %error, "cannot leave yet");
                sleep(self.backoff.failed()).await;
            }
        });
        if left.await.is_err() && self.joined {
            log_line!(warn,
                scope = %self.deps.scope,
                "the leases could not be given back: others wait until they run out"
            );
        }
    }
}
