use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::calls::Interruption;
use super::contents::{ShardContents, Stored, StreamContents, hash_key, id_of};
use super::model::{Model, ModelHandle};
use crate::record::{SequenceNumber, ShardId};

/// A stream of a [`Kinesis`](super::Kinesis).
///
/// # Panics
///
/// Every method panics if the stream was deleted.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let kinesis = kinestream::testing::Kinesis::new();
/// let orders = kinesis.create_stream("orders", 2);
/// let merged = orders.shard(0).merge(&orders.shard(1));
/// assert_eq!(orders.put("customer-7", "a red one"), merged);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Stream {
    kinesis: ModelHandle,
    name: String,
}

/// A shard of a [`Stream`].
///
/// # Panics
///
/// Every method except [`id`](Self::id) and [`index`](Self::index) panics if the stream was
/// deleted, and if it was created again with fewer shards.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let kinesis = kinestream::testing::Kinesis::new();
/// let shard = kinesis.create_stream("orders", 1).shard(0);
/// let first = shard.put("a red one");
/// assert!(shard.put("a blue one") > first);
/// let [left, _right] = shard.split();
/// assert_eq!(left.parents(), [shard.id()]);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Shard {
    stream: Stream,
    index: usize,
}

impl PartialEq for Shard {
    fn eq(&self, other: &Self) -> bool {
        self.stream.name == other.stream.name && self.index == other.index
    }
}

impl Stream {
    pub(super) fn new(kinesis: ModelHandle, name: &str) -> Self {
        Self { kinesis, name: name.to_owned() }
    }

    /// Puts a record into the shard of its partition key and returns the shard.
    pub fn put(&self, partition_key: &str, data: impl Into<Vec<u8>>) -> Shard {
        let index = self.change(|shards, now| {
            let index = shards.shard_of_key(hash_key(partition_key));
            let index = index.unwrap_or_else(|| unreachable!("open shards have every hash key"));
            shards.put(index, partition_key.to_owned(), data.into(), now);
            index
        });
        self.shard(index)
    }

    /// Returns the shard whose name ends with this number. Shards are numbered from 0, in order of
    /// creation.
    ///
    /// # Panics
    ///
    /// Panics if there is no such shard.
    pub fn shard(&self, index: usize) -> Shard {
        let count = self.change(|shards, _now| shards.shards.len());
        assert!(index < count, "stream {} has {count} shards", self.name);
        Shard { stream: self.clone(), index }
    }

    /// Returns all shards, including closed and expired ones.
    pub fn shards(&self) -> Vec<Shard> {
        let count = self.change(|shards, _now| shards.shards.len());
        (0..count).map(|index| self.shard(index)).collect()
    }

    /// Returns the open shards, in order of their hash keys.
    pub fn open_shards(&self) -> Vec<Shard> {
        let mut open = self.change(|shards, _now| {
            let numbered = shards.shards.iter().enumerate();
            numbered
                .filter(|(_, shard)| shard.closed.is_none())
                .map(|(index, shard)| (shard.first_key, index))
                .collect::<Vec<_>>()
        });
        open.sort_unstable();
        open.into_iter().map(|(_, index)| self.shard(index)).collect()
    }

    /// Sets the sequence number of the next record. Later records continue from it. Small numbers
    /// grow in length, which exposes code that compares them as text.
    pub fn number_from(&self, number: u64) {
        self.change(|shards, _now| shards.number_from(number.into()));
    }

    fn change<T>(&self, change: impl FnOnce(&mut StreamContents, u64) -> T) -> T {
        let mut model = self.kinesis.lock();
        let now = model.now();
        let Model { streams, .. } = &mut *model;
        let Some(shards) = streams.get_mut(&self.name) else {
            panic!("stream {} is deleted", self.name);
        };
        let changed = change(shards, now);
        shards.notify_subscriptions();
        changed
    }
}

impl Shard {
    /// Returns the shard's name.
    pub fn id(&self) -> ShardId {
        match id_of(self.index).parse() {
            Ok(id) => id,
            Err(error) => unreachable!("{error}"),
        }
    }

    /// Returns the shard's number in the stream, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Puts a record into this shard, independent of its partition key, and returns its number.
    ///
    /// # Panics
    ///
    /// Panics if the shard is closed.
    pub fn put(&self, data: impl Into<Vec<u8>>) -> SequenceNumber {
        self.put_as("key", data)
    }

    /// Puts a record with this partition key into this shard and returns its number.
    ///
    /// # Panics
    ///
    /// Panics if the shard is closed.
    pub fn put_as(&self, partition_key: &str, data: impl Into<Vec<u8>>) -> SequenceNumber {
        let key = partition_key.to_owned();
        numbered(&self.stream.change(|shards, now| shards.put(self.index, key, data.into(), now)))
    }

