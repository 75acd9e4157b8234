//! The contents of streams and shards, and the limits of each shard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use md5::{Digest, Md5};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::calls::Interruption;

/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const CALLS_PER_SECOND: usize = 5;
const BYTES_PER_SECOND: u64 = 2 << 20;
pub(super) const MAX_RECORDS: u64 = 10_000;

/// The contents of a stream.
#[derive(Debug)]
#[allow(clippy::struct_field_names, reason = "a stream is its shards")]
pub(super) struct StreamContents {
    pub(super) shards: Vec<ShardContents>,
    pub(super) next_number: u128,
    pub(super) consumers: Vec<Registered>,
    /// The time of its creation, in milliseconds since 1970.
    pub(super) created: u64,
}

/// The contents of a shard.
#[derive(Debug)]
pub(super) struct ShardContents {
    pub(super) parents: Vec<usize>,
    pub(super) first_key: u128,
    pub(super) last_key: u128,
    /// The lower bound of its sequence numbers, and the upper bound if the shard is closed.
    pub(super) start: u128,
    pub(super) end: Option<u128>,
    /// The time at which the shard was split or merged, in milliseconds since 1970.
    pub(super) closed: Option<u64>,
    /// True if the shard has left retention: it is neither listed nor read.
    pub(super) expired: bool,
    pub(super) records: Vec<Stored>,
    /// The records before this one have left retention.
    pub(super) trimmed: usize,
    pub(super) reads: CallWindow,
    pub(super) iterators: CallWindow,
    pub(super) bytes: ReadBytes,
    /// Reads are throttled until this time.
    pub(super) occupied: Option<Instant>,
    pub(super) subscriptions: Vec<Subscribed>,
    /// Notified whenever a subscription may have something to send.
    pub(super) changed: Arc<Notify>,
    /// The continuation numbers that belong to no record, each with the remaining time of the
    /// approach to the next record.
    pub(super) continuations: BTreeMap<String, Duration>,
    /// The time of each consumer's last subscription.
    pub(super) subscribed: BTreeMap<String, Instant>,
}

/// A registered consumer of the stream.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) arn: String,
    pub(super) name: String,
    pub(super) created: u64,
    /// The consumer is `CREATING` before this time.
    pub(super) active: u64,
}

/// A subscription of a shard.
#[derive(Debug)]
pub(super) struct Subscribed {
    pub(super) id: usize,
    pub(super) consumer: String,
    pub(super) interruption: Option<Interruption>,
}

#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) number: String,
    pub(super) arrival: u64,
    pub(super) partition_key: String,
    pub(super) data: Bytes,
}

