//! The consumer: what it reads, its two doors, and its end.

mod builder;
mod health;
mod operations;
mod records;
mod session;
mod settings;
mod shards;
mod status;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};
use crate::fleet::WorkerMessage;
use crate::shard::CloseSignal;
use crate::source::{Kinesis, RegisteredConsumer};
use crate::store::{self, CheckpointStore, LeaseStore, Scope, Writer};
use crate::telemetry::{Events, Telemetry};

pub use builder::ConsumerBuilder;
pub use health::Health;
pub use operations::IfLeased;
pub use records::Records;
use session::Session;
use settings::Settings;
pub use shards::Shards;
pub use status::{ApplicationStatus, ShardState, ShardStatus};

/// How long [`Consumer::close`] tries to save what is pending.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads one stream for one application.
///
/// Cheap to clone: the clones are one consumer. Nothing happens before [`records`](Self::records)
/// or [`shards`](Self::shards) is polled; dropping all clones and streams ends every task, after
/// a last attempt to save what is finished.
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
pub struct Consumer {
    inner: Arc<Inner>,
}

struct Inner {
    kinesis: Kinesis,
    /// The consumer of enhanced fan-out.
    fan_out: Option<Arc<RegisteredConsumer>>,
    store: Arc<dyn CheckpointStore>,
    leases: Arc<dyn LeaseStore>,
    scope: Scope,
    telemetry: Telemetry,
    settings: Settings,
    close_signal: CloseSignal,
    /// A session is alive.
    reading: Arc<AtomicBool>,
    writer: Mutex<Option<Writer>>,
    /// What the worker of the last reading hears.
    messages: Mutex<Option<mpsc::UnboundedSender<WorkerMessage>>>,
    /// Closed when the worker of the last reading has left.
    worker: Mutex<Option<watch::Receiver<()>>>,
}

impl Consumer {
    /// Begins to build a consumer of `stream`, a name or an ARN.
    ///
    /// The store keys positions by the name alone, or by account, region and name of an ARN. Streams of
    /// one name in several regions need their ARNs to share an application and a store: by their names, each
    /// fails with `Trimmed`, or with another `on_trimmed` replaces the positions of the other one and
    /// reports only a `Gap`. A consumer that is changed from the name to the ARN
    /// [takes its positions over](crate::guide::migrating#a-name-becomes-an-arn).
    ///
    /// The client is used as it is: its region, credentials, endpoint, TLS and connections. Only
    /// its retries are switched off for this crate's calls, which paces and repeats them itself.
    pub fn builder(client: Client, stream: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(client, stream.into())
    }

    /// Every record of the stream: all shards, merged, in order within each shard.
    ///
    /// One reading at a time: while a stream of this consumer is alive, a second one yields one
    /// error of kind [`InUse`](ErrorKind::InUse) and ends. So does one of a closed consumer.
    pub fn records(&self) -> Records {
        Records::new(self.shards(), self.inner.settings.rules.checkpoint_on)
    }

    /// Every shard as a stream of its own: those there are at the start, and those that come by
    /// resharding when their parents are finished.
    ///
    /// One reading at a time, as with [`records`](Self::records); the [`ShardStream`]s count.
    ///
    /// [`ShardStream`]: crate::ShardStream
    pub fn shards(&self) -> Shards {
        if self.inner.close_signal.is_closed() {
            return Shards::refused(self.in_use("the consumer is closed; build another one"));
        }
        if self.inner.reading.swap(true, Atomic::SeqCst) {
            return Shards::refused(self.in_use(
                "the consumer is already being read; drop its streams first, or build another \
                 one with an application of its own",
            ));
        }
        Shards::new(Session::new(self.clone()))
    }

    /// Stops reading, saves what is finished, and gives back the shards: after it, nothing that was
    /// finished is read again, and other workers go on at once.
    ///
    /// The streams of this consumer end at their next poll. It does not wait for records that
    /// are still being worked on. When they are finished, call it again: it may be called any
    /// number of times.
    ///
    /// With [`CheckpointOn::Pull`](crate::CheckpointOn::Pull) the last record yielded is finished
    /// when the stream was polled once more, as the end of a `while let` loop has done. Who
    /// leaves the loop early calls [`Record::ack`](crate::Record::ack) on that record, or has it
    /// repeated.
    ///
    /// # Errors
    ///
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable) where the store did not take the
    /// checkpoints within 30 s, or the store's own error.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the consumer is closed all the same, and saving goes on.
    pub async fn close(&self) -> Result<()> {
        self.inner.close_signal.close();
        let writer = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(writer) = writer else { return Ok(()) };
        let worker = self.inner.worker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = timeout(CLOSE_TIMEOUT, async {
            writer.flush().await?;
            if let Some(mut worker) = worker {
                let _left = worker.changed().await;
            }
            Ok(())
        });
        let closed = closed.await.unwrap_or_else(|elapsed| {
            let message = format!(
                "the checkpoint store took no checkpoints within {CLOSE_TIMEOUT:?}; records since \
                 the last checkpoint will be read again"
            );
            Err(Error::store_unavailable(message, elapsed).in_stream(self.inner.kinesis.name()))
        });
        closed?;
        self.deregister().await
    }

    /// Where it is wanted, and no other worker is there to read by the same consumer.
    async fn deregister(&self) -> Result<()> {
        let inner = &self.inner;
        match &inner.fan_out {
            Some(registered_consumer) if inner.settings.deregister_on_close => {
                let table = store::with_timeout(inner.leases.table(&inner.scope)).await?;
                if table.workers.is_empty() { registered_consumer.deregister().await } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// What happens to this consumer from now on: shards that begin and end, throttling, leases that
    /// come and go, records that were lost.
    ///
    /// Any number of listeners may have one each. None of them holds up who reads.
    pub fn events(&self) -> Events {
        self.inner.telemetry.events()
    }

    fn in_use(&self, message: &str) -> Error {
        Error::new(ErrorKind::InUse, message).in_stream(self.inner.kinesis.name())
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
