//! A Kinesis in memory, for testing what you build on this crate.
//!
//! [`Kinesis`] keeps streams and shards in this process and serves the real SDK client, without a
//! socket. It keeps Kinesis's rules and limits by tokio's clock: where a test pauses that clock,
//! ten minutes of reading pass in milliseconds. And it fails calls when it is told to.
//!
//! ```
//! use std::time::Duration;
//!
//! use futures::StreamExt;
//! use kinestream::testing::{Kinesis, Outcome};
//! use kinestream::{Consumer, StartingPosition};
//!
//! # // The attribute, spelled out, so that the example runs.
//! # fn main() {
//! #   tokio::runtime::Builder::new_current_thread()
//! #       .enable_time().start_paused(true).build().unwrap().block_on(reads_over_a_split());
//! # }
//! # const IGNORED: &str = stringify!(
//! #[tokio::test(start_paused = true)]
//! # );
//! async fn reads_over_a_split() {
//!     let kinesis = Kinesis::new();
//!     let orders = kinesis.create_stream("orders", 1);
//!     orders.shard(0).put("before");
//!     let [left, _right] = orders.shard(0).split();
//!     left.put("after");
//!     // The next three reads find that somebody else has used up the shard's share.
//!     kinesis.next_calls("GetRecords", 3, Outcome::throttled());
//!
//!     let consumer = Consumer::builder(kinesis.client(), "orders")
//!         .starting_position(StartingPosition::TrimHorizon)
//!         .build()
//!         .unwrap();
//!     let mut records = consumer.records();
//!     assert_eq!(records.next().await.unwrap().unwrap().data(), b"before");
//!     assert_eq!(records.next().await.unwrap().unwrap().data(), b"after");
//!     assert_eq!(kinesis.violations(), [""; 0]);
//! }
//! ```
//!
//! # What it serves
//!
//! `ListShards`, `GetShardIterator`, `GetRecords`, `PutRecord` and `PutRecords`, and for enhanced
//! fan-out `DescribeStreamSummary`, `RegisterStreamConsumer`, `DescribeStreamConsumer`,
//! `DeregisterStreamConsumer` and `SubscribeToShard`, through a client; the rest by methods of
//! [`Kinesis`], [`Stream`] and [`Shard`]. Any other call is refused as an unknown operation.
//!
//! - A shard serves 5 reads a second, and 5 iterators; an answer has at most 10,000 records and
//!   10 MiB, and its bytes are paid for at 2 MiB a second. What goes beyond is refused as Kinesis
//!   does, and noted as a [violation](Kinesis::violations), as are a page token beside the name of
//!   a stream and an iterator that was never given.
//! - Iterators live for five minutes and may be used again until then; page tokens live for 300 s.
//! - `MillisBehindLatest` is the age of the next record. A closed shard ends with its children.
//! - A subscription lives for five minutes, is heard of every five seconds, and is taken over by
//!   another one of the same consumer, which is refused within five seconds. A stream has 20 consumers.
//! - The last number of a closed shard is refused as what to read after, as some servers do.
//!
//! Writes have no limits.

// The wire has times as floating-point seconds, and tests run where `usize` has 64 bits.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod aggregate;
mod calls;
mod consumers;
mod contents;
mod events;
mod kinesis;
mod limits;
mod listings;
mod model;
mod operations;
mod stream;
mod subscriptions;
mod wall;
mod wire;

pub use aggregate::aggregate;
pub use calls::{Call, Interruption, Outcome, WrongListing};
pub use kinesis::Kinesis;
pub use stream::{Shard, Stream};
pub use wall::WallClock;
pub(crate) use wall::{SharedClock, replaced_clock};
