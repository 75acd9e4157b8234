//! The rules of the lease table: pure functions over a table and the present time.

use std::sync::Arc;
use std::time::Duration;

use super::change::{AdminEdit, Change, EditOutcome, IfLeased};
use super::table::{Lease, LeaseTable, WorkerEntry};
use crate::checkpoint::Checkpoint;
use crate::record::{SequenceNumber, ShardId};

/// The time for which a finished shard is remembered after listings stopped showing it: the longest
/// retention of a stream, 365 days
/// (<https://docs.aws.amazon.com/streams/latest/dev/kinesis-extended-retention.html>). A listing
/// that omits the shard by mistake does not cause the shard to be read again.
pub const FINISHED_SHARD_RETENTION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The present time since 1970, by the store's clock if it has one, as the rules take it.
type Now = Duration;

impl LeaseTable {
    /// Adds a worker, or updates its entry. Creates the table if it does not exist.
    ///
    /// An entry of incarnation 0 becomes that of this worker. Returns true if the worker is new.
    /// The caller has made sure that no other live worker has this name.
    pub fn join(&mut self, now: Now, worker: &Arc<str>, entry: &WorkerEntry) -> bool {
        self.begin_generation(now);
        if let Some(known) = self.workers.get_mut(worker) {
            *known = known.restated(entry);
            return false;
        }
        let last = self.workers.values().map(|known| known.joined + 1).max();
        let joined = last.unwrap_or(0).max(micros(now));
        self.workers.insert(Arc::clone(worker), WorkerEntry { joined, ..entry.clone() });
        true
    }

    /// Removes a worker, and frees its leases in their epochs.
    pub fn remove(&mut self, worker: &Arc<str>) {
        self.workers.remove(worker);
        for lease in self.leases.values_mut().chain(self.hidden.values_mut()) {
            if lease.owner.as_ref() == Some(worker) {
                (lease.owner, lease.next_owner) = (None, None);
            } else if lease.next_owner.as_ref() == Some(worker) {
                lease.next_owner = None;
            }
        }
    }

    /// Applies a change that a worker requests. `lease_duration` is that of the worker. A change
    /// that no longer applies has no effect, nor does one of an unreadable shard.
    pub fn apply(
        &mut self,
        now: Now,
        worker: &Arc<str>,
        lease_duration: Duration,
        change: &Change,
    ) {
        if change.shard().is_some_and(|shard| self.is_unreadable(shard)) {
            return;
        }
        match change {
            Change::Begin { first_poll } => self.begin(*first_poll),
            Change::Add { shard, parents, start, checkpoint } => {
                self.add(now, shard, parents, start.as_ref(), checkpoint.as_ref());
            }
            Change::Identify { shard, start } => self.identify(now, shard, start.as_ref()),
            Change::Replace { shard, parents, start, checkpoint } => {
                self.replace(now, shard, parents, start, checkpoint);
            }
            Change::Assign { shard, to } => self.assign(now, shard, to, lease_duration),
            Change::Offer { shard, to } => self.offer(shard, to),
            Change::Release { shard, epoch } => self.release(now, shard, *epoch, worker),
            Change::Finish { shard, epoch } => {
                if self.lease(shard).is_some_and(|lease| lease.epoch == *epoch) {
                    self.finish(shard);
                }
            }
            Change::MarkExpired { shard } => self.mark_expired(now, shard),
            Change::Forget { shard } => self.forget(now, shard),
            Change::ReviveWorker { worker, member } => {
                self.workers.entry(Arc::clone(worker)).or_insert_with(|| member.clone());
            }
            Change::Restore { shard, incarnation, lease } => {
                self.restore(now, shard, *incarnation, lease);
            }
        }
    }

