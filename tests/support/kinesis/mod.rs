//! A model of Kinesis in memory, which the real SDK client calls without a socket.
//!
//! It keeps Kinesis's own rules and limits, on tokio's clock, so that ten minutes pass in no time
//! where the clock is paused; and it fails calls as it is told to. What a client must not do is
//! noted in [`Kinesis::violations`] as well as refused.

// The wire carries times as floating-point seconds, and tests run on 64 bits.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

mod shards;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{
    BehaviorVersion, Config, Credentials, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use tokio::time::Instant;

pub(crate) use shards::{Numbers, Stream};

/// A handle of the model; its clones are the same one.
#[derive(Clone)]
pub(crate) struct Kinesis(Arc<Mutex<Model>>);

pub(crate) struct Model {
    began: Instant,
    epoch: SystemTime,
    streams: BTreeMap<String, Stream>,
    calls: Vec<Call>,
    violations: Vec<String>,
    latency: Duration,
    hook: Option<Hook>,
    child_shards: bool,
    in_flight: usize,
}

type Hook = Box<dyn FnMut(&Call) -> Action + Send>;

/// A call that came in.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) operation: String,
    /// The index of the shard that it is about.
    pub(crate) shard: Option<usize>,
    pub(crate) at: Instant,
    /// What came of it: `None` while it is under way, and for ever where its caller has gone.
    pub(crate) status: Option<u16>,
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// What is to become of a call.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Serve,
    /// An error as Kinesis words it.
    Fail {
        status: u16,
        code: &'static str,
        message: &'static str,
    },
    /// An answer that is not Kinesis's.
    Raw {
        status: u16,
        body: &'static str,
    },
    /// No connection.
    Refuse,
    /// No answer, ever.
    Hang,
    /// It is carried out at once, and answered late.
    Delay(Duration),
    /// It is carried out, and then the connection is lost.
    Lose,
}

impl Kinesis {
    /// Must be made within a tokio runtime, whose clock it takes.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Model {
            began: Instant::now(),
            epoch: SystemTime::now(),
            streams: BTreeMap::new(),
            calls: Vec::new(),
            violations: Vec::new(),
            latency: Duration::ZERO,
            hook: None,
            child_shards: true,
            in_flight: 0,
        })))
    }

    /// A model with one stream, `orders`.
    pub(crate) fn with_shards(shards: usize) -> Self {
        let kinesis = Self::new();
        kinesis.lock().streams.insert("orders".to_owned(), Stream::new(shards, Numbers::Long));
        kinesis
    }

    /// A client without retries of its own.
    pub(crate) fn client(&self) -> Client {
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

    /// What a client of one's own making sends its calls through.
    pub(crate) fn http_client(&self) -> SharedHttpClient {
        wire::http_client(self.clone())
    }

    /// Changes the stream `orders`.
    pub(crate) fn orders<T>(&self, change: impl FnOnce(&mut Stream, u64) -> T) -> T {
        let mut model = self.lock();
        let now = model.now();
        change(model.streams.get_mut("orders").expect("the stream is there"), now)
    }

    /// Puts a record into a shard, and gives its sequence number.
    pub(crate) fn put(&self, shard: usize, data: impl Into<Vec<u8>>) -> String {
        self.orders(|orders, now| orders.put(shard, data.into(), now))
    }

    pub(crate) fn delete_stream(&self) {
        self.lock().streams.clear();
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Whether the end of a shard names its children; one emulator's does not.
    pub(crate) fn set_child_shards(&self, named: bool) {
        self.lock().child_shards = named;
    }

    /// Decides about every call from now on.
    pub(crate) fn on_call(&self, hook: impl FnMut(&Call) -> Action + Send + 'static) {
        self.lock().hook = Some(Box::new(hook));
    }

    /// Does this to the next calls of the operation, and then serves again.
    pub(crate) fn fail_next(&self, operation: &'static str, action: Action, mut times: usize) {
        self.on_call(move |call| {
            if call.operation == operation && times > 0 {
                times -= 1;
                return action.clone();
            }
            Action::Serve
        });
    }

    /// The calls of an operation so far.
    pub(crate) fn calls(&self, operation: &str) -> Vec<Call> {
        self.lock().calls.iter().filter(|call| call.operation == operation).cloned().collect()
    }

    /// How many calls there were.
    pub(crate) fn all_calls(&self) -> usize {
        self.lock().calls.len()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// What clients did that Kinesis forbids.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.0.lock().expect("no test panics under the lock")
    }
}

impl Model {
    /// Milliseconds since 1970, by the model's clock.
    fn now(&self) -> u64 {
        let time = self.epoch + self.began.elapsed();
        let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        u64::try_from(since.as_millis()).expect("before the year 500 million")
    }
}

impl fmt::Debug for Kinesis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kinesis").finish_non_exhaustive()
    }
}