    /// Puts a record with this arrival time, as received by a host whose clock is wrong.
    ///
    /// # Panics
    ///
    /// Panics if the shard is closed.
    pub fn put_at(&self, arrival: SystemTime, data: impl Into<Vec<u8>>) -> SequenceNumber {
        let since = arrival.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let put = |shards: &mut StreamContents, _| {
            shards.put(self.index, "key".into(), data.into(), millis)
        };
        numbered(&self.stream.change(put))
    }

    /// Returns true if this partition key belongs to the shard, open or closed.
    pub fn has_key(&self, partition_key: &str) -> bool {
        let key = hash_key(partition_key);
        self.stream.change(|shards, _now| {
            let ShardContents { first_key, last_key, .. } = shards.shards[self.index];
            (first_key..=last_key).contains(&key)
        })
    }

    /// Returns the numbers of all records that were put, including trimmed ones.
    pub fn sequence_numbers(&self) -> Vec<SequenceNumber> {
        let number = |record: &Stored| numbered(&record.number);
        self.stream
            .change(|shards, _now| shards.shards[self.index].records.iter().map(number).collect())
    }

    /// Closes the shard and opens two children that have half of its hash keys each.
    ///
    /// # Panics
    ///
    /// Panics if the shard is closed.
    pub fn split(&self) -> [Shard; 2] {
        self.stream
            .change(|shards, now| {
                shards.close(self.index, now);
                let ShardContents { first_key, last_key, .. } = shards.shards[self.index];
                let middle = first_key + (last_key - first_key) / 2;
                let left = shards.add(vec![self.index], first_key, middle);
                [left, shards.add(vec![self.index], middle + 1, last_key)]
            })
            .map(|index| self.stream.shard(index))
    }

    /// Closes both shards and opens one child that has the hash keys of both.
    ///
    /// # Panics
    ///
    /// Panics if one of the shards is closed, or if their hash key ranges are not adjacent.
    #[allow(clippy::return_self_not_must_use, reason = "callers may only need the side effect")]
    pub fn merge(&self, adjacent: &Shard) -> Shard {
        let merged = self.stream.change(|shards, now| {
            let [mut low, mut high] =
                [self, adjacent].map(|shard| (shards.shards[shard.index].first_key, shard.index));
            if high < low {
                std::mem::swap(&mut low, &mut high);
            }
            let [low_end, high_end] = [low, high].map(|(_, index)| shards.shards[index].last_key);
            assert!(low_end.checked_add(1) == Some(high.0), "only adjacent shards can be merged");
            shards.close(self.index, now);
            shards.close(adjacent.index, now);
            shards.add(vec![self.index, adjacent.index], low.0, high_end)
        });
        self.stream.shard(merged)
    }

    /// Returns true if the shard is open: it accepts records.
    pub fn is_open(&self) -> bool {
        self.stream.change(|shards, _now| shards.shards[self.index].closed.is_none())
    }

    /// Returns the shards from which this shard was split or merged.
    pub fn parents(&self) -> Vec<ShardId> {
        let parents = self.stream.change(|shards, _now| shards.shards[self.index].parents.clone());
        parents.into_iter().map(|index| self.stream.shard(index).id()).collect()
    }

    /// Removes the first `records` records of the shard, as when they leave retention.
    pub fn trim(&self, records: usize) {
        self.stream.change(|shards, _now| {
            let contents = &mut shards.shards[self.index];
            contents.trimmed = contents.trimmed.max(records.min(contents.records.len()));
        });
    }

    /// Removes the whole shard, as when it leaves retention. It is no longer listed or read.
    ///
    /// # Panics
    ///
    /// Panics if the shard is open, since only closed shards expire.
    pub fn expire(&self) {
        assert!(!self.is_open(), "only a closed shard can expire");
        self.stream.change(|shards, _now| shards.shards[self.index].expired = true);
    }

    /// Interrupts the shard's active subscriptions and returns their number.
    pub fn interrupt(&self, interruption: &Interruption) -> usize {
        self.stream.change(|shards, _now| shards.shards[self.index].interrupt(interruption))
    }

    /// Throttles every read for `time`, as if another reader used up the shard's throughput.
    pub fn occupy(&self, time: Duration) {
        let until = Instant::now() + time;
        self.stream.change(|shards, _now| shards.shards[self.index].occupied = Some(until));
    }
}

fn numbered(number: &str) -> SequenceNumber {
    match number.parse() {
        Ok(number) => number,
        Err(error) => unreachable!("{error}"),
    }
}
