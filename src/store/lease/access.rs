//! Use of a lease table in a store: read, decide by the rules, and make the step; again if another
//! worker was faster.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use super::change::{AdminEdit, Change, EditOutcome, IfLeased};
use super::contract::{EntryKey, Exchange, LastHeartbeat, LeaseStore, Renewal, Step};
use super::heartbeat::{HeartbeatRequest, HeartbeatResponse, Membership};
use super::saves::Saves;
use super::table::{Lease, LeaseTable, WorkerEntry};
use super::view::View;
use crate::backoff::{Backoff, CONFLICTS};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Scope;

/// The rounds of one heartbeat after the one that makes its changes: to join again after a removal,
/// and to remove the workers that an answer shows to have expired.
const MAX_ROUNDS_AFTER: u32 = 4;

/// The conflicts of one heartbeat after which the whole table is read once, in case that the store
/// does not show the entries that differ.
const MAX_CONFLICTS: u32 = 3;

/// The most expired workers that a step removes. A store may have to check each of their heartbeats
/// by itself, and the number of checks may be limited.
const MAX_REMOVED: usize = 30;

/// Access to the table of one application and stream.
#[derive(Clone, Copy)]
pub(super) struct Access<'a> {
    pub(super) store: &'a dyn LeaseStore,
    pub(super) scope: &'a Scope,
    pub(super) clock: &'a Clock,
    pub(super) saves: &'a Saves,
}

/// One round of a heartbeat.
struct Round {
    exchange: Exchange,
    /// True if the worker joins in this round.
    is_joining: bool,
    /// True if the round makes the requested changes.
    is_applying: bool,
    /// True if the round renews all workers after an outage.
    is_amnesty: bool,
}

impl Round {
    /// Returns true if the round has nothing to do after another one.
    fn is_idle(&self) -> bool {
        self.exchange.step.is_none() && !self.is_amnesty
    }
}

