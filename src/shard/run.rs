//! Batches in short runs, and runs record by record.
//!
//! A merge allocates each time it takes a stream back, so it takes runs and not records; a run is
//! short, so that a shard with much to say lets the others speak.

use std::sync::Arc;
use std::vec;

use super::CheckpointOn;
use crate::error::{Error, Result};
use crate::record::{Origin, Record, SequenceNumber};
use crate::source::{Batch, Space};

/// The most records of one shard before the next shard's turn.
pub(super) const LONGEST_RUN: usize = 128;

/// A batch of which runs are taken.
pub(crate) struct Buffer {
    batch: Batch,
    space: Space,
    /// What was wrong with the record behind the last run.
    wrong: Option<Error>,
}

/// Records of one shard, in order, and the memory they were granted.
#[derive(Default)]
pub(crate) struct Run {
    records: vec::IntoIter<Record>,
    _space: Option<Space>,
}

impl Buffer {
    pub(crate) fn new(batch: Batch, space: Space) -> Self {
        Self { batch, space, wrong: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.len() == 0
    }

    /// The next records, at most so many, numbered from `first`; `None` when there are no more.
    pub(crate) fn next_run(&mut self, most: usize, first: u64) -> Option<Result<Run>> {
        let mut records = Vec::with_capacity(most.min(self.batch.len()));
        self.batch.look_ahead(most);
        while self.wrong.is_none()
            && records.len() < most
            && let Some(record) = self.batch.next(first + records.len() as u64)
        {
            match record {
                Ok(record) => records.push(record),
                Err(error) => self.wrong = Some(error),
            }
        }
        if records.is_empty() {
            return self.wrong.take().map(Err);
        }
        // The last run takes what the rounding has left.
        let bytes =
            if self.is_empty() { usize::MAX } else { records.iter().map(Record::size).sum() };
        Some(Ok(Run { records: records.into_iter(), _space: Some(self.space.split(bytes)) }))
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
    /// Where the records of the run come from.
    origin: Option<Arc<Origin>>,
    on_pull: bool,
    /// The record that the caller has in hand: its number, and its place in the shard.
    last: Option<(u64, SequenceNumber)>,
}

impl Handout {
    pub(crate) fn new(checkpoint_on: CheckpointOn) -> Self {
        Self { on_pull: checkpoint_on == CheckpointOn::Pull, ..Self::default() }
    }

    /// The caller has polled again: it is done with the last record.
    pub(crate) fn finish_last(&mut self) {
        if let (Some((number, place)), Some(origin)) = (self.last.take(), &self.origin) {
            origin.finish.finish(number, &place);
        }
    }

    pub(crate) fn next(&mut self) -> Option<Record> {
        let record = self.run.records.next();
        match &record {
            Some(record) if self.on_pull => {
                self.last = Some((record.number, record.sequence_number.clone()));
            }
            Some(_) => {}
            // The space is given back as soon as its last record is with the caller.
            None => self.clear(),
        }
        record
    }

    /// The next run. The last record of the one before is finished, or its caller has it.
    pub(crate) fn give(&mut self, run: Run) {
        self.origin = run.records.as_slice().first().map(|record| Arc::clone(&record.origin));
        self.run = run;
    }

    pub(crate) fn clear(&mut self) {
        self.run = Run::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.run.len() == 0
    }
}
