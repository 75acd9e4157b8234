//! What a worker does about the table that it has seen.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::balance::balance;
use super::exchange::LAST_WORDS;
use super::owned_shards::{OwnedShard, Reconciliation};
use super::worker::{BalancedTable, TaskOutcome, Worker};
use super::{AssignedShard, UnopenedShard, WorkerMessage};
use crate::backoff::{Backoff, SAVES};
use crate::checkpoint::{Advance, Checkpoint, Watermark};
use crate::discovery::{Changes, Loss, Report, ShardStart, is_readable, readable};
use crate::error::{Error, contain};
use crate::record::ShardId;
use crate::shard::{LeaseHandle, PollMonitor};
use crate::source::KnownShard;
use crate::store::TrackedShard;
use crate::store::lease::{Answer, Change, Lease, Member, Standing, Table, Verdict};
use crate::telemetry::Event;

impl Worker {
    /// What there is to be changed in the table as it is: first what was listed, then what evens it
    /// out.
    pub(super) fn decide(&mut self) -> Changes {
        if !self.joined {
            return Changes::default();
        }
        let children = self.children();
        if !children.is_empty() {
            return Changes::beside_listings(children);
        }
        if self.listing.listed.take_if(|listed| !listed.is_of(&self.table)).is_some() {
            self.listing.due = Instant::now();
        }
        if let Some(listed) = &self.listing.listed {
            let changes = self.plan.lister.changes(listed, &self.table);
            if !changes.list.is_empty() {
                return changes;
            }
            self.losses = changes.losses;
            self.use_up_listing();
        }
        let now = Instant::now();
        if !self.begun || !self.may_move_leases(now) || self.is_even(now) {
            return Changes::default();
        }
        let mut open: BTreeSet<ShardId> =
            readable(&self.table, self.plan.rules.ordering).cloned().collect();
        open.retain(|shard| !self.plan.lister.is_missing(shard));
        let list = balance(&self.table, &open, &self.declines.refusals(&self.table, now));
        self.even = list.is_empty().then(|| self.evenness(now));
        Changes::beside_listings(list)
    }

    /// Returns for how long the present table is even.
    pub(super) fn evenness(&self, now: Instant) -> BalancedTable {
        BalancedTable { version: self.table.version, until: self.declines.next_end(now) }
    }

    fn is_even(&self, now: Instant) -> bool {
        let is_still = |even: &BalancedTable| {
            even.version == self.table.version && even.until.is_none_or(|until| now < until)
        };
        self.even.as_ref().is_some_and(is_still)
    }

    /// The children that their parents' ends have named, where all their parents are in the table: one
    /// that is not may be one that is not found yet, or that the store has forgotten, and must not be
    /// passed. Then only a listing can tell.
    pub(super) fn children(&mut self) -> Vec<Change> {
        let leases = &self.table.leases;
        self.named.retain(|child| !leases.contains_key(&child.id));
        if !self.named.iter().flat_map(|child| &child.parents).all(|id| leases.contains_key(id)) {
            self.named.clear();
            self.ask_for_listing();
        }
        let add = |KnownShard { id, parents }: &KnownShard| Change::Add {
            shard: id.clone(),
            parents: parents.clone(),
            start: None,
            checkpoint: self.plan.lister.child_start(id),
        };
        self.named.iter().map(add).collect()
    }

    /// Drops the listing once its changes are made.
    pub(super) fn use_up_listing(&mut self) {
        if self.listing.listed.take().is_some() {
            // A shard that was missing may be found again, in a table that is the same.
            self.even = None;
            self.report_losses(Loss::is_of_listing);
            self.begun = true;
        }
    }

    fn report_losses(&mut self, is_due: impl Fn(&Loss) -> bool) {
        let (due, rest) = std::mem::take(&mut self.losses).into_iter().partition(is_due);
        self.losses = rest;
        for Loss { report, .. } in due {
            match report {
                Report::Error(error) => self.tell_loss(error),
                Report::Event(event) => self.plan.observer.tell(event),
            }
        }
    }

