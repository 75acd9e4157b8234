//! The state that all handles of a Kinesis share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use tokio::time::Instant;

use super::answer::EncodedAnswer;
use super::contents::{MAX_RECORDS, StreamContents};
use super::{Call, CborSupport, Outcome};

use crate::mutex::Mutex;

/// A handle to the model.
#[derive(Clone)]
pub(super) struct ModelHandle(Arc<Mutex<Model>>);

pub(super) struct Model {
    began: Instant,
    epoch: SystemTime,
    pub(super) streams: BTreeMap<String, StreamContents>,
    /// The next sequence numbers of deleted streams.
    pub(super) deleted: BTreeMap<String, u128>,
    pub(super) calls: Vec<Call>,
    pub(super) violations: Vec<String>,
    pub(super) latency: Duration,
    hook: Option<Hook>,
    planned: Vec<Planned>,
    pub(super) child_shards: bool,
    /// The number of responses with a next position from the end of a closed shard on.
    pub(super) responses_before_end: usize,
    pub(super) is_chunked: bool,
    cbor: CborSupport,
    /// The number of calls in CBOR that were refused since `cbor` was set.
    refusals: usize,
    pub(super) jitter: Duration,
    jitters: Rng,
    pub(super) event_records: usize,
    /// The time for which a subscription approaches a record after a gap.
    pub(super) approach: Duration,
    /// Accepts a trimmed sequence number as the oldest record in retention.
    pub(super) trimmed_accepted: bool,
    /// The retention of records in milliseconds, if records expire by age.
    pub(super) retention: Option<u64>,
    pub(super) in_flight: usize,
    /// The time for which a newly registered consumer stays `CREATING`.
    pub(super) registration: Duration,
    /// Iterators and page tokens that were issued before this time are expired.
    pub(super) expired: u64,
}

type Hook = Box<dyn FnMut(&Call) -> Outcome + Send>;

/// The outcome of the next calls of an operation.
struct Planned {
    operation: String,
    calls: usize,
    outcome: Outcome,
}

impl ModelHandle {
    pub(super) fn at(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(Model {
            began: Instant::now(),
            epoch: time,
            streams: BTreeMap::new(),
            deleted: BTreeMap::new(),
            calls: Vec::new(),
            violations: Vec::new(),
            latency: Duration::ZERO,
            hook: None,
            planned: Vec::new(),
            child_shards: true,
            responses_before_end: 0,
            is_chunked: false,
            cbor: CborSupport::default(),
            refusals: 0,
            jitter: Duration::ZERO,
            jitters: Rng::with_seed(0),
            event_records: MAX_RECORDS as usize,
            approach: Duration::ZERO,
            trimmed_accepted: false,
            retention: None,
            in_flight: 0,
            registration: Duration::ZERO,
            expired: 0,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Model> {
        // A test that panicked under the lock has already failed; other users may continue.
        self.0.lock()
    }
}

impl fmt::Debug for ModelHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams: Vec<String> = self.lock().streams.keys().cloned().collect();
        formatter.debug_struct("Kinesis").field("streams", &streams).finish_non_exhaustive()
    }
}

impl Model {
    /// Returns the milliseconds since 1970, by the model's clock.
    pub(super) fn now(&self) -> u64 {
        let time = self.epoch + self.began.elapsed();
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the delay before the next call is carried out.
    pub(super) fn next_latency(&mut self) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        self.latency + self.jitter.mul_f64(self.jitters.f64())
    }

    pub(super) fn set_cbor(&mut self, support: CborSupport) {
        (self.cbor, self.refusals) = (support, 0);
    }

    pub(super) fn cbor(&self) -> CborSupport {
        self.cbor
    }

    /// Returns the response to a call in CBOR if this server carries out none.
    pub(super) fn refuse_cbor(&mut self) -> Option<EncodedAnswer> {
        let refusal = self.cbor.refusal(!self.refusals.is_multiple_of(2))?;
        self.refusals += 1;
        Some(refusal)
    }

    pub(super) fn decide(&mut self, call: &Call) -> Outcome {
        let planned = self.planned.iter_mut().find(|planned| planned.operation == call.operation);
        if let Some(planned) = planned {
            let outcome = planned.outcome.clone();
            planned.calls -= 1;
            self.planned.retain(|planned| planned.calls > 0);
            return outcome;
        }
        self.hook.as_mut().map_or(Outcome::Served, |decide| decide(call))
    }

    pub(super) fn on_call(&mut self, decide: impl FnMut(&Call) -> Outcome + Send + 'static) {
        self.hook = Some(Box::new(decide));
        self.planned.clear();
    }

    pub(super) fn next_calls(&mut self, operation: &str, calls: usize, outcome: Outcome) {
        if calls > 0 {
            self.planned.push(Planned { operation: operation.to_owned(), calls, outcome });
        }
    }
}
