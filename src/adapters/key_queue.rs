//! The records that wait for another record of their key: a state machine without futures.
//!
//! ```text
//!            push             finish, a record waits          next
//!   free ───────────► busy ──────────────────────────► ready ──────► busy
//!     ▲                │
//!     └────────────────┘
//!       finish, no record waits
//! ```
//!
//! A key is busy or ready while it has a lane: a queue of the records that wait.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash, RandomState};

use crate::record::Record;

/// The hash of a stream and a partition key.
///
/// Two keys with one hash, of which a million keys have a chance of 1 in 37 million, are handled
/// one after another: the cost is concurrency, never order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key(u64);

/// Derives keys by a random hash function, so that no producer can choose keys with equal hashes.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(RandomState);

#[derive(Hash)]
enum KeySource<'a> {
    PartitionKey(&'a str),
    /// Of a record without a partition key.
    Shard(&'a str),
}

impl KeyHasher {
    pub(super) fn key(&self, record: &Record) -> Key {
        let source = match record.partition_key() {
            Some(key) => KeySource::PartitionKey(key),
            None => KeySource::Shard(record.shard_id().as_str()),
        };
        Key(self.0.hash_one((record.stream(), source)))
    }
}

/// The busy keys and the records that wait for them.
#[derive(Debug)]
pub(super) struct KeyQueue<R> {
    lanes: HashMap<Key, VecDeque<R>>,
    /// The next record of each key that is ready, first the key that has been ready for longest.
    ready: VecDeque<(Key, R)>,
    waiting: usize,
}

impl<R> KeyQueue<R> {
    pub(super) fn new() -> Self {
        Self { lanes: HashMap::new(), ready: VecDeque::new(), waiting: 0 }
    }

    /// Returns the number of records that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns the record if its key is free, which is busy from now on. Otherwise the record
    /// waits.
    pub(super) fn push(&mut self, key: Key, record: R) -> Option<R> {
        match self.lanes.entry(key) {
            Entry::Vacant(lane) => {
                lane.insert(VecDeque::new());
                Some(record)
            }
            Entry::Occupied(mut lane) => {
                lane.get_mut().push_back(record);
                self.waiting += 1;
                None
            }
        }
    }

    /// Notes that the record of a busy key is handled. The key is ready if a record waits, and
    /// otherwise free.
    pub(super) fn finish(&mut self, key: Key) {
        let Entry::Occupied(mut lane) = self.lanes.entry(key) else { return };
        match lane.get_mut().pop_front() {
            Some(record) => self.ready.push_back((key, record)),
            None => {
                lane.remove();
            }
        }
    }

    /// Returns the next record of the first key that is ready, which is busy from now on.
    pub(super) fn next_ready(&mut self) -> Option<(Key, R)> {
        let next = self.ready.pop_front()?;
        self.waiting -= 1;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::adapters::fixtures::RecordFixture;

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64),
        Finish(prop::sample::Index),
        Start,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u64).prop_map(Step::Push),
            any::<prop::sample::Index>().prop_map(Step::Finish),
            Just(Step::Start),
        ]
    }

    proptest! {
        /// Compares with the simplest model: a list of all records that did not start, and the keys
        /// in the order in which they became ready.
        #[test]
        fn records_start_in_order_one_per_key_and_keys_take_turns(
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let mut queue = KeyQueue::new();
            let (mut left, mut ready, mut busy) = (Vec::new(), Vec::new(), Vec::new());
            for (number, step) in steps.iter().enumerate() {
                match step {
                    Step::Push(key) => {
                        let key = Key(*key);
                        let started = queue.push(key, number);
                        if busy.contains(&key) || ready.contains(&key) {
                            prop_assert_eq!(started, None);
                            left.push((key, number));
                        } else {
                            prop_assert_eq!(started, Some(number));
                            busy.push(key);
                        }
                    }
                    Step::Finish(index) if !busy.is_empty() => {
                        let key = busy.swap_remove(index.index(busy.len()));
                        queue.finish(key);
                        if left.iter().any(|(of, _)| *of == key) {
                            ready.push(key);
                        }
                    }
                    Step::Finish(_) => queue.finish(Key(99)),
                    Step::Start => {
                        let expected = (!ready.is_empty()).then(|| {
                            let key = ready.remove(0);
                            let at = left.iter().position(|(of, _)| *of == key).unwrap();
                            busy.push(key);
                            left.remove(at)
                        });
                        prop_assert_eq!(queue.next_ready(), expected);
                    }
                }
                prop_assert_eq!(queue.waiting(), left.len());
                prop_assert_eq!(queue.lanes.len(), busy.len() + ready.len());
            }
        }
    }

    #[test]
    fn keys_are_those_of_the_stream_and_the_partition_key() {
        let hasher = KeyHasher::default();
        let base = RecordFixture::default();
        let key = |fixture: RecordFixture| hasher.key(&fixture.record(b""));
        let same = [base.clone(), RecordFixture { shard: 7, epoch: 2, ..base.clone() }];
        let others = [
            RecordFixture { key: Some("other"), ..base.clone() },
            RecordFixture { stream: "other", ..base.clone() },
            RecordFixture { key: None, ..base.clone() },
            RecordFixture { key: None, shard: 7, ..base.clone() },
            // The name of a shard is another key than the shard of a record without a key.
            RecordFixture { key: Some("shardId-000000000007"), ..base },
        ];
        let distinct: BTreeSet<u64> =
            same.into_iter().chain(others).map(|fixture| key(fixture).0).collect();
        assert_eq!(distinct.len(), 6, "expected the first two to be equal, and no others");
    }
}
