use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{
    BehaviorVersion, Config, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};

use super::contents::Shards;
use super::model::Shared;
use super::{Call, Outcome, Stream, wire};

/// A Kinesis in memory. Its clones are the same one.
///
/// Time is tokio's: make it within the runtime, and it goes as fast as the runtime's clock.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let kinesis = kinestream::testing::Kinesis::new();
/// let orders = kinesis.create_stream("orders", 2);
/// orders.put("customer-7", "a red one");
/// let listed = kinesis.client().list_shards().stream_name("orders").send().await.unwrap();
/// assert_eq!(listed.shards().len(), 2);
/// # }
/// ```
#[derive(Clone)]
pub struct Kinesis(Shared);

impl Kinesis {
    /// One without streams, whose time is that of this machine's clock.
    pub fn new() -> Self {
        Self::at(SystemTime::now())
    }

    /// One without streams, whose time is `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self(Shared::at(time))
    }

    /// A client of it, with credentials and a region, and without retries of its own.
    pub fn client(&self) -> Client {
        self.client_with_key("test")
    }

    /// A client like [`client`](Self::client), whose calls are signed with this access key ID, so that
    /// [`on_call`](Self::on_call) can tell clients apart.
    ///
    /// ```
    /// # use kinestream::testing::{Kinesis, Outcome};
    /// let kinesis = Kinesis::new();
    /// kinesis.on_call(|call| match call.access_key_id.as_deref() {
    ///     Some("one") => Outcome::failed(400, "AccessDeniedException", "no"),
    ///     _ => Outcome::Served,
    /// });
    /// let denied = kinesis.client_with_key("one");
    /// ```
    pub fn client_with_key(&self, access_key_id: &str) -> Client {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new(access_key_id, "test", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.http_client())
            .build();
        Client::from_conf(config)
    }

    /// What a client that you configure yourself sends its calls through.
    pub fn http_client(&self) -> SharedHttpClient {
        wire::http_client(self.0.clone())
    }

    /// Creates a stream, whose shards share the hash keys evenly. After one of the same name was
    /// deleted, its shards have the same names and later sequence numbers, and the iterators and page
    /// tokens of the deleted stream are refused as expired.
    ///
    /// # Panics
    ///
    /// Where there is one of this name, and where `shards` is 0.
    pub fn create_stream(&self, name: &str, shards: usize) -> Stream {
        let mut model = self.0.lock();
        let deleted = model.deleted.get(name).copied();
        let shards = Shards::new(shards, deleted, model.now());
        let before = model.streams.insert(name.to_owned(), shards);
        drop(model);
        assert!(before.is_none(), "there is a stream {name} already");
        Stream::new(self.0.clone(), name)
    }

    /// Deletes a stream with all that is in it.
    pub fn delete_stream(&self, name: &str) {
        let mut model = self.0.lock();
        if let Some(shards) = model.streams.remove(name) {
            model.deleted.insert(name.to_owned(), shards.next_number);
        }
    }

    /// The time, to the millisecond.
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.lock().now())
    }

    /// How long every call takes from now on, before it is carried out. At first: no time.
    pub fn set_latency(&self, latency: Duration) {
        self.0.lock().latency = latency;
    }

    /// Sets the longest random delay that is added to the latency of each call, as by a network. No delay by
    /// default. The delays are the same in each run.
    pub fn set_jitter(&self, jitter: Duration) {
        self.0.lock().jitter = jitter;
    }

    /// Sets the maximum number of records per event of enhanced fan-out. 10,000 by default.
    pub fn set_event_records(&self, records: usize) {
        self.0.lock().event_records = records.max(1);
    }

    /// Sets how long a subscription approaches a record that arrived an hour or more after the one before:
    /// until then it is sent events without records. No time by default.
    pub fn set_approach(&self, time: Duration) {
        self.0.lock().approach = time;
    }

    /// Sets whether answers are sent in chunks, without a `Content-Length`. Off by default. Kinesis sends
    /// the length; some proxies remove it.
    pub fn set_chunked(&self, chunked: bool) {
        self.0.lock().is_chunked = chunked;
    }

    /// Whether the end of a shard names its children. At first it does, as that of Kinesis;
    /// ferrokinesis does not.
    pub fn set_child_shards(&self, named: bool) {
        self.0.lock().child_shards = named;
    }

    /// Whether a sequence number that has left retention is accepted, and taken as the oldest record that
    /// is kept. At first it is refused: Kinesis was seen to do both.
    pub fn set_trimmed_numbers_accepted(&self, accepted: bool) {
        self.0.lock().trimmed_accepted = accepted;
    }

    /// How long records are kept, counted from their arrival. At first only
    /// [`Shard::trim`](super::Shard::trim) removes records.
    pub fn set_retention(&self, retention: Duration) {
        let millis = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        self.0.lock().retention = Some(millis);
    }

    /// How long a consumer that is registered from now on is `CREATING`. At first: no time.
    pub fn set_registration_time(&self, time: Duration) {
        self.0.lock().registration = time;
    }

    /// Decides about every call from now on, instead of whatever decided until now. It must not
    /// call this Kinesis.
    pub fn on_call(&self, decide: impl FnMut(&Call) -> Outcome + Send + 'static) {
        self.0.lock().on_call(decide);
    }

    /// The next calls of this operation have this outcome, and the others the one they would have had.
    /// Said again of the same operation, it is meant of the calls behind those; an
    /// [`on_call`](Self::on_call) revokes it.
    ///
    /// ```
    /// # use kinestream::testing::{Kinesis, Outcome};
    /// # let kinesis = Kinesis::new();
    /// // Throttled twice, and then without an answer.
    /// kinesis.next_calls("GetRecords", 2, Outcome::throttled());
    /// kinesis.next_calls("GetRecords", 1, Outcome::Hangs);
    /// ```
    pub fn next_calls(&self, operation: &str, calls: usize, outcome: Outcome) {
        self.0.lock().next_calls(operation, calls, outcome);
    }

    /// Has every iterator and page token that was given until now expire.
    pub fn expire_iterators(&self) {
        let mut model = self.0.lock();
        model.expired = model.now();
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().calls.clone()
    }

    /// The calls so far but for the first so many.
    pub fn calls_from(&self, first: usize) -> Vec<Call> {
        self.0.lock().calls.get(first..).unwrap_or_default().to_vec()
    }

    /// How many calls there were so far.
    pub fn call_count(&self) -> usize {
        self.0.lock().calls.len()
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> usize {
        self.0.lock().in_flight
    }

    /// What clients did that Kinesis forbids, in words. Each was refused as well.
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }
}

impl Default for Kinesis {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