    /// Reports the losses that a table shows. Of the others nothing is stored, nor will be: the version
    /// for which they were decided is no longer that of the table.
    fn report_shown_losses(&mut self, table: &Table) {
        let version = |table: &Table| (table.generation, table.version);
        if version(table) != version(&self.table) {
            self.report_losses(|loss| loss.is_shown_by(table));
            self.losses.retain(Loss::is_of_listing);
        }
    }

    /// Reports a loss to the caller, unless the stream of the shard has: whichever comes first does. Each
    /// reading begins with a report of its own.
    fn tell_loss(&self, error: Error) {
        let shard = error.shard_id().and_then(|shard| shard.parse().ok());
        let is_news = shard.is_none_or(|shard| self.plan.observer.note_failure(&shard, &error));
        if is_news || !self.begun {
            (self.plan.lister.tell)(error);
        }
    }

    /// The worker is in the table, and has seen it where it is not as it was.
    pub(super) fn welcome(&mut self, answer: Answer) {
        if answer.standing == Standing::Joined {
            let worker_id = (*self.plan.rules.worker_id).to_owned();
            self.plan.observer.tell(Event::WorkerJoined { worker_id });
        }
        if let Some(table) = answer.table {
            self.look_at(table);
        }
        // A worker that comes alone lists the stream before it reads.
        self.begun |= self.table.workers.len() > 1;
        self.joined = true;
    }

    fn look_at(&mut self, table: Table) {
        let is_forgotten = self.joined
            && table.generation != self.table.generation
            // One that has forgotten when it was cleared shows an earlier time.
            && table.cleared <= self.table.cleared;
        if is_forgotten {
            self.plan.observer.tell(Event::StoreForgot);
            self.pending.extend(self.holdings.knowledge(&self.table));
        }
        let is_cleared = table.cleared > self.table.cleared;
        let first_poll = if is_forgotten { self.table.first_poll } else { 0 };
        let Reconciliation { changes, opened, leaving, finished, lost } =
            self.holdings.settle(&table);
        for shard_id in finished {
            self.plan.observer.tell(Event::ShardFinished { shard_id });
        }
        self.report_shown_losses(&table);
        self.tell_resharded(&table);
        self.tell_unreadable(&table);
        self.declines.observe(&self.table, &table);
        self.plan.observer.retain_failures(|shard| table.leases.contains_key(shard));
        self.table = Arc::new(table);
        self.note_stranded();
        if (is_forgotten || is_cleared) && self.table.leases.is_empty() {
            self.pending.extend(self.plan.lister.beginning(first_poll));
        }
        self.seen_whole = Some(Instant::now());
        for (shard_id, epoch) in lost {
            self.plan.observer.tell(Event::LeaseLost { shard_id, epoch });
        }
        if !is_forgotten {
            self.pending.extend(changes);
            if self.table.leases.is_empty() {
                // Nothing was known, or everything was cleared.
                self.listing.due = Instant::now();
            }
        }
        for (shard, lease) in opened {
            if self.declines.declines(&shard) {
                // A worker that does not know that this one rests the shard has assigned it.
                self.pending.push(Change::Release { shard, epoch: lease.epoch });
            } else if is_readable(&self.table, &lease, self.plan.rules.ordering) {
                self.open(&shard, lease);
            } else {
                // Its parents were moved back, and are to be read before it.
                self.pending.push(Change::Release { shard, epoch: lease.epoch });
            }
        }
        for shard in leaving {
            let patience = self.plan.rules.handoff_timeout;
            if let Some(epoch) = self.holdings.epoch(&shard) {
                self.hand_over(&shard, epoch, patience);
            }
        }
    }

    /// Tells of the shards that have come, where those that they were made of were known.
    fn tell_resharded(&self, table: &Table) {
        let known = &self.table.leases;
        for (shard_id, lease) in table.leases.iter().filter(|(id, _)| !known.contains_key(*id)) {
            let parents = lease.parents.iter().flatten().filter(|id| known.contains_key(*id));
            let parents: Vec<ShardId> = parents.cloned().collect();
            if !parents.is_empty() {
                let shard_id = shard_id.clone();
                self.plan.observer.tell(Event::Resharded { shard_id, parents });
            }
        }
    }

