//! Checks the changes that calls of workers and operators make to the store.

use std::collections::BTreeSet;
use std::time::Duration;

use kinestream::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Lease, LeaseTable, Step,
};
use kinestream::{Checkpoint, ShardId};
use tokio::time::Instant;

use crate::truth::{Facts, Promise, index_of};

/// The time for which a worker must have reached the store to be sure to have saved the shards that
/// it releases: a call that hung may have taken 30 s of it.
const LONG_REACHABLE: Duration = Duration::from_secs(50);

/// A record that is finished this shortly before its shard is released may not be saved.
const UNSAVED_BEFORE_RELEASE: Duration = Duration::from_millis(200);

impl Facts {
    /// Checks an exchange of a worker or an operator after it was carried out.
    pub(crate) fn check_exchange(
        &mut self,
        worker: usize,
        exchange: &Exchange,
        answer: &Exchanged,
        before: &LeaseTable,
        after: &LeaseTable,
    ) {
        let name = self.workers[worker].name.clone();
        let step = exchange.step.as_ref().map_or(&[][..], |step| &step.entries);
        self.log(format_args!(
            "{name} makes an exchange of {} renewals, {} {step:?}",
            exchange.renewals.len(),
            if answer.is_made { "made" } else { "not made" },
        ));
        if before.version != after.version {
            let leases: Vec<_> = after
                .leases
                .iter()
                .map(|(shard, lease)| {
                    let (owner, next_owner) = (lease.owner.as_deref(), lease.next_owner.as_deref());
                    (index_of(shard), lease.epoch, owner.unwrap_or("-"), next_owner.unwrap_or("-"))
                })
                .collect();
            let workers: Vec<_> = after.workers.keys().collect();
            self.log(format_args!("the lease table of workers {workers:?}: {leases:?}"));
        }
        if after.cleared > before.cleared && answer.is_made {
            return self.check_cleared(worker, after);
        }
        if let Some(step) = exchange
            .step
            .as_ref()
            .filter(|step| answer.is_made && exchange.renewals.is_empty() && is_edit(step))
        {
            return self.check_edit(worker, step, before, after);
        }
        let is_unfinished = |shard| before.leases.get(shard).is_none_or(|it| !it.is_finished());
        let ended = after.leases.iter().filter(|(_, lease)| lease.is_finished());
        let ended = ended.filter(|(shard, _)| is_unfinished(shard));
        self.saved_ends.extend(ended.map(|(shard, lease)| (index_of(shard), lease.epoch)));
        self.check_releases(worker, before, after);
        self.check_tables(before, after);
    }

    /// Checks the shards that a worker releases.
    fn check_releases(&mut self, worker: usize, before: &LeaseTable, after: &LeaseTable) {
        let name: std::sync::Arc<str> = self.workers[worker].name.as_str().into();
        let is_leaving = before.workers.contains_key(&name) && !after.workers.contains_key(&name);
        let own = |lease: &&Lease| lease.owner.as_ref() == Some(&name);
        for (shard, lease) in before.leases.iter().filter(|(_, lease)| own(lease)) {
            let is_released = after.leases.get(shard).is_some_and(|it| {
                let is_free = it.owner.is_none() && it.epoch == lease.epoch && !it.is_finished();
                is_free || it.owner == lease.next_owner && it.epoch > lease.epoch
            });
            if !is_released {
                continue;
            }
            let place = (index_of(shard), lease.epoch);
            let Some(delivered) = self.deliveries.get_mut(&place) else { continue };
            delivered.released.get_or_insert_with(Instant::now);
            let is_unfinished = !delivered.is_dropped && delivered.finished.contains(&None);
            let Some(patience) = self.workers[worker].patience else { continue };
            if is_leaving || !is_unfinished || self.lost_data {
                continue;
            }
            match self.handoffs.get(&place) {
                Some(began) => self.check_patience(place, began.elapsed(), patience),
                None => {
                    self.unexplained.insert(place);
                }
            }
        }
    }

    fn check_patience(&mut self, place: (usize, u64), waited: Duration, patience: Duration) {
        if waited < patience {
            let (shard, epoch) = place;
            self.breaks(
                Promise::OrderlyHandoff,
                format_args!(
                    "shard {shard} is released with unfinished records in epoch {epoch}, {waited:?} \
                     after its offer or failure"
                ),
            );
        }
    }

