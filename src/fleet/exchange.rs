//! The worker's exchanges with the lease store: renewal, changes and leaving.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::worker::{WantedTable, Worker, sleep_until_expiry};
use crate::backoff::{Backoff, CONFLICTS};
use crate::discovery::Changes;
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Moment;
use crate::store::lease::{Change, HeartbeatRequest, HeartbeatResponse, LeaseTable, Membership};
use crate::store::{STORE_CALL_TIMEOUT, with_timeout};
use crate::telemetry::{Event, log_line};

/// The time limit for saving acknowledged records before a lease is released. At shutdown it also
/// covers the release of all leases.
pub(super) const FINAL_SAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of requests of the whole table that a large fleet makes in each discovery interval.
const WHOLE_TABLES: u32 = 10;

/// The number of rounds of one exchange that may have no effect: two after the first, for a store
/// that shows a change late.
const MAX_INEFFECTIVE_ROUNDS: u32 = 3;

/// Returns true if the table lacks a shard that the changes add.
fn lacks_added(table: &LeaseTable, changes: &[Change]) -> bool {
    changes.iter().any(|change| match change {
        Change::Add { shard, .. } => !table.leases.contains_key(shard),
        _ => false,
    })
}

/// Returns true if the changes assign or move leases. Other changes do not show whether the table
/// is balanced.
fn is_balance(changes: &[Change]) -> bool {
    let moves = |change: &Change| matches!(change, Change::Assign { .. } | Change::Offer { .. });
    changes.iter().any(moves)
}

