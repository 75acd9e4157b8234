//! A table as a worker knows it: the parsed values, and the texts that they were read from.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::contract::{
    EntryChange, EntryKey, Exchanged, Heartbeats, LastHeartbeat, Renewal, workers_of,
};
use super::table::{Lease, LeaseTable, WorkerEntry};
use super::text;
use crate::record::ShardId;

/// The table as it was read last.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) table: Arc<LeaseTable>,
    /// False until the whole table was read.
    pub(super) is_read: bool,
    /// True if the table differs from the one that the worker was given last. Not every difference
    /// has a version of its own: a text that was damaged in the store has none.
    pub(super) has_news: bool,
    /// The texts of all entries.
    texts: BTreeMap<EntryKey, Arc<str>>,
    /// The workers in a store without a clock.
    observed: BTreeMap<Arc<str>, Observed>,
    /// The workers that had expired in the last answer.
    expired: Vec<LastHeartbeat>,
    /// The time of the last answer by the store's clock, and the same moment by tokio's.
    time: Option<(Duration, Instant)>,
    /// The start of the last request that was answered.
    asked: Option<Instant>,
    /// The time of the last answer.
    answered: Option<Instant>,
}

/// The heartbeats of a worker in a store without a clock, as this view has seen them.
#[derive(Debug)]
struct Observed {
    /// The mark of its last heartbeat.
    mark: Arc<str>,
    /// The time at which the mark was first seen.
    since: Instant,
    /// True if another mark was seen before.
    has_renewed: bool,
    lease_duration: Duration,
}

impl View {
    /// Applies an answer to a request that began at `asked`. `unreadable` tells why a text cannot be
    /// read.
    pub(super) fn merge(
        &mut self,
        asked: Instant,
        answer: Exchanged,
        unreadable: impl Fn(&EntryKey, &str) -> String,
    ) {
        if answer.is_whole {
            self.texts.clear();
            self.table = Arc::default();
        }
        let Exchanged { version, entries, heartbeats, time, .. } = answer;
        let mut has_changed = answer.is_whole || version != self.table.version;
        for (key, text) in entries {
            if self.texts.get(&key) == text.as_ref() {
                continue;
            }
            has_changed = true;
            match text {
                Some(text) => self.texts.insert(key.clone(), text),
                None => self.texts.remove(&key),
            };
            read_entry(Arc::make_mut(&mut self.table), &self.texts, &key, &unreadable);
        }
        if has_changed {
            Arc::make_mut(&mut self.table).version = version;
            self.has_news |= self.is_read;
        }
        self.is_read = true;
        self.time = time.map(|time| (time, Instant::now()));
        self.expired = match heartbeats {
            Heartbeats::Expired(expired) => expired,
            Heartbeats::Last(heartbeats) => self.observe(asked, heartbeats),
        };
        (self.asked, self.answered) = (Some(asked), Some(Instant::now()));
    }

    /// Compares the marks of workers with those seen before. Returns the workers that have not
    /// renewed within their lease durations.
    ///
    /// A worker counts its own lease from the start of its request, so it has stopped before the
    /// time that is measured here: from the answer that first showed a mark to the start of a
    /// request whose answer still shows it.
    fn observe(&mut self, asked: Instant, heartbeats: Vec<LastHeartbeat>) -> Vec<LastHeartbeat> {
        let now = Instant::now();
        let marks = heartbeats.into_iter().map(|LastHeartbeat { worker, mark }| (worker, mark));
        let mut marks: BTreeMap<Arc<str>, Arc<str>> = marks.collect();
        let mut before = take(&mut self.observed);
        for (worker, entry) in &self.table.workers {
            // The mark is empty if no heartbeat was ever noted.
            let mark = marks.remove(worker).unwrap_or_default();
            let known = before.remove(worker);
            let has_renewed = known.as_ref().is_some_and(|it| it.has_renewed || it.mark != mark);
            let since = known.filter(|it| it.mark == mark).map_or(now, |it| it.since);
            let lease_duration = entry.lease_duration;
            let observed = Observed { mark, since, has_renewed, lease_duration };
            self.observed.insert(Arc::clone(worker), observed);
        }
        let is_silent = |observed: &Observed| {
            asked.saturating_duration_since(observed.since) >= observed.lease_duration
        };
        let silent = self.observed.iter().filter(|(_, observed)| is_silent(observed));
        let marks = silent.map(|(worker, it)| (Arc::clone(worker), Arc::clone(&it.mark)));
        marks.map(|(worker, mark)| LastHeartbeat::new(worker, mark)).collect()
    }