    /// Applies an operator's edit, or changes nothing if it is refused. `is_alive` tells the live
    /// workers among those of the table.
    pub fn edit(
        &mut self,
        now: Now,
        edit: &AdminEdit,
        if_leased: IfLeased,
        is_alive: impl Fn(&Arc<str>) -> bool,
    ) -> EditOutcome {
        let is_alive = |worker: &Arc<str>| self.workers.contains_key(worker) && is_alive(worker);
        let owner = |table: &Self, shard: &ShardId| {
            let lease = table.hidden.get(shard).or_else(|| table.lease(shard))?;
            lease.owner.clone()
        };
        let owners: Vec<Option<Arc<str>>> = match edit {
            AdminEdit::Set { positions } => {
                let owners = positions.iter().map(|(shard, _)| owner(self, shard));
                owners.map(|owner| owner.filter(&is_alive)).collect()
            }
            AdminEdit::Clear => Vec::new(),
        };
        let against = match edit {
            AdminEdit::Set { positions } => {
                // The owner of an unreadable shard does not read it.
                let readable = positions.iter().zip(&owners);
                let mut readable = readable.filter(|((shard, _), _)| !self.is_unreadable(shard));
                readable.find_map(|(_, owner)| owner.clone())
            }
            AdminEdit::Clear => self.workers.keys().find(|worker| is_alive(worker)).cloned(),
        };
        if let Some(worker) = against
            && if_leased != IfLeased::Force
        {
            return EditOutcome::Refused { worker };
        }
        match edit {
            AdminEdit::Set { positions } => {
                for ((shard, checkpoint), owner) in positions.iter().zip(owners) {
                    self.set(now, shard, checkpoint, owner);
                }
            }
            AdminEdit::Clear => self.clear(now),
        }
        EditOutcome::Applied
    }

    pub(super) fn begin_generation(&mut self, now: Now) {
        if self.generation == 0 {
            self.generation = micros(now).max(1);
        }
    }

    fn begin(&mut self, first_poll: u64) {
        if self.leases.is_empty() && self.first_poll == 0 {
            self.first_poll = first_poll;
        }
    }

    fn add(
        &mut self,
        now: Now,
        shard: &ShardId,
        parents: &[ShardId],
        start: Option<&SequenceNumber>,
        checkpoint: Option<&Checkpoint>,
    ) {
        let added = millis(now);
        let generation = self.generation;
        let entry = self.leases.entry(shard.clone()).or_default();
        if !entry.is_lease() {
            let known = entry.checkpoint.take().or_else(|| checkpoint.cloned());
            *entry = Lease {
                origin: generation,
                parents: Some(parents.to_vec()),
                start: start.cloned(),
                added: Some(added),
                checkpoint: known,
                ..Lease::default()
            };
            self.first_poll = 0;
            return;
        }
        match &mut entry.parents {
            None => {
                entry.parents = Some(parents.to_vec());
                entry.start = entry.start.take().or_else(|| start.cloned());
                entry.added = entry.added.or(Some(added));
            }
            Some(known) if entry.epoch == 0 => {
                for parent in parents {
                    if !known.contains(parent) {
                        known.push(parent.clone());
                    }
                }
            }
            Some(_) => {}
        }
        if entry.epoch == 0 {
            entry.checkpoint = entry.checkpoint.take().or_else(|| checkpoint.cloned());
        }
    }

    fn identify(&mut self, now: Now, shard: &ShardId, start: Option<&SequenceNumber>) {
        let Some(lease) = self.lease_mut(shard) else { return };
        lease.unlisted = None;
        if !lease.is_finished() {
            lease.added = lease.added.or(Some(millis(now)));
        }
        lease.start = lease.start.take().or_else(|| start.cloned());
        if start.is_some() && lease.start.as_ref() == start {
            lease.is_shard_expired = false;
        }
    }

    fn replace(
        &mut self,
        now: Now,
        shard: &ShardId,
        parents: &[ShardId],
        start: &SequenceNumber,
        checkpoint: &Checkpoint,
    ) {
        let Some(lease) = self.lease_mut(shard) else { return };
        if lease.start.as_ref() == Some(start) {
            return;
        }
        (lease.parents, lease.start) = (Some(parents.to_vec()), Some(start.clone()));
        (lease.is_shard_expired, lease.unlisted) = (false, None);
        (lease.added, lease.checkpoint) = (Some(millis(now)), Some(checkpoint.clone()));
        let owner = lease.owner.clone();
        self.start_new_epoch(now, shard, owner);
    }

    fn assign(&mut self, now: Now, shard: &ShardId, to: &Arc<str>, lease_duration: Duration) {
        let Some(lease) = self.lease(shard) else { return };
        if let Some(owner) = lease.owner.clone() {
            // The owner may be alive although its entry is missing.
            let stands_in = || WorkerEntry {
                joined: micros(now),
                lease_duration,
                capacity: 0,
                ..WorkerEntry::default()
            };
            self.workers.entry(owner).or_insert_with(stands_in);
        } else if !lease.is_shard_expired && !lease.is_finished() && self.workers.contains_key(to) {
            self.set_owner_in_new_epoch(now, shard, Some(Arc::clone(to)));
        }
    }

