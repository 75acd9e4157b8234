//! Changes of the lease table that follow from a listing.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::identity::{has_begun, is_same, lacks_addition, lacks_parents};
use super::lineage::left_behind;
use super::listing::ShardDiscovery;
use super::loss::{Loss, Report, ShownAs};
use super::start::ExactStart;
use super::stream_shards::StreamShards;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind};
use crate::record::{SequenceNumber, ShardId};
use crate::source::{ListedShard, OnTrimmed, Position};
use crate::store::lease::{Change, FINISHED_SHARD_RETENTION, Lease, LeaseTable};
use crate::telemetry::Event;

/// The position at which a reader starts a shard.
pub(crate) struct ShardStart {
    pub(crate) position: Position,
    /// The checkpoint to store before the first read.
    pub(crate) unstored: Option<Checkpoint>,
}

/// Changes to make in a table.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) list: Vec<Change>,
    /// The losses to report once the changes are made.
    pub(crate) losses: Vec<Loss>,
    /// True if the changes come from a listing, which is dropped once they are made.
    pub(crate) are_listed: bool,
}

impl Changes {
    /// Returns changes that come from no listing.
    pub(crate) fn without_listing(list: Vec<Change>) -> Self {
        Self { list, ..Self::default() }
    }
}

impl ShardDiscovery {
    /// Returns the start of a shard with this stored checkpoint; `None` if the shard is not read.
    pub(crate) fn start_of(
        &self,
        shard: &ShardId,
        checkpoint: Option<Checkpoint>,
    ) -> Option<ShardStart> {
        let is_stored = checkpoint.is_some();
        let pin = || self.start.resolve(shard, false, self.memory.latest());
        let checkpoint = match checkpoint.map_or_else(pin, ExactStart::Stored) {
            ExactStart::Stored(checkpoint) => checkpoint,
            ExactStart::Given(position) => return Some(ShardStart { position, unstored: None }),
        };
        // If the time were not stored, the next worker would resolve a later one and skip records.
        let is_time = matches!(checkpoint, Checkpoint::AtTimestamp(_));
        let unstored = (is_time && !is_stored).then(|| checkpoint.clone());
        Some(ShardStart { position: Position::of(checkpoint)?, unstored })
    }

    /// Returns the checkpoint to store for a known shard that was never read: the time that the
    /// caller has set as its start. It is stored early, since the shard may not be readable before
    /// another worker starts.
    fn unstored_start(&self, shard: &ShardId, lease: &Lease) -> Option<Checkpoint> {
        if lease.epoch > 0 || !self.start.each.contains_key(shard) {
            return None;
        }
        self.start_of(shard, lease.checkpoint.clone())?.unstored
    }

    /// Returns the checkpoint to store for a child that its ended parent has named: `None` unless
    /// the caller has set a starting position for it.
    pub(crate) fn child_start(&self, shard: &ShardId) -> Option<Checkpoint> {
        if !self.start.each.contains_key(shard) {
            return None;
        }
        match self.start.resolve(shard, false, self.memory.latest()) {
            ExactStart::Stored(checkpoint) => Some(checkpoint),
            ExactStart::Given(_) => None,
        }
    }

