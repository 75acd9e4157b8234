//! Bookkeeping of put and delivered records, and of broken promises.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kinestream::{Error, Event, Record};
use tokio::time::Instant;

use super::SHARDS;
use crate::seeds::SeedResult;

#[derive(Clone)]
pub(super) struct Tally(Arc<Mutex<State>>);

struct State {
    began: Instant,
    trace: Vec<String>,
    broken: Option<(String, String)>,
    /// The shard and the put time of each record.
    put: Vec<(usize, Instant)>,
    /// The number of deliveries of each record.
    delivered: Vec<usize>,
    /// The highest delivered record of each shard.
    newest: [Option<usize>; SHARDS],
    /// The worker that delivered in each epoch of a shard.
    readers: BTreeMap<(usize, u64), usize>,
    /// The time at which each worker last reported the loss of stored data.
    noticed: BTreeMap<usize, Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            began: Instant::now(),
            trace: Vec::new(),
            broken: None,
            put: Vec::new(),
            delivered: Vec::new(),
            newest: [None; SHARDS],
            readers: BTreeMap::new(),
            noticed: BTreeMap::new(),
        })))
    }
}

impl Tally {
    pub(super) fn log(&self, line: &str) {
        let mut state = self.0.lock().unwrap();
        let line = format!("{:>7.3} s  {line}", state.began.elapsed().as_secs_f64());
        state.trace.push(line);
    }

    pub(super) fn break_promise(&self, promise: &str, detail: String) {
        self.log(&format!("BROKEN {promise}: {detail}"));
        self.0.lock().unwrap().broken.get_or_insert((promise.to_owned(), detail));
    }

    pub(super) fn is_broken(&self) -> bool {
        self.0.lock().unwrap().broken.is_some()
    }

    /// Records that record `number` is about to be put into `shard`.
    pub(super) fn put(&self, number: usize, shard: usize) {
        let mut state = self.0.lock().unwrap();
        assert_eq!(number, state.put.len());
        state.put.push((shard, Instant::now()));
        state.delivered.push(0);
    }

    pub(super) fn deliver(&self, worker: usize, record: &Record) {
        let number: usize = std::str::from_utf8(record.data()).unwrap().parse().unwrap();
        let mut state = self.0.lock().unwrap();
        let shard = state.put[number].0;
        state.delivered[number] += 1;
        state.newest[shard] = state.newest[shard].max(Some(number));
        let key = (shard, record.epoch());
        let reader = *state.readers.entry(key).or_insert(worker);
        drop(state);
        if reader != worker {
            let detail = format!("workers {reader} and {worker} read shard {shard} in one epoch");
            self.break_promise("one_reader_an_epoch", detail);
        }
    }

    pub(super) fn note_event(&self, worker: usize, event: &Event) {
        if matches!(event, Event::StoreReset) {
            self.0.lock().unwrap().noticed.insert(worker, Instant::now());
        }
        if !matches!(event, Event::CaughtUp { .. }) {
            self.log(&format!("worker {worker}: {event:?}"));
        }
    }

    /// Breaks a promise: no fault of a run lasts long enough to be reported to the caller.
    pub(super) fn note_error(&self, worker: usize, error: &Error) {
        self.break_promise("reports_nothing", format!("worker {worker}: {error:?}"));
    }

    pub(super) fn note_end(&self, worker: usize) {
        self.break_promise("never_ends", format!("the stream of worker {worker} has ended"));
    }

    /// Returns a shard from which no record put since this time was delivered.
    pub(super) fn first_unread(&self, since: Instant) -> Option<usize> {
        let state = self.0.lock().unwrap();
        let is_read =
            |shard: &usize| state.newest[*shard].is_some_and(|number| state.put[number].1 >= since);
        (0..SHARDS).find(|shard| !is_read(shard))
    }

    /// Returns a worker that has not reported a loss since this time.
    pub(super) fn first_unaware(&self, workers: usize, since: Instant) -> Option<usize> {
        let state = self.0.lock().unwrap();
        (0..workers).find(|worker| state.noticed.get(worker).is_none_or(|at| *at < since))
    }

    /// Describes the records that were never delivered, if any.
    pub(super) fn unread(&self) -> Option<String> {
        let state = self.0.lock().unwrap();
        let unread = state.delivered.iter().enumerate().filter(|(_, times)| **times == 0);
        let unread: Vec<usize> = unread.map(|(number, _)| number).collect();
        let first = *unread.first()?;
        let (count, all) = (unread.len(), state.put.len());
        let shard = state.put[first].0;
        Some(format!("{count} of {all} records are not read, from {first} in shard {shard}"))
    }

    pub(super) fn seed_result(&self) -> SeedResult {
        let state = self.0.lock().unwrap();
        SeedResult {
            trace: state.trace.clone(),
            broken: state.broken.clone(),
            records: state.put.len(),
            calls: state.delivered.iter().sum(),
        }
    }
}
