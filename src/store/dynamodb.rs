//! `DynamoDbStore`: positions and leases in one DynamoDB table, for any number of applications.
//!
//! # Items
//!
//! All items of one application and stream share the partition key `pk`, `application:stream`. The
//! sort key `sk` names the item:
//!
//! | `sk` | attributes | content |
//! |---|---|---|
//! | `head` | `format`, `version`, `versions`, `text`, `pending`, `kcl` | the version of the table, the last versions, and the text of the head; see [`front`] |
//! | `heartbeat:<worker>` | `text`, `mark` | the text of a worker's entry, and a mark that differs after each heartbeat |
//! | `leases:<00 to 63>` | `leases`, `rev`, `pending` | the lease texts of a share of the shards, see [`buckets`] |
//! | `position:<shard>` | `text`, `fence`, `saver` | the position of a shard, see [`positions`] |
//! | `step:<version>` | `keys` | the keys of the entries that a step has changed, see [`log`] |
//!
//! The names of the sort keys are chosen such that one query reads the head and all heartbeats, and
//! another one reads everything but the log.
//!
//! # Steps
//!
//! A step is one transaction. The store reads the head, the heartbeats and the items that the step
//! touches, decides by them whether the conditions hold, and writes the result under the condition
//! that the head has the version that was read. Every other step changes that version. So the
//! leases, the workers and the head are still as they were read. Heartbeats and saved positions
//! change without a new version, so the transaction has conditions of its own for these.
//!
//! A transaction has at most 100 items. A step with more notes the rest as pending, the entries of
//! workers in the head and the positions in the buckets, and every reader settles what is pending
//! before it uses the item that has the note. So no worker sees a part of a step.
//!
//! # Why a save is fenced
//!
//! A save is one conditional update of the item of a position, which names the epoch of the lease
//! in its attribute `fence`. Invariant: the fence is the epoch of the shard's lease, or is absent,
//! unless the bucket of the shard has a pending write for it.
//!
//! A step that changes the epoch or the position of a shard writes the item of the position in the
//! same transaction. After it, a save in the earlier epoch fails. In a larger step, the buckets note
//! the pending writes instead, and the store settles them after it: for each bucket, one transaction
//! writes the positions and removes the note, under the condition that the bucket is still as it was
//! read. So no worker sees the leases of a step before their positions are fenced, and a save in an
//! earlier epoch that succeeds between a large step and its settling comes before the step for
//! everyone. A crash between the two leaves pending writes for the next reader.
//!
//! If an item of a position has no fence, or another one than the bucket without a pending write,
//! the save that meets it restores the fence in a transaction that checks the bucket.

mod buckets;
mod errors;
mod exchange;
mod expressions;
mod front;
mod kcl;
mod layout;
mod log;
mod positions;
mod reads;
mod requests;
mod saves;
mod settling;
mod steps;
mod table;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use futures::FutureExt;
use futures::future::BoxFuture;
use kcl::{Kcl, KclTable, UNREADABLE};
use requests::Partition;
use saves::Save;

use super::lease::{
    EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, LeaseStore, OtherReader,
};
use super::unfenced::save_unfenced;
use super::{CheckpointStore, Scope, all_or_error};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;