    /// Starts to observe all workers again, after this worker was away: the store may have been
    /// unreachable for all of them.
    pub(super) fn observe_again(&mut self) {
        let now = Instant::now();
        self.observed.values_mut().for_each(|observed| observed.since = now);
    }

    /// Returns the time after which an answer shows whether a worker is alive; `None` if the last
    /// one has shown it.
    pub(super) fn undecided(&self, worker: &Arc<str>) -> Option<Duration> {
        let observed = self.observed.get(worker).filter(|observed| !observed.has_renewed)?;
        // The lease may have ended while the last answer was on its way: the next one decides.
        let left = observed.lease_duration.saturating_sub(observed.since.elapsed());
        (!self.has_expired(worker)).then_some(left)
    }

    /// Drops the table. Only the heartbeats are remembered.
    pub(super) fn forget_table(&mut self) {
        let (observed, expired) = (take(&mut self.observed), take(&mut self.expired));
        *self = Self { observed, expired, ..Self::default() };
    }

    /// Forgets the workers that had expired in the last answer.
    pub(super) fn forget_expired(&mut self) {
        self.expired.clear();
    }

    /// Returns the time since 1970 by the store's clock, if the store has one.
    pub(super) fn store_time(&self) -> Option<Duration> {
        self.time.map(|(time, since)| time + since.elapsed())
    }

    /// Returns the time of the last answer.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// Returns the start of the last request that was answered.
    pub(super) fn asked(&self) -> Option<Instant> {
        self.asked
    }

    /// Returns the heartbeats of the workers that had expired in the last answer.
    pub(super) fn expired(&self) -> &[LastHeartbeat] {
        &self.expired
    }

    pub(super) fn has_expired(&self, worker: &str) -> bool {
        self.expired.iter().any(|last| *last.worker == *worker)
    }

    /// Returns the workers whose stored texts cannot be read.
    pub(super) fn damaged_workers(&self) -> Vec<Arc<str>> {
        let workers = workers_of(&self.texts);
        workers.filter(|worker| !self.table.workers.contains_key(*worker)).cloned().collect()
    }

    /// Returns the heartbeat of a worker under this entry, whose text may be stored in another form.
    pub(super) fn renewal(&self, worker: &Arc<str>, entry: &WorkerEntry) -> Renewal {
        let is_stored = self.table.workers.get(worker) == Some(entry);
        let stored = || self.text(&EntryKey::Worker(Arc::clone(worker))).cloned();
        let text = is_stored.then(stored).flatten();
        let text = text.unwrap_or_else(|| text::format_worker(entry).into());
        Renewal::new(Arc::clone(worker), text, entry.lease_duration)
    }

    pub(super) fn text(&self, key: &EntryKey) -> Option<&Arc<str>> {
        self.texts.get(key)
    }

    /// Returns the shards that a worker owns.
    pub(super) fn owned_by(&self, worker: &Arc<str>) -> impl Iterator<Item = &ShardId> {
        let leases = self.table.leases.iter();
        leases
            .filter(move |(_, lease)| lease.owner.as_ref() == Some(worker))
            .map(|(shard, _)| shard)
    }

    /// Adds conditions that the entries of these keys have the texts that were read, unless they
    /// change.
    pub(super) fn require(
        &self,
        changes: &mut Vec<EntryChange>,
        keys: impl IntoIterator<Item = EntryKey>,
    ) {
        let mut keys: BTreeSet<EntryKey> = keys.into_iter().collect();
        for change in &*changes {
            keys.remove(&change.key);
        }
        changes.extend(keys.into_iter().map(|key| {
            let text = self.texts.get(&key).cloned();
            EntryChange::new(key, text.clone(), text)
        }));
    }

    /// Replaces the position of a shard by one that this process has saved in the current epoch of
    /// its lease.
    pub(super) fn note_saved(&mut self, shard: &ShardId, epoch: u64, position: &Arc<str>) {
        let is_current = self.table.lease(shard).is_some_and(|lease| lease.epoch == epoch);
        let key = EntryKey::Position(shard.clone());
        if is_current && self.texts.get(&key) != Some(position) {
            self.texts.insert(key.clone(), Arc::clone(position));
            let table = Arc::make_mut(&mut self.table);
            read_entry(table, &self.texts, &key, &|_key, text| text.to_owned());
        }
    }