    /// Returns the changes that a listing requires in the table. If the table has no shard yet,
    /// they start the application and must be made in one step, before any other change: after a
    /// partial start, the next listing would treat the missing shards as new children.
    pub(crate) fn changes(&self, listed: &StreamShards, table: &LeaseTable) -> Changes {
        let mut losses = Vec::new();
        let mut list = self.additions(listed, table);
        if !has_begun(table) {
            // Also for shards that this worker does not read: no later worker migrates them.
            list.extend(listed.unlisted_migrated(table));
            let report = listed.migrated.report().map(Report::Event);
            losses.extend(report.map(|report| Loss::stored(report, ShownAs::Shards)));
        }
        self.identify(listed, table, &mut list, &mut losses);
        let ids: BTreeSet<&ShardId> = listed.shards.iter().map(|shard| &shard.id).collect();
        let now = self.memory.clock().now();
        for (shard, lease) in table.leases.iter().filter(|(shard, _)| !ids.contains(shard)) {
            if !self.rules.selects(shard) || lease.unreadable.is_some() {
                continue;
            }
            if lease.is_finished() {
                // One change is enough until the store may delete the shard.
                if listed.had_finished(shard)
                    && lease.unlisted.is_none_or(|since| is_over(since, now))
                {
                    list.push(Change::Forget { shard: shard.clone() });
                }
            } else if lease.is_shard_expired && self.keeps_lost() {
                // Reported once per session, since no stream of the shard reports it.
                if listed.begins {
                    losses.push(Loss::listed(Report::Error(self.expired_error(shard, lease))));
                }
            } else if listed.gone.contains(shard)
                && lease.owner.is_none()
                && !is_from_before(listed, lease)
            {
                list.extend(self.lose(shard, lease, listed, &mut losses));
            }
        }
        Changes { list, losses, are_listed: true }
    }

    /// Returns the additions for listed shards that the table lacks, or that lack parents or a
    /// stored start in the table.
    fn additions(&self, listed: &StreamShards, table: &LeaseTable) -> Vec<Change> {
        let inherited = &listed.migrated.leases;
        let first = table.leases.is_empty() && inherited.is_empty();
        let may_be_first = first || self.rules.is_partial();
        let descendants =
            if may_be_first { self.descendants_of_named(&listed.shards) } else { BTreeSet::new() };
        let unknown = |shard: &&ListedShard| match table.leases.get(&shard.id) {
            Some(lease) if lease.unreadable.is_some() => false,
            Some(lease) => {
                lacks_parents(lease, shard) || self.unstored_start(&shard.id, lease).is_some()
            }
            // A finished shard was deleted since the listing, and must not be read again.
            None => !listed.had_finished(&shard.id),
        };
        let position = |shard: &ListedShard| {
            let inherited = inherited.get(&shard.id).and_then(|lease| lease.checkpoint.clone());
            let is_first = (first || self.is_first_of_named(shard, listed, table))
                && !descendants.contains(&shard.id);
            inherited.or_else(|| self.resolve(shard, listed, is_first))
        };
        let left_behind = if self.forgets_finished_shards {
            left_behind(&listed.shards, table)
        } else {
            BTreeSet::new()
        };
        let is_read = |shard: &&ListedShard| {
            self.rules.selects(&shard.id) || inherited.contains_key(&shard.id)
        };
        let added = listed.shards.iter().filter(is_read).filter(unknown);
        added
            .map(|shard| Change::Add {
                shard: shard.id.clone(),
                parents: shard.parents.clone(),
                // The start of a shard of another stream is not stored.
                start: shard.start.clone().filter(|start| {
                    table.leases.get(&shard.id).is_none_or(|lease| is_same(lease, start))
                }),
                checkpoint: match table.leases.get(&shard.id) {
                    Some(lease) => self.unstored_start(&shard.id, lease),
                    None if left_behind.contains(&shard.id) => Some(Checkpoint::ShardEnd),
                    None => position(shard),
                },
            })
            .collect()
    }

    /// Returns true if the application has read neither the shard nor any ancestor of it, although
    /// it has read other shards: each of its workers may read other shards. The shard then starts at
    /// the starting position, and not as a child.
    fn is_first_of_named(
        &self,
        shard: &ListedShard,
        listed: &StreamShards,
        table: &LeaseTable,
    ) -> bool {
        if !self.rules.is_partial() {
            return false;
        }
        let parents: HashMap<&ShardId, &Vec<ShardId>> =
            listed.shards.iter().map(|shard| (&shard.id, &shard.parents)).collect();
        let (mut seen, mut left) = (BTreeSet::new(), vec![&shard.id]);
        while let Some(id) = left.pop() {
            if table.leases.contains_key(id) {
                return false;
            }
            let of_shard = parents.get(id).into_iter().flat_map(|parents| parents.iter());
            left.extend(of_shard.filter(|parent| seen.insert(*parent)));
        }
        true
    }

