//! Where positions are kept: [`CheckpointStore`], and the stores that come with the crate.
//!
//! # A store of your own
//!
//! Implement the two methods of [`CheckpointStore`] and run [`conformance::check`] on it in a test
//! of yours. Such a store keeps positions, and whoever reads has all shards; for workers that share
//! them, see [`lease`]. It does not keep the starting sequence number of a shard, so `SHARD_END` of a
//! deleted stream also counts for the shard of the same id in a stream that is created again under that
//! name: the new shard is not read. Delete the stored positions before you create the stream again. A
//! whole store in a file:
//!
//! ```
//! use std::collections::HashMap;
//! use std::path::PathBuf;
//!
//! use futures::future::BoxFuture;
//! use futures::FutureExt;
//! use kinestream::store::{conformance, CheckpointStore, Scope};
//! use kinestream::{Checkpoint, Error, Result, ShardId};
//!
//! /// A file for each application and stream, a line for each shard.
//! #[derive(Debug)]
//! struct FileStore {
//!     folder: PathBuf,
//!     /// One writer at a time.
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
//!                 return Err(Error::store_unavailable(format!("cannot read {path:?}"), error));
//!             }
//!         };
//!         text.lines()
//!             .map(|line| {
//!                 let (shard, checkpoint) = line
//!                     .split_once(' ')
//!                     .ok_or_else(|| Error::store_corrupt(format!("{path:?} has line {line:?}")))?;
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
//!                 .map_err(|error| Error::store_unavailable("cannot write checkpoints", error))
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
//! # What is in Redis
//!
//! Up to five keys for each application and stream, in format 1, which all hold plain text. `stream` is
//! the stream's name where the consumer was built from a name, and `account:region:name`, such as
//! `123456789012:eu-west-1:orders`, where it was built from an ARN. See
//! [A name becomes an ARN](crate::guide::migrating#a-name-becomes-an-arn) for a consumer that is changed
//! from one to the other.
//!
//! | key | type | what |
//! |---|---|---|
//! | `kinestream:{application:stream}:format` | string | `1` |
//! | `kinestream:{application:stream}:checkpoints` | hash | for each shard its [`Checkpoint`] as text |
//! | `kinestream:{application:stream}:leases` | hash | for each shard `epoch owner next_owner origin parents state start unlisted added` |
//! | `kinestream:{application:stream}:workers` | hash | for each worker `incarnation joined duration expiry capacity` |
//! | `kinestream:{application:stream}:fleet` | hash | `generation`, `version` and `cleared` of the [table](lease::Table), `epoch`: the last one that was given, `keys`: which of the other keys exist, and `first_poll`: the start of an application that has not listed its stream yet |
//!
//! A lease has `-` for what there is none of, commas between parents, and the state `LOST` where its
//! shard is. Its start is the first sequence number of the shard, and `unlisted` is when a listing first
//! lacked the finished shard. `added` is when the shard was added. Parents are `?` where they are not known.
//! Words behind these are kept as they are. Epochs, durations, expiries, `unlisted`, `added` and `cleared`
//! are in milliseconds, `joined`, origins, generations and versions in microseconds, by the clock of Redis.
//! `first_poll` is in milliseconds, by the clock of a worker.
//!
//! A `:` in the application's name is written `%3A`, and a `%` is written `%25`; in a worker's name a
//! blank is `%20`. The braces are a hash tag: in Redis Cluster all keys live on one node. They never
//! expire.
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
//! The third shard is quiet: `CAUGHT_UP` names the time up to which no other record had arrived, in
//! milliseconds since 1970 by the clock of Kinesis, and the last finished record, if there is one.
//!
//! Who reads what: `HGETALL …:leases`, and `HGETALL …:workers` for who is there. The same from a
//! program: [`Consumer::positions`](crate::Consumer::positions).
//!
//! # Moving a position
//!
//! [`Consumer::set_position`](crate::Consumer::set_position) has a shard read from elsewhere, and
//! [`Consumer::clear_positions`](crate::Consumer::clear_positions) has an application begin anew; both
//! refuse while a worker has what they change, unless they are forced. By hand, with `redis-cli` and
//! while nobody reads: set the shard's field in `…:checkpoints` to another checkpoint, where one that
//! is deleted means the oldest record that is kept; or delete all keys of the application. Workers
//! that are alive tell an emptied Redis what was in it, so stop them first, or use
//! `clear_positions`.
//!
//! # A field that cannot be read
//!
//! A field of `…:checkpoints` or `…:leases` that is damaged costs its shard alone. The shard is not read,
//! its children wait, and the field stays as it is; each worker gets one error of kind
//! [`StoreCorrupt`](ErrorKind::StoreCorrupt) that names key and field, and
//! [`status`](crate::Consumer::status) shows [`Unreadable`](crate::ShardState::Unreadable). Correct the
//! field, which workers notice within
//! [`discovery_interval`](crate::ConsumerBuilder::discovery_interval), or set the shard's position. A
//! damaged lease may also be deleted: the next listing adds it. Do so while its owner is stopped: the new
//! lease names no owner, so another worker may deliver the shard until the owner's next renewal. A damaged
//! field of `…:workers` is
//! replaced when its worker renews; after the lease duration of another worker its leases are free. A
//! damaged field of `…:fleet` counts as a lost key.
//!
//! # A Redis that forgets
//!
//! Redis replicates after it has answered, and without persistence it forgets with a restart. So a
//! failover can bring back positions, leases and shards from a moment earlier, and a restart none
//! at all. That costs repeats and never a record, as long as one worker lives:
//!
//! - A worker that finds an older position than its own, or an older epoch, goes on from its own and
//!   saves it with its next step. A lease that the old master granted and the new one does not
//!   know of stays its owner's, unless the new one has granted it anew meanwhile: then the first
//!   owner stops with its next renewal, and what it had not saved comes again.
//! - Workers remember the table that they saw last, and tell an emptied Redis what was in it. What a
//!   worker reads, it knows exactly; of others it knows their positions of at most
//!   [`discovery_interval`](crate::ConsumerBuilder::discovery_interval) ago.
//! - A single key that is evicted or deleted counts as forgotten too: the next call of a worker finds that
//!   it is missing, although the version is still the known one, and begins a new generation.
//! - A worker that is started in between begins an application that nobody seems to have begun. When
//!   one that knows better is heard, its positions count, also where they are further back.
//! - Positions that were moved back a moment before, by [`seek`](crate::Consumer::seek) or
//!   [`set_position`](crate::Consumer::set_position), may be stored further on again, since of two the
//!   further one counts. Whoever reads goes on from where it was moved to. Move them again.
//!
//! Where Redis forgets and no worker lives, the application begins anew, at its starting position.
//!
//! Epochs follow the clock of Redis, so that they rise whatever it forgets. Only where it forgets
//! *and* its clock goes back behind the last change of owner, and no worker that remembers reaches
//! it first, can an epoch come twice.