/// The default checkpoint interval: each saved position is one write.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// Stores positions and leases in a DynamoDB table. One table serves any number of applications.
///
/// Workers of one application share the shards of a stream, as with `RedisStore`. The store has no
/// clock: each worker observes the heartbeats of the others, so a dead worker is replaced within
/// [`lease_duration`](crate::ConsumerBuilder::lease_duration) and two renewals.
///
/// The guide page [`dynamodb`](crate::guide::dynamodb) shows the table as `CloudFormation` and
/// Terraform, the IAM actions, the costs and the layout.
///
/// # Requirements on the table
///
/// A partition key `pk` and a sort key `sk`, both strings, in any capacity mode. The store creates
/// nothing unless [`create_table`](Self::create_table) is called.
///
/// # Checkpoint interval
///
/// Each saved position is one write, so the default of
/// [`checkpoint_interval`](crate::ConsumerBuilder::checkpoint_interval) is 10 s with this store. With
/// 1 s, a busy stream of 1,000 shards costs ten times as much.
///
/// # Calls
///
/// The retries of the client's configuration are not used. A call that is throttled, that conflicts
/// with another one or that has no answer within 2 s is repeated up to 4 times, with back-off of up
/// to 0.8 s. A write whose answer was lost is recognized as made when it is repeated.
///
/// # Errors
///
/// Messages, and therefore events and logs, contain the error code and the message of DynamoDB.
///
/// - [`StoreUnavailable`](ErrorKind::StoreUnavailable), which is retried: throttling, no connection,
///   no answer, a failure of DynamoDB.
/// - [`Denied`](ErrorKind::Denied): missing credentials or permissions.
/// - [`Configuration`](ErrorKind::Configuration): no such table, or a table with another key.
/// - [`Rejected`](ErrorKind::Rejected): a request that exceeds a limit of DynamoDB. An application
///   may have about 15,000 shards.
/// - [`StoreCorrupt`](ErrorKind::StoreCorrupt): an item that was changed by hand, or by a later
///   version.
///
/// ```no_run
/// # async fn example(config: aws_config::SdkConfig) -> kinestream::Result<()> {
/// use kinestream::{Consumer, DynamoDbStore};
///
/// let store = DynamoDbStore::new(aws_sdk_dynamodb::Client::new(&config), "kinestream");
/// let consumer = Consumer::builder(aws_sdk_kinesis::Client::new(&config), "orders")
///     .application("billing")
///     .store(store)
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct DynamoDbStore {
    client: Client,
    table: Arc<str>,
    /// True if each step leaves its positions pending, as a large one does.
    postpones: bool,
    kcl: Option<Arc<KclTable>>,
}

impl DynamoDbStore {
    /// Creates a store in this table, given by its name or its ARN. Makes no call.
    ///
    /// The client decides about the region, the account and the credentials.
    #[must_use]
    pub fn new(client: Client, table: impl Into<Arc<str>>) -> Self {
        Self { client, table: table.into(), postpones: false, kcl: None }
    }

    /// Keeps the positions in the lease table of a Kinesis Client Library (KCL), given by its name or
    /// its ARN: by default, the name of the KCL application.
    ///
    /// An application then moves from a KCL of version 1, 2 or 3 to this crate and back without a
    /// conversion: stop one, and start the other. The guide page
    /// [`migrating`](crate::guide::migrating#from-the-kinesis-client-library) has the steps and
    /// the rollback. Workers and leases stay in the store's own table.
    ///
    /// - A lease table serves one application. A table of several streams serves these streams; any
    ///   other table serves one stream.
    /// - Reading begins once no KCL has renewed a lease for
    ///   [`lease_duration`](crate::ConsumerBuilder::lease_duration). Until then, calls fail with
    ///   [`StoreUnavailable`](ErrorKind::StoreUnavailable) and are retried.
    /// - A KCL that is started at the same time takes the leases. Both then deliver the same records,
    ///   and none is passed over.
    /// - A row that cannot be read is left as it is, and its shard is not read until
    ///   [`Consumer::set_position`](crate::Consumer::set_position) is called.
    ///
    /// The store needs the additional IAM actions `dynamodb:Scan`, `dynamodb:BatchGetItem`,
    /// `dynamodb:UpdateItem`, `dynamodb:DeleteItem` and `dynamodb:ConditionCheckItem` on the lease
    /// table.
    ///
    /// ```no_run
    /// # fn example(client: aws_sdk_dynamodb::Client) {
    /// use kinestream::DynamoDbStore;
    ///
    /// let store = DynamoDbStore::new(client, "kinestream").kcl_table("billing");
    /// # }
    /// ```
    #[must_use]
    pub fn kcl_table(self, table: impl Into<Arc<str>>) -> Self {
        Self { kcl: Some(Arc::new(KclTable::new(table))), ..self }
    }

