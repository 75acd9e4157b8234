//! The worker's actions on a lease table: changes, assignments, handoffs, listings and reports.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::balance::{balance, pull};
use super::exhaustion::Exhaustion;
use super::load_meter::ReadShard;
use super::owned_shards::{OwnedShard, Reconciliation};
use super::weights::Weights;
use super::worker::{AppliedListing, BalancedTable, TaskOutcome, WantedTable, Worker};
use crate::discovery::{Changes, Loss, Report};
use crate::error::{Error, ErrorKind, contain};
use crate::record::{KnownShard, ShardId};
use crate::store::lease::{Change, HeartbeatResponse, Lease, LeaseTable, WorkerEntry};
use crate::telemetry::Event;

impl Worker {
    /// Returns the next changes to make in the current table: children that ended shards have
    /// named, then the changes of a listing, then the moves that balance the table.
    pub(super) fn decide(&mut self) -> Changes {
        if !self.joined {
            return Changes::default();
        }
        let children = self.children();
        if !children.is_empty() {
            return Changes::without_listing(children);
        }
        if self.listing.listed.take_if(|listed| !listed.is_of(&self.table)).is_some() {
            self.listing.due = Instant::now();
        }
        if let Some(listed) = &self.listing.listed {
            let changes = self.deps.discovery.changes(listed, &self.table);
            if !changes.list.is_empty() {
                return changes;
            }
            self.losses = changes.losses;
            self.apply_listing();
        }
        let now = Instant::now();
        if !self.has_listed || !self.may_move_leases(now) || self.is_balanced(now) {
            return Changes::default();
        }
        let rules = &self.deps.config.rules;
        let mut open: BTreeSet<ShardId> = rules.readable(&self.table).cloned().collect();
        open.retain(|shard| !self.deps.discovery.is_missing(shard));
        if self.lacks_own_listing() {
            // A shard whose position another client has deleted is finished. The table shows that once
            // it has all shards of a listing.
            let leases = &self.table.leases;
            open.retain(|shard| leases.get(shard).is_some_and(|it| it.checkpoint.is_some()));
        }
        let exclusions = self.exclusions.active(&self.table, now);
        let list = if !rules.is_partial() {
            let weights = Weights::of(&self.table);
            let moves = self.move_times.allowed(&weights, now);
            balance(&self.table, &open, &exclusions, &weights, moves)
        } else if self.accepts_nothing() {
            Vec::new()
        } else if self.is_full() {
            // Its share is not known until it accepts leases again, in the same table.
            return Changes::default();
        } else {
            let me = &self.deps.config.worker_id;
            pull(&self.table, &open, |shard| rules.selects(shard), &exclusions, me)
        };
        let is_balanced = list.is_empty() && !self.lacks_own_listing();
        self.balanced = is_balanced.then(|| self.balanced_table(now));
        Changes::without_listing(list)
    }

    /// Returns true if this worker has not listed the stream, and the store has another client that
    /// deletes the positions of finished shards.
    fn lacks_own_listing(&self) -> bool {
        self.deps.discovery.forgets_finished_shards && !self.listing.is_applied
    }

    /// Returns the version of the current table, which is balanced, and the time until which it
    /// stays so.
    pub(super) fn balanced_table(&self, now: Instant) -> BalancedTable {
        let ready = Some(self.move_times.ready_at()).filter(|ready| now < *ready);
        let until = self.exclusions.next_end(now).into_iter().chain(ready).min();
        BalancedTable { version: self.table.version, until }
    }

    pub(super) fn is_balanced(&self, now: Instant) -> bool {
        let is_still = |balanced: &BalancedTable| {
            balanced.version == self.table.version && balanced.until.is_none_or(|until| now < until)
        };
        self.balanced.as_ref().is_some_and(is_still)
    }

