//! Amazon Kinesis shards as futures `Stream`s.

mod checkpoint;
mod error;
mod record;
pub mod store;

pub use checkpoint::Checkpoint;
pub use error::{Error, ErrorKind, Result};
pub use record::{EncryptionType, Record, SequenceNumber, ShardId};
pub use store::{CheckpointStore, MemoryStore};
