//! The records of the stream, and how often each was processed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use kinestream::testing::{Shard, Stream, aggregate};

/// The records of a stream, by shard and sequence number: the numbers of the user records in each.
type Contents = HashMap<(String, String), Vec<u64>>;

#[derive(Debug, Default)]
struct State {
    contents: Contents,
    /// The number of times that each user record was processed.
    processed: BTreeMap<u64, u32>,
    next: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<State>>);

impl Ledger {
    /// Puts a record with this number of user records to a shard. A plain record has one.
    pub(crate) fn put(&self, shard: &Shard, user_records: u64) {
        let mut state = self.0.lock().unwrap();
        let numbers: Vec<u64> = (state.next..state.next + user_records).collect();
        state.next += user_records;
        // A reader drops user records with keys of another shard.
        let key =
            || (0..10_000).map(|number: u64| number.to_string()).find(|key| shard.has_key(key));
        let data = match (&numbers[..], key()) {
            (many @ [_, _, ..], Some(key)) => {
                aggregate(many.iter().map(|number| (key.clone(), number.to_string())))
            }
            _ => numbers[0].to_string().into_bytes(),
        };
        let sequence_number = shard.put(data).to_string();
        state.processed.extend(numbers.iter().map(|number| (*number, 0)));
        state.contents.insert((shard.id().to_string(), sequence_number), numbers);
    }

    /// Puts a record to one of the open shards.
    pub(crate) fn put_somewhere(&self, stream: &Stream, random: &mut fastrand::Rng) {
        let shards = stream.open_shards();
        let user_records = if random.u8(..4) == 0 { random.u64(2..4) } else { 1 };
        self.put(&shards[random.usize(..shards.len())], user_records);
    }

    /// Returns the user records of a record.
    pub(crate) fn user_records(&self, shard: &str, sequence_number: &str) -> Vec<u64> {
        let state = self.0.lock().unwrap();
        state.contents[&(shard.to_owned(), sequence_number.to_owned())].clone()
    }

    pub(crate) fn note(&self, number: u64) {
        *self.0.lock().unwrap().processed.get_mut(&number).unwrap() += 1;
    }

    /// Returns the user records that were not processed.
    pub(crate) fn missing(&self) -> Vec<u64> {
        let state = self.0.lock().unwrap();
        state
            .processed
            .iter()
            .filter(|(_, times)| **times == 0)
            .map(|(number, _)| *number)
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().processed.len()
    }

    /// Returns the number of times that user records were processed again.
    pub(crate) fn repeats(&self) -> u64 {
        let state = self.0.lock().unwrap();
        state.processed.values().map(|times| u64::from(times.saturating_sub(1))).sum()
    }
}