    /// Returns the additions of the children that ended shards have named, if all their parents are
    /// in the table. A missing parent may not be discovered yet, or the store may have lost it, and
    /// it must not be skipped: the children are then left to a listing.
    pub(super) fn children(&mut self) -> Vec<Change> {
        let (leases, rules) = (&self.table.leases, &self.deps.config.rules);
        let is_new = |id: &ShardId| !leases.contains_key(id) && rules.selects(id);
        self.added_children.retain(|child| is_new(&child.id));
        if !self
            .added_children
            .iter()
            .flat_map(|child| &child.parents)
            .all(|id| leases.contains_key(id))
        {
            self.added_children.clear();
            self.request_listing();
        }
        let add = |KnownShard { id, parents }: &KnownShard| Change::Add {
            shard: id.clone(),
            parents: parents.clone(),
            start: None,
            checkpoint: self.deps.discovery.child_start(id),
        };
        self.added_children.iter().map(add).collect()
    }

    /// Drops the listing once its changes are made.
    pub(super) fn apply_listing(&mut self) {
        if let Some(listed) = self.listing.listed.take() {
            self.listing.is_applied = true;
            // A shard that was missing may be listed again while the table has not changed.
            self.balanced = None;
            let began = self.listing.last.filter(|_began| self.has_bounds());
            self.listing.applied = began.map(|began| AppliedListing { began, listed });
            self.report_losses(Loss::is_of_listing);
            self.has_listed = true;
        }
    }

    fn report_losses(&mut self, is_due: impl Fn(&Loss) -> bool) {
        let (due, rest) = std::mem::take(&mut self.losses).into_iter().partition(is_due);
        self.losses = rest;
        for Loss { report, .. } in due {
            match report {
                Report::Error(error) => self.report_loss(error),
                Report::Event(event) => self.deps.telemetry.emit(event),
            }
        }
    }

    /// Reports the losses that a new version of the table shows as stored. Losses that should be
    /// stored and are not shown are dropped: they were found for the previous version, so their
    /// changes will never be stored.
    fn report_shown_losses(&mut self, table: &LeaseTable) {
        let version = |table: &LeaseTable| (table.generation, table.version);
        if version(table) != version(&self.table) {
            self.report_losses(|loss| loss.is_shown_by(table));
            self.losses.retain(Loss::is_of_listing);
        }
    }

    /// Reports a loss to the caller, unless the shard's stream has already reported it. The first
    /// listing of a session reports it in any case.
    fn report_loss(&self, error: Error) {
        let shard = error.shard_id().cloned();
        let is_news = shard.is_none_or(|shard| self.deps.telemetry.note_failure(&shard, &error));
        if is_news || !self.has_listed {
            self.report_error(error);
        }
    }

    /// Reports to the caller an error that retries do not fix.
    pub(super) fn report_error(&self, error: Error) {
        self.deps.discovery.report_error(error.in_stream(self.deps.scope.shared_stream_name()));
    }

    /// Notes that the worker is in the table, and applies the table of the response if it has
    /// changed.
    pub(super) fn handle_response(&mut self, response: HeartbeatResponse) {
        if let Some(table) = response.table {
            // The membership of an answer that was lost said whether the worker has joined.
            let entry = table.workers.get(&self.deps.config.worker_id);
            let joined_as = entry.map_or(self.joined_as, |entry| Some(entry.joined));
            if joined_as != self.joined_as {
                self.joined_as = joined_as;
                let worker_id = (*self.deps.config.worker_id).to_owned();
                self.deps.telemetry.emit(Event::WorkerJoined { worker_id });
            }
            self.apply_table(table);
        }
        // The only worker of a fleet lists the stream before it reads.
        self.has_listed |= self.table.workers.len() > 1;
        self.joined = true;
    }