    /// Reports each shard that the store cannot read, once until it can.
    fn tell_unreadable(&mut self, table: &Table) {
        let is_unreadable =
            |id: &ShardId| table.leases.get(id).is_some_and(|lease| lease.unreadable.is_some());
        let known = self.unreadable.len();
        self.unreadable.retain(is_unreadable);
        if self.unreadable.len() < known {
            // Text that was corrected by hand makes no new version.
            self.even = None;
            self.ask_for_listing();
        }
        for (shard, lease) in &table.leases {
            if let Some(why) = &lease.unreadable
                && self.unreadable.insert(shard.clone())
            {
                let error = Error::store_corrupt(&**why).in_shard(shard.as_str());
                (self.plan.lister.tell)(error.in_stream(self.plan.scope.shared_stream_name()));
            }
        }
    }

    /// Begins with a shard that the worker has been given.
    fn open(&mut self, id: &ShardId, lease: Lease) {
        let epoch = lease.epoch;
        let Some(start) = self.plan.lister.start_of(id, lease.checkpoint.clone()) else {
            // The caller has named the end of the shard as its start.
            self.pending.push(Change::Finish { shard: id.clone(), epoch });
            return;
        };
        self.plan.observer.tell(Event::LeaseGained { shard_id: id.clone(), epoch });
        let tenure = LeaseHandle::new(epoch, Arc::clone(&self.validity));
        let watermark = Arc::new(Watermark::new({
            let (words, bell, shard) =
                (self.plan.words.clone(), self.plan.writer.bell(id.clone(), epoch), id.clone());
            move |advance| match advance {
                Advance::Position { is_first } => bell.advanced(is_first),
                Advance::End => {
                    bell.ended();
                    // Nobody listens any more where the reading has been dropped.
                    let _dropped = words.send(WorkerMessage::Finished(shard.clone(), epoch));
                }
            }
        }));
        let pulse = self.plan.rules.poll_timeout.map(|_limit| PollMonitor::new());
        let holding =
            OwnedShard::new(lease.clone(), tenure.clone(), Arc::clone(&watermark), pulse.clone());
        self.plan.writer.watch(TrackedShard {
            shard: id.clone(),
            epoch,
            watermark: Arc::clone(&watermark),
            tell: Arc::new({
                let (words, tenure) = (self.plan.words.clone(), tenure.clone());
                let (finish, observer) = (holding.finish.clone(), self.plan.observer.clone());
                let shard_id = id.clone();
                move |verdict| match verdict {
                    Verdict::Saved if finish.is_news() => {
                        observer.tell(Event::ShardFinished { shard_id: shard_id.clone() });
                    }
                    Verdict::Saved => {}
                    Verdict::Unreadable => {
                        tenure.end();
                        let _dropped = words.send(WorkerMessage::Unreadable);
                    }
                    Verdict::Lost | Verdict::Forgotten => {
                        if verdict == Verdict::Lost {
                            tenure.end();
                        }
                        let _dropped = words.send(WorkerMessage::Surprised);
                    }
                }
            }),
        });
        self.holdings.take(id.clone(), holding);
        let added = lease.added_at();
        let shard = KnownShard { id: id.clone(), parents: lease.parents.unwrap_or_default() };
        let ShardStart { position, unstored } = start;
        let unopened = UnopenedShard::new(self.plan.words.clone(), id.clone(), epoch);
        let opening = AssignedShard { shard, position, added, tenure, watermark, pulse, unopened };
        match unstored {
            Some(checkpoint) => self.store_start(opening, checkpoint),
            None => self.send(opening),
        }
    }

