//! Amazon Kinesis shards as futures `Stream`s.

mod checkpoint;
mod consumer;
mod error;
mod lineage;
mod pace;
mod record;
mod shard;
mod source;
pub mod store;

pub use checkpoint::Checkpoint;
pub use consumer::{Consumer, ConsumerBuilder, Records, Shards};
pub use error::{Error, ErrorKind, Result};
pub use lineage::{Ordering, ShardPosition, StartingPosition};
pub use record::{EncryptionType, Record, SequenceNumber, ShardId};
pub use shard::{CheckpointOn, ShardStream};
pub use source::OnTrimmed;
#[cfg(feature = "redis")]
pub use store::RedisStore;
pub use store::{CheckpointStore, MemoryStore};
