//! Checkpoint stores: the [`CheckpointStore`] trait, and the stores that come with the crate.
//!
//! # A store of your own
//!
//! Implement the two required methods of [`CheckpointStore`] and run [`conformance::check`] on the
//! store in a test. Such a store keeps positions only, so each worker reads all shards. To share
//! shards among workers, [implement `LeaseStore`](lease#a-store-of-your-own) instead. The store does not keep the first sequence number of a shard. If a
//! stream is deleted and created again under the same name, a stored `SHARD_END` also applies to
//! the new shard of the same id, and that shard is not read. Delete the stored positions before you
//! create the stream again. A complete store that keeps its positions in files:
//!
//! ```
//! use std::collections::HashMap;
//! use std::path::PathBuf;
//!
//! use futures::future::BoxFuture;
//! use futures::FutureExt;
//! use kinestream::store::{conformance, CheckpointStore, Scope};
//! use kinestream::{Checkpoint, Error, ErrorKind, Result, ShardId};
//!
//! /// Keeps one file per application and stream, with one line per shard.
//! #[derive(Debug)]
//! struct FileStore {
//!     folder: PathBuf,
//!     /// Allows one writer at a time.
//!     writing: tokio::sync::Mutex<()>,
//! }
//!
//! impl FileStore {
//!     fn path(&self, scope: &Scope) -> PathBuf {
//!         self.folder.join(format!("{}.{}.txt", scope.application(), scope.stream()))
//!     }
//!
//!     fn read(&self, scope: &Scope) -> Result<HashMap<ShardId, Checkpoint>> {
//!         let path = self.path(scope);
//!         let text = match std::fs::read_to_string(&path) {
//!             Ok(text) => text,
//!             Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
//!             Err(error) => {
//!                 return Err(Error::new(ErrorKind::StoreUnavailable, format!("cannot read {path:?}")).with_source(error));
//!             }
//!         };
//!         text.lines()
//!             .map(|line| {
//!                 let (shard, checkpoint) = line
//!                     .split_once(' ')
//!                     .ok_or_else(|| Error::new(ErrorKind::StoreCorrupt, format!("{path:?} has line {line:?}")))?;
//!                 Ok((shard.parse()?, checkpoint.parse()?))
//!             })
//!             .collect()
//!     }
//! }
//!
//! impl CheckpointStore for FileStore {
//!     fn load<'a>(
//!         &'a self,
//!         scope: &'a Scope,
//!     ) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
//!         async move { self.read(scope) }.boxed()
//!     }
//!
//!     fn save<'a>(
//!         &'a self,
//!         scope: &'a Scope,
//!         checkpoints: &'a [(ShardId, Checkpoint)],
//!     ) -> BoxFuture<'a, Result<()>> {
//!         async move {
//!             let _alone = self.writing.lock().await;
//!             let mut all = self.read(scope)?;
//!             for (shard, checkpoint) in checkpoints {
//!                 if all.get(shard).is_none_or(|stored| checkpoint.supersedes(stored)) {
//!                     all.insert(shard.clone(), checkpoint.clone());
//!                 }
//!             }
//!             let text: String =
//!                 all.iter().map(|(shard, checkpoint)| format!("{shard} {checkpoint}\n")).collect();
//!             let new = self.path(scope).with_extension("new");
//!             std::fs::write(&new, text)
//!                 .and_then(|()| std::fs::rename(&new, self.path(scope)))
//!                 .map_err(|error| Error::new(ErrorKind::StoreUnavailable, "cannot write checkpoints").with_source(error))
//!         }
//!         .boxed()
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let folder = std::env::temp_dir().join(format!("kinestream-{}", std::process::id()));
//! std::fs::create_dir_all(&folder).unwrap();
//! let store = FileStore { folder: folder.clone(), writing: Default::default() };
//! conformance::check(&store).await;
//! # std::fs::remove_dir_all(folder).unwrap();
//! # }
//! ```
//!
//! # Redis key layout
//!
//! The store writes up to six keys for each application and stream, in format 1. All but the last
//! hold plain text. `stream` is the stream's name if the consumer was built from a name. It is
//! `account:region:name`, such as `123456789012:eu-west-1:orders`, if the consumer was built from
//! an ARN. See [From a stream name to an ARN](crate::guide::migrating#from-a-stream-name-to-an-arn)
//! for changing a consumer from one to the other.
//!
//! | key | type | content |
//! |---|---|---|
//! | `kinestream:{application:stream}:format` | string | `1` |
//! | `kinestream:{application:stream}:checkpoints` | hash | the [`Checkpoint`] of each shard as text |
//! | `kinestream:{application:stream}:leases` | hash | per shard `epoch owner next_owner origin parents state start unlisted added` |
//! | `kinestream:{application:stream}:workers` | hash | per worker `incarnation joined duration expiry capacity size load` |
//! | `kinestream:{application:stream}:fleet` | hash | `generation`, `version`, `cleared` and `first_poll` of the [table](lease::LeaseTable); `keys`, the names of the other keys that exist |
//! | `kinestream:{application:stream}:steps` | list | for each of the last 256 steps its version, the one before, and the changed fields, in `MessagePack`. Workers that know one of these versions read only what has changed since |
//!
//! In a lease, `-` stands for a missing value, `?` for unknown parents, and parents are separated
//! by commas. The state is `LOST` if the shard [expired](lease::Lease::is_shard_expired) before it
//! was read to its end. `start` is the first sequence number of the shard. `unlisted` is the time
//! at which a listing first lacked the finished shard. `added` is the time at which the shard was
//! added. A worker's `capacity` is the most shards that it accepts, `size` its
//! [`capacity`](crate::ConsumerBuilder::capacity) in hundredths, and `load` is
//! [its load](lease::WorkerLoad): `others:strain`, and `,shard:load` for each named shard. Further words
//! after these are kept as they are. Epochs, durations, expiries,
//! `unlisted`, `added` and `cleared` are in milliseconds; `joined`, origins, generations and
//! versions are in microseconds. Both use the clock of Redis. `first_poll` is in milliseconds, by
//! the clock of a worker.
//!
//! In the application's name, `:` is written `%3A` and `%` is written `%25`; in a worker's name,
//! `%` is written `%25` and a space `%20`. The braces are a hash tag: in Redis Cluster, all keys are on one node. The
//! keys never expire.
//!
//! ```text
//! 127.0.0.1:6379> HGETALL kinestream:{billing:orders}:checkpoints
//! 1) "shardId-000000000000"
//! 2) "SHARD_END"
//! 3) "shardId-000000000001"
//! 4) "AFTER_SEQUENCE_NUMBER:49590338271490256608559692538361571095921575989136588898"
//! 5) "shardId-000000000002"
//! 6) "CAUGHT_UP:1767225600000:49590338271490256608559692538361571095921575989136588914"
//! ```
//!
//! The third shard is quiet. `CAUGHT_UP` holds the time up to which no other record had arrived, in
//! milliseconds since 1970 by the clock of Kinesis, and the last acknowledged record, if there is
//! one.
//!
//! `HGETALL …:leases` shows the owner of each shard, and `HGETALL …:workers` the live workers. A
//! program gets the same from [`Consumer::status`](crate::Consumer::status).
//!
//! # Moving a position
//!
//! [`Consumer::set_position`](crate::Consumer::set_position) moves the position of one shard.
//! [`Consumer::clear_positions`](crate::Consumer::clear_positions) resets an application to its
//! starting position. Both fail while a live worker uses what they change, unless they are forced.
//!
//! To move a position by hand with `redis-cli`, stop all workers first. Set the shard's field in
//! `…:checkpoints` to another checkpoint; without the field, the shard is read from the oldest
//! record in retention. To reset an application, delete all its keys. Live workers restore what an
//! emptied Redis has forgotten, so stop them first, or use `clear_positions`.
//!
//! # Unreadable fields
//!
//! A damaged field of `…:checkpoints` or `…:leases` affects only its shard. The shard is not read,
//! its children wait, and the field stays as it is. Each worker reports one error of kind
//! [`StoreCorrupt`](ErrorKind::StoreCorrupt) that names the key and the field, and
//! [`status`](crate::Consumer::status) shows [`Unreadable`](crate::ShardState::Unreadable). Correct
//! the field, or set the shard's position. Workers notice a corrected field within
//! [`discovery_interval`](crate::ConsumerBuilder::discovery_interval). A damaged lease may also be
//! deleted, and the next listing adds it again. Delete it only while its owner is stopped: the new
//! lease has no owner, so another worker may deliver the shard until the owner's next renewal.
//!
//! A damaged field of `…:workers` is replaced when its worker renews. If it does not renew, its
//! leases become free after the lease duration of another worker. A damaged field of `…:fleet` is
//! treated like a lost key.
//!
//! # Data loss in Redis
//!
//! Redis replicates asynchronously, and without persistence it loses its data at a restart. A
//! failover can therefore bring back older positions, leases and shards, and a restart can bring
//! back none. This causes redelivery, but no record is lost as long as one worker stays alive:
//!
//! - A worker that finds an older position or an older epoch than its own continues from its own
//!   position and saves it with its next step. A lease that the old master granted and the new
//!   master does not know stays with its owner, unless the new master has assigned it to another
//!   worker. In that case the first owner stops at its next renewal, and the records that it had
//!   not saved are redelivered.
//! - Workers remember the table that they saw last, and restore it into an emptied Redis. A worker
//!   knows the exact positions of the shards that it reads. Its copy of all other positions is at
//!   most [`discovery_interval`](crate::ConsumerBuilder::discovery_interval) old.
//! - The loss of a single key, by eviction or deletion, is handled the same way: the next call of a
//!   worker finds that the key is missing although the version is unchanged, and starts a new
//!   generation.
//! - A worker that starts before the data is restored starts the application from the beginning.
//!   Once another worker restores its positions, those positions apply, even if they are further
//!   back.
//! - [`seek`](crate::Consumer::seek) or [`set_position`](crate::Consumer::set_position) may be
//!   undone in the store if it ran shortly before the loss and moved positions back, since the
//!   further of two positions wins. Live readers continue from the moved position. Repeat the call.
//!
//! If Redis loses its data while no worker is alive, the application starts again at its starting
//! position.
//!
//! Epochs follow the clock of Redis, so they keep rising after a data loss. An epoch can be issued
//! twice only if Redis loses its data, its clock also goes back behind the last change of owner,
//! and no worker restores the table first.

