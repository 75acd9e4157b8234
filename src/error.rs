//! The error type of the crate, and the classification of failed calls.

mod classified;
mod panic;
mod reporter;
mod retry_action;
mod shard_id;
mod shared;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "dynamodb")]
pub(crate) use classified::missing_setting;
pub(crate) use classified::{ClassifiedError, date_of};
pub(crate) use panic::{Panic, TOLERATED_PANICS, contain, contain_call};
pub(crate) use reporter::ErrorReporter;
pub(crate) use retry_action::RetryAction;
#[cfg(feature = "dynamodb")]
pub(crate) use retry_action::denial_advice;
pub use shard_id::ShardId;
pub(crate) use shared::{ErrorKindSet, SharedFailures};

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The error of this crate: what failed, in which stream and shard, and why.
///
/// Failures that a retry can fix (throttling, expired iterators, lost connections, server errors)
/// are retried internally. A stream of records yields them only if they last: a listing that keeps
/// failing, or a store that is away for longer than
/// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed). It yields each other failure once, and
/// reading of the other shards continues.
///
/// [`Display`](fmt::Display) writes one line that says what to do. The cause, such as the SDK's
/// error, is the [`source()`](StdError::source). No error contains a password or a payload.
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
/// assert_eq!(error.to_string(), "stream orders: limit is 10001, but must be 1 to 10000 records per call");
/// ```
pub struct Error(Box<ErrorInner>);

struct ErrorInner {
    kind: ErrorKind,
    message: String,
    stream: Option<Arc<str>>,
    shard: Option<ShardId>,
    source: Option<BoxError>,
    shared: Option<SharedFailures>,
}

/// The kind of an [`Error`], to match on.
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
///         // Records were lost: report it. The other shards are read meanwhile.
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
    /// The stream does not exist, or one of its shards no longer exists.
    NotFound,
    /// The credentials are missing, expired or lack the permission that the call needs, or the
    /// stream's KMS key cannot be used. The call is retried slowly while the stream is polled.
    Denied,
    /// Kinesis or the store rejected the call, and a retry does not help. The call is retried slowly while the
    /// stream is polled.
    Rejected,
    /// A position is older than the stream's retention: records were lost before they were read.
    Trimmed,
    /// Kinesis throttles the calls.
    Throttled,
    /// Kinesis cannot be reached, or reports a server error.
    Unavailable,
    /// The checkpoint store cannot be reached, or has been unavailable for longer than
    /// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed).
    StoreUnavailable,
    /// The checkpoint store returned a value that is not a checkpoint of this crate.
    StoreCorrupt,
    /// The consumer is already being read or was closed, or the operation would change state that a
    /// worker is using.
    InUse,
    /// Another worker has acquired the shard's lease. Nothing was changed.
    LeaseLost,
    /// User code (a store, an HTTP client, an interceptor, a credentials provider, a metrics
    /// recorder or a tracing layer) has panicked three times in a row. It is retried with back-off,
    /// and reading continues as far as possible.
    Panicked,
    /// The tokio runtime on which the stream was first polled has shut down, and with it the tasks
    /// of the stream. The stream ends after this error. A new stream can be read on another
    /// runtime.
    RuntimeShutdown,
}

impl Error {
    /// Creates an error, for implementations of [`CheckpointStore`](crate::CheckpointStore) and
    /// [`LeaseStore`](crate::store::lease::LeaseStore).
    ///
    /// The kind decides how the crate reacts: [`StoreUnavailable`](ErrorKind::StoreUnavailable) is
    /// retried, and reported when it lasts for longer than
    /// [`max_unflushed`](crate::ConsumerBuilder::max_unflushed). Other kinds are reported at once, and
    /// the call is retried with a longer back-off.
    ///
    /// ```
    /// use kinestream::{Error, ErrorKind};
    ///
    /// let cause = std::io::Error::other("connection reset");
    /// let error = Error::new(ErrorKind::StoreUnavailable, "cannot write checkpoints").with_source(cause);
    /// assert!(error.is_temporary());
    /// assert_eq!(error.to_string(), "cannot write checkpoints");
    /// ```
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorInner {
            kind,
            message: message.into(),
            stream: None,
            shard: None,
            source: None,
            shared: None,
        }))
    }

    /// Sets the cause of the error, which [`source`](StdError::source) returns.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Creates the error of a stream whose tasks were dropped with their runtime.
    pub(crate) fn runtime_shutdown() -> Self {
        let message = "the tokio runtime on which the stream was first polled has shut down; \
                       keep it running while the stream is read, or read a new stream";
        Self::new(ErrorKind::RuntimeShutdown, message)
    }

    /// Sets the stream in which the error occurred, unless it is set already.
    pub(crate) fn in_stream(mut self, stream: &Arc<str>) -> Self {
        self.0.stream.get_or_insert_with(|| Arc::clone(stream));
        self
    }

    /// Sets the shard in which the error occurred, unless it is set already.
    pub(crate) fn in_shard(mut self, shard: &ShardId) -> Self {
        self.0.shard.get_or_insert_with(|| shard.clone());
        self
    }

    /// Marks the error of a call that the readers of many shards share.
    pub(crate) fn shared(mut self, failures: Option<SharedFailures>) -> Self {
        self.0.shared = failures;
        self
    }

    /// Returns the failures of the shared call that failed, if the error is that of a shared call.
    pub(crate) fn shared_failures(&self) -> Option<&SharedFailures> {
        self.0.shared.as_ref()
    }

    /// Returns true for the error of a shared call.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.shared.is_some()
    }

    /// Returns true if the caller is to receive the error: false if another shard has yielded it in
    /// the same reading of the stream.
    pub(crate) fn claim(&self, reading: u64) -> bool {
        self.0.shared.as_ref().is_none_or(|failures| failures.claim(self.0.kind, reading))
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns true if the same operation may succeed later without any change: for the kinds
    /// [`Throttled`](ErrorKind::Throttled), [`Unavailable`](ErrorKind::Unavailable) and
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable).
    #[doc(alias("retryable", "transient"))]
    pub fn is_temporary(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Throttled | ErrorKind::Unavailable | ErrorKind::StoreUnavailable
        )
    }

    /// Returns the name of the stream in which the error occurred, if any.
    pub fn stream(&self) -> Option<&str> {
        self.0.stream.as_deref()
    }

    /// Returns the shard in which the error occurred, if any.
    pub fn shard_id(&self) -> Option<&ShardId> {
        self.0.shard.as_ref()
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
    /// Writes each cause in its `Display` form, since the `Debug` form of an SDK error fills a
    /// page.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorInner { kind, message, stream, shard, .. } = &*self.0;
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
