//! Shares a complete listing among readers that must know whether their shard has ended or is gone.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use super::listing::{ListedShard, unusable_listing};
use crate::cooldown::Cooldown;
use crate::error::ClassifiedError;
use crate::record::{KnownShard, SequenceNumber, ShardId};

/// The minimum interval between two listings. Each serves the readers of all shards.
pub(super) const LISTING_INTERVAL: Duration = Duration::from_secs(1);

/// The state of a shard in a complete listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardPresence {
    pub(super) is_listed: bool,
    /// The sequence number at which the shard starts.
    pub(super) start: Option<SequenceNumber>,
    /// True if the listing shows the last sequence number of the shard, or its children.
    pub(super) has_ended: bool,
    pub(super) children: Vec<KnownShard>,
}

/// The last listing, shared by the readers of all shards of a stream.
#[derive(Debug, Default)]
pub(super) struct ListingCache(Mutex<CacheState>);

#[derive(Debug, Default)]
struct CacheState {
    listing: Option<CachedListing>,
    cooldown: Cooldown,
}

#[derive(Debug)]
struct CachedListing {
    begun: Instant,
    shards: Vec<ListedShard>,
}

impl ListingCache {
    /// Returns the state of a shard in a listing that began at `since` or later. Calls `list` if
    /// the last listing is older. One reader lists for all.
    ///
    /// Cancel safe: a dropped listing is repeated by the next reader.
    pub(super) async fn of(
        &self,
        shard: &ShardId,
        since: Instant,
        list: impl AsyncFnOnce() -> Result<Vec<ListedShard>, ClassifiedError>,
    ) -> Result<ShardPresence, ClassifiedError> {
        let mut state = self.0.lock().await;
        if state.listing.as_ref().is_none_or(|listing| listing.begun < since) {
            if let Some(last) = &state.listing {
                sleep_until(last.begun + LISTING_INTERVAL).await;
            }
            state.cooldown.begin("ListShards failed")?;
            let begun = Instant::now();
            let shards = list().await.map_err(|failure| state.cooldown.failed(failure))?;
            state.listing = Some(CachedListing { begun, shards });
            state.cooldown.succeeded();
        }
        let listing = state.listing.as_ref();
        listing
            .map(|listing| listing.shard_presence(shard))
            .ok_or_else(|| unusable_listing("is missing"))
    }
}

impl CachedListing {
    fn shard_presence(&self, shard: &ShardId) -> ShardPresence {
        let listed = self.shards.iter().find(|listed| listed.id == *shard);
        let known = |child: &ListedShard| KnownShard {
            id: child.id.clone(),
            parents: child.parents.clone(),
        };
        let children = self.shards.iter().filter(|child| child.parents.contains(shard));
        let children: Vec<KnownShard> = children.map(known).collect();
        ShardPresence {
            is_listed: listed.is_some(),
            start: listed.and_then(|shard| shard.start.clone()),
            has_ended: listed.is_some_and(|shard| !shard.is_open()) || !children.is_empty(),
            children,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: usize, parent: Option<usize>, end: Option<&str>) -> ListedShard {
        let id = |number| format!("shardId-{number:012}").parse().unwrap();
        ListedShard {
            id: id(number),
            parents: parent.map(id).into_iter().collect(),
            start: None,
            end: end.map(|end| end.parse().unwrap()),
            keys: (0, u128::MAX),
        }
    }

    fn shard_presence(shards: Vec<ListedShard>, number: usize) -> ShardPresence {
        let listing = CachedListing { begun: Instant::now(), shards };
        listing.shard_presence(&format!("shardId-{number:012}").parse().unwrap())
    }

    #[tokio::test]
    async fn listing_shows_end_by_number_or_by_children() {
        let open = shard_presence(vec![shard(0, None, None)], 0);
        assert!(open.is_listed && !open.has_ended);
        assert!(!shard_presence(vec![shard(0, None, None)], 1).is_listed);
        assert!(shard_presence(vec![shard(0, None, Some("9"))], 0).has_ended);
        let gone = shard_presence(vec![shard(1, Some(0), None), shard(2, Some(0), None)], 0);
        assert!(gone.has_ended && !gone.is_listed);
        assert_eq!(gone.children.len(), 2);
    }
}