    fn apply_table(&mut self, table: Arc<LeaseTable>) {
        let is_forgotten = self.joined
            && table.generation != self.table.generation
            // A store that also lost the time of the last clear shows an earlier time.
            && table.cleared <= self.table.cleared;
        if is_forgotten {
            self.deps.telemetry.emit(Event::StoreReset);
            self.pending.extend(self.owned.restore_changes(&self.table));
        }
        let is_cleared = table.cleared > self.table.cleared;
        let first_poll = if is_forgotten { self.table.first_poll } else { 0 };
        let Reconciliation { changes, opened, leaving, finished, lost } =
            self.owned.reconcile(&table);
        self.report_shown_losses(&table);
        self.report_resharding(&table);
        self.report_unreadable(&table);
        self.exclusions.observe(&self.table, &table);
        self.move_times.observe(&self.table, &table, Instant::now());
        self.deps.telemetry.retain_failures(|shard| table.leases.contains_key(shard));
        self.table = table;
        self.note_stranded();
        if (is_forgotten || is_cleared) && self.table.leases.is_empty() {
            self.pending.extend(self.deps.discovery.first_poll_change(first_poll));
        }
        self.wanted_table = WantedTable::Changed;
        for (shard_id, epoch) in finished {
            // Records in flight may still be acknowledged, and the writer would report the end again.
            self.deps.writer.untrack(&shard_id, epoch);
            self.deps.telemetry.emit(Event::ShardFinished { shard_id });
        }
        for (shard_id, epoch) in lost {
            self.deps.telemetry.emit(Event::LeaseLost { shard_id, epoch });
        }
        if !is_forgotten {
            self.pending.extend(changes);
            if self.table.leases.is_empty() {
                // The table was empty, or it was cleared.
                self.listing.due = Instant::now();
            }
        }
        for (shard, lease) in opened {
            let release = Change::Release { shard: shard.clone(), epoch: lease.epoch };
            if self.pending.contains(&release) {
                // The step that releases it was refused, and is repeated.
                continue;
            }
            if self.exclusions.exclusions(&shard) {
                // It was assigned by a worker that does not know of this worker's exclusion.
                self.pending.push(release);
            } else if self.deps.config.rules.is_readable(&self.table, &shard, &lease) {
                self.open(&shard, lease);
            } else {
                // The positions of its parents were moved back, so the parents are read first. Or
                // this worker does not read the shard, which another worker does not know.
                self.pending.push(release);
            }
        }
        for shard in leaving {
            let patience = self.deps.config.handoff_timeout;
            if let Some(epoch) = self.owned.epoch(&shard) {
                self.hand_off(&shard, epoch, patience);
            }
        }
    }

    /// Emits an event for each new shard with a known parent.
    fn report_resharding(&self, table: &LeaseTable) {
        let known = &self.table.leases;
        for (shard_id, lease) in table.leases.iter().filter(|(id, _)| !known.contains_key(*id)) {
            let parents = lease.parents.iter().flatten().filter(|id| known.contains_key(*id));
            let parents: Vec<ShardId> = parents.cloned().collect();
            if !parents.is_empty() {
                let shard_id = shard_id.clone();
                self.deps.telemetry.emit(Event::Resharded { shard_id, parents });
            }
        }
    }

    /// Reports each shard with stored data that cannot be read. Each is reported once, until its
    /// data can be read again.
    fn report_unreadable(&mut self, table: &LeaseTable) {
        let rules = self.deps.config.rules.clone();
        let is_unreadable =
            |id: &ShardId| table.leases.get(id).is_some_and(|lease| lease.unreadable.is_some());
        let known = self.unreadable.len();
        self.unreadable.retain(is_unreadable);
        if self.unreadable.len() < known {
            // A manual correction of the stored text does not change the version.
            self.balanced = None;
            self.request_listing();
        }
        for (shard, lease) in &table.leases {
            if let Some(why) = &lease.unreadable
                && rules.selects(shard)
                && self.unreadable.insert(shard.clone())
            {
                let error = Error::new(ErrorKind::StoreCorrupt, &**why).in_shard(shard);
                self.report_error(error);
            }
        }
    }

