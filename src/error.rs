//! What went wrong, where, and whether waiting cures it.

mod panic;
mod retry_action;
mod shared;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

pub(crate) use panic::{Panic, TOLERATED, contain, contain_call};
pub(crate) use retry_action::{ClassifiedError, RetryAction, date_of};
pub(crate) use shared::{Kinds, SharedFailures};

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync>;

/// What went wrong, in which stream and shard, and why.
///
/// Everything that a retry cures (throttling, expired iterators, lost connections, failing
/// servers) is retried inside and never becomes an `Error` of a stream of records. What is left
/// is told once, and the other shards go on.
///
/// [`Display`](fmt::Display) is one line that says what to do; the cause, such as the SDK's own
/// error, is the [`source()`](StdError::source). No error carries a password or a payload.
///
/// ```
/// use kinestream::{Consumer, ErrorKind};
/// # use aws_sdk_kinesis::config::{BehaviorVersion, Config};
/// # let config = Config::builder().behavior_version(BehaviorVersion::latest()).build();
/// # let client = aws_sdk_kinesis::Client::from_conf(config);
///
/// let error = Consumer::builder(client, "orders").limit(10_001).build().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Configuration);
/// assert!(!error.is_temporary());
/// assert_eq!(error.to_string(), "stream orders: limit is 10001, but must be 1 to 10000 records a call");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    stream: Option<Arc<str>>,
    shard: Option<Arc<str>>,
    source: Option<Source>,
    shared: Option<SharedFailures>,
}

/// The sort of an [`Error`]: what to match on.
///
/// ```no_run
/// # use futures::StreamExt;
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use kinestream::ErrorKind;
///
/// let mut records = consumer.records();
/// while let Some(record) = records.next().await {
///     match record {
///         Ok(record) => println!("{:?}", record.data()),
///         // Somebody has to look at it, and the other shards go on meanwhile.
///         Err(error) if error.kind() == ErrorKind::Trimmed => eprintln!("{error}"),
///         Err(error) if error.is_temporary() => eprintln!("{error}"),
///         Err(error) => return Err(error),
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option, a URL or a name is not valid. Nothing was read.
    Configuration,
    /// The stream does not exist, or a shard of it no longer does.
    NotFound,
    /// No credentials, expired ones, or none with the permission that the call needs; or the
    /// stream's KMS key cannot be used. Going on pulling retries, slowly.
    Denied,
    /// Kinesis answered with something that no retry cures. Going on pulling retries, slowly.
    Rejected,
    /// A position has left the stream's retention: records were lost before they were read.
    Trimmed,
    /// Kinesis asks for fewer calls.
    Throttled,
    /// Kinesis cannot be reached or fails.
    Unavailable,
    /// The checkpoint store cannot be reached, or has been out of reach for longer than
    /// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed).
    StoreUnavailable,
    /// The checkpoint store answered, but with something that is not a checkpoint of this crate.
    StoreCorrupt,
    /// The consumer is already being read, or was closed; or something is to be changed that a
    /// worker has in use.
    InUse,
    /// Another worker has the lease of the shard by now, and nothing was changed.
    LeaseLost,
    /// Code that the caller supplies (a store, an HTTP client, an interceptor, a credentials provider, a
    /// metrics recorder or a tracing layer) has panicked three times in a row. It is retried with
    /// back-off; reading goes on as far as it can.
    Panicked,
    /// The tokio runtime on which the stream was first polled has shut down, and the tasks of the stream
    /// with it. The stream ends after this error; a new one may be read on another runtime.
    RuntimeShutdown,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            stream: None,
            shard: None,
            source: None,
            shared: None,
        }))
    }

    /// A store that cannot be reached or does not answer: the write is tried again.
    ///
    /// For those who implement a [`CheckpointStore`](crate::CheckpointStore).
    pub fn store_unavailable(
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::StoreUnavailable, message).with_source(source)
    }

    /// A store that holds something else than a checkpoint where one is looked for.
    ///
    /// For those who implement a [`CheckpointStore`](crate::CheckpointStore).
    pub fn store_corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::StoreCorrupt, message)
    }

    /// The tasks of a stream were dropped with their runtime.
    pub(crate) fn runtime_shutdown() -> Self {
        let message = "the tokio runtime on which the stream was first polled has shut down; \
                       keep it running while the stream is read, or read a new stream";
        Self::new(ErrorKind::RuntimeShutdown, message)
    }

    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says where it happened, unless that is known already.
    pub(crate) fn in_stream(mut self, stream: &Arc<str>) -> Self {
        self.0.stream.get_or_insert_with(|| Arc::clone(stream));
        self
    }

    /// Says where it happened, unless that is known already.
    pub(crate) fn in_shard(mut self, shard: &str) -> Self {
        self.0.shard.get_or_insert_with(|| shard.into());
        self
    }

    /// Marks the error of a call that the readers of many shards share.
    pub(crate) fn shared(mut self, failures: Option<SharedFailures>) -> Self {
        self.0.shared = failures;
        self
    }

    /// Returns the failures of the shared call that has failed, if it was one.
    pub(crate) fn shared_failures(&self) -> Option<&SharedFailures> {
        self.0.shared.as_ref()
    }

    /// Returns true for the error of a shared call.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.shared.is_some()
    }

    /// Returns true if the caller is to receive the error: not if another shard has yielded it in the
    /// same reading of the stream.
    pub(crate) fn claim(&self, reading: u64) -> bool {
        self.0.shared.as_ref().is_none_or(|failures| failures.claim(self.0.kind, reading))
    }

    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same thing may succeed if it is done again later, with nothing changed.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::StoreUnavailable
        )
    }

    /// The name of the stream it happened in, where one is concerned.
    pub fn stream(&self) -> Option<&str> {
        self.0.stream.as_deref()
    }

    /// The shard it happened in, where one is concerned.
    pub fn shard_id(&self) -> Option<&str> {
        self.0.shard.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.0.stream, &self.0.shard) {
            (Some(stream), Some(shard)) => write!(formatter, "stream {stream}, shard {shard}: ")?,
            (Some(stream), None) => write!(formatter, "stream {stream}: ")?,
            (None, Some(shard)) => write!(formatter, "shard {shard}: ")?,
            (None, None) => {}
        }
        formatter.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    /// The causes in their own words: in full, those of the SDK go on for a page.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, message, stream, shard, .. } = &*self.0;
        let causes: Vec<String> = std::iter::successors(self.source(), |cause| (*cause).source())
            .map(ToString::to_string)
            .collect();
        formatter
            .debug_struct("Error")
            .field("kind", kind)
            .field("message", message)
            .field("stream", stream)
            .field("shard", shard)
            .field("causes", &causes)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
