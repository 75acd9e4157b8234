use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{
    BehaviorVersion, Config, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
#[cfg(test)]
use aws_smithy_runtime_api::client::http::SharedHttpConnector;

use super::contents::StreamContents;
use super::model::ModelHandle;
use super::{Call, CborSupport, Outcome, Stream, wire};

/// An in-memory Kinesis. Its clones share the same streams.
///
/// It follows tokio's clock from the time it is created, so create it within the runtime.
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
pub struct Kinesis(ModelHandle);

impl Kinesis {
    /// Creates a Kinesis without streams that starts at the current time of this machine, or a
    /// millisecond later.
    pub fn new() -> Self {
        let now = SystemTime::now();
        let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().subsec_millis();
        // CBOR is compared more than once if all records arrived at whole seconds. With a paused
        // clock, that would be so in one of a thousand runs of a test.
        Self::at(if millis == 0 { now + Duration::from_millis(1) } else { now })
    }

    /// Creates a Kinesis without streams that starts at `time`.
    pub fn at(time: SystemTime) -> Self {
        Self(ModelHandle::at(time))
    }

    /// Returns a client of this Kinesis, with credentials, a region and an endpoint outside of AWS, and
    /// without SDK retries. It serves the ARNs of all regions.
    pub fn client(&self) -> Client {
        self.client_with_key("test")
    }

    /// Returns a client like [`client`](Self::client) whose calls are signed with this access key
    /// ID, so that [`on_call`](Self::on_call) can tell clients apart.
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
            // As with every server that is not AWS: it serves the streams of all regions.
            .endpoint_url("http://kinesis.test")
            .credentials_provider(Credentials::new(access_key_id, "test", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.http_client())
            .build();
        Client::from_conf(config)
    }

    /// Returns the HTTP client, for an SDK client with your own configuration.
    pub fn http_client(&self) -> SharedHttpClient {
        wire::http_client(self.0.clone())
    }

    /// Returns the connector behind the HTTP client, for requests that no SDK client makes.
    #[cfg(test)]
    pub(super) fn connector(&self) -> SharedHttpConnector {
        wire::connector(self.0.clone())
    }

    /// Creates a stream whose shards have equal hash key ranges.
    ///
    /// If a stream of the same name was deleted, the new shards have the same names and later
    /// sequence numbers, and the iterators and page tokens of the deleted stream are refused as
    /// expired.
    ///
    /// # Panics
    ///
    /// Panics if a stream of this name exists, or if `shards` is 0.
    pub fn create_stream(&self, name: &str, shards: usize) -> Stream {
        let mut model = self.0.lock();
        let deleted = model.deleted.get(name).copied();
        let shards = StreamContents::new(shards, deleted, model.now());
        let before = model.streams.insert(name.to_owned(), shards);
        drop(model);
        assert!(before.is_none(), "stream {name} already exists");
        Stream::new(self.0.clone(), name)
    }

    /// Deletes a stream and its contents.
    pub fn delete_stream(&self, name: &str) {
        let mut model = self.0.lock();
        if let Some(shards) = model.streams.remove(name) {
            model.deleted.insert(name.to_owned(), shards.next_number);
        }
    }

    /// Returns the current time, to the millisecond.
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.lock().now())
    }

    /// Sets the latency of every call: the time before the call is carried out. Zero by default.
    pub fn set_latency(&self, latency: Duration) {
        self.0.lock().latency = latency;
    }

    /// Sets the longest random delay that is added to the latency of each call, as by a network.
    /// Zero by default. The delays are the same in each run.
    pub fn set_jitter(&self, jitter: Duration) {
        self.0.lock().jitter = jitter;
    }

    /// Sets the maximum number of records per event of enhanced fan-out, at least 1. 10,000 by
    /// default.
    pub fn set_event_records(&self, records: usize) {
        self.0.lock().event_records = records.max(1);
    }

    /// Sets how long a subscription approaches a record that arrived an hour or more after the
    /// previous one. Until then the subscription receives events without records. Zero by default.
    pub fn set_approach(&self, time: Duration) {
        self.0.lock().approach = time;
    }

    /// Sets whether responses are sent in chunks, without a `Content-Length`. Off by default.
    /// Kinesis sends the length; some proxies remove it.
    pub fn set_chunked(&self, chunked: bool) {
        self.0.lock().is_chunked = chunked;
    }

    /// Sets the response to calls in CBOR, from the next response on. [`CborSupport::Amazon`] by
    /// default.
    pub fn set_cbor(&self, support: CborSupport) {
        self.0.lock().set_cbor(support);
    }

    /// Sets whether the end of a shard names its children. On by default, as in Kinesis;
    /// ferrokinesis does not name them.
    pub fn set_child_shards(&self, named: bool) {
        self.0.lock().child_shards = named;
    }

    /// Sets how many responses of `GetRecords` name a next position although the shard is closed and
    /// no record is left, before the response that shows the end. 0 by default, as in Kinesis.
    /// ferrokinesis sends one such response after each new iterator.
    pub fn set_responses_before_end(&self, responses: usize) {
        self.0.lock().responses_before_end = responses;
    }

    /// Sets whether a trimmed sequence number is accepted as a starting position, and means the
    /// oldest record in retention. Off by default: the number is refused. Kinesis has been observed
    /// to do both.
    pub fn set_trimmed_numbers_accepted(&self, accepted: bool) {
        self.0.lock().trimmed_accepted = accepted;
    }

    /// Sets how long records are kept after their arrival. By default, only
    /// [`Shard::trim`](super::Shard::trim) removes records.
    pub fn set_retention(&self, retention: Duration) {
        let millis = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        self.0.lock().retention = Some(millis);
    }

    /// Sets how long newly registered consumers stay `CREATING`. Zero by default.
    pub fn set_registration_time(&self, time: Duration) {
        self.0.lock().registration = time;
    }

    /// Sets the function that decides the outcome of every call from now on. It replaces the
    /// previous one. It must not call this Kinesis.
    pub fn on_call(&self, decide: impl FnMut(&Call) -> Outcome + Send + 'static) {
        self.0.lock().on_call(decide);
    }

    /// Sets the outcome of the next `calls` calls of an operation. Later calls have the outcome
    /// that they would have had otherwise.
    ///
    /// Repeated calls of this method for an operation queue up. [`on_call`](Self::on_call) clears
    /// the queue.
    ///
    /// ```
    /// # use kinestream::testing::{Kinesis, Outcome};
    /// # let kinesis = Kinesis::new();
    /// // Two throttled calls, then one without a response.
    /// kinesis.next_calls("GetRecords", 2, Outcome::throttled());
    /// kinesis.next_calls("GetRecords", 1, Outcome::Hangs);
    /// ```
    pub fn next_calls(&self, operation: &str, calls: usize, outcome: Outcome) {
        self.0.lock().next_calls(operation, calls, outcome);
    }

    /// Expires every iterator and page token that was issued until now.
    pub fn expire_iterators(&self) {
        let mut model = self.0.lock();
        model.expired = model.now();
    }

    /// Returns all calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().calls.clone()
    }

    /// Returns the calls so far, without the first `first`.
    pub fn calls_from(&self, first: usize) -> Vec<Call> {
        self.0.lock().calls.get(first..).unwrap_or_default().to_vec()
    }

    /// Returns the number of calls so far.
    pub fn call_count(&self) -> usize {
        self.0.lock().calls.len()
    }

    /// Returns the number of calls in flight.
    pub fn in_flight(&self) -> usize {
        self.0.lock().in_flight
    }

    /// Returns the client actions that Kinesis forbids, as text. Each was refused as well.
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
