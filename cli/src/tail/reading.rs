//! The consumer that the arguments describe.

use std::time::SystemTime;

use aws_sdk_kinesis::Client;
use kinestream::{CheckpointOn, Consumer, ConsumerBuilder, ShardPosition, StartingPosition};

use super::bounds;
use crate::arguments::{Aws, TailArguments};
use crate::failure::{Failure, Outcome};
use crate::store;
use crate::time::Since;

/// A stream and the options of its reading.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    pub(super) client: Client,
    pub(super) stream: String,
    pub(super) arguments: &'a TailArguments,
    pub(super) aws: &'a Aws,
}

impl Reading<'_> {
    /// Builds the consumer of `--since`, `--until` and the other options.
    pub(super) async fn consumer(&self) -> Outcome<Consumer> {
        let arguments = self.arguments;
        let mut builder = self.builder();
        builder = match (&arguments.since, &arguments.shard[..]) {
            (Since::Latest, _) => builder.starting_position(StartingPosition::Latest),
            (Since::TrimHorizon, _) => builder.starting_position(StartingPosition::TrimHorizon),
            (Since::Time(time), _) => {
                builder.starting_position(StartingPosition::AtTimestamp(*time))
            }
            (Since::Sequence(number), [shard]) => {
                let position = ShardPosition::AtSequenceNumber(number.clone());
                builder.starting_position_for(shard.clone(), position)
            }
            (Since::Sequence(_), _) => {
                return Err(Failure::new("a sequence number belongs to one shard"));
            }
        };
        builder = bounds::until(builder, arguments);
        if let (Some(application), Some(store)) = (&arguments.application, &arguments.store) {
            let store = store::connect(store, self.aws, &self.stream).await?;
            builder = builder.application(application).store(store);
        }
        if let Some(consumer) = &arguments.fan_out {
            builder = builder.fan_out(consumer);
        }
        Ok(builder.build()?)
    }

    /// Builds a consumer of the records from `from` to `until`, or to the current end of the stream.
    pub(super) fn window(
        &self,
        from: StartingPosition,
        until: Option<SystemTime>,
    ) -> Outcome<Consumer> {
        let builder = self.builder().starting_position(from);
        Ok(bounds::window(builder, until).build()?)
    }

    fn builder(&self) -> ConsumerBuilder {
        // A record is acknowledged once it is printed. Several records are printed at once.
        let mut builder = Consumer::builder(self.client.clone(), self.stream.as_str())
            .checkpoint_on(CheckpointOn::Ack);
        if self.arguments.sort {
            // A shard whose record is held is not polled, and continues to fetch for some seconds.
            builder = builder.prefetch(4);
        }
        bounds::shards(builder, &self.arguments.shard)
    }
}
