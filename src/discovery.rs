//! Discovery of a stream's shards, and the order in which they may be read.
//!
//! ```text
//!            every parent finished,
//!            or unordered reading
//!   waiting ────────────────────────► readable ── every record acknowledged ──► finished
//! ```
//!
//! The states follow from the lease table that the workers of an application share. A parent that
//! is not in the table has left retention, and its children do not wait for it.

mod changes;
mod confirmation;
mod failure_patience;
mod identity;
mod lineage;
mod listing;
mod loss;
mod migrated_positions;
mod read_rules;
mod scope_migration;
mod start;
mod stream_shards;
mod unlisted;

pub(crate) use changes::{Changes, ShardStart};
pub(crate) use confirmation::Confirmations;
pub(crate) use listing::{Memory, ShardDiscovery};
pub(crate) use loss::{Loss, Report};
pub(crate) use read_rules::{ReadRules, is_open};
pub(crate) use scope_migration::ScopeMigration;
pub(crate) use start::Start;
pub use start::{ShardPosition, StartingPosition};
pub(crate) use stream_shards::StreamShards;

/// The order in which a shard and its children are read.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, ShardOrdering};
///
/// let consumer =
///     Consumer::builder(client, "orders").ordering(ShardOrdering::Unordered).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ShardOrdering {
    /// Reads a shard only when all its parents are read to the end and every record of them is
    /// acknowledged. The records of one partition key are delivered in order, also over a split or
    /// a merge.
    #[default]
    ParentFirst,
    /// Reads every shard at once, without waiting for its parents.
    Unordered,
}
