//! The consumer of one stream: its streams of records and shards, and its shutdown.

mod builder;
mod health;
mod operations;
mod records;
mod session;
mod settings;
mod shards;
mod status;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::checkpoint::Checkpoint;
use crate::discovery::StartingPosition;
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::shard::CloseSignal;
use crate::source::{RegisteredConsumer, StreamClient};
use crate::store::lease::IfLeased;
use crate::store::lease::Leases;
use crate::store::{self, CheckpointStore, Scope, Writer};
use crate::telemetry::{Events, Telemetry};
use crate::worker_message::WorkerMessage;

pub use builder::ConsumerBuilder;
pub use health::Health;
pub use records::Records;
use session::Session;
use settings::Settings;
pub use shards::Shards;
pub use status::{ApplicationStatus, ShardState, ShardStatus, WorkerStatus};

/// The time within which [`Consumer::close`] saves pending checkpoints and releases the leases.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A consumer that reads one stream for one application.
///
/// Cloning is cheap, and all clones refer to the same consumer. No task starts before the stream of
/// [`records`](Self::records) or [`shards`](Self::shards) is polled. Dropping all clones and
/// streams ends every task, after a last attempt to save the checkpoints of acknowledged records
/// and to release the leases. This attempt needs a tokio runtime that continues to run: before a
/// program ends, call [`close`](Self::close).
///
/// ```no_run
/// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use futures::StreamExt;
/// use kinestream::{Consumer, StartingPosition};
///
/// let consumer = Consumer::builder(client, "orders")
///     .application("billing")
///     .starting_position(StartingPosition::TrimHorizon)
///     .build()?;
///
/// let mut records = consumer.records();
/// while let Some(record) = records.next().await {
///     println!("{:?}", record?.data());
/// }
/// consumer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[doc(alias("subscriber", "reader"))]
pub struct Consumer {
    inner: Arc<ConsumerInner>,
}

struct ConsumerInner {
    kinesis: StreamClient,
    /// The registered consumer of enhanced fan-out; `None` if shards are polled.
    fan_out: Option<Arc<RegisteredConsumer>>,
    store: Arc<dyn CheckpointStore>,
    /// The leases, for the tasks of the consumer.
    leases: Leases,
    /// The leases, for calls of the caller.
    operations: Leases,
    scope: Scope,
    telemetry: Telemetry,
    settings: Settings,
    close_signal: CloseSignal,
    /// True while a session exists.
    has_session: Arc<AtomicBool>,
    writer: Mutex<Option<Writer>>,
    /// The sender of messages to the worker of the last session.
    messages: Mutex<Option<mpsc::UnboundedSender<WorkerMessage>>>,
    /// Closed when the worker of the last session has left the fleet.
    worker: Mutex<Option<watch::Receiver<()>>>,
}

impl Consumer {
    /// Returns a builder of a consumer of `stream`, a name or an ARN.
    ///
    /// The store keys the positions of a stream by its name, or, for an ARN, by its account, region
    /// and name. If streams of the same name in several regions share an application and a store,
    /// use their ARNs. With names, the consumer of one stream finds the positions of the other: it
    /// fails with `Trimmed`, or, with another `on_trimmed`, replaces those positions and reports
    /// only a `Gap`. A consumer that changes from the name to the ARN [migrates its
    /// positions](crate::guide::migrating#from-a-stream-name-to-an-arn).
    ///
    /// The region, credentials, endpoint, TLS and HTTP client of `client` are used. For its own
    /// calls, the crate disables the retries of the SDK, since it retries itself, and limits each
    /// call to 30 s. For subscriptions it also changes the connect timeout (see
    /// [Connections](crate::guide::fan_out#connections)) and disables stalled-stream protection.
    #[doc(alias("new", "config"))]
    pub fn builder(client: Client, stream: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(client, stream.into())
    }

    /// Returns the records of all shards as one stream, in order within each shard.
    ///
    /// A consumer has one stream at a time. While one exists, a second one yields an error of kind
    /// [`InUse`](ErrorKind::InUse) and ends. A stream of a closed consumer does the same.
    #[doc(alias("consume", "poll", "subscribe"))]
    pub fn records(&self) -> Records {
        Records::new(self.shards(), self.inner.settings.worker_config.checkpoint_on)
    }