pub mod conformance;
mod guarded_store;
pub mod lease;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod scope;
mod single_worker_leases;
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

pub(crate) use guarded_store::Contained;
pub(crate) use lease::LeaseStore;
pub use memory::MemoryStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub use scope::Scope;
pub(crate) use scope::{Mark, parse_arn};
use single_worker_leases::SingleWorkerLeases;
pub(crate) use writer::{FlushConfig, ReaderGate, TrackedShard, Writer};

/// Keeps, for each application and stream, how far each shard has been read.
///
/// The page of the module has [a whole one](crate::store#a-store-of-your-own), in a file.
///
/// One store serves many consumers at once, of any application and stream. It is called from
/// tasks of its own, so a slow store delays no record until
/// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed).
///
/// # Errors
///
/// [`ErrorKind::StoreUnavailable`]
/// ([`Error::store_unavailable`](crate::Error::store_unavailable)) is tried again with a back-off;
/// any other kind is reported to the caller, once, and then tried again as well.
///
/// # Cancel safety
///
/// A future may be dropped before it is ready, as one that takes longer than 10 s is. What it was to
/// save is then saved again later, and `save` must bear that: [`Checkpoint::supersedes`] makes it so.
pub trait CheckpointStore: Debug + Send + Sync + 'static {
    /// All checkpoints of one application and stream. Where nothing was ever saved: an empty map.
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>>;

    /// Returns all checkpoints of one application and stream, each or the error why it cannot be read.
    /// A shard with an error is not read and its children wait, until a later call returns a checkpoint
    /// for it; the caller gets the error once. An error of [`load`](Self::load) stops all shards.
    ///
    /// Called at the start, and about every 30 s while a shard has an error.
    ///
    /// Default: calls [`load`](Self::load). A store that wraps another one passes this call on.
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

    /// Saves the checkpoints of some shards, each once in the list, and leaves all other shards
    /// as they are.
    ///
    /// For each shard the store keeps what it has unless the new checkpoint
    /// [supersedes](Checkpoint::supersedes) it or nothing is stored. Comparing and storing must be
    /// one step, since other processes may save at the same time. What is kept is not an error.
    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>>;

    /// The same store as one that keeps leases too, where it can: then workers share the shards.
    ///
    /// Default: `None`. Whoever reads then reads every shard. A store that wraps another one passes
    /// on what that one says, if its leases are to count.
    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        None
    }
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

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Arc::clone(&*self).leases()
    }
}

/// The leases of a store, or some in memory for one that keeps none; and whether they are in memory.
pub(crate) fn leases_of(store: &Arc<dyn CheckpointStore>) -> (Arc<dyn LeaseStore>, bool) {
    match Arc::clone(store).leases() {
        Some(leases) => (leases, false),
        None => (Arc::new(SingleWorkerLeases::new(Arc::clone(store))), true),
    }
}

fn no_leases() -> Error {
    let message =
        "the store keeps no leases, so it is for whoever made it to change what is stored";
    Error::new(ErrorKind::Configuration, message)
}

/// How long a call of a store may take.
pub(crate) const LONGEST_CALL: Duration = Duration::from_secs(10);

/// The answer of a store, or an error where it does not come in time.
pub(crate) async fn with_timeout<T>(call: BoxFuture<'_, Result<T>>) -> Result<T> {
    timeout(LONGEST_CALL, call).await.unwrap_or_else(|elapsed| {
        let message = format!("the checkpoint store did not answer within {LONGEST_CALL:?}");
        Err(Error::store_unavailable(message, elapsed))
    })
}
