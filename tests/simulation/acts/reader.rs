//! The reader of an act: its delivered records, its errors and its reported gaps.

use std::fmt;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::{
    CheckpointOn, Consumer, ConsumerBuilder, Error, ErrorKind, Event, Events, OnTrimmed, Record,
    ShardId, StartingPosition,
};
use tokio::time::{Instant, timeout_at};

use super::Act;
use crate::merged::Merged;
use crate::simulated_clock::consumer_of;
use crate::truth::{Promise, Truth, index_of};

pub(super) struct ActReader {
    pub(super) consumer: Consumer,
    stream: Merged,
    events: Events,
    truth: Truth,
    mode: CheckpointOn,
    /// The numbers of the delivered records, in order of delivery.
    pub(super) delivered: Vec<usize>,
    pub(super) errors: Vec<Error>,
    /// The reported gaps, and the times of the reports.
    pub(super) gaps: Vec<(ShardId, Instant)>,
}

impl Act {
    pub(super) fn begin(&self, start: StartingPosition, on_trimmed: OnTrimmed) -> ActReader {
        self.truth.log(format_args!("a reader starts: {start:?}, {on_trimmed:?}"));
        self.begin_with(|builder| builder.starting_position(start).on_trimmed(on_trimmed))
    }

    /// Starts a reader with these options in addition to those of the plan.
    pub(super) fn begin_with(
        &self,
        options: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder,
    ) -> ActReader {
        let builder = consumer_of(&self.kinesis, self.kinesis.client(), "orders");
        let builder = options(self.plan.apply(builder).store(self.store.clone()));
        let consumer = builder.build().expect("the plan's options are valid");
        ActReader {
            stream: Merged::new(&consumer, self.truth.clone(), &self.plan),
            events: consumer.events(),
            consumer,
            truth: self.truth.clone(),
            mode: self.plan.mode,
            delivered: Vec::new(),
            errors: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// Reads until all of these records are delivered.
    pub(super) async fn read_all(&self, reader: &mut ActReader, numbers: &[usize]) {
        let by = self.deadline();
        let missing = |reader: &ActReader| {
            let mut missing = numbers.to_vec();
            missing.retain(|number| !reader.delivered.contains(number));
            missing
        };
        while !missing(reader).is_empty() && Instant::now() < by {
            reader.read_for(Duration::from_secs(5)).await;
        }
        let missing = missing(reader);
        if !missing.is_empty() {
            self.breaks(
                Promise::NothingIsLost,
                format_args!("records {missing:?} are not delivered"),
            );
        }
    }

    /// Checks that the reader yielded only errors of these kinds.
    pub(super) fn check_errors(&self, reader: &ActReader, allowed: &[ErrorKind]) {
        for error in reader.errors.iter().filter(|error| !allowed.contains(&error.kind())) {
            self.breaks(Promise::FewErrors, format_args!("{error}"));
        }
    }

    /// Checks that within a shard no record is skipped after the first one.
    pub(super) fn check_order(&self, reader: &ActReader, begins_again: bool) {
        self.check_order_but(reader, begins_again, |_, _| false);
    }

    /// Checks that within a shard no record is skipped after the first one, except those that may
    /// be left out.
    pub(super) fn check_order_but(
        &self,
        reader: &ActReader,
        begins_again: bool,
        may_be_left_out: impl Fn(&ShardId, usize) -> bool,
    ) {
        for shard in self.orders.shards() {
            let of_shard = |number: &usize| self.puts[*number].shard == shard.index();
            let all: Vec<usize> = (0..self.puts.len()).filter(of_shard).collect();
            let place = |number: &usize| all.iter().position(|one| one == number);
            let delivered = reader.delivered.iter().filter(|number| of_shard(number));
            let places: Vec<usize> = delivered.filter_map(place).collect();
            for pair in places.windows(2) {
                let skipped = all.get(pair[0] + 1..pair[1]).unwrap_or_default();
                if skipped.iter().any(|number| !may_be_left_out(&shard.id(), *number))
                    || pair[1] <= pair[0] && !begins_again
                {
                    self.breaks(
                        Promise::Order,
                        format_args!(
                            "shard {}: indexes {pair:?} of records {all:?} in this order",
                            shard.index()
                        ),
                    );
                }
            }
        }
    }
}

impl ActReader {
    pub(super) async fn seek(&self, to: StartingPosition) -> kinestream::Result<()> {
        self.truth.log(format_args!("seek: {to:?}"));
        self.consumer.seek(to).await
    }

    /// Reads for this time, and acknowledges each record at once.
    pub(super) async fn read_for(&mut self, time: Duration) {
        self.read(time, usize::MAX).await;
    }

    /// Reads up to `most` records in this time, and acknowledges each record at once.
    pub(super) async fn read(&mut self, time: Duration, most: usize) {
        let end = Instant::now() + time;
        for _ in 0..most {
            let Ok(next) = timeout_at(end, self.stream.next()).await else { break };
            match next {
                Some(Ok(record)) => {
                    self.note(&record);
                    if self.mode == CheckpointOn::Ack {
                        record.ack();
                    }
                }
                Some(Err(error)) => {
                    self.truth.log(format_args!("error: {error}"));
                    self.errors.push(error);
                }
                None => {
                    self.truth.breaks(
                        Promise::Progress,
                        format_args!("the stream ends although the consumer is open"),
                    );
                    break;
                }
            }
        }
        self.note_gaps();
    }

    /// Registers the gaps that were reported since the last call.
    pub(super) fn note_gaps(&mut self) {
        for event in self.new_events() {
            if let Event::Gap { shard_id, .. } = event {
                self.gaps.push((shard_id, Instant::now()));
            }
        }
    }

    /// Waits up to this time for one record.
    pub(super) async fn next(&mut self, time: Duration) -> Option<Record> {
        let next = tokio::time::timeout(time, self.stream.next()).await.ok()??;
        match next {
            Ok(record) => {
                self.note(&record);
                Some(record)
            }
            Err(error) => {
                self.truth.log(format_args!("error: {error}"));
                self.errors.push(error);
                None
            }
        }
    }

    pub(super) fn log(&self, line: fmt::Arguments<'_>) {
        self.truth.log(line);
    }

    pub(super) fn new_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.next().now_or_never().flatten()).collect()
    }

    fn note(&mut self, record: &Record) {
        let text = std::str::from_utf8(record.data()).expect("the payload is text");
        let number = text.parse().expect("the payload is a number");
        let shard = index_of(record.shard_id());
        self.truth.log(format_args!("record: {number} of shard {shard}"));
        self.delivered.push(number);
    }

    pub(super) async fn close(self) {
        let Self { consumer, stream, .. } = self;
        drop(stream);
        consumer.close().await.expect("the store of an act does not fail");
    }
}