impl Access<'_> {
    /// See [`Leases::exchange`](super::Leases::exchange).
    pub(super) async fn exchange(
        &self,
        view: &mut View,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatResponse> {
        let mut conflicts = Backoff::new(CONFLICTS);
        // The store may have been unreachable for all workers.
        let mut was_away =
            view.asked().is_some_and(|asked| asked.elapsed() >= request.lease_duration);
        // The leases of a worker that was away have expired, so it reads nothing.
        let may_read = !was_away && !request.leaving;
        if was_away {
            view.observe_again();
        }
        view.forget_expired();
        let mut is_whole_due = request.known.is_none() && view.is_read;
        if !view.is_read || !is_member(&view.table, request) {
            let known = view.is_read.then_some(view.table.version).filter(|_| !is_whole_due);
            self.ask(view, &Exchange { known, ..Exchange::default() }).await?;
            is_whole_due = false;
        }
        let is_conditional = request.is_conditional();
        // True if the changes were made, false if their condition did not hold.
        let mut outcome = None;
        // The text under which the worker was renewed last.
        let mut renewed = None;
        let (mut has_joined, mut rounds, mut failed) = (false, 0, 0);
        loop {
            let Some(mut round) = self.plan(view, request, outcome.is_none(), was_away) else {
                let (membership, applied) = (Membership::Occupied, false);
                return Ok(HeartbeatResponse { membership, applied, table: None });
            };
            let is_renewed = request.leaving || is_noted(view, &request.worker, renewed.as_ref());
            if rounds > 0 && is_renewed && round.is_idle() {
                break;
            }
            if rounds > MAX_ROUNDS_AFTER {
                if is_renewed {
                    break;
                }
                let message = "the store did not note the heartbeat of this worker";
                return Err(Error::new(ErrorKind::StoreUnavailable, message));
            }
            round.exchange.known = (!is_whole_due).then_some(view.table.version);
            let mine =
                round.exchange.renewals.iter().find(|renewal| renewal.worker == request.worker);
            renewed = mine.map(|renewal| Arc::clone(&renewal.entry));
            let has_version = round.exchange.step.as_ref().is_some_and(|it| it.version.is_some());
            let before = Arc::clone(&view.table);
            let is_made = self.ask(view, &round.exchange).await?;
            is_whole_due = false;
            let is_moved = may_read
                && is_member(&before, request)
                && has_moved(&request.worker, &before, &view.table);
            if round.is_amnesty {
                was_away = false;
                view.forget_expired();
            }
            if is_made {
                has_joined |= round.is_joining;
                outcome = outcome.or(Some(round.is_applying));
                rounds += 1;
            }
            if is_moved {
                // The worker is to stop reading before anything else is done.
                break;
            }
            if is_made {
                continue;
            }
            if is_conditional && outcome.is_none() {
                // The caller decides again.
                outcome = Some(false);
                rounds += 1;
            } else {
                failed += 1;
                // A conflict of expired workers does not keep this one from renewing.
                let is_done = request.changes.is_empty() || outcome.is_some();
                if is_done
                    && failed >= MAX_CONFLICTS
                    && is_noted(view, &request.worker, renewed.as_ref())
                {
                    break;
                }
                sleep(conflicts.failed()).await;
                if has_version || failed == MAX_CONFLICTS {
                    // The version has changed since, or the store does not show what differs.
                    let known = (failed != MAX_CONFLICTS).then_some(view.table.version);
                    self.ask(view, &Exchange { known, ..Exchange::default() }).await?;
                }
            }
        }
        let applied = outcome == Some(true);
        let version = (view.table.generation, view.table.version);
        let is_given = request.known != Some(version) || view.has_news;
        let table = is_given.then(|| {
            view.has_news = false;
            self.saves.learn(view, &request.worker);
            Arc::clone(&view.table)
        });
        let membership = if request.leaving {
            Membership::Left
        } else if !is_noted(view, &request.worker, renewed.as_ref()) {
            Membership::Absent
        } else if has_joined {
            Membership::Joined
        } else {
            Membership::Renewed
        };
        Ok(HeartbeatResponse { membership, applied, table })
    }

    /// Plans one round of a heartbeat; `None` if another live worker has this name. The requested
    /// changes are made if `applies` is true and their condition holds. `was_away` is true if this
    /// worker may have expired before the exchange.
    fn plan(
        &self,
        view: &mut View,
        request: &HeartbeatRequest,
        applies: bool,
        was_away: bool,
    ) -> Option<Round> {
        let me = &request.worker;
        let known = view.table.workers.get(me);
        let is_mine = is_member(&view.table, request);
        let is_anothers = known.is_some_and(|entry| entry.incarnation != 0) && !is_mine;
        if is_anothers && !view.has_expired(me) {
            return None;
        }
        // After an outage of the store, its first caller renews all.
        let is_amnesty =
            is_mine && !view.expired().is_empty() && (was_away || view.has_expired(me));
        let entry = WorkerEntry {
            capacity: request.capacity,
            size: request.size,
            load: request.load.clone(),
            ..WorkerEntry::new(request.incarnation, 0, request.lease_duration)
        };
        let is_at_rest = (request.changes.is_empty() || !applies)
            && !request.leaving
            && view.table.generation > 0
            && view.expired().is_empty()
            && view.damaged_workers().is_empty()
            && known.is_some_and(|known| *known == known.restated(&entry));
        if is_at_rest {
            let exchange =
                Exchange { renewals: vec![view.renewal(me, known?)], ..Exchange::default() };
            let (is_joining, is_applying) = (false, applies);
            return Some(Round { exchange, is_joining, is_applying, is_amnesty });
        }
        self.saves.move_to(view);
        let now = self.now(view);
        let mut after = LeaseTable::clone(&view.table);
        let silent = if is_amnesty || !is_mine && request.leaving {
            Vec::new()
        } else {
            let gone = view.expired().iter().filter(|it| after.workers.contains_key(&it.worker));
            let gone = gone.filter(|last| !is_mine || last.worker != *me);
            gone.take(MAX_REMOVED).cloned().collect()
        };
        for LastHeartbeat { worker, .. } in &silent {
            after.remove(worker);
        }
        for worker in view.damaged_workers() {
            let entry =
                WorkerEntry { capacity: 0, ..WorkerEntry::new(0, 0, request.lease_duration) };
            after.workers.entry(worker).or_insert(entry);
        }
        let is_new = !after.workers.contains_key(me);
        if !request.leaving || !is_new {
            after.join(now, me, &entry);
        } else {
            after.begin_generation(now);
        }
        let is_conditional = request.is_conditional();
        let is_known = request.known == Some((view.table.generation, view.table.version));
        let is_free = !is_conditional || is_known && view.changes_to(&after).is_empty();
        let is_applying = applies && is_free;
        if is_applying {
            for change in &request.changes {
                after.apply(now, me, request.lease_duration, change);
            }
        }
        let removes = !silent.is_empty() || request.leaving && after.workers.contains_key(me);
        if request.leaving {
            after.remove(me);
        }
        let mut entries = view.changes_to(&after);
        // The first poll depends on all shards, and a removal on all leases of its worker.
        let begins = after.first_poll != view.table.first_poll;
        let depends_on_all = removes || is_applying && (is_conditional || begins);
        let version = depends_on_all.then_some(view.table.version);
        if is_applying && version.is_none() {
            let read = request.changes.iter().flat_map(|change| reads(change, &view.table));
            view.require(&mut entries, read);
        }
        let step =
            (version.is_some() || !entries.is_empty()).then_some(Step { version, silent, entries });
        let is_renewed = |worker: &Arc<str>| {
            worker == me
                || !view.table.workers.contains_key(worker)
                || is_amnesty && view.has_expired(worker)
        };
        let renewed = after.workers.iter().filter(|(worker, _)| is_renewed(worker));
        let renewals: Vec<Renewal> =
            renewed.map(|(worker, entry)| view.renewal(worker, entry)).collect();
        let exchange = Exchange { step, renewals, known: None };
        let is_joining = is_new && !request.leaving;
        Some(Round { exchange, is_joining, is_applying, is_amnesty })
    }

    /// See [`Leases::table`](super::Leases::table).
    pub(super) async fn table(&self, view: &mut View) -> Result<LeaseTable> {
        self.ask(view, &Exchange::default()).await?;
        let mut table = LeaseTable::clone(&view.table);
        for LastHeartbeat { worker, .. } in view.expired() {
            table.remove(worker);
        }
        Ok(table)
    }

    /// See [`Leases::edit`](super::Leases::edit).
    pub(super) async fn edit(
        &self,
        view: &mut View,
        edit: &AdminEdit,
        if_leased: IfLeased,
    ) -> Result<EditOutcome> {
        let mut conflicts = Backoff::new(CONFLICTS);
        self.ask(view, &Exchange::default()).await?;
        loop {
            let mut after = LeaseTable::clone(&view.table);
            let is_alive = |worker: &Arc<str>| !view.has_expired(worker);
            let outcome = after.edit(self.now(view), edit, if_leased, is_alive);
            if outcome != EditOutcome::Applied {
                return Ok(outcome);
            }
            // A worker that has renewed since was taken for dead.
            let gone =
                view.expired().iter().filter(|it| view.table.workers.contains_key(&it.worker));
            let mut silent: Vec<LastHeartbeat> = gone.cloned().collect();
            let is_last = silent.len() <= MAX_REMOVED;
            if !is_last {
                // The edit is made once few enough are left.
                silent.truncate(MAX_REMOVED);
                after = LeaseTable::clone(&view.table);
                for last in &silent {
                    after.remove(&last.worker);
                }
            }
            let (known, entries) = (Some(view.table.version), view.changes_to(&after));
            let step = Some(Step { version: known, silent, entries });
            let exchange = Exchange { step, renewals: Vec::new(), known };
            match self.ask(view, &exchange).await? {
                true if is_last => return Ok(EditOutcome::Applied),
                true => continue,
                false => {}
            }
            sleep(conflicts.failed()).await;
            let known = Some(view.table.version);
            self.ask(view, &Exchange { known, ..Exchange::default() }).await?;
        }
    }

    /// Reads the whole table, without the memory of this worker.
    pub(super) async fn read(&self) -> Result<View> {
        let mut view = View::default();
        self.ask(&mut view, &Exchange::default()).await?;
        Ok(view)
    }

    /// Sends a request, and merges its answer into the view. Returns true if the step was made.
    pub(super) async fn ask(&self, view: &mut View, exchange: &Exchange) -> Result<bool> {
        let asked = Instant::now();
        let answer = self.store.exchange(self.scope, exchange).await?;
        if exchange.known.is_none() && !answer.is_whole {
            let message = "the store has returned a part of the lease table, but was asked for the \
                           whole; fix the LeaseStore";
            return Err(Error::new(ErrorKind::StoreCorrupt, message));
        }
        let is_made = answer.is_made;
        let unreadable = |key: &_, text: &str| self.store.unreadable(self.scope, key, text);
        view.merge(asked, answer, unreadable);
        Ok(is_made)
    }

    /// Returns the time since 1970: by the clock of the store, or by that of this host.
    pub(super) fn now(&self, view: &View) -> Duration {
        let host = || self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        view.store_time().unwrap_or_else(host)
    }
}