    fn offer(&mut self, shard: &ShardId, to: &Arc<str>) {
        let is_member = self.workers.contains_key(to);
        if let Some(lease) = self.lease_mut(shard)
            && let Some(owner) = &lease.owner
            && (is_member || owner == to)
        {
            lease.next_owner = (owner != to).then(|| Arc::clone(to));
        }
    }

    fn release(&mut self, now: Now, shard: &ShardId, epoch: u64, worker: &Arc<str>) {
        let workers = &self.workers;
        let Some(lease) = self.leases.get_mut(shard).filter(|lease| lease.is_lease()) else {
            return;
        };
        if lease.epoch == epoch && lease.owner.as_ref() == Some(worker) {
            match lease.next_owner.take().filter(|next_owner| workers.contains_key(next_owner)) {
                Some(next_owner) => self.set_owner_in_new_epoch(now, shard, Some(next_owner)),
                None => lease.owner = None,
            }
        }
    }

    /// Marks a shard as finished, and frees its lease.
    fn finish(&mut self, shard: &ShardId) {
        if let Some(lease) = self.leases.get_mut(shard) {
            lease.checkpoint = Some(Checkpoint::ShardEnd);
            (lease.owner, lease.next_owner) = (None, None);
        }
    }

    fn mark_expired(&mut self, now: Now, shard: &ShardId) {
        let Some(lease) = self.lease_mut(shard) else { return };
        lease.is_shard_expired = true;
        if lease.owner.is_some() {
            self.set_owner_in_new_epoch(now, shard, None);
        }
    }

    /// Notes that a finished shard is not listed, and removes it [`FINISHED_SHARD_RETENTION`] after
    /// the first note. Until then, a listing may show it again.
    fn forget(&mut self, now: Now, shard: &ShardId) {
        let now = millis(now);
        let Some(lease) = self.lease_mut(shard).filter(|lease| lease.is_finished()) else { return };
        match lease.unlisted {
            None => lease.unlisted = Some(now),
            Some(since) if !is_kept(now, since) => {
                self.leases.remove(shard);
            }
            Some(_) => {}
        }
    }

    fn restore(&mut self, now: Now, shard: &ShardId, incarnation: u64, known: &Lease) {
        if known.epoch <= self.cleared && self.cleared > 0 {
            return;
        }
        let is_finished =
            known.is_finished() || self.leases.get(shard).is_some_and(Lease::is_finished);
        let workers = &self.workers;
        let is_same =
            |name: &Arc<str>| workers.get(name).is_some_and(|it| it.incarnation == incarnation);
        let owner = known.owner.clone().filter(|owner| !is_finished && is_same(owner));
        let is_member = |next: &Arc<str>| owner.is_some() && workers.contains_key(next);
        let next_owner = known.next_owner.clone().filter(is_member);
        let lease = self.leases.entry(shard.clone()).or_default();
        if !lease.is_lease() {
            let stored = lease.checkpoint.take();
            // If only the position is known, no lease is added: its parents are unknown.
            if known.parents.is_some() {
                *lease = Lease { owner, next_owner, checkpoint: None, ..known.clone() };
                self.first_poll = 0;
            }
            lease.checkpoint = stored;
            self.note_epoch(now, known.epoch);
            return self.advance(shard, known);
        }
        if lease.origin > known.origin {
            (lease.origin, lease.start) = (known.origin, known.start.clone());
            (lease.added, lease.checkpoint) = (known.added, known.checkpoint.clone());
            let owner = lease.owner.clone();
            return self.start_new_epoch(now, shard, owner);
        }
        if lease.origin < known.origin || lease.epoch > known.epoch {
            return;
        }
        if lease.epoch < known.epoch {
            (lease.epoch, lease.is_shard_expired) = (known.epoch, known.is_shard_expired);
            (lease.owner, lease.next_owner) = (owner, next_owner);
            lease.start = known.start.clone().or(lease.start.take());
            lease.unlisted = known.unlisted;
            lease.added = known.added.or(lease.added);
        } else {
            lease.is_shard_expired |= known.is_shard_expired;
            lease.start = lease.start.take().or(known.start.clone());
            lease.added = lease.added.into_iter().chain(known.added).min();
            if lease.owner.is_none() {
                (lease.owner, lease.next_owner) = (owner, next_owner);
            }
        }
        self.note_epoch(now, known.epoch);
        self.advance(shard, known);
    }