impl Worker {
    /// Renews the leases, and repeats the exchange until no changes are left to make.
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
            let response = match self.send_request(&request).await {
                Ok(response) => response,
                Err(error) => return self.fail(error, asked),
            };
            if response.membership == Membership::Occupied {
                return self.retry_worker_id(asked.monotonic);
            }
            if response.applied {
                self.pending.drain(..sent);
            }
            if response.membership == Membership::Absent {
                // All of its leases are in doubt until it has joined again.
                self.suspend();
                is_due = true;
                sleep(conflicts.failed()).await;
                continue;
            }
            let is_conflict = only_if_unchanged && !response.applied;
            // The store accepted the changes without effect. An immediate repeat would have none
            // either.
            let is_in_vain = only_if_unchanged
                && response.applied
                && response.table.as_ref().is_none_or(|table| lacks_added(table, &request.changes));
            if only_if_unchanged && response.applied {
                self.exclusions.assigned(&request.changes);
                if decided.are_listed {
                    self.apply_listing();
                }
            }
            self.note_declared();
            if request.known.is_none() {
                self.whole_table_at = Some(Instant::now() + self.whole_table_interval());
            }
            self.handle_response(response);
            let joined_at = *self.joined_at.get_or_insert_with(Instant::now);
            self.member_for = asked.monotonic.saturating_duration_since(joined_at);
            self.deps.telemetry.renewed(self.owned.len());
            // Only after the table was applied, since a lost lease must not become valid again. A
            // lease that is still to be restored may go to another worker first.
            let restores = |change: &Change| matches!(change, Change::Restore { .. });
            if self.pending.iter().any(restores) {
                self.suspend();
            } else if self.pending.is_empty() {
                self.extend(asked);
            }
            self.renew_at = asked.monotonic + self.renewal();
            self.backoff.succeeded();
            (self.failing_since, self.error_reported) = (None, false);
            self.deps.writer.store_answered();
            if is_in_vain {
                if is_balance(&request.changes) {
                    self.balanced = Some(self.balanced_table(decided_at));
                }
                vain += 1;
                if vain >= MAX_INEFFECTIVE_ROUNDS {
                    // Other work is waiting. The next renewal retries.
                    return;
                }
            }
            if is_conflict || is_in_vain {
                sleep(conflicts.failed()).await;
            }
        }
    }

    /// Returns the interval between renewals.
    pub(super) fn renewal(&self) -> Duration {
        self.deps.config.lease_duration / 3
    }

    /// Returns the time until this worker requests the whole table again, since saved positions do
    /// not change its version. Some worker then knows the positions if the store loses them.
    ///
    /// In a large fleet, each worker requests it more rarely, at a random time, so that the fleet
    /// makes about [`WHOLE_TABLES`] such requests in each discovery interval.
    fn whole_table_interval(&self) -> Duration {
        let each = self.deps.config.discovery_interval;
        let fleet = u32::try_from(self.table.workers.len()).unwrap_or(u32::MAX);
        let more = each.saturating_mul((fleet / WHOLE_TABLES).saturating_sub(1));
        each.saturating_add(more.mul_f64(2.0 * fastrand::f64()))
    }

    fn request(&self, changes: Vec<Change>, only_if_unchanged: bool) -> HeartbeatRequest {
        let is_known = self.joined && self.whole_table_at.is_some_and(|due| Instant::now() < due);
        let known = if self.wanted_table == WantedTable::Any && !only_if_unchanged {
            (0, 0)
        } else {
            (self.table.generation, self.table.version)
        };
        HeartbeatRequest {
            worker: self.deps.config.worker_id.clone(),
            incarnation: self.incarnation,
            lease_duration: self.deps.config.lease_duration,
            capacity: self.capacity(&changes),
            size: Some(self.deps.config.size()),
            load: self.load.stated().cloned(),
            leaving: false,
            known: (is_known || only_if_unchanged).then_some(known),
            only_if_unchanged,
            changes,
        }
    }

    /// Sends a request to the store. The time limit is the interval between renewals; the leases
    /// may expire during the call.
    ///
    /// A worker without leases has the time of three calls if it joins or makes changes, since the
    /// start of an application takes three calls in a store that keeps only positions. Its renewals
    /// have the same limit as those of other workers, so that it stays in the table and can acquire
    /// their leases.
    async fn send_request(&mut self, request: &HeartbeatRequest) -> Result<HeartbeatResponse> {
        let is_renewal = self.joined && request.changes.is_empty();
        let has_time = self.owned.len() == 0 && !is_renewal;
        let limit = if has_time { 3 * STORE_CALL_TIMEOUT } else { self.renewal() };
        let valid_until = self.valid_until;
        let asked = async {
            let exchanged = self.deps.leases.exchange(request);
            timeout(limit, exchanged).await.unwrap_or_else(|elapsed| {
                let message = format!("the checkpoint store did not answer within {limit:?}");
                Err(Error::new(ErrorKind::StoreUnavailable, message).with_source(elapsed))
            })
        };
        let mut asked = pin!(asked);
        tokio::select! {
            biased;
            response = &mut asked => return response,
            () = sleep_until_expiry(valid_until) => self.validity.suspend(),
        }
        asked.await
    }

    /// Extends the validity of all leases to one lease duration after `asked`.
    fn extend(&mut self, asked: Moment) {
        let duration = self.deps.config.lease_duration;
        self.valid_until = Some(asked.monotonic + duration);
        self.validity.extend(asked, duration);
    }

    /// Suspends delivery, since other workers may have acquired the leases.
    pub(super) fn suspend(&mut self) {
        if self.valid_until.take().is_some() {
            self.deps.telemetry.emit(Event::LeasesSuspended);
            self.validity.suspend();
        }
    }

    /// Handles a failed exchange: schedules a retry, and reports the error if it lasts.
    ///
    /// The validity of the leases is not extended: only the store knows which other workers are
    /// alive. So delivery stops when the leases expire, even if this was the only worker.
    fn fail(&mut self, error: Error, asked: Moment) {
        let error = error.in_stream(self.deps.scope.shared_stream_name());
        log_line!(debug, %error, "lease renewal failed");
        if self.joined && self.deps.config.has_own_leases && error.is_temporary() {
            // The table is in this process, and no other worker sees it.
            self.extend(asked);
        }
        let failing = self.failing_since.get_or_insert(asked.monotonic).elapsed();
        // The writer may have nothing to save while delivery is suspended, and would not report.
        let is_overdue = self.valid_until.is_none() && failing >= self.deps.config.max_unflushed;
        if (is_overdue || !error.is_temporary())
            && !std::mem::replace(&mut self.error_reported, true)
            && self.deps.writer.claim_outage_report()
        {
            self.report_error(error);
        }
        self.renew_at = Instant::now() + self.backoff.failed();
    }

    /// Waits until this worker's id is free. It is in use by an earlier incarnation of this worker,
    /// or by mistake.
    fn retry_worker_id(&mut self, asked: Instant) {
        self.renew_at = asked + self.renewal();
        let patience = 2 * self.deps.config.lease_duration;
        if self.started_at.elapsed() >= patience
            && !std::mem::replace(&mut self.error_reported, true)
        {
            let message = format!(
                "worker_id {:?} is in use by another live worker; give each worker a unique worker_id",
                self.deps.config.worker_id
            );
            let error = Error::new(ErrorKind::Configuration, message);
            self.report_error(error);
        }
    }

    /// Adds the children that ended shards have named to the current table. If that fails, the next
    /// listing adds them.
    async fn add_children(&mut self) {
        loop {
            let children = self.children();
            if children.is_empty() {
                return;
            }
            let request = self.request(children, true);
            match with_timeout(self.deps.leases.exchange(&request)).await {
                Ok(HeartbeatResponse { applied: false, table: Some(table), .. }) => {
                    self.table = table;
                }
                _ => return,
            }
        }
    }

    /// Saves the positions, releases all leases and leaves the fleet.
    pub(super) async fn leave(mut self) {
        self.owned.stop_all();
        // The saved positions cover the messages of the streams that were not received.
        let pending = std::mem::take(&mut self.pending);
        let mut request = self.request(pending, false);
        request.leaving = true;
        let left = timeout(FINAL_SAVE_TIMEOUT, async {
            // The writer reports a failure to the callers that flush.
            let _reported_elsewhere = self.deps.writer.flush().await;
            self.add_children().await;
            self.backoff.succeeded();
            while let Err(error) = with_timeout(self.deps.leases.exchange(&request)).await {
                log_line!(debug, %error, "lease release failed");
                sleep(self.backoff.failed()).await;
            }
        });
        if left.await.is_err() && self.joined {
            log_line!(warn,
                scope = %self.deps.scope,
                "leases not released; other workers can acquire them after they expire"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_moves_show_that_a_table_is_balanced() {
        let shard: crate::ShardId = "shardId-000000000000".parse().unwrap();
        let add = Change::Add {
            shard: shard.clone(),
            parents: Vec::new(),
            start: None,
            checkpoint: None,
        };
        let assign = Change::Assign { shard: shard.clone(), to: "w".into() };
        let offer = Change::Offer { shard, to: "w".into() };
        assert!(!is_balance(&[]));
        assert!(!is_balance(std::slice::from_ref(&add)));
        assert!(is_balance(&[add, assign]));
        assert!(is_balance(&[offer]));
    }
}