    /// Stores the start of a shard, and has the shard read after that.
    fn store_start(&mut self, opening: AssignedShard, start: Checkpoint) {
        opening.watermark.start_at(start);
        let (writer, tell) = (self.plan.writer.clone(), Arc::clone(&self.plan.lister.tell));
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(SAVES);
            while !opening.tenure.is_over()
                && let Err(error) = writer.flush().await
            {
                if writer.is_untold() {
                    tell(error);
                }
                sleep(backoff.failed()).await;
            }
            TaskOutcome::StoredStart(Box::new(opening))
        });
    }

    /// Sends a shard to the caller's stream, unless its lease is over.
    pub(super) fn send(&mut self, opening: AssignedShard) {
        if opening.tenure.is_over() {
            return opening.unopened.opened();
        }
        // Dropped where nobody opens shards any more, by which the worker is told.
        let _unopened = self.plan.openings.send(Ok(opening));
    }

    /// Hands out no record of the shard any more, and gives it back when all that were are finished,
    /// or after so long.
    pub(super) fn hand_over(&mut self, shard: &ShardId, epoch: u64, patience: Duration) {
        let Some(holding) = self.holdings.get(shard, epoch) else { return };
        if holding.is_leaving {
            return;
        }
        holding.stop();
        let watermark = Arc::clone(&holding.watermark);
        let (writer, shard) = (self.plan.writer.clone(), shard.clone());
        let observer = self.plan.observer.clone();
        observer.tell(Event::LeaseGivenBack { shard_id: shard.clone(), epoch });
        self.tasks.spawn(async move {
            // However it ends, the lease is released: where it fails, what it would have saved is
            // read again.
            let _panicked = contain(async {
                let settled = poll_fn(|context| watermark.poll_settled(context));
                if timeout(patience, settled).await.is_err() && !patience.is_zero() {
                    observer.tell(Event::HandoffTimedOut { shard_id: shard.clone(), epoch });
                }
                // A store that cannot save keeps the shard from no other worker.
                let _told_elsewhere = timeout(LAST_WORDS, writer.flush()).await;
            })
            .await;
            TaskOutcome::Settled(shard, epoch)
        });
    }

    /// Whether this worker is to list the stream: for all, as the first to join of those that take leases;
    /// because a listing was asked for; or to find out whether it reaches Kinesis again.
    pub(super) fn lists(&self) -> bool {
        let order = |(name, member): &(&Arc<str>, &Member)| {
            (member.capacity == 0, member.joined, Arc::clone(name))
        };
        let first = self.table.workers.iter().min_by_key(order);
        let is_first = first.is_some_and(|(name, _)| *name == self.plan.rules.worker_id);
        let is_idle = !self.listing.is_under_way && self.listing.listed.is_none();
        self.joined && is_idle && (is_first || self.listing.is_asked_for || self.reach.is_out())
    }

    pub(super) fn list(&mut self) {
        let now = Instant::now();
        self.listing.due = now + self.plan.rules.discovery_interval;
        self.listing.last = Some(now);
        (self.listing.is_under_way, self.listing.is_asked_for) = (true, false);
        let begins = !self.begun || self.table.leases.is_empty();
        let listing = self.plan.lister.clone().list(Arc::clone(&self.table), begins);
        self.tasks.spawn(async move {
            match contain(listing).await {
                Ok(listed) => TaskOutcome::Listed(listed),
                Err(panic) => TaskOutcome::FailedToList(panic),
            }
        });
    }

    /// How many shards the worker takes.
    pub(super) fn capacity(&self) -> u32 {
        if self.takes_none() {
            return 0;
        }
        let held = u32::try_from(self.holdings.len()).unwrap_or(u32::MAX);
        let is_full =
            self.plan.openings.is_closed() || self.holdings.is_neglected() || self.is_unproven();
        if is_full { held } else { u32::MAX }
    }

    /// Shards whose callers have stopped polling go to workers that read.
    pub(super) fn look_after_callers(&mut self) {
        let Some(limit) = self.plan.rules.poll_timeout else { return };
        for (shard, epoch) in self.holdings.neglected(limit) {
            self.plan.observer.tell(Event::CallerStopped { shard_id: shard.clone() });
            self.hand_over(&shard, epoch, Duration::ZERO);
        }
    }
}