    /// Returns the listed shards that are, or may be, descendants of shards for which the caller
    /// has set a position.
    fn descendants_of_named<'a>(&'a self, shards: &'a [ListedShard]) -> BTreeSet<&'a ShardId> {
        let listed: BTreeSet<&ShardId> = shards.iter().map(|shard| &shard.id).collect();
        let mut children: HashMap<&ShardId, Vec<&ShardId>> = HashMap::new();
        for shard in shards {
            for parent in &shard.parents {
                children.entry(parent).or_default().push(&shard.id);
            }
        }
        let mut found = BTreeSet::new();
        let mut left: Vec<&ShardId> = self.start.each.keys().collect();
        if left.iter().any(|named| !listed.contains(named)) {
            // The shards between an expired shard and its descendants may have expired too.
            let unlisted = children.keys().filter(|parent| !listed.contains(*parent));
            left.extend(unlisted.copied());
        }
        while let Some(shard) = left.pop() {
            let of_shard = children.get(shard).into_iter().flatten();
            left.extend(of_shard.filter(|child| found.insert(**child)));
        }
        found
    }

    /// Returns the checkpoint to store for a new shard. At the first start of an application, a
    /// shard that was closed before the starting time has nothing to read and is finished.
    fn resolve(
        &self,
        shard: &ListedShard,
        listed: &StreamShards,
        first: bool,
    ) -> Option<Checkpoint> {
        let named = self.start.each.contains_key(&shard.id);
        if first && !named && listed.closed_before_start.contains(&shard.id) {
            return Some(Checkpoint::ShardEnd);
        }
        match self.start.resolve(&shard.id, first, listed.latest) {
            // A child starts at its first record, which need not be stored.
            ExactStart::Stored(checkpoint) => {
                (listed.begins || named || first).then_some(checkpoint)
            }
            ExactStart::Given(_) => None,
        }
    }

    /// Compares the listed shards with the leases of the same ids, and adds the changes and losses
    /// that follow.
    fn identify(
        &self,
        listed: &StreamShards,
        table: &LeaseTable,
        list: &mut Vec<Change>,
        losses: &mut Vec<Loss>,
    ) {
        for shard in listed.shards.iter().filter(|shard| self.rules.selects(&shard.id)) {
            let Some(start) = &shard.start else { continue };
            let Some(lease) = table.leases.get(&shard.id) else { continue };
            if lease.unreadable.is_some() {
                continue;
            }
            if is_same(lease, start) {
                let is_news = lease.start.is_none()
                    || lease.unlisted.is_some()
                    || lease.is_shard_expired
                    || lacks_addition(lease);
                if lease.parents.is_some() && is_news && !listed.has_other_start(shard) {
                    let (shard, start) = (shard.id.clone(), Some(start.clone()));
                    list.push(Change::Identify { shard, start });
                }
            } else if listed.has_confirmed(shard) || lease.is_shard_expired {
                self.replace(shard, start, lease, listed, list, losses);
            }
        }
    }

    /// Adds the change and the loss for a shard with a position that belongs to another stream.
    fn replace(
        &self,
        shard: &ListedShard,
        start: &SequenceNumber,
        lease: &Lease,
        listed: &StreamShards,
        list: &mut Vec<Change>,
        losses: &mut Vec<Loss>,
    ) {
        let checkpoint = match self.on_trimmed {
            OnTrimmed::Fail => {
                if !lease.is_shard_expired {
                    list.push(Change::MarkExpired { shard: shard.id.clone() });
                }
                // Reported once per session, since no stream of the shard reports it.
                if !lease.is_shard_expired || listed.begins {
                    let error = self.other_stream_error(shard, lease);
                    losses.push(listed.lost(&shard.id, error));
                }
                return;
            }
            OnTrimmed::TrimHorizon => Checkpoint::TrimHorizon,
            OnTrimmed::Latest => Checkpoint::AtTimestamp(listed.taken),
        };
        let gap = gap(&shard.id, lease, checkpoint.clone());
        losses.push(Loss::stored(gap, ShownAs::Start(shard.id.clone(), start.clone())));
        list.push(Change::Replace {
            shard: shard.id.clone(),
            parents: shard.parents.clone(),
            start: start.clone(),
            checkpoint,
        });
    }

