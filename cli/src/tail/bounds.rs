//! The end of a reading, and the shards that it reads.

use std::time::SystemTime;

use kinestream::{ConsumerBuilder, EndingPosition, ShardId};

use crate::arguments::TailArguments;

/// Sets the end of `--until` or `--exit-at-end`.
pub(super) fn until(builder: ConsumerBuilder, arguments: &TailArguments) -> ConsumerBuilder {
    let end = match arguments.until {
        Some(time) => EndingPosition::AtTimestamp(time),
        None if arguments.exit_at_end => EndingPosition::Latest,
        None => EndingPosition::Never,
    };
    builder.ending_position(end)
}

/// Sets the end of a window: a time, or the current end of the stream.
pub(super) fn window(builder: ConsumerBuilder, end: Option<SystemTime>) -> ConsumerBuilder {
    builder.ending_position(end.map_or(EndingPosition::Latest, EndingPosition::AtTimestamp))
}

/// Sets the shards of `--shard`.
pub(super) fn shards(builder: ConsumerBuilder, shards: &[ShardId]) -> ConsumerBuilder {
    if shards.is_empty() { builder } else { builder.only_shards(shards.iter().cloned()) }
}