    /// Stops reading, saves the checkpoints of acknowledged records, and releases the leases.
    /// Afterwards no acknowledged record is delivered again, and other workers can acquire the
    /// shards at once.
    ///
    /// The streams of this consumer end at their next poll. `close` does not wait for records that
    /// are still in flight. When they are acknowledged, call it again; it can be called any number
    /// of times.
    ///
    /// With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) a record counts as acknowledged when
    /// the stream is polled again, as a `while let` loop does at its end. To leave the loop early
    /// without a redelivery of the last record, call [`Record::ack`](crate::Record::ack) on it.
    ///
    /// # Errors
    ///
    /// Returns [`StoreUnavailable`](ErrorKind::StoreUnavailable) if the store does not save the
    /// checkpoints within 30 s, or the error that the store returned. With
    /// [`deregister_on_close`](ConsumerBuilder::deregister_on_close), an error of the calls that
    /// deregister the registered consumer. These calls follow the 30 s and take up to 10 s for the
    /// store and up to 30 s for each of three calls of Kinesis.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early, the consumer is closed all the same, and the save continues.
    #[doc(alias("shutdown", "graceful shutdown", "stop"))]
    pub async fn close(&self) -> Result<()> {
        self.inner.close_signal.close();
        let writer = self.inner.writer.lock().clone();
        let Some(writer) = writer else { return Ok(()) };
        let worker = self.inner.worker.lock().clone();
        let closed = timeout(CLOSE_TIMEOUT, async {
            writer.flush().await?;
            if let Some(mut worker) = worker {
                let _left = worker.changed().await;
            }
            Ok(())
        });
        let closed = closed.await.unwrap_or_else(|elapsed| {
            let message = format!(
                "the store did not save the checkpoints within {CLOSE_TIMEOUT:?}; records since the \
                 last checkpoint will be delivered again"
            );
            let error = Error::new(ErrorKind::StoreUnavailable, message).with_source(elapsed);
            Err(self.inner.in_this_stream(error))
        });
        closed?;
        self.deregister().await
    }

    /// Returns the shards, each as a separate stream of records. Shards that a reshard creates
    /// follow when their parents are finished.
    ///
    /// A consumer has one stream at a time, as with [`records`](Self::records). It exists until the
    /// last of its [`ShardStream`]s is dropped.
    ///
    /// [`ShardStream`]: crate::ShardStream
    pub fn shards(&self) -> Shards {
        if self.inner.close_signal.is_closed() {
            return Shards::refused(self.inner.in_use("the consumer is closed; build a new one"));
        }
        if self.inner.has_session.swap(true, Ordering::SeqCst) {
            return Shards::refused(self.inner.in_use(
                "the consumer is already being read; drop its streams first, or build another \
                 consumer with a different application",
            ));
        }
        Shards::new(Session::new(self.clone()))
    }

    /// Returns the events of this consumer from now on: started and ended shards, throttling,
    /// acquired and lost leases, lost records.
    ///
    /// Each call returns a separate stream. A slow receiver never blocks the consumer; it receives
    /// [`Event::Lagged`](crate::Event::Lagged) with the number of events that it missed beyond the
    /// last 1,024.
    pub fn events(&self) -> Events {
        self.inner.telemetry.events()
    }

    /// Returns the status of the application on the stream: the state, position, owner and lag of
    /// each shard. Reads the store; the consumer does not join the fleet.
    ///
    /// In a store without a clock, such as `DynamoDbStore`, one call does not show whether a worker is
    /// alive: see [`unconfirmed_workers`](crate::ApplicationStatus::unconfirmed_workers).
    ///
    /// # Errors
    ///
    /// Returns the error of the store.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect: it only reads.
    #[doc(alias("lag", "positions"))]
    pub async fn status(&self) -> Result<ApplicationStatus> {
        self.inner.status().await
    }

    /// Returns the name of this worker, under which the store keeps its leases: that of
    /// [`ConsumerBuilder::worker_id`], or its default. [`ShardStatus::owner`](crate::ShardStatus)
    /// and the events name workers by it.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// let status = consumer.status().await?;
    /// let own = status.shards.values().filter(|shard| {
    ///     shard.owner.as_deref() == Some(consumer.worker_id())
    /// });
    /// println!("{} reads {} shards", consumer.worker_id(), own.count());
    /// # Ok(()) }
    /// ```
    pub fn worker_id(&self) -> &str {
        &self.inner.settings.worker_config.worker_id
    }

    /// Returns the health of this consumer: the state of its tasks, the times since the last
    /// renewal, fetch and poll, the time for which the caller has held records, and the time for
    /// which calls have failed. Calls neither the store nor Kinesis.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) {
    /// let health = consumer.health();
    /// println!("ready: {}, live: {}", health.is_ready(), health.is_live());
    /// # }
    /// ```
    #[doc(alias("liveness", "readiness", "probe"))]
    pub fn health(&self) -> Health {
        self.inner.health()
    }