/// Returns true if the table has the worker of a request.
fn is_member(table: &LeaseTable, request: &HeartbeatRequest) -> bool {
    let mine = table.workers.get(&request.worker);
    mine.is_some_and(|entry| entry.incarnation == request.incarnation)
}

/// Returns true if a lease of the worker is in another epoch, or gone.
fn has_moved(worker: &Arc<str>, before: &Arc<LeaseTable>, after: &Arc<LeaseTable>) -> bool {
    let is_own = |lease: &Lease| lease.owner.as_ref() == Some(worker);
    let is_same = |shard, lease: &Lease| {
        after.leases.get(shard).is_some_and(|after| after.epoch == lease.epoch)
    };
    let mut leases = before.leases.iter();
    !Arc::ptr_eq(before, after) && leases.any(|(shard, it)| is_own(it) && !is_same(shard, it))
}

/// Returns true if the table shows the worker under the entry of this text, under which it was
/// renewed.
fn is_noted(view: &View, worker: &Arc<str>, renewed: Option<&Arc<str>>) -> bool {
    renewed.is_some() && view.text(&EntryKey::Worker(Arc::clone(worker))) == renewed
}

/// Returns the entries on which the effect of a change depends, even if it has none.
fn reads(change: &Change, table: &LeaseTable) -> Vec<EntryKey> {
    let [worker, other] = match change {
        Change::Assign { to, .. } | Change::Offer { to, .. } => [Some(to), None],
        Change::Release { shard, .. } => {
            [table.lease(shard).and_then(|lease| lease.next_owner.as_ref()), None]
        }
        Change::Restore { lease, .. } => [lease.owner.as_ref(), lease.next_owner.as_ref()],
        _ => [None, None],
    };
    // Nothing is restored after a clear.
    let reads_head = matches!(change, Change::Restore { .. } | Change::Add { .. });
    let workers = worker.into_iter().chain(other).cloned().map(EntryKey::Worker);
    let shards = change.shard().cloned().map(EntryKey::Lease).into_iter();
    shards.chain(workers).chain(reads_head.then_some(EntryKey::Head)).collect()
}
