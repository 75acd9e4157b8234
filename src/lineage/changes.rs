//! What a listing changes in the table.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use super::listing::Lister;
use super::start::Pin;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind};
use crate::observe::Event;
use crate::record::ShardId;
use crate::source::{ListedShard, OnTrimmed, Position};
use crate::store::lease::{Change, Lease, Table};

/// The shards of a stream, as they were listed.
pub(crate) struct Listed {
    pub(super) shards: Vec<ListedShard>,
    /// The moment at which reading began.
    pub(super) latest: SystemTime,
    /// Those that hold anything to read, where an application begins at a time.
    pub(super) reachable: Option<BTreeSet<ShardId>>,
    /// Shards of the table that have left retention, which is proven.
    pub(super) gone: Vec<ShardId>,
    /// The table as it was before: only of what was in it does the listing say that it is gone.
    pub(super) before: Arc<Table>,
    /// The worker has begun with it.
    pub(super) begins: bool,
}

/// What is to be changed in a table.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) list: Vec<Change>,
    /// What the caller is to be told of once they are made.
    pub(crate) losses: Vec<Loss>,
}

/// Records that were lost before they were read.
#[derive(Debug)]
pub(crate) enum Loss {
    /// Only the caller can say what is to become of it.
    Told(Error),
    /// It was said what is to become of it.
    PassedOver(Event),
}

impl Listed {
    /// Whether it was made for this table, and not for one that was forgotten or cleared since.
    pub(crate) fn is_of(&self, table: &Table) -> bool {
        self.before.generation == table.generation
    }

    fn had_finished(&self, shard: &ShardId) -> bool {
        self.before.leases.get(shard).is_some_and(Lease::is_finished)
    }
}

impl Lister {
    /// Where a shard begins of which nothing but its name is stored.
    pub(crate) fn position(
        &self,
        shard: &ShardId,
        checkpoint: Option<Checkpoint>,
    ) -> Option<Position> {
        match checkpoint {
            Some(checkpoint) => Position::of(checkpoint),
            None => match self.start.pin(shard, false, self.memory.latest()) {
                Pin::Named(position) => Some(position),
                Pin::Kept(checkpoint) => Position::of(checkpoint),
            },
        }
    }

    /// What is stored for a child that the end of its parent has named: a position only where the
    /// caller has named one.
    pub(crate) fn child_start(&self, shard: &ShardId) -> Option<Checkpoint> {
        if !self.start.each.contains_key(shard) {
            return None;
        }
        match self.start.pin(shard, false, self.memory.latest()) {
            Pin::Kept(checkpoint) => Some(checkpoint),
            Pin::Named(_) => None,
        }
    }

    /// What is to be changed in the table, after what has been listed. Where it has no shard yet, the
    /// changes are the start of the application, and belong into one step with nothing before it:
    /// half a start would be taken for a later one.
    pub(crate) fn changes(&self, listed: &Listed, table: &Table) -> Changes {
        let mut losses = Vec::new();
        let mut list = self.additions(listed, table);
        let ids: BTreeSet<&ShardId> = listed.shards.iter().map(|shard| &shard.id).collect();
        for (shard, lease) in table.leases.iter().filter(|(shard, _)| !ids.contains(shard)) {
            if lease.is_finished() {
                if listed.had_finished(shard) {
                    list.push(Change::Forget { shard: shard.clone() });
                }
            } else if listed.gone.contains(shard) && lease.owner.is_none() && !lease.is_lost {
                list.extend(self.lose(shard, lease, &mut losses));
            }
        }
        Changes { list, losses }
    }

    /// The shards that are not in the table yet.
    fn additions(&self, listed: &Listed, table: &Table) -> Vec<Change> {
        let first = table.leases.is_empty();
        let descendants =
            if first { self.descendants_of_named(&listed.shards) } else { BTreeSet::new() };
        let unknown = |shard: &&ListedShard| match table.leases.get(&shard.id) {
            Some(lease) => lease.parents.is_none(),
            // One that is not there any more was forgotten meanwhile, and is not to be read again.
            None => !listed.had_finished(&shard.id),
        };
        let added = listed.shards.iter().filter(unknown);
        added
            .map(|shard| Change::Add {
                shard: shard.id.clone(),
                parents: shard.parents.clone(),
                checkpoint: match table.leases.get(&shard.id) {
                    // It has a position already.
                    Some(_) => None,
                    None => self.pin(shard, listed, first && !descendants.contains(&shard.id)),
                },
            })
            .collect()
    }

    /// The listed shards that were split or merged from shards for which the caller has named a
    /// position.
    fn descendants_of_named<'a>(&'a self, shards: &'a [ListedShard]) -> BTreeSet<&'a ShardId> {
        let mut children: HashMap<&ShardId, Vec<&ShardId>> = HashMap::new();
        for shard in shards {
            for parent in &shard.parents {
                children.entry(parent).or_default().push(&shard.id);
            }
        }
        let mut found = BTreeSet::new();
        let mut left: Vec<&ShardId> = self.start.each.keys().collect();
        while let Some(shard) = left.pop() {
            let of_shard = children.get(shard).into_iter().flatten();
            left.extend(of_shard.filter(|child| found.insert(**child)));
        }
        found
    }

    /// What is stored for a shard that nothing is known of. One that was closed before a first
    /// start's time holds nothing to read: it is finished.
    fn pin(&self, shard: &ListedShard, listed: &Listed, first: bool) -> Option<Checkpoint> {
        let named = self.start.each.contains_key(&shard.id);
        let is_out_of_reach =
            || listed.reachable.as_ref().is_some_and(|reachable| !reachable.contains(&shard.id));
        if first && !named && !shard.is_open() && is_out_of_reach() {
            return Some(Checkpoint::ShardEnd);
        }
        match self.start.pin(&shard.id, first, listed.latest) {
            // A child begins where it begins, which needs no store to say so.
            Pin::Kept(checkpoint) => (listed.begins || named).then_some(checkpoint),
            Pin::Named(_) => None,
        }
    }

    /// A shard that was begun and has left retention meanwhile.
    fn lose(&self, shard: &ShardId, lease: &Lease, losses: &mut Vec<Loss>) -> Vec<Change> {
        let read = match &lease.checkpoint {
            Some(checkpoint) => checkpoint.to_string(),
            None => "its beginning".to_owned(),
        };
        let error = Error::new(
            ErrorKind::Trimmed,
            format!(
                "the shard has left the stream's retention before it was read to its end (it was \
                 read to {read}); set on_trimmed to go on with its children, which wait until then"
            ),
        )
        .in_stream(self.kinesis.name())
        .in_shard(shard.as_str());
        let (id, epoch) = (|| shard.clone(), lease.epoch);
        let mut changes = Vec::new();
        if lease.parents.is_none() {
            changes.push(Change::Add { shard: id(), parents: Vec::new(), checkpoint: None });
        }
        if self.on_trimmed == OnTrimmed::Fail {
            losses.push(Loss::Told(error));
            changes.push(Change::Lose { shard: id() });
        } else {
            losses.push(Loss::PassedOver(Event::Gap {
                shard_id: shard.clone(),
                after: lease.checkpoint.as_ref().and_then(Checkpoint::sequence_number).cloned(),
                position: Checkpoint::ShardEnd,
            }));
            changes.push(Change::Finish { shard: id(), epoch });
        }
        changes
    }
}
