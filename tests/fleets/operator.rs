//! Operators that move positions while they are read.

use std::time::Duration;

use kinestream::store::lease::AdminEdit;
use kinestream::testing::WallClock;
use kinestream::{Checkpoint, Consumer, IfLeased, StartingPosition};

use crate::link::WorkerState;
use crate::seeds::pick;
use crate::store::SimulatedStore;
use crate::truth::Facts;
use crate::world::World;

impl World {
    /// Makes an operator, in a separate process or through the consumer of a worker, move all
    /// shards or one shard, or clear all positions.
    pub(crate) fn move_positions(&mut self) {
        let (consumer, ordinal) = match self.rng.usize(..2 * self.workers.len().max(1)) {
            worker if worker < self.workers.len() => {
                let worker = &mut self.workers[worker];
                worker.move_positions();
                (worker.consumer.clone(), worker.ordinal)
            }
            _ => self.separate_operator(),
        };
        let edit = match self.rng.u8(..6) {
            0 => Some(AdminEdit::Clear),
            1 | 2 => Some(self.move_one()),
            _ => None,
        };
        let back = self.time(300_000);
        let now = self.kinesis.now();
        let all = [
            StartingPosition::TrimHorizon,
            StartingPosition::Latest,
            StartingPosition::AtTimestamp(now - back),
        ];
        let all = pick(&mut self.rng, &all);
        let truth = self.truth.clone();
        let name = truth.lock().workers[ordinal].name.clone();
        self.operators.spawn(async move {
            let operation = match &edit {
                Some(edit) => format!("{edit:?}"),
                None => format!("seek to {all:?}"),
            };
            truth.log(format_args!("{name} starts: {operation}"));
            let done = match edit {
                Some(AdminEdit::Clear) => consumer.clear_positions(IfLeased::Force).await,
                Some(AdminEdit::Set { positions }) => {
                    let (shard, checkpoint) = positions[0].clone();
                    consumer.set_position(&shard, checkpoint, IfLeased::Force).await
                }
                Some(edit) => unreachable!("an edit that no operator makes: {edit:?}"),
                None => consumer.seek(all).await,
            };
            match done {
                Ok(()) => truth.lock().has_moved(ordinal),
                Err(error) => truth.log(format_args!("the positions are not moved: {error}")),
            }
            truth.log(format_args!("{name} has finished: {operation}"));
        });
    }

    fn move_one(&mut self) -> AdminEdit {
        let shards = self.orders.shards();
        let shard = &shards[self.rng.usize(..shards.len())];
        let facts = self.truth.lock();
        let numbers = facts.places.iter().filter(|(_, place)| place.0 == shard.index());
        let numbers: Vec<_> = numbers.map(|(number, _)| number.clone()).collect();
        drop(facts);
        let checkpoint = match self.rng.usize(..=numbers.len()) {
            place if place < numbers.len() => Checkpoint::AfterSequenceNumber {
                sequence_number: numbers[place].clone(),
                sub_sequence_number: None,
            },
            _ if !shard.is_open() && self.rng.bool() => Checkpoint::ShardEnd,
            _ => Checkpoint::TrimHorizon,
        };
        AdminEdit::Set { positions: vec![(shard.id(), checkpoint)] }
    }

    fn separate_operator(&mut self) -> (Consumer, usize) {
        let plan = self.scene.plan(&mut self.rng);
        let name = format!("operator {}", self.truth.lock().workers.len());
        let worker = self.truth.lock().add_worker(WorkerState::new(name, &plan));
        let store = SimulatedStore {
            stored: self.stored.clone(),
            truth: self.truth.clone(),
            worker,
            panics: self.panics.of_one(),
        };
        let builder = Consumer::builder(self.kinesis.client(), "orders")
            .wall_clock(&WallClock::at(self.kinesis.now()))
            .store(store);
        (builder.build().expect("the options are valid"), worker)
    }
}

/// The time for which a worker must have reached the store to be sure to know its table: a call
/// that hung may have taken 10 s of it.
const TABLE_KNOWN_AFTER: Duration = Duration::from_secs(25);

impl Facts {
    /// Registers that a consumer has moved positions: its own worker delivers nothing from before,
    /// unless it cannot know the change.
    fn has_moved(&mut self, ordinal: usize) {
        if self.workers[ordinal].reachable_for() < TABLE_KNOWN_AFTER
            || self.lost_data
            || self.clock_moved
        {
            return;
        }
        let seek_epochs = self.shards.iter().map(|shard| shard.since).enumerate().collect();
        self.workers[ordinal].seek_epochs = seek_epochs;
    }
}
