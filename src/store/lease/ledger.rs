//! The lease table in memory: a plain implementation of the rules of
//! [`LeaseStore`](super::LeaseStore). The scripts of `RedisStore` implement the same rules, and a
//! test compares the two.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{
    AdminEdit, Change, EditOutcome, FINISHED_SHARD_RETENTION, FencedCheckpoint, HeartbeatRequest,
    HeartbeatResponse, IfLeased, Lease, LeaseTable, Membership, SaveOutcome, WorkerEntry,
};
use crate::checkpoint::Checkpoint;
use crate::record::{SequenceNumber, ShardId};

/// The table and the positions of one application and stream.
#[cfg_attr(feature = "testing", derive(Clone))]
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// 0 if there is no table yet.
    generation: u64,
    version: u64,
    cleared: u64,
    /// 0 if none is stored.
    first_poll: u64,
    /// The highest epoch of any lease that was ever in the table.
    epoch: u64,
    /// Each worker, with its expiry in milliseconds.
    workers: BTreeMap<Arc<str>, (WorkerEntry, u64)>,
    /// The leases, without their positions.
    leases: BTreeMap<ShardId, Lease>,
    pub(crate) checkpoints: HashMap<ShardId, Checkpoint>,
    /// The shards with an unreadable lease or position. Only an operator's edit changes them.
    unreadable: BTreeMap<ShardId, UnreadableShard>,
}

/// The unreadable lease or position of a shard. It is in neither of the other maps.
#[derive(Debug, Clone)]
pub(crate) struct UnreadableShard {
    /// The reason why the stored text cannot be read.
    pub(crate) why: Arc<str>,
    /// The lease, if the lease is unreadable.
    pub(crate) lease: Option<Lease>,
    /// The position, if the position is unreadable and was ever known.
    pub(crate) checkpoint: Option<Checkpoint>,
}

impl UnreadableShard {
    /// Returns true if the position is unreadable.
    fn is_position(&self) -> bool {
        self.lease.is_none() || self.checkpoint.is_some()
    }
}

impl Ledger {
    /// Applies one heartbeat. `now` is the time since 1970.
    pub(crate) fn exchange(
        &mut self,
        now: Duration,
        request: &HeartbeatRequest,
    ) -> HeartbeatResponse {
        let mut step = Transaction { now, changed: false, ledger: self };
        let membership = step.join(request);
        if membership == Membership::Occupied {
            return HeartbeatResponse { membership, applied: false, table: None };
        }
        let seen = (step.ledger.generation, step.ledger.version);
        let unchanged = !step.changed && request.known == Some(seen);
        let applied = unchanged || !request.only_if_unchanged;
        if applied {
            for change in &request.changes {
                step.change(&request.worker, request.lease_duration, change);
            }
        }
        if request.leaving {
            step.remove(&request.worker);
        }
        step.end();
        let table = (request.known != Some((self.generation, self.version))).then(|| self.all());
        let membership = if request.leaving { Membership::Left } else { membership };
        HeartbeatResponse { membership, applied, table }
    }

    pub(crate) fn save_fenced(
        &mut self,
        now: Duration,
        positions: &[FencedCheckpoint],
    ) -> Vec<SaveOutcome> {
        let mut step = Transaction { now, changed: false, ledger: self };
        let verdicts = positions.iter().map(|position| step.save(position)).collect();
        step.end();
        verdicts
    }

    /// Stores a position if it is further than the stored one. Returns true if it was stored.
    pub(crate) fn save(&mut self, shard: &ShardId, checkpoint: &Checkpoint) -> bool {
        if self.unreadable_position(shard).is_some() {
            return false;
        }
        let further =
            self.checkpoints.get(shard).is_none_or(|stored| checkpoint.supersedes(stored));
        if further {
            self.checkpoints.insert(shard.clone(), checkpoint.clone());
        }
        further
    }

