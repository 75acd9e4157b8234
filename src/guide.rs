//! Guides, one page per topic.
//!
//! Start here:
//!
//! 1. [`delivery`]: when a record counts as acknowledged, which combinator needs `Ack`, and what to
//!    do with a record that fails.
//! 2. [`fleets`]: several workers, rebalancing, graceful shutdown, outages.
//! 3. [`operations`]: errors, events, logs, metrics, symptoms and remedies.
//! 4. [`probes`]: a consumer in Kubernetes: liveness, readiness, shutdown, scaling.
//! 5. [`cookbook`]: short programs for common tasks.
//!
//! Then, as needed:
//!
//! - [`permissions`]: the IAM policy, and the ACL and settings of Redis.
//! - `dynamodb` (with the cargo feature `dynamodb`): positions and leases in DynamoDB: the table, its
//!   costs and its layout.
//! - [`bounded_reads`]: backfills and jobs, as a stream that ends; some shards only.
//! - [`resharding`]: splits, merges and the order across them.
//! - [`pacing`]: intervals, limits, throttling, several applications on one stream.
//! - [`fan_out`]: enhanced fan-out.
//! - `testing` (with the cargo feature `testing`): a record for a unit test, and your pipeline on the
//!   in-memory Kinesis.
//! - [`migrating`]: from the KCL or go-kcl, and from a stream's name to its ARN.
//! - [`costs`]: CPU, memory, latency and compile time, measured.

#[doc = include_str!("guide/bounded_reads.md")]
pub mod bounded_reads {}

pub mod cookbook;

#[doc = include_str!("guide/costs.md")]
pub mod costs {}

#[doc = include_str!("guide/delivery.md")]
pub mod delivery {}

#[cfg(feature = "dynamodb")]
#[doc = include_str!("guide/dynamodb.md")]
pub mod dynamodb {}

#[doc = include_str!("guide/fan_out.md")]
pub mod fan_out {}

#[doc = include_str!("guide/fleets.md")]
pub mod fleets {}

#[doc = include_str!("guide/migrating.md")]
pub mod migrating {}

#[doc = include_str!("guide/operations.md")]
pub mod operations {}

#[doc = include_str!("guide/pacing.md")]
pub mod pacing {}

#[doc = include_str!("guide/permissions.md")]
pub mod permissions {}

#[doc = include_str!("guide/probes.md")]
pub mod probes {}

#[doc = include_str!("guide/resharding.md")]
pub mod resharding {}

#[cfg(feature = "testing")]
#[doc = include_str!("guide/testing.md")]
pub mod testing {}