    /// Moves all shards, or those of [`only_shards`](ConsumerBuilder::only_shards), to `to` while the
    /// stream is read: back, to deliver records again, or forward, to skip records. A finished shard
    /// is read again if `to` lies within it. Children wait for their parents as usual.
    ///
    /// Every worker of the application starts again with each of its shards: the worker of this
    /// consumer before this call returns, other workers at their next renewal. An acknowledgement
    /// of a record that was delivered before the seek has no effect. The
    /// [`epoch`](crate::Record::epoch) of such a record is lower than the epoch of records
    /// delivered afterwards. For a single shard or a sequence number, use
    /// [`set_position`](Self::set_position) with [`IfLeased::Force`].
    ///
    /// # Errors
    ///
    /// - [`Configuration`](crate::ErrorKind::Configuration) for a timestamp in the future, and for
    ///   a custom store that does not support leases.
    /// - [`InUse`](crate::ErrorKind::InUse) if a worker of a KCL, whose lease table has the positions,
    ///   reads one of the shards: it does not follow a seek. It takes up to the lease duration to see
    ///   whether such a worker is alive.
    /// - The error of Kinesis if listing the shards still fails after ten seconds of retries.
    /// - [`Unavailable`](crate::ErrorKind::Unavailable) if a shard is missing from the listings for
    ///   ten seconds.
    /// - The error of the store.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early or fails, either all listed shards are moved or none of them:
    /// call it again. The store moves any number of shards in one step.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// use std::time::{Duration, SystemTime};
    ///
    /// use kinestream::StartingPosition;
    ///
    /// // Deliver the last hour again.
    /// let hour = SystemTime::now() - Duration::from_secs(3600);
    /// consumer.seek(StartingPosition::AtTimestamp(hour)).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("rewind", "replay", "reset offset", "offset"))]
    pub async fn seek(&self, to: StartingPosition) -> Result<()> {
        self.inner.seek(to).await
    }

    /// Moves a shard to `checkpoint`, before or after its current position. Reading resumes there.
    ///
    /// In a store without a clock, such as `DynamoDbStore`, this takes up to the lease duration of
    /// the shard's worker, unless the call passes [`IfLeased::Force`]: it waits for a heartbeat.
    ///
    /// # Errors
    ///
    /// - [`InUse`](crate::ErrorKind::InUse) if a worker holds the lease, or a worker of a KCL whose
    ///   lease table has the positions, unless the call passes [`IfLeased::Force`].
    /// - [`Configuration`](crate::ErrorKind::Configuration) for a time in the future, and for a
    ///   custom store that does not support leases.
    /// - The error of the store.
    /// - The error of listing the shards, only if `checkpoint` is a time ahead of the local clock.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped early, the position is moved or not. A second call with the same
    /// arguments has no further effect.
    pub async fn set_position(
        &self,
        shard: &ShardId,
        checkpoint: Checkpoint,
        if_leased: IfLeased,
    ) -> Result<()> {
        self.inner.set_position(shard, checkpoint, if_leased).await
    }

    /// Deletes everything that is stored for this application and stream. The next worker starts at
    /// its starting position.
    ///
    /// # Errors
    ///
    /// The same as [`set_position`](Self::set_position), with [`InUse`](crate::ErrorKind::InUse) if
    /// any worker is alive, or any worker of a KCL whose lease table has the positions.
    ///
    /// # Cancel safety
    ///
    /// The same as [`set_position`](Self::set_position).
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// use kinestream::IfLeased;
    ///
    /// // Stop all workers first: a live worker makes this an error.
    /// consumer.clear_positions(IfLeased::Refuse).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("reset", "reset offset"))]
    pub async fn clear_positions(&self, if_leased: IfLeased) -> Result<()> {
        self.inner.clear_positions(if_leased).await
    }

    /// Deregisters the registered consumer if `deregister_on_close` is set and the fleet has no
    /// worker left that reads with it.
    async fn deregister(&self) -> Result<()> {
        let inner = &self.inner;
        match &inner.fan_out {
            Some(registered_consumer) if inner.settings.deregister_on_close => {
                let table = store::with_timeout(inner.operations.table()).await?;
                if table.workers.is_empty() {
                    registered_consumer.deregister().await
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }
}

impl ConsumerInner {
    fn in_use(&self, message: &str) -> Error {
        self.in_this_stream(Error::new(ErrorKind::InUse, message))
    }

    fn in_this_stream(&self, error: Error) -> Error {
        error.in_stream(self.kinesis.name())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Consumer")
            .field("stream", self.inner.kinesis.name())
            .field("application", &self.inner.scope.application())
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}