    /// Merges positions that were loaded from another store. The version rises if a shard without a
    /// position gets one, or if the readability of any position changes.
    pub(crate) fn merge_loaded(
        &mut self,
        now: Duration,
        stored: HashMap<ShardId, Result<Checkpoint, Arc<str>>>,
    ) {
        let known: Vec<ShardId> = self.unreadable.keys().cloned().collect();
        let mut changed = false;
        for shard in known {
            if !stored.get(&shard).is_some_and(Result::is_err) {
                self.unreadable.remove(&shard);
                changed = true;
            }
        }
        for (shard, found) in stored {
            match found {
                Ok(checkpoint) => {
                    changed |= !self.checkpoints.contains_key(&shard);
                    self.save(&shard, &checkpoint);
                }
                Err(why) => changed |= self.mark_position_unreadable(shard, why),
            }
        }
        Transaction { now, changed, ledger: self }.end();
    }

    /// Marks the positions of these shards as unreadable.
    pub(crate) fn mark_unreadable(&mut self, now: Duration, refused: HashMap<ShardId, Arc<str>>) {
        let mut changed = false;
        for (shard, why) in refused {
            changed |= self.mark_position_unreadable(shard, why);
        }
        Transaction { now, changed, ledger: self }.end();
    }

    /// Marks a position as unreadable. Returns true if it was readable before.
    fn mark_position_unreadable(&mut self, shard: ShardId, why: Arc<str>) -> bool {
        self.checkpoints.remove(&shard);
        self.unreadable
            .insert(shard, UnreadableShard { why, lease: None, checkpoint: None })
            .is_none()
    }

    /// Returns why the position of a shard cannot be read, or `None` if it can.
    pub(crate) fn unreadable_position(&self, shard: &ShardId) -> Option<Arc<str>> {
        let unreadable = self.unreadable.get(shard).filter(|it| it.is_position())?;
        Some(Arc::clone(&unreadable.why))
    }

    /// Returns each position, or why it cannot be read.
    pub(crate) fn positions(&self) -> HashMap<ShardId, Result<Checkpoint, Arc<str>>> {
        let readable = self.checkpoints.iter();
        let readable = readable.map(|(shard, checkpoint)| (shard.clone(), Ok(checkpoint.clone())));
        let others = self.unreadable.iter().filter(|(_, unreadable)| unreadable.is_position());
        let others = others.map(|(shard, it)| (shard.clone(), Err(Arc::clone(&it.why))));
        readable.chain(others).collect()
    }

    /// Returns true if any shard has an unreadable lease or position.
    pub(crate) fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// Returns the table without the workers that have expired.
    pub(crate) fn table(&self, now: Duration) -> LeaseTable {
        let mut table = self.all();
        let now = millis(now);
        table.retain_workers(|worker| self.workers[worker].1 > now);
        table
    }

    /// Applies an operator's edit. Changes nothing if it is refused.
    pub(crate) fn edit(
        &mut self,
        now: Duration,
        edit: &AdminEdit,
        if_leased: IfLeased,
    ) -> EditOutcome {
        let alive = self.table(now);
        let with_owner = self.leases.iter().filter_map(|(shard, lease)| {
            let owner = lease.owner.clone().filter(|owner| alive.workers.contains_key(owner))?;
            Some((shard.clone(), owner))
        });
        let owners: BTreeMap<ShardId, Arc<str>> = with_owner.collect();
        let owner = |shard| owners.get(shard).cloned();
        let against = match edit {
            AdminEdit::Set { positions } => {
                // The owner of an unreadable shard does not read it.
                let readable = |shard: &&ShardId| !self.unreadable.contains_key(*shard);
                positions.iter().map(|(shard, _)| shard).filter(readable).find_map(owner)
            }
            AdminEdit::Clear => alive.workers.keys().next().cloned(),
        };
        if let (Some(worker), IfLeased::Refuse) = (against, if_leased) {
            return EditOutcome::Refused { worker };
        }
        let mut step = Transaction { now, changed: true, ledger: self };
        match edit {
            AdminEdit::Set { positions } => {
                for (shard, checkpoint) in positions {
                    step.replace_unreadable(shard);
                    step.ledger.checkpoints.insert(shard.clone(), checkpoint.clone());
                    if let Some(lease) = step.ledger.leases.get_mut(shard) {
                        // The operator's position applies, regardless of the stream of the shard.
                        (lease.is_shard_expired, lease.start) = (false, None);
                        lease.added = Some(millis(now));
                        step.start_new_epoch(shard, owner(shard));
                    }
                }
            }
            AdminEdit::Clear => step.clear(),
        }
        step.end();
        EditOutcome::Applied
    }

