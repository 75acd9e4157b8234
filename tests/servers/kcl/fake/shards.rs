//! The rows of shards: which rows a worker adds, ends and deletes.

use std::collections::BTreeSet;

use super::Version;
use super::worker::Worker;

impl Worker {
    /// Adds leases: at the first start those of the oldest shards, later those of open shards that
    /// have neither a lease nor an ancestor with one.
    pub(super) async fn synchronize(&self) {
        let shards = self.kinesis.list_shards().stream_name("orders").send().await.unwrap();
        let shards = shards.shards();
        let parents = |id: &str| -> Vec<String> {
            let shard = shards.iter().find(|shard| shard.shard_id() == id);
            let both = shard.map(|it| [it.parent_shard_id(), it.adjacent_parent_shard_id()]);
            both.into_iter().flatten().flatten().map(str::to_owned).collect()
        };
        let leases: BTreeSet<String> =
            self.table.scan().await.into_iter().map(|lease| lease.key).collect();
        for shard in shards {
            let id = shard.shard_id();
            let has_listed_parent =
                parents(id).iter().any(|parent| shards.iter().any(|it| it.shard_id() == parent));
            let is_added = if leases.is_empty() {
                !has_listed_parent
            } else {
                let range = shard.sequence_number_range();
                let is_open = range.is_some_and(|it| it.ending_sequence_number().is_none());
                let (mut left, mut has_ancestor) = (parents(id), false);
                while let Some(ancestor) = left.pop() {
                    has_ancestor |= leases.contains(&ancestor);
                    left.extend(parents(&ancestor));
                }
                is_open && !leases.contains(id) && !has_ancestor
            };
            if is_added {
                self.table.create(id, &parents(id)).await;
            }
        }
    }

    /// Deletes the rows of finished shards with children that are being read, the oldest first.
    pub(super) async fn clean_up(&mut self) {
        let leases = self.table.scan().await;
        let of = |id: &String| leases.iter().find(|lease| lease.key == *id);
        for lease in leases.iter().filter(|lease| lease.is_ended()) {
            if lease.owner.as_deref() != Some(&*self.name)
                || lease.parents.iter().any(|it| of(it).is_some())
            {
                continue;
            }
            let children: Vec<&String> = leases
                .iter()
                .filter(|it| it.parents.contains(&lease.key))
                .map(|it| &it.key)
                .chain(&lease.children)
                .collect();
            let is_read = |id: &&String| of(id).is_some_and(|it| it.checkpoint != "TRIM_HORIZON");
            if !children.is_empty() && children.iter().all(is_read) {
                self.table.delete(&lease.key).await;
                self.held.remove(&lease.key);
            }
        }
    }

    /// Returns true if the parents of a shard are finished.
    pub(super) async fn may_start(&mut self, key: &str) -> bool {
        let held = &self.held[key];
        if held.is_started {
            return true;
        }
        for parent in held.lease.parents.clone() {
            if self.table.get(&parent).await.is_some_and(|parent| !parent.is_ended()) {
                return false;
            }
        }
        if let Some(held) = self.held.get_mut(key) {
            held.is_started = true;
        }
        true
    }

    /// Ends a shard: the children's rows, then their names, then the end.
    pub(super) async fn end(&mut self, key: &str, children: &[(String, Vec<String>)]) {
        for (child, parents) in children {
            self.table.create(child, parents).await;
        }
        let lease = self.held[key].lease.clone();
        if self.version != Version::One {
            let names: Vec<String> = children.iter().map(|(child, _)| child.clone()).collect();
            self.table.name_children(&lease, &names).await;
        }
        if self.table.checkpoint(&lease, "SHARD_END", 0).await {
            let held = self.held.get_mut(key).unwrap();
            held.lease.counter += 1;
            "SHARD_END".clone_into(&mut held.lease.checkpoint);
        } else {
            self.held.remove(key);
        }
    }
}
