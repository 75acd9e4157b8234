//! Which shards exist, and which of them may be read.
//!
//! ```text
//!            every parent finished,
//!            or ordering does not matter
//!   Waiting ────────────────────────────► Open ──read to its end and finished──► Finished
//! ```
//!
//! A parent that nobody lists has left retention, and holds nothing back.

mod discovery;
mod start;

use std::collections::BTreeMap;

use crate::record::ShardId;
use crate::source::{KnownShard, Position};

pub(crate) use discovery::{Discovery, Opening, Word};
pub(crate) use start::Start;
pub use start::{ShardPosition, StartingPosition};

/// Whether the children of a shard wait for it.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, Ordering};
///
/// let consumer = Consumer::builder(client, "orders").ordering(Ordering::Unordered).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Ordering {
    /// A shard is read when all its parents are read to the end and every record of them is
    /// finished: the records of one partition key come in order, also over a split or a merge.
    #[default]
    ParentFirst,
    /// Every shard is read at once.
    Unordered,
}

/// The tree of shards.
#[derive(Debug)]
pub(crate) struct Lineage {
    ordering: Ordering,
    shards: BTreeMap<ShardId, Node>,
}

#[derive(Debug)]
struct Node {
    parents: Vec<ShardId>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting(Position),
    Open,
    Finished,
}

impl Lineage {
    pub(crate) fn new(ordering: Ordering) -> Self {
        Self { ordering, shards: BTreeMap::new() }
    }

    pub(crate) fn knows(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    /// Adds a shard to be read from `position`, or one that is finished where that is `None`.
    /// One that is known already stays as it is.
    pub(crate) fn add(&mut self, shard: KnownShard, position: Option<Position>) {
        self.shards.entry(shard.id).or_insert_with(|| Node {
            parents: shard.parents,
            state: position.map_or(State::Finished, State::Waiting),
        });
    }

    /// Every record of the shard is finished.
    pub(crate) fn finish(&mut self, shard: &ShardId) {
        if let Some(node) = self.shards.get_mut(shard) {
            node.state = State::Finished;
        }
    }

    /// Adds a shard that can never be read, nor finished: its children wait.
    pub(crate) fn block(&mut self, shard: ShardId) {
        self.shards.insert(shard, Node { parents: Vec::new(), state: State::Open });
    }

    /// Forgets finished shards that are not listed any more.
    pub(crate) fn forget_unlisted(&mut self, listed: impl Fn(&ShardId) -> bool) {
        self.shards.retain(|shard, node| node.state != State::Finished || listed(shard));
    }

    /// The shards that may be read now and have not been given before.
    pub(crate) fn open(&mut self) -> Vec<(KnownShard, Position)> {
        let ready: Vec<ShardId> = self
            .shards
            .iter()
            .filter(|(_, node)| matches!(node.state, State::Waiting(_)) && self.may_open(node))
            .map(|(shard, _)| shard.clone())
            .collect();
        let mut opened = Vec::with_capacity(ready.len());
        for id in ready {
            if let Some(node) = self.shards.get_mut(&id)
                && let State::Waiting(position) = std::mem::replace(&mut node.state, State::Open)
            {
                opened.push((KnownShard { id, parents: node.parents.clone() }, position));
            }
        }
        opened
    }

    fn may_open(&self, node: &Node) -> bool {
        self.ordering == Ordering::Unordered
            || node.parents.iter().all(|parent| {
                self.shards.get(parent).is_none_or(|parent| parent.state == State::Finished)
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shard(number: usize, parents: &[usize]) -> KnownShard {
        let id = |number: &usize| format!("shardId-{number:012}").parse().unwrap();
        KnownShard { id: id(&number), parents: parents.iter().map(id).collect() }
    }

    fn opened(lineage: &mut Lineage) -> Vec<ShardId> {
        lineage.open().into_iter().map(|(shard, _)| shard.id).collect()
    }

    #[test]
    fn a_merged_child_waits_for_both_parents() {
        let mut lineage = Lineage::new(Ordering::ParentFirst);
        for known in [shard(2, &[0, 1]), shard(1, &[]), shard(0, &[])] {
            lineage.add(known, Some(Position::TrimHorizon));
        }
        assert_eq!(opened(&mut lineage), [shard(0, &[]).id, shard(1, &[]).id]);
        lineage.finish(&shard(0, &[]).id);
        assert_eq!(opened(&mut lineage), []);
        lineage.finish(&shard(1, &[]).id);
        assert_eq!(opened(&mut lineage), [shard(2, &[]).id]);
        assert_eq!(opened(&mut lineage), []);
    }

    #[test]
    fn nobody_waits_for_a_parent_past_retention() {
        let mut lineage = Lineage::new(Ordering::ParentFirst);
        lineage.add(shard(7, &[3]), Some(Position::TrimHorizon));
        assert_eq!(opened(&mut lineage), [shard(7, &[]).id]);
    }

    #[test]
    fn a_blocked_parent_holds_its_children() {
        let mut lineage = Lineage::new(Ordering::ParentFirst);
        lineage.block(shard(3, &[]).id);
        lineage.add(shard(7, &[3]), Some(Position::TrimHorizon));
        lineage.forget_unlisted(|_| false);
        assert_eq!(opened(&mut lineage), []);
    }

    proptest! {
        /// Random trees, added in random order, finished as they open: every shard opens once,
        /// and never before a parent is finished.
        #[test]
        fn parents_come_first(
            parents in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..30),
            order in any::<u64>(),
            ordering in prop_oneof![Just(Ordering::ParentFirst), Just(Ordering::Unordered)],
        ) {
            let tree: Vec<KnownShard> = parents
                .iter()
                .enumerate()
                .map(|(number, picks)| {
                    let older: Vec<usize> = if number == 0 { Vec::new() } else {
                        picks.iter().map(|pick| pick.index(number)).collect()
                    };
                    shard(number, &older)
                })
                .collect();
            let mut shuffled = tree.clone();
            fastrand::Rng::with_seed(order).shuffle(&mut shuffled);
            let mut lineage = Lineage::new(ordering);
            for known in shuffled {
                lineage.add(known, Some(Position::TrimHorizon));
            }
            let mut finished = std::collections::BTreeSet::new();
            let mut seen = 0;
            loop {
                let opened = lineage.open();
                if opened.is_empty() {
                    break;
                }
                for (known, _) in &opened {
                    if ordering == Ordering::ParentFirst {
                        prop_assert!(known.parents.iter().all(|parent| finished.contains(parent)));
                    }
                    seen += 1;
                }
                for (known, _) in opened {
                    lineage.finish(&known.id);
                    finished.insert(known.id);
                }
            }
            prop_assert_eq!(seen, tree.len());
        }
    }
}