    /// Returns true if this worker should list the stream: because it joined first of the workers
    /// that accept leases and lists for the fleet, because it reads shards that the others may not
    /// look for, because a listing was requested, because it must list once by itself, or to detect
    /// that it reaches Kinesis again.
    pub(super) fn lists(&self) -> bool {
        let order = |(name, member): &(&Arc<str>, &WorkerEntry)| {
            (member.capacity == 0, member.joined, Arc::clone(name))
        };
        let first = self.table.workers.iter().min_by_key(order);
        let is_first = first.is_some_and(|(name, _)| *name == self.deps.config.worker_id);
        let is_idle = !self.listing.is_under_way && self.listing.listed.is_none();
        self.joined
            && is_idle
            && (is_first
                || self.deps.config.rules.is_partial()
                || self.listing.is_requested
                || self.lacks_own_listing()
                || self.reachability.is_out())
    }

    pub(super) fn list(&mut self) {
        let now = Instant::now();
        self.listing.due = now + self.deps.config.discovery_interval;
        self.listing.last = Some(now);
        (self.listing.is_under_way, self.listing.is_requested) = (true, false);
        let begins = !self.has_listed || self.table.leases.is_empty();
        let listing = self.deps.discovery.clone().list(Arc::clone(&self.table), begins);
        self.tasks.spawn(async move {
            match contain(listing).await {
                Ok(listed) => TaskOutcome::Listed(listed),
                Err(panic) => TaskOutcome::FailedToList(panic),
            }
        });
    }

    /// Returns the highest number of shards that the worker accepts, in a request with these
    /// changes.
    ///
    /// A worker that reads named shards takes leases itself, and accepts none from workers that do
    /// not know the names. A capacity of 0 would mean that it cannot reach Kinesis.
    pub(super) fn capacity(&self, changes: &[Change]) -> u32 {
        if self.accepts_no_leases() {
            return 0;
        }
        let accepted = if self.is_full() {
            self.owned.len()
        } else if self.deps.config.rules.is_partial() {
            let me = &self.deps.config.worker_id;
            let is_mine = |lease: &&Lease| lease.holder() == Some(me);
            let held = self.table.leases.values().filter(is_mine).count();
            (held + changes.iter().filter(|change| is_taken_by(change, me)).count()).max(1)
        } else {
            return u32::MAX;
        };
        u32::try_from(accepted).unwrap_or(u32::MAX)
    }

    /// Measures the load of the worker's shards, once in each interval between renewals.
    pub(super) fn measure_load(&mut self) {
        let read = |(id, holding): (&ShardId, &OwnedShard)| {
            let reading = self.deps.telemetry.reading(id)?;
            Some(ReadShard { id: id.clone(), epoch: holding.lease_handle.epoch(), reading })
        };
        let read = self.owned.shards.iter().filter_map(read);
        self.load.measure(Instant::now(), read, &self.table);
    }

    /// Returns true if the worker accepts no further lease.
    fn is_full(&self) -> bool {
        self.accepts_nothing()
            || self.deps.assignments.is_closed()
            || self.owned.is_neglected()
            || self.is_unproven()
    }

    /// Hands off the shards whose callers have stopped polling.
    pub(super) fn check_callers(&mut self) {
        let Some(limit) = self.deps.config.poll_timeout else { return };
        if self.exhaustion == Exhaustion::Ended {
            // Nothing polls a stream that has ended.
            return;
        }
        for (shard, epoch) in self.owned.neglected(limit) {
            self.deps.telemetry.emit(Event::ConsumerStalled { shard_id: shard.clone() });
            self.hand_off(&shard, epoch, Duration::ZERO);
        }
    }
}

fn is_taken_by(change: &Change, worker: &Arc<str>) -> bool {
    matches!(change, Change::Assign { to, .. } | Change::Offer { to, .. } if to == worker)
}