    /// Returns the entries in which `after` differs from the table as it was read.
    pub(super) fn changes_to(&self, after: &LeaseTable) -> Vec<EntryChange> {
        let before = &*self.table;
        let mut changes = Vec::new();
        let mut put = |key: EntryKey, text: Option<String>| {
            let expected = self.texts.get(&key).cloned();
            // A position that a rule replaces applies whatever the store holds: the step rejects the
            // saves of the epoch before. So does the removal of a lease.
            let (is_moved, is_removed) = match &key {
                EntryKey::Position(shard) => {
                    let is_removed = before.lease(shard).is_some() && after.lease(shard).is_none();
                    (after.moved.contains(shard), is_removed)
                }
                _ => (false, false),
            };
            if is_moved || expected.as_deref() != text.as_deref() {
                let change = EntryChange::new(key, expected, text.map(Into::into));
                changes.push(EntryChange { is_forced: is_moved || is_removed, ..change });
            }
        };
        let head = |table: &LeaseTable| {
            (table.generation, table.cleared, table.first_poll, table.latest_epoch)
        };
        if head(before) != head(after) {
            put(EntryKey::Head, Some(text::format_head(after)));
        }
        // Includes the workers whose texts cannot be read.
        let workers = workers_of(&self.texts);
        for worker in workers.filter(|worker| !after.workers.contains_key(*worker)) {
            put(EntryKey::Worker(Arc::clone(worker)), None);
        }
        for (worker, entry) in &after.workers {
            if before.workers.get(worker) != Some(entry) {
                put(EntryKey::Worker(Arc::clone(worker)), Some(text::format_worker(entry)));
            }
        }
        for shard in keys(before).filter(|shard| !has(after, shard)) {
            put(EntryKey::Lease(shard.clone()), None);
            put(EntryKey::Position(shard.clone()), None);
        }
        for (shard, lease) in &after.hidden {
            if before.hidden.get(shard) != Some(lease) {
                put(EntryKey::Lease(shard.clone()), Some(text::format_lease(lease)));
            }
        }
        for (shard, lease) in &after.leases {
            if before.leases.get(shard) == Some(lease) || lease.unreadable.is_some() {
                continue;
            }
            let entry = lease.is_lease().then(|| text::format_lease(lease));
            put(EntryKey::Lease(shard.clone()), entry);
            let position = lease.checkpoint.as_ref().map(ToString::to_string);
            put(EntryKey::Position(shard.clone()), position);
        }
        changes
    }
}

fn keys(table: &LeaseTable) -> impl Iterator<Item = &ShardId> {
    table.leases.keys().chain(table.hidden.keys())
}

fn has(table: &LeaseTable, shard: &ShardId) -> bool {
    table.leases.contains_key(shard) || table.hidden.contains_key(shard)
}

/// Reads an entry of `texts` into the table.
fn read_entry(
    table: &mut LeaseTable,
    texts: &BTreeMap<EntryKey, Arc<str>>,
    key: &EntryKey,
    unreadable: &impl Fn(&EntryKey, &str) -> String,
) {
    match key {
        EntryKey::Head => {
            let text = texts.get(key).map_or("", |text| text);
            if !text::parse_head(text, table) {
                // Numbers that cannot be read are treated as lost.
                (table.generation, table.cleared, table.first_poll) = (0, 0, 0);
                table.latest_epoch = 0;
            }
        }
        EntryKey::Worker(worker) => {
            match texts.get(key).and_then(|text| text::parse_worker(text)) {
                Some(entry) => table.workers.insert(Arc::clone(worker), entry),
                None => table.workers.remove(worker),
            };
        }
        EntryKey::Lease(shard) | EntryKey::Position(shard) => {
            let lease_key = EntryKey::Lease(shard.clone());
            let position_key = EntryKey::Position(shard.clone());
            let (lease, position) = (texts.get(&lease_key), texts.get(&position_key));
            table.hidden.remove(shard);
            table.leases.remove(shard);
            let parsed = lease.map(|text| text::parse_lease(text));
            let checkpoint = position.map(|text| text.parse());
            let fault = |key: &EntryKey, text: &str| Lease {
                unreadable: Some(unreadable(key, text).into()),
                ..Lease::default()
            };
            let entry = match (parsed, checkpoint) {
                (None, None) => return,
                (Some(None), _) => fault(&lease_key, lease.map_or("", |text| text)),
                (lease, Some(Err(_))) => {
                    if let Some(Some(lease)) = lease {
                        table.hidden.insert(shard.clone(), lease);
                    }
                    fault(&position_key, position.map_or("", |text| text))
                }
                (lease, checkpoint) => Lease {
                    checkpoint: checkpoint.and_then(Result::ok),
                    ..lease.flatten().unwrap_or_default()
                },
            };
            table.leases.insert(shard.clone(), entry);
        }
    }
}