    /// Returns the store with every step made like a large one, for tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn postponing(self) -> Self {
        Self { postpones: true, ..self }
    }

    fn partition<'a>(&'a self, scope: &'a Scope) -> Partition<'a> {
        Partition {
            client: &self.client,
            table: &self.table,
            key: layout::partition_key(scope),
            postpones: self.postpones,
            kcl: self.kcl.as_ref().map(|kcl| Kcl::new(kcl, scope)),
        }
    }

    /// Returns the error of an item that cannot be read.
    fn corrupt(&self, scope: &Scope, item: &str, attribute: &str, what: &str) -> Error {
        let message = format!(
            "DynamoDB table {}, item {item} of {}: {attribute} is not {what}; correct it, or set the \
             shard's position with Consumer::set_position",
            self.table,
            layout::partition_key(scope)
        );
        Error::new(ErrorKind::StoreCorrupt, message)
    }

    fn corrupt_position(&self, scope: &Scope, shard: &ShardId, text: &str) -> Error {
        if let (Some(kcl), Some(why)) = (&self.kcl, text.strip_prefix(UNREADABLE)) {
            let message = format!(
                "KCL table {}, lease of {shard}: {why}; correct it, or set the shard's position with \
                 Consumer::set_position",
                kcl.name()
            );
            return Error::new(ErrorKind::StoreCorrupt, message);
        }
        self.corrupt(scope, &layout::position(shard), layout::TEXT, "a checkpoint")
    }
}

impl LeaseStore for DynamoDbStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move { self.partition(scope).exchange(exchange).await }.boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move {
            let saves: Vec<_> = saves.iter().map(Save::fenced).collect();
            self.partition(scope).save(&saves).await
        }
        .boxed()
    }

    fn forgets_finished_shards(&self) -> bool {
        self.kcl.is_some()
    }

    fn other_reader<'a>(
        &'a self,
        scope: &'a Scope,
        shards: Option<&'a [ShardId]>,
        lease_duration: Duration,
    ) -> BoxFuture<'a, Result<Option<OtherReader>>> {
        async move { self.partition(scope).kcl_reader(shards, lease_duration).await }.boxed()
    }

    fn unreadable(&self, scope: &Scope, key: &EntryKey, text: &str) -> String {
        let error = match key {
            EntryKey::Position(shard) => self.corrupt_position(scope, shard, text),
            EntryKey::Lease(shard) => {
                let item = layout::leases(buckets::bucket_of(shard));
                self.corrupt(scope, &item, &format!("leases.{shard}"), "a lease")
            }
            EntryKey::Worker(worker) => {
                self.corrupt(scope, &layout::heartbeat(worker), layout::TEXT, "a worker")
            }
            EntryKey::Head => {
                self.corrupt(scope, layout::HEAD, layout::TEXT, "the head of a table")
            }
        };
        error.to_string()
    }
}

impl CheckpointStore for DynamoDbStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move { all_or_error(self.load_each(scope).await?) }.boxed()
    }

    fn load_each<'a>(
        &'a self,
        scope: &'a Scope,
    ) -> BoxFuture<'a, Result<HashMap<ShardId, Result<Checkpoint>>>> {
        async move {
            let rows = self.partition(scope).all_rows().await?;
            let shards = rows.into_iter().filter_map(|(shard, row)| {
                let text = row.text?;
                let checkpoint = text.parse();
                let checkpoint =
                    checkpoint.map_err(|_| self.corrupt_position(scope, &shard, &text));
                Some((shard, checkpoint))
            });
            Ok(shards.collect())
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let partition = &self.partition(scope);
            let damaged = save_unfenced(checkpoints, |saves| async move {
                let saves: Vec<_> = saves.iter().map(Save::unfenced).collect();
                partition.save(&saves).await
            });
            match damaged.await? {
                None => Ok(()),
                Some((shard, text)) => Err(self.corrupt_position(scope, &shard, &text)),
            }
        }
        .boxed()
    }

    fn default_checkpoint_interval(&self) -> Duration {
        CHECKPOINT_INTERVAL
    }

    fn leases(self: Arc<Self>) -> Option<Arc<dyn LeaseStore>> {
        Some(self)
    }
}

impl fmt::Debug for DynamoDbStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client may show credentials.
        formatter.debug_struct("DynamoDbStore").field("table", &self.table).finish_non_exhaustive()
    }
}
