//! Amazon Kinesis Data Streams as futures `Stream`s.
//!
//! A [`Consumer`] reads one stream for one application. It has two doors: [`Consumer::records`],
//! every record of all shards, merged; and [`Consumer::shards`], each shard as a
//! [`ShardStream`] of its own. Both are streams that you drive, with `.next().await` or any
//! combinator. What a long-running reader of Kinesis has to deal with (limits, throttling, expired
//! iterators, resharding, lost connections, restarts) happens inside.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures::StreamExt;
//! use kinestream::{Consumer, StartingPosition};
//!
//! let config = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
//! let client = aws_sdk_kinesis::Client::new(&config);
//!
//! let consumer = Consumer::builder(client, "orders")       // a name or an ARN
//!     .application("billing")                              // whose checkpoints these are
//!     .starting_position(StartingPosition::TrimHorizon)    // where no checkpoint exists yet
//!     .build()?;                                           // positions are kept in memory
//!
//! let mut records = consumer.records();
//! while let Some(record) = records.next().await {
//!     let record = record?;
//!     println!("{} {} {:?}", record.shard_id(), record.sequence_number(), record.data());
//! }
//! consumer.close().await?;
//! # Ok(()) }
//! ```
//!
//! The [`guide`] has a page for each thing that a reader of Kinesis meets sooner or later.
//!
//! # Positions
//!
//! How far each shard is finished is its [`Checkpoint`], and a [`CheckpointStore`] keeps it:
//! [`MemoryStore`] for as long as the process runs, `RedisStore` in Redis, or [one of your
//! own](store#a-store-of-your-own). Checkpoints are written by a task of their own, at most once in
//! [`checkpoint_interval`], all shards in one call, and at once at the end of a shard and on
//! [`Consumer::close`]. A crash repeats what was finished since the last write, and loses nothing.
//!
//! # When a record is finished
//!
//! With [`CheckpointOn::Pull`], the default, when the stream is polled again: right for a loop
//! that is done with one record before it asks for the next, wrong for anything concurrent or
//! buffered. With [`CheckpointOn::Ack`], when [`Record::ack`] was called:
//!
//! ```no_run
//! # async fn write(record: &kinestream::Record) -> kinestream::Result<()> { Ok(()) }
//! # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
//! use futures::TryStreamExt;
//! use kinestream::{CheckpointOn, Consumer};
//!
//! let consumer = Consumer::builder(client, "orders")
//!     .application("billing")
//!     .checkpoint_on(CheckpointOn::Ack)
//!     .build()?;
//! consumer
//!     .records()
//!     .try_for_each_concurrent(64, |record| async move {
//!         write(&record).await?;
//!         record.ack();
//!         Ok(())
//!     })
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! # Order
//!
//! Records of a shard come in order; shards take turns. When a shard is split or merged, its
//! children are read once it is read to its end *and* finished, so the records of one partition
//! key come in order over a reshard as well ([`ShardOrdering::ParentFirst`]).
//!
//! # Pushed records
//!
//! With [`fan_out`](ConsumerBuilder::fan_out) Kinesis pushes records, as AWS's enhanced fan-out does, by a
//! consumer that is registered with the stream. It costs extra, and is worth it where several
//! applications read a stream, or where a second of delay is too much. Nothing else changes: a
//! subscription is renewed before its five minutes end, taken up again after whatever ended it, and let
//! go while you do not ask for records.
//!
//! # Packed records
//!
//! Producers pack small records into large ones: the Kinesis Producer Library does, and others that
//! write its format. They come out [one by one](ConsumerBuilder::deaggregate), each with a
//! [`partition_key`](Record::partition_key) of its own, and are finished one by one: a checkpoint may
//! lie among them.
//!
//! # Several workers
//!
//! Consumers with the same application and stream share the shards, if they have a `RedisStore` on
//! the same Redis, or clones of one [`MemoryStore`]: start the program once more, on this machine or
//! another. Shares differ by at most one; a newcomer has its share within two renewals, and who dies
//! is replaced within [`lease_duration`] and one renewal. A shard is handed over when what was pulled
//! of it is finished, so nothing comes twice but what a crash repeats.
//!
//! [`Record::epoch`] rises with every change of owner. A sink that refuses what bears a lower epoch
//! than it has seen of the shard is safe from a worker that was suspended with a record in hand:
//!
//! ```no_run
//! # use std::collections::HashMap;
//! # use kinestream::{Record, ShardId};
//! /// Writes the record, unless another worker has the shard by now.
//! fn write(epochs: &mut HashMap<ShardId, u64>, record: &Record) -> bool {
//!     let highest = epochs.entry(record.shard_id().clone()).or_default();
//!     if record.epoch() < *highest {
//!         return false;
//!     }
//!     *highest = record.epoch();
//!     // In the same transaction as the epoch.
//!     true
//! }
//! ```
//!
//! # Pace and memory
//!
//! A shard is asked at most every 200 ms, and every [`interval`] when it has nothing new; no more
//! bytes are asked for than its 2 MiB a second allow. Throttling slows it down and it recovers step
//! by step. Nothing is fetched without demand beyond [`prefetch`] batches a shard, nor beyond
//! [`max_buffered_bytes`] over all shards. A fetch under way goes on while you are busy elsewhere.
//!
//! # Errors
//!
//! A stream of records yields `Err` for what no retry cures: a stream that does not exist, denied
//! access, a checkpoint past retention, a store that has failed for too long. Each comes once,
//! says where it happened ([`Error`]), and does not end the stream unless nothing is left to read.
//! So `?` in the loop is a choice: to log and go on is another.
//!
//! # Seen from outside
//!
//! [`Consumer::events`] tells what happens, as a stream of typed [`Event`]s; [`Consumer::status`] how
//! every shard stands; `tracing` and, with the cargo feature `metrics`, counters and gauges tell it to
//! your own tools. The [guide to operations](guide::operations) has the table of metrics, and of what
//! to do about them.
//!
//! # Runtime
//!
//! Streams must be polled, and dropped, within a tokio runtime with time enabled. Dropping
//! everything ends all tasks; what is finished is saved first if the runtime lives on.
//!
//! [`lease_duration`]: ConsumerBuilder::lease_duration
//! [`checkpoint_interval`]: ConsumerBuilder::checkpoint_interval
//! [`interval`]: ConsumerBuilder::interval
//! [`prefetch`]: ConsumerBuilder::prefetch
//! [`max_buffered_bytes`]: ConsumerBuilder::max_buffered_bytes

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod checkpoint;
mod close_signal;
mod consumer;
mod cooldown;
mod discovery;
mod error;
mod fleet;
pub mod guide;
mod pacing;
mod record;
mod shard;
mod source;
pub mod store;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "serde")]
mod text_form;
mod wakers;

pub use checkpoint::{Checkpoint, InFlightLimit};
pub use consumer::{
    ApplicationStatus, Consumer, ConsumerBuilder, Health, IfLeased, Records, ShardState,
    ShardStatus, Shards,
};
pub use discovery::{ShardOrdering, ShardPosition, StartingPosition};
pub use error::{Error, ErrorKind, Result};
pub use record::{EncryptionType, Record, SequenceNumber, ShardId};
pub use shard::{CheckpointOn, ShardStream};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use source::fuzz_aggregate;
pub use source::{MemoryBudget, OnTrimmed};
#[cfg(feature = "redis")]
pub use store::RedisStore;
pub use store::{CheckpointStore, MemoryStore};
pub use telemetry::{Event, Events, ShardFailure, Task};

/// What stands in the README compiles.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../README.md")]
mod readme {}