pub mod conformance;
#[cfg(feature = "dynamodb")]
mod dynamodb;
mod guarded_store;
pub mod lease;
mod leased;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod scope;
mod single_worker_leases;
#[cfg(any(feature = "redis", feature = "dynamodb"))]
mod unfenced;
mod writer;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;

#[cfg(feature = "dynamodb")]
pub use dynamodb::DynamoDbStore;
pub(crate) use guarded_store::GuardedStore;
pub use lease::LeaseStore;
pub use leased::Leased;
pub use memory::MemoryStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub use scope::Scope;
pub(crate) use scope::{Mark, parse_arn};
use single_worker_leases::SingleWorkerLeases;
pub(crate) use writer::{FlushConfig, ReaderGate, TrackedWatermark, Writer};

/// Stores the position of each shard, for each application and stream.
///
/// See the [module page](crate::store#a-store-of-your-own) for a complete store in a file.
///
/// One store serves many consumers at the same time, of any application and stream. It is called
/// from separate tasks, so a slow store does not delay records until
/// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed) has passed.
///
/// # Errors
///
/// [`ErrorKind::StoreUnavailable`]
/// is retried with back-off. Any other kind is reported to the caller once, and is then retried as
/// well.
///
/// # Cancel safety
///
/// A future may be dropped before it is ready; one that takes longer than 10 s is dropped. The same
/// positions are then saved again later, and `save` must allow that. Comparing with
/// [`Checkpoint::supersedes`] is sufficient.
pub trait CheckpointStore: Debug + Send + Sync + 'static {
    /// Returns all checkpoints of one application and stream, or an empty map if none was ever
    /// saved.
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>>;

    /// Returns all checkpoints of one application and stream, each as a separate result.
    ///
    /// A shard with an error is not read and its children wait, until a later call returns a
    /// checkpoint for it; the error is reported to the caller once. An error of
    /// [`load`](Self::load) stops all shards.
    ///
    /// Called at the start, and about every 30 s while a shard has an error.
    ///
    /// Default: calls [`load`](Self::load). A store that wraps another store forwards this call.
    #[allow(clippy::type_complexity)]
    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        let load = self.load(scope);
        async move {
            let checkpoints = load.await?.into_iter();
            Ok(checkpoints.map(|(shard, checkpoint)| (shard, Ok(checkpoint))).collect())
        }
        .boxed()
    }

    /// Saves the checkpoints of some shards, and leaves all other shards as they are. Each shard
    /// occurs at most once in the list.
    ///
    /// For each shard, the new checkpoint replaces the stored one only if it
    /// [supersedes](Checkpoint::supersedes) it or if nothing is stored. Comparing and storing must
    /// be one atomic step, since other processes may save at the same time. Keeping the stored
    /// checkpoint is not an error.
    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>>;

    /// Returns the default of
    /// [`checkpoint_interval`](crate::ConsumerBuilder::checkpoint_interval) with this store.
    ///
    /// Default: 1 s. A store in which each saved position costs money returns a longer time. A store
    /// that wraps another store forwards this call.
    fn default_checkpoint_interval(&self) -> Duration {
        DEFAULT_CHECKPOINT_INTERVAL
    }

    /// Returns this store as a [`LeaseStore`] if it supports leases. Workers then share the shards.
    ///
    /// Default: `None`. Each worker then reads every shard. A store that wraps another store
    /// forwards this call to support leases.
    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        None
    }
}

