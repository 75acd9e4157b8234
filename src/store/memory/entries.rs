//! The entries of one application and stream, as [`LeaseStore`](crate::store::LeaseStore) requires.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::record::ShardId;
use crate::store::lease::{
    EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats, LastHeartbeat, Step,
    workers_of,
};

/// The number of last versions of which the changes since are known.
const REMEMBERED_VERSIONS: usize = 64;

#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    version: u64,
    texts: BTreeMap<EntryKey, Arc<str>>,
    /// The version at which each entry changed last, deleted ones included.
    changed: BTreeMap<EntryKey, u64>,
    /// The last versions. A copy of the entries that was replaced by an older one does not know the
    /// versions in between.
    versions: BTreeSet<u64>,
    /// The time at which each worker expires, and its lease duration.
    expiries: BTreeMap<Arc<str>, (Duration, Duration)>,
    /// The texts that [`damage`](Self::damage) has replaced.
    #[cfg(feature = "testing")]
    damaged: BTreeMap<EntryKey, Arc<str>>,
}

impl Entries {
    pub(super) fn exchange(&mut self, now: Duration, exchange: &Exchange) -> Exchanged {
        for (expiry, lease_duration) in self.expiries.values_mut() {
            *expiry = (*expiry).min(now.saturating_add(*lease_duration));
        }
        let heartbeats = Heartbeats::Expired(self.expired(now));
        let is_made = exchange.step.as_ref().is_none_or(|step| self.make(now, step));
        for renewal in &exchange.renewals {
            if self.texts.get(&EntryKey::Worker(Arc::clone(&renewal.worker)))
                == Some(&renewal.entry)
            {
                let expiry = now.saturating_add(renewal.lease_duration);
                self.expiries.insert(Arc::clone(&renewal.worker), (expiry, renewal.lease_duration));
            }
        }
        let known = exchange.known.filter(|known| self.knows(*known));
        let mut keys: BTreeSet<&EntryKey> = match known {
            Some(known) if known == self.version => BTreeSet::new(),
            Some(known) => {
                let changed = self.changed.iter().filter(|(_, version)| **version > known);
                changed.map(|(key, _)| key).collect()
            }
            None => self.texts.keys().collect(),
        };
        if let Some(step) = exchange.step.as_ref().filter(|_| !is_made) {
            keys.extend(step.entries.iter().map(|change| &change.key));
        }
        let positions: Vec<EntryKey> = keys.iter().filter_map(|key| position_of(key)).collect();
        keys.extend(&positions);
        let entries = keys.into_iter().map(|key| (key.clone(), self.texts.get(key).cloned()));
        let mut answer = Exchanged::new(self.version, heartbeats);
        (answer.is_made, answer.is_whole) = (is_made, known.is_none());
        (answer.entries, answer.time) = (entries.collect(), Some(now));
        answer
    }

    fn expired(&self, now: Duration) -> Vec<LastHeartbeat> {
        let is_expired = |worker: &&Arc<str>| {
            self.expiries.get(*worker).is_none_or(|(expiry, _)| *expiry <= now)
        };
        let expired = workers_of(&self.texts).filter(is_expired);
        expired.map(|worker| LastHeartbeat::new(Arc::clone(worker), self.mark(worker))).collect()
    }

    fn mark(&self, worker: &str) -> String {
        let expiry = self.expiries.get(worker).map(|(expiry, _)| expiry.as_nanos().to_string());
        expiry.unwrap_or_default()
    }

    /// Makes a step if its conditions hold.
    fn make(&mut self, now: Duration, step: &Step) -> bool {
        let text = |key: &EntryKey| self.texts.get(key);
        if !step.is_met(self.version, text, |worker| self.mark(worker)) {
            return false;
        }
        let mut changes = step.changes().peekable();
        if changes.peek().is_some() {
            self.next_version(now);
        }
        for change in changes {
            self.set(change.key.clone(), change.text.clone());
            if let (EntryKey::Worker(worker), None) = (&change.key, &change.text) {
                self.expiries.remove(worker);
            }
        }
        true
    }

