//! A record for unit tests, and an in-memory Kinesis for integration tests.
//!
//! [`record()`] builds a [`Record`](crate::Record) with fields of your choice, and shows whether it
//! was acknowledged.
//!
//! [`Kinesis`] keeps streams and shards in this process and serves the real SDK client without a
//! socket. It applies Kinesis's rules and limits by tokio's clock: with a paused clock, ten minutes
//! of reading pass in milliseconds. It can also fail calls on demand.
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
//!     // The next three reads are throttled, as if other readers used up the shard's throughput.
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
//! # Supported operations and limits
//!
//! A client can call `ListShards`, `GetShardIterator`, `GetRecords`, `PutRecord` and `PutRecords`,
//! and for enhanced fan-out `DescribeStreamSummary`, `RegisterStreamConsumer`,
//! `DescribeStreamConsumer`, `DeregisterStreamConsumer` and `SubscribeToShard`. Any other call is
//! refused as an unknown operation. Methods of [`Kinesis`], [`Stream`] and [`Shard`] do the rest.
//!
//! A call in JSON is answered in JSON, and a call in CBOR in CBOR, as by Kinesis.
//! `SubscribeToShard` is JSON only. [`set_cbor`](Kinesis::set_cbor) imitates servers without CBOR,
//! with other forms of it, or with faults in it.
//!
//! - A shard serves 5 reads and 5 iterators per second. A response has at most 10,000 records and
//!   10 MiB, and a shard serves 2 MiB per second: the next read waits until the last response is
//!   paid for at that rate. Calls beyond a limit are refused as by Kinesis and noted as a
//!   [violation](Kinesis::violations). So are a page token together with a stream name, and an
//!   unknown iterator.
//! - An iterator is valid for five minutes and can be used again until then. A page token is valid
//!   for 300 s.
//! - `MillisBehindLatest` is the age of the next record. A closed shard ends with its children.
//! - A subscription lasts five minutes and sends an event at least every five seconds. A new
//!   subscription of the same registered consumer replaces it, but is refused within five seconds
//!   of the last one. A stream has at most 20 registered consumers.
//! - The last sequence number of a closed shard is refused as `AFTER_SEQUENCE_NUMBER`, as by some
//!   servers.
//!
//! Writes have no limits.

// The wire format has times as floating-point seconds, and tests run where `usize` has 64 bits.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod aggregate;
mod answer;
mod calls;
mod cbor;
mod consumers;
mod contents;
mod kinesis;
mod listings;
mod model;
mod operations;
mod record;
mod stream;
mod subscriptions;
mod wall;
mod wire;

pub use aggregate::aggregate;
pub use calls::{Call, Interruption, Outcome, WrongListing};
pub use cbor::CborSupport;
pub use kinesis::Kinesis;
pub use record::{TestRecord, record, records};
pub use stream::{Shard, Stream};
pub use wall::WallClock;
