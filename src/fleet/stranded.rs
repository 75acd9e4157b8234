//! Stranded leases: leases of workers that cannot reach Kinesis, and their move to other workers.

use std::sync::Arc;

use tokio::time::Instant;

use super::reachability::CallOutcomes;
use super::worker::Worker;
use crate::store::lease::WorkerEntry;
use crate::telemetry::log_line;

impl Worker {
    /// Notes whether this worker reaches Kinesis, and requests a listing if its calls do not show
    /// it.
    pub(super) fn check_reachability(&mut self) {
        let (calls, was_out) = (self.calls(), self.reachability.is_out());
        self.reachability.note(calls, self.deps.telemetry.take_interruption(), Instant::now());
        if self.reachability.is_out() && !was_out {
            log_line!(warn,
                scope = %self.deps.scope,
                "Kinesis unreachable from this worker; other workers that reach it acquire its leases"
            );
        }
        let is_needed = self.stranded.is_some() && self.reachability.needs_listing(calls);
        if !self.listing.is_under_way && (self.reachability.is_doubtful(calls) || is_needed) {
            self.request_listing();
        }
    }

    /// Notes the time since which the table shows a lease of another worker that cannot reach
    /// Kinesis.
    pub(super) fn note_stranded(&mut self) {
        let is_out = |owner: &Arc<str>| {
            *owner != self.deps.config.worker_id
                && self.table.workers.get(owner).is_some_and(is_out_of_reach)
        };
        let mut owners = self.table.leases.values().filter_map(|lease| lease.owner.as_ref());
        self.stranded =
            if owners.any(is_out) { self.stranded.or_else(|| Some(Instant::now())) } else { None };
    }

    /// Returns true if this worker must acquire no further lease: a lease is stranded, and this
    /// worker may not reach Kinesis either.
    pub(super) fn is_unproven(&self) -> bool {
        self.stranded.is_some() && !self.reachability.may_take_over(self.calls(), Instant::now())
    }

    fn calls(&self) -> CallOutcomes {
        let telemetry = &self.deps.telemetry;
        CallOutcomes { failing_for: telemetry.failing_for(), succeeded: telemetry.since_success() }
    }

    /// Returns true if this worker must accept no lease: it cannot reach Kinesis, and another
    /// worker is alive.
    pub(super) fn accepts_no_leases(&self) -> bool {
        self.reachability.is_out() && self.table.workers.len() > 1
    }

    /// Returns true if this worker may move leases. If a lease is stranded, every worker first gets
    /// one lease duration, in which it renews three times, to declare that it cannot reach Kinesis
    /// either.
    pub(super) fn may_move_leases(&self, now: Instant) -> bool {
        if self.accepts_no_leases() {
            return false;
        }
        let patience = self.table.workers.values().map(|member| member.lease_duration).max();
        self.stranded.is_none_or(|since| now.duration_since(since) >= patience.unwrap_or_default())
    }
}

/// Returns true if the worker has declared a capacity of 0. A worker of incarnation 0 has declared
/// nothing.
fn is_out_of_reach(member: &WorkerEntry) -> bool {
    member.capacity == 0 && member.incarnation != 0
}