impl Stored {
    pub(super) fn size(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

/// The first number. Written with 56 digits, like those of Kinesis.
const FIRST_NUMBER: u128 = 495_903_382_714_902_566_085_596_925_383_615;

impl StreamContents {
    /// Creates the contents of a stream. `before` is the next number of a deleted stream of the
    /// same name.
    pub(super) fn new(count: usize, before: Option<u128>, created: u64) -> Self {
        assert!(count > 0, "a stream has at least one shard");
        let next_number = before.map_or(FIRST_NUMBER, |before| before.max(FIRST_NUMBER) + 1000);
        let mut shards = Self { shards: Vec::new(), next_number, consumers: Vec::new(), created };
        let share = u128::MAX / count as u128;
        for index in 0..count as u128 {
            let last = if index + 1 == count as u128 { u128::MAX } else { share * (index + 1) - 1 };
            shards.add(Vec::new(), share * index, last);
        }
        shards
    }

    /// Returns the time at which a shard was split or merged from its parents, or created with its
    /// stream.
    pub(super) fn opened(&self, shard: usize) -> u64 {
        let parents = self.shards[shard].parents.iter();
        parents.filter_map(|parent| self.shards[*parent].closed).max().unwrap_or(self.created)
    }

    pub(super) fn add(&mut self, parents: Vec<usize>, first_key: u128, last_key: u128) -> usize {
        self.shards.push(ShardContents {
            parents,
            first_key,
            last_key,
            start: self.next_number,
            end: None,
            closed: None,
            expired: false,
            records: Vec::new(),
            trimmed: 0,
            reads: CallWindow::default(),
            iterators: CallWindow::default(),
            bytes: ReadBytes::default(),
            occupied: None,
            subscriptions: Vec::new(),
            changed: Arc::default(),
            continuations: BTreeMap::new(),
            subscribed: BTreeMap::new(),
        });
        self.shards.len() - 1
    }

    pub(super) fn put(&mut self, shard: usize, key: String, data: Vec<u8>, now: u64) -> String {
        assert!(self.shards[shard].closed.is_none(), "shard {shard} is closed");
        let number = self.number();
        let data = data.into();
        let stored = Stored { number: number.clone(), arrival: now, partition_key: key, data };
        self.shards[shard].records.push(stored);
        self.shards[shard].changed.notify_waiters();
        number
    }

    /// Returns a number after all issued numbers.
    pub(super) fn number(&mut self) -> String {
        let number = self.next_number;
        self.next_number += 1;
        format_number(number)
    }

    /// Sets the number of the next record.
    pub(super) fn number_from(&mut self, number: u128) {
        self.next_number = number;
        for shard in self.shards.iter_mut().filter(|shard| shard.records.is_empty()) {
            shard.start = number;
        }
    }

    /// Notifies all subscriptions that there may be something to send.
    pub(super) fn notify_subscriptions(&self) {
        self.shards.iter().for_each(|shard| shard.changed.notify_waiters());
    }

    /// Returns the open shard of this hash key.
    pub(super) fn shard_of_key(&self, key: u128) -> Option<usize> {
        self.shards.iter().position(|shard| {
            shard.closed.is_none() && (shard.first_key..=shard.last_key).contains(&key)
        })
    }

    pub(super) fn children(&self, shard: usize) -> impl Iterator<Item = (usize, &ShardContents)> {
        let shards = self.shards.iter().enumerate();
        shards.filter(move |(_, child)| child.parents.contains(&shard))
    }

    pub(super) fn close(&mut self, shard: usize, now: u64) {
        let closed = self.shards[shard].closed.replace(now);
        assert!(closed.is_none(), "shard {shard} is already closed");
        self.shards[shard].end = Some(self.next_number);
    }
}

/// Writes a number as on the wire: numbers in Kinesis's range get Kinesis's length.
pub(super) fn format_number(number: u128) -> String {
    if number >= FIRST_NUMBER { format!("{number:0<56}") } else { number.to_string() }
}

impl ShardContents {
    /// Drops the records that arrived before `oldest`.
    pub(super) fn trim_expired(&mut self, oldest: u64) {
        let aged = self.records.iter().take_while(|record| record.arrival < oldest).count();
        self.trimmed = self.trimmed.max(aged);
    }
}

/// Returns the hash key of a partition key, which determines the shard.
pub(super) fn hash_key(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

pub(super) fn id_of(shard: usize) -> String {
    format!("shardId-{shard:012}")
}

pub(super) fn index_of(id: &str) -> Option<usize> {
    id.strip_prefix("shardId-")?.parse().ok()
}

/// The calls of one operation in the last second.
#[derive(Debug, Default)]
pub(super) struct CallWindow(VecDeque<Instant>);

impl CallWindow {
    /// Returns true, and counts the call, if one more call is within the limit.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|call| now - *call >= Duration::from_secs(1)) {
            self.0.pop_front();
        }
        let admitted = self.0.len() < CALLS_PER_SECOND;
        if admitted {
            self.0.push_back(now);
        }
        admitted
    }
}

/// The bytes of the last response, and the time at which they are paid for.
#[derive(Debug, Default)]
pub(super) struct ReadBytes {
    paid: Option<Instant>,
    /// The response did not arrive, so the client cannot know its size.
    lost: bool,
}

impl ReadBytes {
    pub(super) fn admits(&self, now: Instant) -> bool {
        self.paid.is_none_or(|paid| now >= paid)
    }

    /// Returns true if the client knows the bytes that are not yet paid for.
    pub(super) fn are_known(&self) -> bool {
        !self.lost
    }

    pub(super) fn read(&mut self, now: Instant, bytes: usize, arrives: bool) {
        // In whole milliseconds, the resolution of the clock.
        let millis = bytes as u64 * 1000 / BYTES_PER_SECOND;
        self.paid = Some(now + Duration::from_millis(millis));
        self.lost = !arrives;
    }

    /// Notes that the last response has not arrived completely.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }
}
