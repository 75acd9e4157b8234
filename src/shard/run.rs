//! Batches in short runs, and runs record by record.
//!
//! A merge allocates each time it takes a stream back, so it takes runs and not records; a run is
//! short, so that a shard with much to say lets the others speak.

use std::vec;

use super::CheckpointOn;
use crate::record::{Receipt, Record};
use crate::source::Space;

/// The most records of one shard before the next shard's turn.
pub(super) const LONGEST_RUN: usize = 128;

/// A batch of which runs are taken.
pub(crate) struct Buffer {
    records: vec::IntoIter<Record>,
    space: Space,
}

/// Records of one shard, in order, and the memory they were granted.
#[derive(Default)]
pub(crate) struct Run {
    records: vec::IntoIter<Record>,
    _space: Option<Space>,
}

impl Buffer {
    pub(crate) fn new(records: Vec<Record>, space: Space) -> Self {
        Self { records: records.into_iter(), space }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.len() == 0
    }

    /// The next records, at most so many; `None` when there are no more.
    pub(crate) fn next_run(&mut self, most: usize) -> Option<Run> {
        let records: Vec<Record> = self.records.by_ref().take(most).collect();
        if records.is_empty() {
            return None;
        }
        // The last run takes what the rounding has left.
        let bytes =
            if self.is_empty() { usize::MAX } else { records.iter().map(Record::size).sum() };
        Some(Run { records: records.into_iter(), _space: Some(self.space.split(bytes)) })
    }
}

impl Run {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }
}

/// Hands out a run record by record, and counts each as finished when the next poll comes, where
/// that is what finishing means.
#[derive(Default)]
pub(crate) struct Handout {
    run: Run,
    on_pull: bool,
    last: Option<Receipt>,
}

impl Handout {
    pub(crate) fn new(checkpoint_on: CheckpointOn) -> Self {
        Self { on_pull: checkpoint_on == CheckpointOn::Pull, ..Self::default() }
    }

    /// The caller has polled again: it is done with the last record.
    pub(crate) fn finish_last(&mut self) {
        if let Some(receipt) = self.last.take() {
            receipt.finish();
        }
    }

    pub(crate) fn next(&mut self) -> Option<Record> {
        let record = self.run.records.next();
        match &record {
            Some(record) if self.on_pull => self.last = Some(record.receipt()),
            Some(_) => {}
            // The space is given back as soon as its last record is with the caller.
            None => self.clear(),
        }
        record
    }

    pub(crate) fn give(&mut self, run: Run) {
        self.run = run;
    }

    pub(crate) fn clear(&mut self) {
        self.run = Run::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.run.len() == 0
    }
}