    /// Makes the lease of a shard, or its position, unreadable if it exists.
    #[cfg(feature = "testing")]
    pub(crate) fn damage(&mut self, shard: &ShardId, is_lease: bool) {
        let (lease, checkpoint) = if is_lease {
            (self.leases.remove(shard), None)
        } else {
            (None, self.checkpoints.remove(shard))
        };
        if lease.is_none() && checkpoint.is_none() {
            return;
        }
        let known = self.unreadable.remove(shard);
        let (old_lease, old_checkpoint) =
            known.map_or((None, None), |known| (known.lease, known.checkpoint));
        let unreadable = UnreadableShard {
            why: "the stored text is damaged".into(),
            lease: lease.or(old_lease),
            checkpoint: checkpoint.or(old_checkpoint),
        };
        self.unreadable.insert(shard.clone(), unreadable);
    }

    /// Makes the lease and the position of a shard readable again.
    #[cfg(feature = "testing")]
    pub(crate) fn repair(&mut self, shard: &ShardId) {
        let Some(UnreadableShard { lease, checkpoint, .. }) = self.unreadable.remove(shard) else {
            return;
        };
        if let Some(lease) = lease {
            // The owner may have left since, or a new incarnation may have its name.
            let lease = Lease { owner: None, next_owner: None, ..lease };
            self.leases.insert(shard.clone(), lease);
        }
        if let Some(checkpoint) = checkpoint {
            self.checkpoints.insert(shard.clone(), checkpoint);
        }
    }

    fn all(&self) -> LeaseTable {
        let mut leases = self.leases.clone();
        for (shard, checkpoint) in &self.checkpoints {
            leases.entry(shard.clone()).or_default().checkpoint = Some(checkpoint.clone());
        }
        for (shard, UnreadableShard { why, .. }) in &self.unreadable {
            let lease = Lease { unreadable: Some(Arc::clone(why)), ..Lease::default() };
            leases.insert(shard.clone(), lease);
        }
        let members = self.workers.iter();
        LeaseTable {
            generation: self.generation,
            version: self.version,
            cleared: self.cleared,
            first_poll: self.first_poll,
            workers: members.map(|(name, (member, _))| (name.clone(), member.clone())).collect(),
            leases,
        }
    }
}

/// One call in progress.
struct Transaction<'a> {
    now: Duration,
    changed: bool,
    ledger: &'a mut Ledger,
}

impl Change {
    /// Returns the shard that the change concerns.
    fn shard(&self) -> Option<&ShardId> {
        match self {
            Self::Add { shard, .. }
            | Self::Identify { shard, .. }
            | Self::Replace { shard, .. }
            | Self::Assign { shard, .. }
            | Self::Offer { shard, .. }
            | Self::Release { shard, .. }
            | Self::Finish { shard, .. }
            | Self::MarkExpired { shard }
            | Self::Forget { shard }
            | Self::Restore { shard, .. } => Some(shard),
            Self::Begin { .. } | Self::ReviveWorker { .. } => None,
        }
    }
}