    /// Registers the failure of a shard, no earlier than `since`. It starts a handoff.
    pub(crate) fn note_failed_shard(&mut self, place: (usize, u64), since: Instant) {
        self.handoffs.entry(place).or_insert(since);
        if !self.unexplained.remove(&place) {
            return;
        }
        let delivered = &self.deliveries[&place];
        let patience = self.workers[delivered.worker].patience.unwrap_or_default();
        let waited = delivered.released.map(|released| released.saturating_duration_since(since));
        self.check_patience(place, waited.unwrap_or_default(), patience);
    }

    /// Checks that an event has explained each release of the worker so far.
    pub(crate) fn check_explained(&mut self, worker: usize) {
        let is_own = |place: &&(usize, u64)| self.deliveries[*place].worker == worker;
        if let Some(&(shard, epoch)) = self.unexplained.iter().find(is_own) {
            self.breaks(
                Promise::OrderlyHandoff,
                format_args!(
                    "shard {shard} is released with unfinished records in epoch {epoch}, without an \
                     offer or a failure"
                ),
            );
        }
    }

    /// Checks the result of a save of positions by a worker.
    pub(crate) fn check_saves(
        &mut self,
        worker: usize,
        saves: &[FencedSave],
        outcomes: &[FencedOutcome],
        before: &LeaseTable,
        after: &LeaseTable,
    ) {
        for (save, outcome) in saves.iter().zip(outcomes) {
            let FencedSave { shard, epoch, text, .. } = save;
            let name = self.workers[worker].name.clone();
            let result = if outcome.is_saved { "saved" } else { "not saved" };
            self.log(format_args!(
                "{name} saves {} in epoch {epoch}: {text}: {result}",
                index_of(shard)
            ));
            if outcome.is_saved && **text == *"SHARD_END" {
                self.saved_ends.insert((index_of(shard), *epoch));
            }
            let known = before.leases.get(shard);
            if known.is_some_and(|lease| lease.unreadable.is_some()) && outcome.is_saved {
                self.breaks(
                    Promise::Damaged,
                    format_args!("{name} saves {shard}, which cannot be read"),
                );
            }
            if known.is_none_or(|lease| lease.epoch != *epoch) && outcome.is_saved {
                self.breaks(
                    Promise::NoZombies,
                    format_args!("{name} saves {shard} in epoch {epoch}, which is over"),
                );
            }
        }
        self.check_tables(before, after);
    }

    fn check_tables(&mut self, before: &LeaseTable, after: &LeaseTable) {
        for shard in before.leases.keys().filter(|shard| !after.leases.contains_key(shard)) {
            self.breaks(
                Promise::NeverBackwards,
                format_args!("the lease of {shard} is missing from the table"),
            );
        }
        for (id, lease) in &after.leases {
            let shard = index_of(id);
            let old = before.leases.get(id);
            let position = lease.checkpoint.as_ref();
            if old.is_none_or(|old| old.checkpoint.as_ref() != position) {
                let old = old.and_then(|old| old.checkpoint.as_ref());
                self.check_position(id, lease.epoch, old, position);
            }
            if lease.next_owner.is_some() {
                self.handoffs.entry((shard, lease.epoch)).or_insert_with(Instant::now);
            }
            if old.is_none_or(|old| old.epoch < lease.epoch) && lease.epoch > 0 {
                self.begin_epoch(shard, lease.epoch, position);
            }
        }
    }

    fn check_position(
        &mut self,
        id: &ShardId,
        epoch: u64,
        old: Option<&Checkpoint>,
        new: Option<&Checkpoint>,
    ) {
        let shard = index_of(id);
        let (before, passed) = (self.passed(shard, old), self.passed(shard, new));
        let reopened = old == Some(&Checkpoint::ShardEnd);
        if (passed < before || reopened) && !self.lost_data {
            self.breaks(
                Promise::NeverBackwards,
                format_args!("the position of {id} moves back from {old:?} to {new:?}"),
            );
        }
        if let Some(place) = self.shards[shard].records[..passed].iter().position(|done| !done) {
            self.breaks(
                Promise::NotPastUnfinished,
                format_args!("{id} is stored as {new:?}, but record {place} is not finished"),
            );
        }
        let Some(delivered) = self.deliveries.get(&(shard, epoch)) else { return };
        let own = passed.saturating_sub(delivered.first).min(delivered.finished.len());
        if let Some(place) = delivered.finished[..own].iter().position(Option::is_none)
            && !self.lost_data
        {
            let place = delivered.first + place;
            self.breaks(
                Promise::NotPastUnfinished,
                format_args!(
                    "{id} is stored as {new:?} in epoch {epoch}, but record {place} is not \
                     finished in that epoch"
                ),
            );
        }
    }