/// Returns the checkpoints of all shards, or the error of one that has no readable checkpoint.
pub(in crate::store) fn all_or_error(
    each: HashMap<ShardId, Result<Checkpoint>>,
) -> Result<HashMap<ShardId, Checkpoint>> {
    each.into_iter().map(|(shard, checkpoint)| Ok((shard, checkpoint?))).collect()
}

impl<S: CheckpointStore + ?Sized> CheckpointStore for Arc<S> {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        (**self).load(scope)
    }

    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        (**self).load_each(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        (**self).save(scope, checkpoints)
    }

    fn default_checkpoint_interval(&self) -> Duration {
        (**self).default_checkpoint_interval()
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Arc::clone(&*self).leases()
    }
}

/// Returns the store's leases, or leases in memory for a store without lease support. The flag is
/// true for leases in memory.
pub(crate) fn leases_of(store: &Arc<dyn CheckpointStore>) -> (Arc<dyn LeaseStore>, bool) {
    match Arc::clone(store).leases() {
        Some(leases) => (leases, false),
        None => (Arc::new(SingleWorkerLeases::new(Arc::clone(store))), true),
    }
}

pub(crate) fn leases_unsupported() -> Error {
    let message = "this store does not support leases; change its checkpoints directly";
    Error::new(ErrorKind::Configuration, message)
}

/// The default of [`CheckpointStore::default_checkpoint_interval`].
const DEFAULT_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time that a call of a store may take.
pub(crate) const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the result of a store's call, or an error if it takes longer than [`STORE_CALL_TIMEOUT`].
pub(crate) async fn with_timeout<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(STORE_CALL_TIMEOUT, call).await.unwrap_or_else(|elapsed| {
        let message = format!("the checkpoint store did not answer within {STORE_CALL_TIMEOUT:?}");
        Err(Error::new(ErrorKind::StoreUnavailable, message).with_source(elapsed))
    })
}
