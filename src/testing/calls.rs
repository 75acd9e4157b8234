use std::time::Duration;

use tokio::time::Instant;

use crate::record::{SequenceNumber, ShardId};

/// A call that a [`Kinesis`](super::Kinesis) was asked for.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let kinesis = kinestream::testing::Kinesis::new();
/// kinesis.create_stream("orders", 1);
/// kinesis.client().list_shards().stream_name("orders").send().await.unwrap();
/// assert_eq!(kinesis.calls()[0].operation, "ListShards");
/// assert_eq!(kinesis.calls()[0].status, Some(200));
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Call {
    /// What was asked for, such as `GetRecords`.
    pub operation: String,
    /// The shard that it is about, where it names one.
    pub shard_id: Option<ShardId>,
    /// The access key ID that signed it: `test` for [`client`](super::Kinesis::client).
    pub access_key_id: Option<String>,
    /// When it came in.
    pub at: Instant,
    /// The status of the answer: `None` until the caller has read it, and for ever where the
    /// caller has gone or the connection was lost.
    pub status: Option<u16>,
    /// How many records the answer holds: none where it did not arrive as a whole.
    pub records: usize,
    /// How many bytes of payloads and partition keys the answer holds.
    pub bytes: usize,
    /// The last of the records.
    pub last: Option<SequenceNumber>,
}

/// What becomes of a call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::testing::{Kinesis, Outcome};
///
/// let kinesis = Kinesis::new();
/// kinesis.next_calls("ListShards", 1, Outcome::failed(400, "AccessDeniedException", "no"));
/// let refused = kinesis.client().list_shards().stream_name("orders").send().await;
/// assert!(refused.unwrap_err().into_service_error().is_access_denied_exception());
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is served.
    Served,
    /// It is refused with an error as Kinesis words it.
    Failed {
        /// The HTTP status.
        status: u16,
        /// The code, such as `ExpiredIteratorException`.
        code: String,
        /// The message.
        message: String,
    },
    /// The answer is something else than Kinesis's, as that of a proxy may be.
    Garbled {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
    /// No connection is made.
    Refused,
    /// No answer ever comes.
    Hangs,
    /// It is carried out at once, and answered after this time.
    Delayed(Duration),
    /// It is carried out, and then the connection is lost.
    Lost,
    /// It is carried out, and half of the answer comes.
    Cut,
    /// It is carried out, and its answer lacks these fields; of a subscription, each of its events
    /// does.
    Without(Vec<String>),
    /// A `ListShards` call is answered in the right form, but wrongly. Any other call is served.
    Mislisted(WrongListing),
}

/// What is wrong with the answer to a `ListShards` call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::testing::{Kinesis, Outcome, WrongListing};
///
/// let kinesis = Kinesis::new();
/// kinesis.create_stream("orders", 2);
/// kinesis.next_calls("ListShards", 1, Outcome::Mislisted(WrongListing::Empty));
/// let listed = kinesis.client().list_shards().stream_name("orders").send().await.unwrap();
/// assert!(listed.shards().is_empty());
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WrongListing {
    /// It has no shards.
    Empty,
    /// This shard is missing.
    Without(ShardId),
    /// Only this many shards are there.
    Short(usize),
    /// It is from when the stream had only this many shards.
    Stale(usize),
    /// The first shard's name is not one.
    Unreadable,
    /// The next page is the first page again.
    Loops,
    /// This shard starts at another sequence number.
    OtherStart(ShardId),
    /// Merged shards have one parent.
    OneParent,
}

impl Outcome {
    /// An error as Kinesis words it.
    pub fn failed(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed { status, code: code.into(), message: message.into() }
    }

    /// An answer that lacks these fields.
    pub fn without<'a>(fields: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Without(fields.into_iter().map(str::to_owned).collect())
    }

    /// `ProvisionedThroughputExceededException`: others have used up the shard's share.
    pub fn throttled() -> Self {
        Self::failed(400, "ProvisionedThroughputExceededException", "Rate exceeded for shard")
    }
}

/// What becomes of a subscription under way.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::testing::{Interruption, Kinesis};
///
/// let orders = Kinesis::new().create_stream("orders", 1);
/// // Nobody has subscribed to it.
/// assert_eq!(orders.shard(0).interrupt(&Interruption::Resets), 0);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interruption {
    /// It ends before its time.
    Ends,
    /// Its connection is lost.
    Resets,
    /// Nothing comes any more, not even that there is nothing new.
    Stalls,
    /// It ends with an error as Kinesis words it.
    Fails {
        /// The code, such as `InternalFailureException`.
        code: String,
        /// The message.
        message: String,
    },
}

impl Interruption {
    /// An error as Kinesis words it.
    pub fn fails(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Fails { code: code.into(), message: message.into() }
    }
}