    /// Checks an edit of positions: records that were finished before no longer count, and skipped
    /// records count as finished.
    fn check_edit(&mut self, worker: usize, step: &Step, before: &LeaseTable, after: &LeaseTable) {
        let name = self.workers[worker].name.clone();
        self.log(format_args!("{name} edits positions"));
        self.moves += 1;
        let shards: BTreeSet<&ShardId> =
            step.entries.iter().filter_map(|it| it.key.shard()).collect();
        for id in shards {
            self.damaged.remove(&index_of(id));
            let checkpoint = after.leases[id].checkpoint.clone();
            self.check_set(id, &checkpoint.expect("an edit sets positions"), before, after);
        }
    }

    pub(crate) fn check_cleared(&mut self, worker: usize, after: &LeaseTable) {
        let name = self.workers[worker].name.clone();
        self.log(format_args!("{name} clears the positions"));
        self.moves += 1;
        self.cleared = after.cleared;
        self.damaged.clear();
        for shard in 0..self.shards.len() {
            self.move_to(shard, 0, after.cleared + 1);
        }
    }

    pub(crate) fn check_set(
        &mut self,
        id: &ShardId,
        checkpoint: &Checkpoint,
        before: &LeaseTable,
        after: &LeaseTable,
    ) {
        let shard = index_of(id);
        // A shard without a lease has epoch 0. Workers that have not seen the last clear still read
        // it in an epoch from before the clear.
        let since = after.leases.get(id).map_or(0, |lease| lease.epoch).max(after.cleared + 1);
        let owner = before.leases.get(id).and_then(|lease| lease.owner.as_deref());
        if owner.is_some_and(|owner| after.leases[id].owner.as_deref() != Some(owner))
            && *checkpoint != Checkpoint::ShardEnd
        {
            self.breaks(
                Promise::Fencing,
                format_args!("{id} has lost its owner {owner:?}, which may continue to read"),
            );
        }
        self.move_to(shard, self.passed(shard, Some(checkpoint)), since);
    }

    fn move_to(&mut self, shard: usize, passed: usize, since: u64) {
        self.bases.insert((shard, since), passed);
        for (_, delivered) in self.deliveries.range_mut((shard, 0)..(shard, since)) {
            delivered.is_over = true;
        }
        let facts = &mut self.shards[shard];
        (facts.since, facts.moved) = (since, self.moves);
        for (place, done) in facts.records.iter_mut().enumerate() {
            *done = place < passed;
            facts.ever[place] |= *done;
        }
        if self.lost_data {
            // A worker may know the positions from before and save them again.
            facts.records.clone_from(&facts.ever);
            facts.since = 0;
        }
    }

    /// Registers a new epoch of a lease, and checks that the records that had the time to be saved
    /// are stored.
    fn begin_epoch(&mut self, shard: usize, epoch: u64, position: Option<&Checkpoint>) {
        let passed = self.passed(shard, position);
        self.bases.entry((shard, epoch)).or_insert(passed);
        let mut due = 0;
        for ((of, _), delivered) in self.deliveries.range_mut((shard, 0)..(shard, epoch)) {
            debug_assert_eq!(*of, shard, "the range is of one shard");
            if std::mem::replace(&mut delivered.is_over, true) {
                continue;
            }
            let state = &self.workers[delivered.worker];
            let (mut latest, mut finished) = (self.began, delivered.first);
            for at in &delivered.finished {
                let Some(at) = at else { break };
                latest = latest.max(*at);
                let is_released = delivered
                    .released
                    .is_some_and(|released| latest + UNSAVED_BEFORE_RELEASE <= released);
                let is_due = state.had_time_to_save(latest)
                    || is_released && state.reachable_for() > LONG_REACHABLE;
                if !is_due {
                    break;
                }
                finished += 1;
            }
            due = due.max(finished);
        }
        if passed < due && !self.lost_data {
            self.breaks(
                Promise::FewRepeats,
                format_args!(
                    "epoch {epoch} of shard {shard} starts at record {passed}, but {due} records \
                     had the time to be saved"
                ),
            );
        }
    }
}

/// Returns true if a step is that of an operator: it sets positions. A worker that does so renews,
/// leaves, or depends on the head: its store has lost the epoch.
fn is_edit(step: &Step) -> bool {
    let is_set = |change: &EntryChange| change.key.shard().is_some_and(|id| !is_mark(id));
    // The head changes as well if the new epochs are ahead of the clock.
    let is_worker = |change: &EntryChange| matches!(change.key, EntryKey::Worker(_));
    step.entries.iter().any(is_set) && !step.entries.iter().any(is_worker) && step.version.is_some()
}

/// Returns true for the id of a mark of the migration to an ARN.
fn is_mark(id: &ShardId) -> bool {
    id.as_str().starts_with("positions-")
}