impl Transaction<'_> {
    fn join(&mut self, request: &HeartbeatRequest) -> Membership {
        let now = millis(self.now);
        let until = self.until(request.lease_duration);
        for (member, expiry) in self.ledger.workers.values_mut() {
            *expiry = (*expiry).min(now.saturating_add(millis(member.lease_duration)));
        }
        let mine = self.ledger.workers.get_mut(&request.worker);
        if let Some((member, _)) = mine
            && member.incarnation == 0
        {
            member.incarnation = request.incarnation;
            self.changed = true;
        }
        let mine = self.ledger.workers.get(&request.worker);
        match mine.map(|(member, expiry)| (member.incarnation == request.incarnation, *expiry)) {
            Some((false, expiry)) if expiry > now => return Membership::Occupied,
            Some((true, expiry)) if expiry <= now => {
                for (member, expiry) in self.ledger.workers.values_mut() {
                    *expiry = now.saturating_add(millis(member.lease_duration));
                }
            }
            _ => {
                let gone = self.ledger.workers.iter().filter(|(_, (_, expiry))| *expiry <= now);
                for worker in gone.map(|(worker, _)| worker.clone()).collect::<Vec<_>>() {
                    self.remove(&worker);
                }
            }
        }
        if self.ledger.generation == 0 {
            self.ledger.generation = micros(self.now);
            self.changed = true;
        }
        let HeartbeatRequest { incarnation, lease_duration, capacity, .. } = *request;
        if let Some((member, expiry)) = self.ledger.workers.get_mut(&request.worker) {
            self.changed |= member.capacity != capacity;
            (member.lease_duration, member.capacity) = (lease_duration, capacity);
            *expiry = until;
            return Membership::Renewed;
        }
        if !request.leaving {
            self.changed = true;
            let joined = self.ledger.workers.values().map(|(member, _)| member.joined + 1).max();
            let joined = joined.unwrap_or(0).max(micros(self.now));
            let member = WorkerEntry { incarnation, joined, lease_duration, capacity };
            self.ledger.workers.insert(request.worker.clone(), (member, until));
        }
        Membership::Joined
    }

    fn change(&mut self, worker: &Arc<str>, lease_duration: Duration, change: &Change) {
        if change.shard().is_some_and(|shard| self.ledger.unreadable.contains_key(shard)) {
            return;
        }
        match change {
            Change::Begin { first_poll } => self.begin(*first_poll),
            Change::Add { shard, parents, start, checkpoint } => {
                self.add(shard, parents, start.as_ref(), checkpoint.as_ref());
            }
            Change::Identify { shard, start } => self.identify(shard, start.as_ref()),
            Change::Replace { shard, parents, start, checkpoint } => {
                self.replace(shard, parents, start, checkpoint);
            }
            Change::Assign { shard, to } => {
                if let Some(owner) = self.lease(shard).and_then(|lease| lease.owner.clone()) {
                    return self.add_unknown_worker(owner, lease_duration);
                }
                let free = |lease: &Lease| lease.owner.is_none() && !lease.is_shard_expired;
                if self.lease(shard).is_some_and(free)
                    && self.ledger.workers.contains_key(to)
                    && !self.is_finished(shard)
                {
                    self.set_owner_in_new_epoch(shard, Some(to.clone()));
                }
            }
            Change::Offer { shard, to } => {
                let alive = self.ledger.workers.contains_key(to);
                if let Some(lease) = self.ledger.leases.get_mut(shard)
                    && let Some(owner) = &lease.owner
                    && (alive || owner == to)
                {
                    let next_owner = (owner != to).then(|| to.clone());
                    self.changed |= lease.next_owner != next_owner;
                    lease.next_owner = next_owner;
                }
            }
            Change::Release { shard, epoch } => {
                let Some(lease) = self.ledger.leases.get_mut(shard) else { return };
                if lease.epoch == *epoch && lease.owner.as_ref() == Some(worker) {
                    match lease.next_owner.take() {
                        Some(next_owner) => self.set_owner_in_new_epoch(shard, Some(next_owner)),
                        None => self.free(shard),
                    }
                }
            }
            Change::Finish { shard, epoch } => {
                if self.lease(shard).is_some_and(|lease| lease.epoch == *epoch) {
                    self.end_shard(shard);
                }
            }
            Change::MarkExpired { shard } => {
                if let Some(lease) = self.ledger.leases.get_mut(shard) {
                    self.changed |= !lease.is_shard_expired;
                    lease.is_shard_expired = true;
                    if lease.owner.is_some() {
                        self.set_owner_in_new_epoch(shard, None);
                    }
                }
            }
            Change::Forget { shard } => {
                if self.is_finished(shard) {
                    self.forget(shard);
                }
            }
            Change::ReviveWorker { worker, member } => {
                if !self.ledger.workers.contains_key(worker) {
                    let until = self.until(member.lease_duration);
                    self.ledger.workers.insert(worker.clone(), (member.clone(), until));
                    self.changed = true;
                }
            }
            Change::Restore { shard, incarnation, lease } => {
                self.restore(shard, *incarnation, lease);
            }
        }
    }

    fn begin(&mut self, first_poll: u64) {
        let ledger = &mut *self.ledger;
        let is_empty = ledger.leases.is_empty()
            && ledger.checkpoints.is_empty()
            && ledger.unreadable.is_empty();
        if is_empty && ledger.first_poll == 0 && first_poll > 0 {
            ledger.first_poll = first_poll;
            self.changed = true;
        }
    }

    fn add(
        &mut self,
        shard: &ShardId,
        parents: &[ShardId],
        start: Option<&SequenceNumber>,
        checkpoint: Option<&Checkpoint>,
    ) {
        if let Some(lease) = self.ledger.leases.get_mut(shard) {
            match &mut lease.parents {
                None => {
                    lease.parents = Some(parents.to_vec());
                    lease.start = lease.start.take().or_else(|| start.cloned());
                    lease.added = lease.added.or(Some(millis(self.now)));
                    self.changed = true;
                }
                Some(known) if lease.epoch == 0 => {
                    let before = known.len();
                    for parent in parents {
                        if !known.contains(parent) {
                            known.push(parent.clone());
                        }
                    }
                    self.changed |= known.len() > before;
                }
                Some(_) => {}
            }
            if lease.epoch == 0 {
                self.set_starting_position(shard, checkpoint);
            }
            return;
        }
        let origin = self.ledger.generation;
        let (parents, start) = (Some(parents.to_vec()), start.cloned());
        let added = Some(millis(self.now));
        let lease = Lease { origin, parents, start, added, ..Lease::default() };
        self.ledger.leases.insert(shard.clone(), lease);
        self.ledger.first_poll = 0;
        self.set_starting_position(shard, checkpoint);
        self.changed = true;
    }

    /// Stores the starting position of a shard that has no position.
    fn set_starting_position(&mut self, shard: &ShardId, checkpoint: Option<&Checkpoint>) {
        if let Some(checkpoint) = checkpoint
            && !self.ledger.checkpoints.contains_key(shard)
        {
            self.ledger.checkpoints.insert(shard.clone(), checkpoint.clone());
            self.changed = true;
        }
    }

    /// Adds the owner of a lease that is missing from the table: it may still be alive.
    fn add_unknown_worker(&mut self, worker: Arc<str>, lease_duration: Duration) {
        let until = self.until(lease_duration);
        let joined = micros(self.now);
        self.ledger.workers.entry(worker).or_insert_with(|| {
            self.changed = true;
            (WorkerEntry { incarnation: 0, joined, lease_duration, capacity: 0 }, until)
        });
    }

    /// Removes the unreadable lease or position of a shard, for an edit that replaces it.
    fn replace_unreadable(&mut self, shard: &ShardId) {
        if let Some(UnreadableShard { lease: Some(_), .. }) = self.ledger.unreadable.remove(shard) {
            let lease = Lease { origin: self.ledger.generation, ..Lease::default() };
            self.ledger.leases.insert(shard.clone(), lease);
        }
    }

    fn identify(&mut self, shard: &ShardId, start: Option<&SequenceNumber>) {
        let is_finished = self.is_finished(shard);
        let Some(lease) = self.ledger.leases.get_mut(shard) else { return };
        self.changed |= lease.unlisted.take().is_some();
        if lease.added.is_none() && !is_finished {
            lease.added = Some(millis(self.now));
            self.changed = true;
        }
        if lease.start.is_none() && start.is_some() {
            lease.start = start.cloned();
            self.changed = true;
        }
        if lease.is_shard_expired && start.is_some() && lease.start.as_ref() == start {
            lease.is_shard_expired = false;
            self.changed = true;
        }
    }

    fn replace(
        &mut self,
        shard: &ShardId,
        parents: &[ShardId],
        start: &SequenceNumber,
        checkpoint: &Checkpoint,
    ) {
        let Some(lease) = self.ledger.leases.get_mut(shard) else { return };
        if lease.start.as_ref() == Some(start) {
            return;
        }
        (lease.parents, lease.start) = (Some(parents.to_vec()), Some(start.clone()));
        (lease.is_shard_expired, lease.unlisted) = (false, None);
        lease.added = Some(millis(self.now));
        self.ledger.checkpoints.insert(shard.clone(), checkpoint.clone());
        let owner = lease.owner.clone();
        self.start_new_epoch(shard, owner);
    }

    /// Notes that a finished shard is not listed, and removes it [`FINISHED_SHARD_RETENTION`] after the first
    /// note. Until then, a listing may show it again.
    fn forget(&mut self, shard: &ShardId) {
        let now = millis(self.now);
        match self.ledger.leases.get_mut(shard) {
            Some(Lease { unlisted: Some(since), .. }) if !is_kept(now, *since) => {
                self.ledger.leases.remove(shard);
                self.ledger.checkpoints.remove(shard);
                self.changed = true;
            }
            Some(lease) if lease.unlisted.is_none() => {
                lease.unlisted = Some(now);
                self.changed = true;
            }
            _ => {}
        }
    }

    fn restore(&mut self, shard: &ShardId, incarnation: u64, known: &Lease) {
        if known.epoch <= self.ledger.cleared && self.ledger.cleared > 0 {
            return;
        }
        let is_finished = known.is_finished() || self.is_finished(shard);
        let workers = &self.ledger.workers;
        let same = |name: &Arc<str>| {
            workers.get(name).is_some_and(|(member, _)| member.incarnation == incarnation)
        };
        let owner = known.owner.clone().filter(|owner| !is_finished && same(owner));
        let alive = |next_owner: &Arc<str>| owner.is_some() && workers.contains_key(next_owner);
        let next_owner = known.next_owner.clone().filter(alive);
        let Some(lease) = self.ledger.leases.get_mut(shard) else {
            // If only the position is known, no lease is added: its parents are unknown.
            if known.parents.is_some() {
                let lease = Lease { owner, next_owner, checkpoint: None, ..known.clone() };
                self.ledger.leases.insert(shard.clone(), lease);
                self.ledger.first_poll = 0;
                self.ledger.epoch = self.ledger.epoch.max(known.epoch);
                self.changed = true;
            }
            return self.advance(shard, known);
        };
        if lease.origin > known.origin {
            (lease.origin, lease.start) = (known.origin, known.start.clone());
            lease.added = known.added;
            match &known.checkpoint {
                Some(checkpoint) => {
                    self.ledger.checkpoints.insert(shard.clone(), checkpoint.clone())
                }
                None => self.ledger.checkpoints.remove(shard),
            };
            let owner = lease.owner.clone();
            return self.start_new_epoch(shard, owner);
        }
        if lease.origin < known.origin || lease.epoch > known.epoch {
            return;
        }
        let found = lease.clone();
        if lease.epoch < known.epoch {
            (lease.epoch, lease.is_shard_expired) = (known.epoch, known.is_shard_expired);
            self.ledger.epoch = self.ledger.epoch.max(known.epoch);
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
        self.changed |= *lease != found;
        self.advance(shard, known);
    }

    /// Stores the position of a restored lease if it is further than the stored one.
    fn advance(&mut self, shard: &ShardId, known: &Lease) {
        if let Some(checkpoint) = &known.checkpoint {
            self.changed |= self.ledger.save(shard, checkpoint);
        }
        if self.is_finished(shard) {
            self.end_shard(shard);
        }
    }

    fn save(&mut self, position: &FencedCheckpoint) -> SaveOutcome {
        let FencedCheckpoint { shard, epoch, checkpoint } = position;
        if self.ledger.unreadable.contains_key(shard) {
            return SaveOutcome::Unreadable;
        }
        let (cleared, known) = (self.ledger.cleared, self.lease(shard).map(|lease| lease.epoch));
        if known.is_some_and(|known| known > *epoch) || cleared > 0 && *epoch <= cleared {
            return SaveOutcome::Lost;
        }
        // The shard may have been removed; it must not be added again.
        if known.is_none() && !is_kept(millis(self.now), *epoch) {
            return SaveOutcome::Lost;
        }
        if *checkpoint == Checkpoint::ShardEnd {
            self.end_shard(shard);
        } else {
            self.ledger.save(shard, checkpoint);
        }
        if known == Some(*epoch) { SaveOutcome::Saved } else { SaveOutcome::Forgotten }
    }

    fn end_shard(&mut self, shard: &ShardId) {
        let stored = self.ledger.checkpoints.insert(shard.clone(), Checkpoint::ShardEnd);
        self.changed |= stored != Some(Checkpoint::ShardEnd);
        self.free(shard);
    }

    /// Sets the owner of a lease, or frees it, in a new epoch. The epoch is higher than all earlier
    /// ones, since the latest epoch of the lease may have been lost.
    fn set_owner_in_new_epoch(&mut self, shard: &ShardId, owner: Option<Arc<str>>) {
        let epoch = millis(self.now).max(self.ledger.epoch + 1);
        if let Some(lease) = self.ledger.leases.get_mut(shard) {
            lease.epoch = epoch;
            (lease.owner, lease.next_owner) = (owner, None);
            self.ledger.epoch = epoch;
            self.changed = true;
        }
    }

    /// Starts a new epoch after another position was stored. The current owner keeps the lease, so
    /// that no other worker starts before the owner has seen the new epoch. A finished shard has no
    /// owner.
    fn start_new_epoch(&mut self, shard: &ShardId, owner: Option<Arc<str>>) {
        self.set_owner_in_new_epoch(shard, owner.filter(|_owner| !self.is_finished(shard)));
    }

    /// Frees a lease in the same epoch.
    fn free(&mut self, shard: &ShardId) {
        if let Some(lease) = self.ledger.leases.get_mut(shard)
            && lease.owner.is_some()
        {
            (lease.owner, lease.next_owner) = (None, None);
            self.changed = true;
        }
    }

    /// Removes a worker and frees its leases.
    fn remove(&mut self, worker: &Arc<str>) {
        if self.ledger.workers.remove(worker).is_none() {
            return;
        }
        self.changed = true;
        for lease in self.ledger.leases.values_mut() {
            if lease.owner.as_ref() == Some(worker) {
                (lease.owner, lease.next_owner) = (None, None);
            } else if lease.next_owner.as_ref() == Some(worker) {
                lease.next_owner = None;
            }
        }
    }

    fn clear(&mut self) {
        let latest = self.ledger.epoch.max(millis(self.now));
        let generation = micros(self.now).max(self.ledger.generation + 1);
        *self.ledger = Ledger {
            generation,
            version: self.ledger.version,
            epoch: latest,
            cleared: latest,
            ..Ledger::default()
        };
    }

    fn end(&mut self) {
        if self.changed {
            self.ledger.version = micros(self.now).max(self.ledger.version + 1);
        }
    }

    /// Returns the expiry of a worker that renews now.
    fn until(&self, lease_duration: Duration) -> u64 {
        millis(self.now).saturating_add(millis(lease_duration))
    }

    fn lease(&self, shard: &ShardId) -> Option<&Lease> {
        self.ledger.leases.get(shard)
    }

    fn is_finished(&self, shard: &ShardId) -> bool {
        self.ledger.checkpoints.get(shard) == Some(&Checkpoint::ShardEnd)
    }
}

/// Returns true if a note of the time `then`, in milliseconds, is still kept.
fn is_kept(now: u64, then: u64) -> bool {
    now.saturating_sub(then) < millis(FINISHED_SHARD_RETENTION)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
