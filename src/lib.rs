//! An Amazon Kinesis Data Streams consumer as futures `Stream`s.
//!
//! A [`Consumer`] reads one stream for one application. [`Consumer::records`] returns the records
//! of all shards as one stream. [`Consumer::shards`] returns each shard as a separate
//! [`ShardStream`]. The program polls these streams with `.next().await` or any combinator. The
//! consumer handles API limits, throttling, expired iterators, resharding, lost connections and
//! restarts.
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
//!     .application("billing")                              // shares checkpoints and leases
//!     .starting_position(StartingPosition::TrimHorizon)    // used without a checkpoint
//!     .build()?;                                           // checkpoints are kept in memory
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
//! The [`guide`] has pages on delivery, fleets, operations, shutdown, testing and other topics: start with
//! [`guide::delivery`].
//!
//! # Installation
//!
//! ```sh
//! cargo add kinestream anyhow futures
//! cargo add aws-sdk-kinesis --no-default-features --features default-https-client,rt-tokio
//! cargo add aws-config --no-default-features --features default-https-client,rt-tokio
//! cargo add tokio --features macros,rt-multi-thread
//! ```
//!
//! | cargo feature | default | provides |
//! |---|---|---|
//! | `redis` | yes | `RedisStore`: Redis 6.2 or newer, or Valkey |
//! | `redis-tls` | no | `rediss://` URLs, by rustls with the system's certificates |
//! | `redis-cluster` | no | `RedisStore` on a Redis Cluster |
//! | `redis-sentinel` | no | `RedisStore` behind Redis Sentinel |
//! | `dynamodb` | no | `DynamoDbStore`: positions and leases in DynamoDB |
//! | `metrics` | no | counters and gauges for the `metrics` facade |
//! | `serde` | no | serialization of positions, status, [`Health`], [`Event`] and [`ErrorKind`] |
//! | `testing` | no | records and an in-memory Kinesis for your own tests |
//!
//! Most [examples](https://github.com/kinestream/kinestream/tree/main/examples) run on an embedded
//! Kinesis, without an account: `cargo run --example quickstart`.
//!
//! # Checkpoints
//!
//! The stored position of a shard is its [`Checkpoint`]. A [`CheckpointStore`] keeps the
//! checkpoints: [`MemoryStore`] in the process, `RedisStore` in Redis, `DynamoDbStore` in DynamoDB, or a
//! [custom store](store).
//! A separate task writes them at most once per [`checkpoint_interval`], for all shards in one
//! call, and at once at the end of a shard and on [`Consumer::close`]. After a crash, records that
//! were acknowledged since the last write are delivered again. No record is lost.
//!
//! # Acknowledgement
//!
//! With [`CheckpointOn::Pull`], the default, a record counts as acknowledged when the stream is
//! polled again. This is correct for a loop that completes one record before it polls for the next.
//! It is wrong for concurrent or buffered processing, other than by the adapters of
//! [`RecordStreamExt`]. With [`CheckpointOn::Ack`], the program calls [`Record::ack`]:
//!
//! ```no_run
//! # async fn write(record: &kinestream::Record) -> std::io::Result<()> { Ok(()) }
//! # async fn example(client: aws_sdk_kinesis::Client) -> anyhow::Result<()> {
//! use futures::TryStreamExt;
//! use kinestream::{CheckpointOn, Consumer};
//!
//! let consumer = Consumer::builder(client, "orders")
//!     .application("billing")
//!     .checkpoint_on(CheckpointOn::Ack)
//!     .build()?;
//! consumer
//!     .records()
//!     .err_into::<anyhow::Error>() // the error type of your handler
//!     .try_for_each_concurrent(64, |record| async move {
//!         write(&record).await?;
//!         record.ack();
//!         Ok(())
//!     })
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! [`RecordStreamExt`] adds combinators to every stream of records: concurrent handlers in order per
//! partition key, batches by number and time, decoding, and a filter that acknowledges.
//!
//! # Order
//!
//! Records of one shard are delivered in order, and shards take turns. After a split or merge, the
//! children are read when the parent is read to its end *and* all its records are acknowledged. The
//! records of one partition key therefore stay in order across a reshard
//! ([`ShardOrdering::ParentFirst`]).
//!
//! # Enhanced fan-out
//!
//! With [`fan_out`](ConsumerBuilder::fan_out), Kinesis pushes records to a consumer that is
//! registered with the stream. Enhanced fan-out costs extra. Use it if several applications read
//! the stream, or if a delay of one second is too long. Delivery, checkpoints and leases work as
//! with polling. A subscription is renewed before its limit of five minutes, restored after an
//! interruption, and ended while the caller takes no records.
//!
//! # Aggregated records
//!
//! The Kinesis Producer Library, and other producers that write its format, pack several small user
//! records into one aggregated record. User records are delivered
//! [separately](ConsumerBuilder::deaggregate), each with its own
//! [`partition_key`](Record::partition_key), and acknowledged separately. A checkpoint can lie
//! inside an aggregated record.
//!
//! # Several workers
//!
//! Consumers with the same application and stream share the shards if they use a `RedisStore` on
//! the same Redis, or clones of one [`MemoryStore`]. To add a worker, start the program again, on
//! any machine. Shares differ by at most one shard. A new worker receives its share within two
//! renewals. The shards of a failed worker are reassigned within [`lease_duration`] and one
//! renewal. A shard is handed off when its delivered records are acknowledged. A handoff therefore
//! causes no redelivery, unless it exceeds [`handoff_timeout`].
//!
//! [`Record::epoch`] rises with each change of owner. A sink can reject records with a lower epoch
//! than the highest one seen of the shard. This protects it from a worker that was suspended with
//! records in flight:
//!
//! ```no_run
//! # use std::collections::HashMap;
//! # use kinestream::{Record, ShardId};
//! /// Writes the record, unless another worker has acquired the shard.
//! fn write(epochs: &mut HashMap<ShardId, u64>, record: &Record) -> bool {
//!     let highest = epochs.entry(record.shard_id().clone()).or_default();
//!     if record.epoch() < *highest {
//!         return false;
//!     }
//!     *highest = record.epoch();
//!     // Write the record in the same transaction as the epoch.
//!     true
//! }
//! ```
//!
//! # Pace and memory
//!
//! A shard is polled at most every 210 ms, and every [`interval`] while it has no new records. The
//! consumer requests no more than the 2 MiB per second that Kinesis allows for a shard. When
//! throttled, it slows down, and then speeds up again step by step. Without demand it fetches at
//! most [`prefetch`] batches of each shard, and at most [`max_buffered_bytes`] over all shards. A
//! fetch continues while the caller is busy.
//!
//! # Errors
//!
//! A stream of records yields an `Err` for a failure that retrying does not fix: a stream that does
//! not exist, denied access, a checkpoint that has left retention, a store that has failed for too
//! long. Each failure is reported once, and the [`Error`] names the stream and shard. An error ends
//! the stream only if no shard is left to read. The `?` in the loop is therefore optional: a
//! program can also log the error and continue.
//!
//! # Observability
//!
//! [`Consumer::events`] returns a stream of typed [`Event`]s. [`Consumer::status`] returns the
//! state of every shard. The crate emits `tracing` spans and events, and with the cargo feature
//! `metrics` also counters and gauges. The [guide to operations](guide::operations) lists the
//! metrics, and symptoms with their remedies.
//!
//! # Runtime
//!
//! Streams must be polled and dropped within a tokio runtime with time enabled. When all clones and
//! streams are dropped, all tasks end. Before that, the checkpoints of acknowledged records are
//! saved if the runtime continues.
//!
//! [`lease_duration`]: ConsumerBuilder::lease_duration
//! [`handoff_timeout`]: ConsumerBuilder::handoff_timeout
//! [`checkpoint_interval`]: ConsumerBuilder::checkpoint_interval
//! [`interval`]: ConsumerBuilder::interval
//! [`prefetch`]: ConsumerBuilder::prefetch
//! [`max_buffered_bytes`]: ConsumerBuilder::max_buffered_bytes

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapters;
mod backoff;
mod checkpoint;
mod clock;
mod close_signal;
mod consumer;
mod cooldown;
mod discovery;
mod error;
mod fleet;
pub mod guide;
mod mutex;
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
mod worker_message;

