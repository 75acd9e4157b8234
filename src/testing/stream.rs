use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::calls::Interruption;
use super::contents::{Contents, Shards, Stored, hash_key, id_of};
use super::model::{Model, Shared};
use crate::record::{SequenceNumber, ShardId};

/// A stream of a [`Kinesis`](super::Kinesis).
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
    kinesis: Shared,
    name: String,
}

/// A shard of a [`Stream`].
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
    pub(super) fn new(kinesis: Shared, name: &str) -> Self {
        Self { kinesis, name: name.to_owned() }
    }

    /// Puts a record into the shard of its partition key, and gives the shard.
    pub fn put(&self, partition_key: &str, data: impl Into<Vec<u8>>) -> Shard {
        let index = self.change(|shards, now| {
            let index = shards.of_key(hash_key(partition_key));
            let index = index.unwrap_or_else(|| unreachable!("open shards have every hash key"));
            shards.put(index, partition_key.to_owned(), data.into(), now);
            index
        });
        self.shard(index)
    }

    /// The shard whose name ends with this number. They are counted from 0, as they come.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn shard(&self, index: usize) -> Shard {
        let count = self.change(|shards, _now| shards.shards.len());
        assert!(index < count, "stream {} has {count} shards", self.name);
        Shard { stream: self.clone(), index }
    }

    /// All its shards, also those that are closed or expired.
    pub fn shards(&self) -> Vec<Shard> {
        let count = self.change(|shards, _now| shards.shards.len());
        (0..count).map(|index| self.shard(index)).collect()
    }

    /// The shards that take records, in order of their hash keys.
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

    /// The next record has this sequence number, and each later one the next. From a small number
    /// they grow in length, so that whoever compares them as text is found out.
    pub fn number_from(&self, number: u64) {
        self.change(|shards, _now| shards.number_from(number.into()));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Shards, u64) -> T) -> T {
        let mut model = self.kinesis.lock();
        let now = model.now();
        let Model { streams, .. } = &mut *model;
        let Some(shards) = streams.get_mut(&self.name) else {
            panic!("stream {} is deleted", self.name);
        };
        let changed = change(shards, now);
        shards.emit();
        changed
    }
}

impl Shard {
    /// Its name.
    pub fn id(&self) -> ShardId {
        match id_of(self.index).parse() {
            Ok(id) => id,
            Err(error) => unreachable!("{error}"),
        }
    }

    /// Its place among the shards of the stream, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Puts a record, whatever shard its partition key would choose, and gives its number.
    ///
    /// # Panics
    ///
    /// Where the shard is closed.
    pub fn put(&self, data: impl Into<Vec<u8>>) -> SequenceNumber {
        self.put_as("key", data)
    }

    /// Puts a record with this partition key, and gives its number.
    ///
    /// # Panics
    ///
    /// Where the shard is closed.
    pub fn put_as(&self, partition_key: &str, data: impl Into<Vec<u8>>) -> SequenceNumber {
        let key = partition_key.to_owned();
        numbered(&self.stream.change(|shards, now| shards.put(self.index, key, data.into(), now)))
    }

    /// Puts a record that bears this time of arrival, as one taken in by a host whose clock is
    /// not ours does.
    ///
    /// # Panics
    ///
    /// Where the shard is closed.
    pub fn put_at(&self, arrival: SystemTime, data: impl Into<Vec<u8>>) -> SequenceNumber {
        let since = arrival.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let put =
            |shards: &mut Shards, _| shards.put(self.index, "key".into(), data.into(), millis);
        numbered(&self.stream.change(put))
    }

    /// Whether a record with this partition key belongs into it, be it open or closed.
    pub fn has_key(&self, partition_key: &str) -> bool {
        let key = hash_key(partition_key);
        self.stream.change(|shards, _now| {
            let Contents { first_key, last_key, .. } = shards.shards[self.index];
            (first_key..=last_key).contains(&key)
        })
    }

    /// The numbers of all records that were put, also of those that are trimmed.
    pub fn sequence_numbers(&self) -> Vec<SequenceNumber> {
        let number = |record: &Stored| numbered(&record.number);
        self.stream
            .change(|shards, _now| shards.shards[self.index].records.iter().map(number).collect())
    }

    /// Closes it, and opens two that have half of its hash keys each.
    ///
    /// # Panics
    ///
    /// Where it is closed already.
    pub fn split(&self) -> [Shard; 2] {
        self.stream
            .change(|shards, now| {
                shards.close(self.index, now);
                let Contents { first_key, last_key, .. } = shards.shards[self.index];
                let middle = first_key + (last_key - first_key) / 2;
                let left = shards.add(vec![self.index], first_key, middle);
                [left, shards.add(vec![self.index], middle + 1, last_key)]
            })
            .map(|index| self.stream.shard(index))
    }

    /// Closes both, and opens one that has the hash keys of both.
    ///
    /// # Panics
    ///
    /// Where one of them is closed already, and where their hash keys do not lie side by side.
    #[allow(clippy::return_self_not_must_use, reason = "merging is what it is called for")]
    pub fn merge(&self, adjacent: &Shard) -> Shard {
        let merged = self.stream.change(|shards, now| {
            let [mut low, mut high] =
                [self, adjacent].map(|shard| (shards.shards[shard.index].first_key, shard.index));
            if high < low {
                std::mem::swap(&mut low, &mut high);
            }
            let [low_end, high_end] = [low, high].map(|(_, index)| shards.shards[index].last_key);
            assert!(low_end.checked_add(1) == Some(high.0), "only adjacent shards are merged");
            shards.close(self.index, now);
            shards.close(adjacent.index, now);
            shards.add(vec![self.index, adjacent.index], low.0, high_end)
        });
        self.stream.shard(merged)
    }

    /// Whether it takes records.
    pub fn is_open(&self) -> bool {
        self.stream.change(|shards, _now| shards.shards[self.index].closed.is_none())
    }

    /// The shards it was split or merged from.
    pub fn parents(&self) -> Vec<ShardId> {
        let parents = self.stream.change(|shards, _now| shards.shards[self.index].parents.clone());
        parents.into_iter().map(|index| self.stream.shard(index).id()).collect()
    }

    /// The first `records` that were put into it leave retention.
    pub fn trim(&self, records: usize) {
        self.stream.change(|shards, _now| {
            let contents = &mut shards.shards[self.index];
            contents.trimmed = contents.trimmed.max(records.min(contents.records.len()));
        });
    }

    /// The whole shard leaves retention: it is neither listed nor read any more.
    ///
    /// # Panics
    ///
    /// Where it is open, since only closed shards ever do.
    pub fn expire(&self) {
        assert!(!self.is_open(), "only a closed shard expires");
        self.stream.change(|shards, _now| shards.shards[self.index].expired = true);
    }

    /// Has this become of its subscriptions under way, and says how many there were.
    pub fn interrupt(&self, interruption: &Interruption) -> usize {
        self.stream.change(|shards, _now| shards.shards[self.index].interrupt(interruption))
    }

    /// Somebody else reads the shard: for so long, every read is throttled.
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