    fn other_stream_error(&self, shard: &ListedShard, lease: &Lease) -> Error {
        let position = position_of(lease);
        let message = format!(
            "the shard's position ({position}) belongs to an earlier stream of this name; set \
             on_trimmed to TrimHorizon or Latest to read the new stream, or clear the positions"
        );
        Error::new(ErrorKind::Trimmed, message).in_stream(self.kinesis.name()).in_shard(&shard.id)
    }

    fn expired_error(&self, shard: &ShardId, lease: &Lease) -> Error {
        let message = format!(
            "the shard has left the stream's retention before it was read to its end (it was read to \
             {}); its children wait; set on_trimmed to TrimHorizon or Latest to read them",
            position_of(lease)
        );
        Error::new(ErrorKind::Trimmed, message).in_stream(self.kinesis.name()).in_shard(shard)
    }

    /// Returns the changes for an unfinished shard that has left retention, and adds the loss.
    fn lose(
        &self,
        shard: &ShardId,
        lease: &Lease,
        listed: &StreamShards,
        losses: &mut Vec<Loss>,
    ) -> Vec<Change> {
        let (id, epoch) = (|| shard.clone(), lease.epoch);
        let mut changes = Vec::new();
        if lease.parents.is_none() {
            let (parents, start) = (Vec::new(), None);
            changes.push(Change::Add { shard: id(), parents, start, checkpoint: None });
        }
        if self.on_trimmed == OnTrimmed::Fail {
            losses.push(listed.lost(shard, self.expired_error(shard, lease)));
            changes.push(Change::MarkExpired { shard: id() });
        } else {
            let gap = gap(shard, lease, Checkpoint::ShardEnd);
            losses.push(Loss::stored(gap, ShownAs::Finished(shard.clone())));
            changes.push(Change::Finish { shard: id(), epoch });
        }
        changes
    }
}

/// Returns true if a listing shows a parent of an unlisted shard as open: it is from before the
/// shard, and so may be the responses that the shard does not exist.
fn is_from_before(listed: &StreamShards, lease: &Lease) -> bool {
    let is_parent = |shard: &&ListedShard| lease.parents.iter().flatten().any(|it| *it == shard.id);
    listed.shards.iter().filter(is_parent).any(ListedShard::is_open)
}

/// Returns the event for the gap between the position of a lease and the new position of its shard.
fn gap(shard: &ShardId, lease: &Lease, position: Checkpoint) -> Report {
    Report::Event(Event::Gap {
        shard_id: shard.clone(),
        after: lease.checkpoint.as_ref().and_then(Checkpoint::sequence_number).cloned(),
        position,
    })
}

/// Formats the position of a shard for an error message.
fn position_of(lease: &Lease) -> String {
    lease.checkpoint.as_ref().map_or_else(|| "its beginning".to_owned(), Checkpoint::to_string)
}

/// Returns true if a finished shard may be deleted that no listing has shown since `unlisted`, in
/// milliseconds since 1970. The store checks again, by its own clock.
fn is_over(unlisted: u64, now: SystemTime) -> bool {
    let since = UNIX_EPOCH.checked_add(Duration::from_millis(unlisted));
    let elapsed = since.and_then(|since| now.duration_since(since).ok());
    elapsed.is_some_and(|elapsed| elapsed >= FINISHED_SHARD_RETENTION)
}