    /// Takes the position of a restored lease if it is further than the stored one.
    pub(super) fn advance(&mut self, shard: &ShardId, known: &Lease) {
        let lease = self.leases.entry(shard.clone()).or_default();
        if let Some(checkpoint) = &known.checkpoint
            && lease.checkpoint.as_ref().is_none_or(|stored| checkpoint.supersedes(stored))
        {
            lease.checkpoint = Some(checkpoint.clone());
        }
        if lease.is_finished() {
            self.finish(shard);
        }
    }

    /// Sets a shard to a position. Its live `owner` keeps the lease.
    fn set(&mut self, now: Now, shard: &ShardId, position: &Checkpoint, owner: Option<Arc<str>>) {
        if self.is_unreadable(shard) {
            let unknown = Lease { origin: self.generation.max(1), ..Lease::default() };
            let lease = self.hidden.remove(shard).unwrap_or(unknown);
            self.leases.insert(shard.clone(), lease);
        }
        let lease = self.leases.entry(shard.clone()).or_default();
        lease.checkpoint = Some(position.clone());
        if lease.is_lease() {
            // The operator's position applies, regardless of the stream of the shard.
            (lease.is_shard_expired, lease.start) = (false, None);
            lease.added = Some(millis(now));
            self.start_new_epoch(now, shard, owner);
        }
    }

    fn clear(&mut self, now: Now) {
        let latest = self.leases.values().chain(self.hidden.values()).map(|lease| lease.epoch);
        let latest = latest.max().unwrap_or(0).max(self.latest_epoch).max(self.cleared);
        let latest = latest.max(millis(now));
        *self = Self {
            generation: micros(now).max(self.generation + 1),
            version: self.version,
            cleared: latest,
            further: self.further.clone(),
            ..Self::default()
        };
    }

    /// Sets the owner of a lease, or frees it, in a new epoch. It is later than the clock as well:
    /// the store may have lost the latest epoch.
    fn set_owner_in_new_epoch(&mut self, now: Now, shard: &ShardId, owner: Option<Arc<str>>) {
        let latest = self.cleared.max(self.latest_epoch);
        if let Some(lease) = self.lease_mut(shard) {
            lease.epoch = millis(now).max(lease.epoch + 1).max(latest + 1);
            (lease.owner, lease.next_owner) = (owner, None);
            let epoch = lease.epoch;
            self.note_epoch(now, epoch);
        }
    }

    /// Remembers an epoch that is ahead of the clock, so that later ones are higher even if its lease
    /// is lost.
    fn note_epoch(&mut self, now: Now, epoch: u64) {
        if epoch > millis(now) {
            self.latest_epoch = self.latest_epoch.max(epoch);
        }
    }

    /// Starts a new epoch after another position was stored. The current owner keeps the lease, so
    /// that no other worker starts before the owner has seen the new epoch. A finished shard has no
    /// owner.
    fn start_new_epoch(&mut self, now: Now, shard: &ShardId, owner: Option<Arc<str>>) {
        self.moved.insert(shard.clone());
        let is_finished = self.lease(shard).is_some_and(Lease::is_finished);
        self.set_owner_in_new_epoch(now, shard, owner.filter(|_owner| !is_finished));
    }

    pub(super) fn lease(&self, shard: &ShardId) -> Option<&Lease> {
        self.leases.get(shard).filter(|lease| lease.is_lease())
    }

    fn lease_mut(&mut self, shard: &ShardId) -> Option<&mut Lease> {
        self.leases.get_mut(shard).filter(|lease| lease.is_lease())
    }

    fn is_unreadable(&self, shard: &ShardId) -> bool {
        self.leases.get(shard).is_some_and(|lease| lease.unreadable.is_some())
    }
}

/// Returns true if a note of the time `then`, in milliseconds, is still kept.
pub(super) fn is_kept(now: u64, then: u64) -> bool {
    now.saturating_sub(then) < millis(FINISHED_SHARD_RETENTION)
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
