use std::time::Duration;

use tokio::time::Instant;

use crate::record::{SequenceNumber, ShardId};

/// A call that a [`Kinesis`](super::Kinesis) received.
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
    /// The operation, such as `GetRecords`.
    pub operation: String,
    /// True if the request is in CBOR, false if it is in JSON.
    pub is_cbor: bool,
    /// The shard of the call, if the call names one.
    pub shard_id: Option<ShardId>,
    /// The access key ID that signed the call: `test` for [`client`](super::Kinesis::client).
    pub access_key_id: Option<String>,
    /// The time at which the call arrived.
    pub at: Instant,
    /// The status of the response. `None` until the caller has read the response, and forever if
    /// the caller dropped the call or the connection was lost.
    pub status: Option<u16>,
    /// The number of records in the response. 0 if the response did not arrive completely.
    pub records: usize,
    /// The bytes of payloads and partition keys in the response.
    pub bytes: usize,
    /// The sequence number of the last record in the response.
    pub last: Option<SequenceNumber>,
}

/// The outcome of a call.
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
    /// The call is served.
    Served,
    /// The call is refused with an error in Kinesis's format.
    Failed {
        /// The HTTP status.
        status: u16,
        /// The code, such as `ExpiredIteratorException`.
        code: String,
        /// The message.
        message: String,
    },
    /// The response is not in Kinesis's format, as from a proxy.
    Garbled {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
    /// The connection is refused.
    Refused,
    /// The call never gets a response.
    Hangs,
    /// The call is carried out at once. The response follows after this time.
    Delayed(Duration),
    /// The call is carried out. Then the connection is lost.
    Lost,
    /// The call is carried out. The connection is lost after half of the response.
    Cut,
    /// The call is carried out. The response, or each event of a subscription, lacks these fields.
    /// `ApproximateArrivalTimestamp` removes the arrival time of each record of a `GetRecords` call in
    /// JSON.
    Without(Vec<String>),
    /// A `ListShards` call gets a well-formed but wrong response. Any other call is served.
    Mislisted(WrongListing),
}

/// The error in the response to a `ListShards` call.
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
    /// The listing has no shards.
    Empty,
    /// The listing lacks this shard.
    Without(ShardId),
    /// The listing has only this many shards.
    Short(usize),
    /// The listing is outdated: from when the stream had only this many shards.
    Stale(usize),
    /// The first shard's name is invalid.
    Unreadable,
    /// The next page is the first page again.
    Loops,
    /// This shard starts at a different sequence number.
    OtherStart(ShardId),
    /// Merged shards have only one parent.
    OneParent,
    /// Closed shards have no ending sequence number, as if they were open.
    WithoutEnds,
}

impl Outcome {
    /// Creates an error in Kinesis's format.
    pub fn failed(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed { status, code: code.into(), message: message.into() }
    }

    /// Creates a response that lacks these fields.
    pub fn without<'a>(fields: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Without(fields.into_iter().map(str::to_owned).collect())
    }

    /// Creates a `ProvisionedThroughputExceededException`: other readers have used up the shard's
    /// throughput.
    pub fn throttled() -> Self {
        Self::failed(400, "ProvisionedThroughputExceededException", "Rate exceeded for shard")
    }
}

/// An interruption of an active subscription.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::testing::{Interruption, Kinesis};
///
/// let orders = Kinesis::new().create_stream("orders", 1);
/// // The shard has no subscriptions.
/// assert_eq!(orders.shard(0).interrupt(&Interruption::Resets), 0);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interruption {
    /// The subscription ends early.
    Ends,
    /// The connection is lost.
    Resets,
    /// Nothing more arrives, not even keep-alive events.
    Stalls,
    /// The subscription ends with an error in Kinesis's format.
    Fails {
        /// The code, such as `InternalFailureException`.
        code: String,
        /// The message.
        message: String,
    },
}

impl Interruption {
    /// Creates an interruption with an error in Kinesis's format.
    pub fn fails(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Fails { code: code.into(), message: message.into() }
    }
}