pub use adapters::{
    AckFilter, Batches, BufferByKey, Decode, DecodeError, Decoded, RecordBatch, RecordStreamExt,
};
pub use checkpoint::{Checkpoint, InFlightLimit};
pub use consumer::{
    ApplicationStatus, Consumer, ConsumerBuilder, Health, Records, ShardState, ShardStatus, Shards,
    WorkerStatus,
};
pub use discovery::{ShardOrdering, ShardPosition, StartingPosition};
pub use error::{Error, ErrorKind, Result};
pub use record::{Acker, EncryptionType, Record, SequenceNumber, ShardId};
pub use shard::{CheckpointOn, ShardStream};
pub use source::{EndingPosition, MemoryBudget, OnTrimmed, WireFormat};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use source::{fuzz_aggregate, fuzz_cbor, fuzz_json};
#[cfg(feature = "dynamodb")]
#[doc(inline)]
pub use store::DynamoDbStore;
#[cfg(feature = "redis")]
#[doc(inline)]
pub use store::RedisStore;
#[doc(inline)]
pub use store::lease::IfLeased;
#[doc(inline)]
pub use store::{CheckpointStore, MemoryStore};
pub use telemetry::{Event, Events, FallbackReason, ShardFailure, Task};

/// Compile-tests the examples of the README.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../README.md")]
mod readme {}