    fn next_version(&mut self, now: Duration) {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.version = micros.max(self.version + 1);
        self.versions.insert(self.version);
        while self.versions.len() > REMEMBERED_VERSIONS {
            self.versions.pop_first();
        }
        // No known version is earlier.
        if self.changed.len() > 2 * self.texts.len() + REMEMBERED_VERSIONS {
            let earliest = self.versions.first().copied().unwrap_or_default();
            self.changed.retain(|_key, version| *version > earliest);
        }
    }

    fn knows(&self, version: u64) -> bool {
        version == self.version || self.versions.contains(&version)
    }

    /// Sets the text of an entry at the current version.
    fn set(&mut self, key: EntryKey, text: Option<Arc<str>>) {
        self.changed.insert(key.clone(), self.version);
        match text {
            Some(text) => self.texts.insert(key, text),
            None => self.texts.remove(&key),
        };
    }

    pub(super) fn save_fenced(&mut self, saves: &[FencedSave]) -> Vec<FencedOutcome> {
        saves.iter().map(|save| self.save_one(save)).collect()
    }

    fn save_one(&mut self, save: &FencedSave) -> FencedOutcome {
        let is_saved = self.accepts(save);
        if is_saved {
            self.place(&save.shard, Arc::clone(&save.text));
        }
        let lease = self.texts.get(&EntryKey::Lease(save.shard.clone())).cloned();
        FencedOutcome::new(is_saved, lease, self.position(&save.shard).cloned())
    }

    /// Returns true if this save would be made now.
    pub(super) fn accepts(&self, save: &FencedSave) -> bool {
        let lease = self.texts.get(&EntryKey::Lease(save.shard.clone()));
        save.is_met(lease.map(|text| &**text), self.position(&save.shard).map(|text| &**text))
    }

    pub(super) fn position(&self, shard: &ShardId) -> Option<&Arc<str>> {
        self.texts.get(&EntryKey::Position(shard.clone()))
    }

    pub(super) fn positions(&self) -> impl Iterator<Item = (&ShardId, &Arc<str>)> {
        self.texts.iter().filter_map(|(key, text)| match key {
            EntryKey::Position(shard) => Some((shard, text)),
            _ => None,
        })
    }

    /// Replaces a position without a step.
    pub(super) fn place(&mut self, shard: &ShardId, text: Arc<str>) {
        self.texts.insert(EntryKey::Position(shard.clone()), text);
    }

    /// Replaces positions in a step; `None` removes one.
    pub(super) fn replace(&mut self, now: Duration, positions: Vec<(ShardId, Option<Arc<str>>)>) {
        if !positions.is_empty() {
            self.next_version(now);
        }
        for (shard, text) in positions {
            self.set(EntryKey::Position(shard), text);
        }
    }
}

/// Returns the position that is read together with a lease.
fn position_of(key: &EntryKey) -> Option<EntryKey> {
    match key {
        EntryKey::Lease(shard) => Some(EntryKey::Position(shard.clone())),
        _ => None,
    }
}

/// Simulates faults, for tests.
#[cfg(feature = "testing")]
impl Entries {
    /// Replaces the text of an entry by one that cannot be read, if the entry exists.
    pub(super) fn damage(&mut self, key: EntryKey) {
        if let Some(text) = self.texts.get_mut(&key)
            && **text != *super::DAMAGED
        {
            let text = std::mem::replace(text, super::DAMAGED.into());
            self.damaged.insert(key, text);
        }
    }

    /// Restores the text of an entry that [`damage`](Self::damage) has replaced, unless it was
    /// changed since. `correct` changes the text.
    pub(super) fn repair(&mut self, key: &EntryKey, correct: impl Fn(&str) -> String) {
        if let Some(text) = self.damaged.remove(key)
            && let Some(stored) = self.texts.get_mut(key)
            && **stored == *super::DAMAGED
        {
            *stored = correct(&text).into();
        }
    }
}
