use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{
    BehaviorVersion, Config, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use tokio::time::Instant;

use super::stream::Shards;
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
pub struct Kinesis(Arc<Mutex<Model>>);

pub(super) struct Model {
    began: Instant,
    epoch: SystemTime,
    pub(super) streams: BTreeMap<String, Shards>,
    pub(super) calls: Vec<Call>,
    pub(super) violations: Vec<String>,
    pub(super) latency: Duration,
    hook: Option<Hook>,
    pub(super) child_shards: bool,
    pub(super) in_flight: usize,
    /// Iterators and page tokens that were given before this moment have expired.
    pub(super) expired: u64,
}

type Hook = Box<dyn FnMut(&Call) -> Outcome + Send>;

impl Kinesis {
    /// One without streams, whose time is that of this machine's clock.
    pub fn new() -> Self {
        Self::at(SystemTime::now())
    }

    /// One without streams, whose time is `time` now.
    pub fn at(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(Model {
            began: Instant::now(),
            epoch: time,
            streams: BTreeMap::new(),
            calls: Vec::new(),
            violations: Vec::new(),
            latency: Duration::ZERO,
            hook: None,
            child_shards: true,
            in_flight: 0,
            expired: 0,
        })))
    }

    /// A client of it, with credentials and a region, and without retries of its own.
    pub fn client(&self) -> Client {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.http_client())
            .build();
        Client::from_conf(config)
    }

    /// What a client that you configure yourself sends its calls through.
    pub fn http_client(&self) -> SharedHttpClient {
        wire::http_client(self.clone())
    }

    /// Creates a stream, whose shards share the hash keys evenly.
    ///
    /// # Panics
    ///
    /// Where there is one of this name, and where `shards` is 0.
    pub fn create_stream(&self, name: &str, shards: usize) -> Stream {
        let before = self.lock().streams.insert(name.to_owned(), Shards::new(shards));
        assert!(before.is_none(), "there is a stream {name} already");
        Stream::new(self.clone(), name)
    }

    /// Deletes a stream with all that is in it.
    pub fn delete_stream(&self, name: &str) {
        self.lock().streams.remove(name);
    }

    /// The time, to the millisecond.
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.lock().now())
    }

    /// How long every call takes from now on, before it is carried out. At first: no time.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Whether the end of a shard names its children. At first it does, as that of Kinesis;
    /// ferrokinesis does not.
    pub fn set_child_shards(&self, named: bool) {
        self.lock().child_shards = named;
    }

    /// Decides about every call from now on, instead of whatever decided until now. It must not
    /// call this Kinesis.
    pub fn on_call(&self, decide: impl FnMut(&Call) -> Outcome + Send + 'static) {
        self.lock().hook = Some(Box::new(decide));
    }

    /// The next calls of this operation have this outcome, and all others are served.
    pub fn next_calls(&self, operation: &str, mut calls: usize, outcome: Outcome) {
        let operation = operation.to_owned();
        self.on_call(move |call| {
            if call.operation == operation && calls > 0 {
                calls -= 1;
                return outcome.clone();
            }
            Outcome::Served
        });
    }

    /// Has every iterator and page token that was given until now expire.
    pub fn expire_iterators(&self) {
        let mut model = self.lock();
        model.expired = model.now();
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The calls so far but for the first so many.
    pub fn calls_from(&self, first: usize) -> Vec<Call> {
        self.lock().calls.get(first..).unwrap_or_default().to_vec()
    }

    /// How many calls there were so far.
    pub fn call_count(&self) -> usize {
        self.lock().calls.len()
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// What clients did that Kinesis forbids, in words. Each was refused as well.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Model> {
        // A test that panics under the lock has said why; others may look on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Kinesis {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams: Vec<String> = self.lock().streams.keys().cloned().collect();
        formatter.debug_struct("Kinesis").field("streams", &streams).finish_non_exhaustive()
    }
}

impl Model {
    /// Milliseconds since 1970, by the model's clock.
    pub(super) fn now(&self) -> u64 {
        let time = self.epoch + self.began.elapsed();
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn decide(&mut self, call: &Call) -> Outcome {
        self.hook.as_mut().map_or(Outcome::Served, |decide| decide(call))
    }
}
