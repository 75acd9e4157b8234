//! Panics in all code that the caller gives to the crate: the store, an interceptor of the client,
//! the metrics recorder, the tracing layer, and the waker of the reader.

use std::any::Any;
use std::fmt;
use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use fastrand::Rng;
use tracing::span;

use crate::listening::{interest_in, is_of_crate, keep_events_on};
use crate::seeds::pick;

/// The prefix of the message of a deliberate panic.
const DELIBERATE: &str = "deliberate: ";

/// The code that panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A call to the store, before or after it is carried out.
    Store,
    StoreAfter,
    /// A call to Kinesis, before or after it is made.
    Call,
    CallAfter,
    Recorder,
    Layer,
    /// The clone, the wake or the drop of the reader's waker.
    Waker,
}

const PARTS: [Part; 7] = [
    Part::Store,
    Part::StoreAfter,
    Part::Call,
    Part::CallAfter,
    Part::Recorder,
    Part::Layer,
    Part::Waker,
];

/// The panics that are due in a scenario, and those that have occurred.
#[derive(Debug, Clone)]
pub(crate) struct Panics {
    armed: Arc<Armed>,
    fired: Arc<[AtomicUsize; PARTS.len()]>,
}

#[derive(Debug)]
struct Armed {
    /// In percent of the steps.
    chance: u8,
    /// The reader is polled by its waker, on the stack of the waking task.
    polls_inline: bool,
    left: [AtomicUsize; PARTS.len()],
    /// The total number of panics.
    fired: AtomicUsize,
}

impl Panics {
    /// Draws the panics from a separate generator, so that the rest of the scenario stays the same.
    pub(crate) fn new(rng: &mut Rng) -> Self {
        silence_deliberate();
        let armed = Armed {
            chance: pick(rng, &[0, 0, 8, 25]),
            polls_inline: rng.u8(..3) == 0,
            left: Default::default(),
            fired: AtomicUsize::new(0),
        };
        Self { armed: Arc::new(armed), fired: Arc::default() }
    }

    /// Returns true if any panic has occurred, in any consumer.
    pub(crate) fn have_fired(&self) -> bool {
        self.armed.fired.load(Ordering::Relaxed) > 0
    }

    /// Returns a handle with a separate count for one consumer.
    #[allow(dead_code, reason = "only fleets have several consumers at a time")]
    pub(crate) fn of_one(&self) -> Self {
        Self { armed: Arc::clone(&self.armed), fired: Arc::default() }
    }

    pub(crate) fn are_planned(&self) -> bool {
        self.armed.chance > 0
    }

    pub(crate) fn polls_inline(&self) -> bool {
        self.armed.polls_inline
    }

    /// Arms a part to panic up to five times, or none. Returns the part and the number of panics.
    pub(crate) fn arm(&self, rng: &mut Rng) -> Option<(Part, usize)> {
        if self.armed.chance == 0 || rng.u8(..100) >= self.armed.chance {
            return None;
        }
        let part = pick(rng, &PARTS);
        let times = rng.usize(1..6);
        self.armed.left[part as usize].fetch_add(times, Ordering::Relaxed);
        Some((part, times))
    }

    pub(crate) fn disarm(&self) {
        self.armed.left.iter().for_each(|left| left.store(0, Ordering::Relaxed));
    }

    /// Returns the number of panics of these parts so far.
    pub(crate) fn fired(&self, parts: &[Part]) -> usize {
        parts.iter().map(|part| self.fired[*part as usize].load(Ordering::Relaxed)).sum()
    }

    #[allow(dead_code, reason = "only the simulation of a single reader counts each error")]
    pub(crate) fn all_fired(&self) -> usize {
        self.fired(&PARTS)
    }

    pub(crate) fn is_armed(&self, part: Part) -> bool {
        self.left(part) > 0
    }

    /// Returns the number of panics of this part that are still due.
    pub(crate) fn left(&self, part: Part) -> usize {
        self.armed.left[part as usize].load(Ordering::Relaxed)
    }

    /// Panics if a panic of this part is due.
    pub(crate) fn maybe(&self, part: Part) {
        let left = &self.armed.left[part as usize];
        let less = |left: usize| left.checked_sub(1);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            self.fired[part as usize].fetch_add(1, Ordering::Relaxed);
            self.armed.fired.fetch_add(1, Ordering::Relaxed);
            panic!("{DELIBERATE}{part:?}");
        }
    }

    /// Notes a panic of another part.
    #[allow(dead_code, reason = "only fleets have panics of other parts")]
    pub(crate) fn note_other(&self) {
        self.armed.fired.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the client with an interceptor that may panic.
    pub(crate) fn client(&self, client: Client) -> Client {
        if !self.are_planned() {
            return client;
        }
        let config = client.config().to_builder();
        Client::from_conf(config.interceptor(Interceptor(self.clone())).build())
    }

    /// Runs a scenario with a metrics recorder and a tracing layer that may panic.
    pub(crate) fn around<T>(&self, scenario: impl FnOnce() -> T) -> T {
        if !self.are_planned() {
            return scenario();
        }
        tracing::subscriber::with_default(Layer(self.clone()), || recorded(self, scenario))
    }
}

/// Returns true for a deliberate panic.
pub(crate) fn is_deliberate(panic: &(dyn Any + Send)) -> bool {
    panic.downcast_ref::<String>().is_some_and(|message| message.starts_with(DELIBERATE))
}

/// Suppresses the messages of deliberate panics.
fn silence_deliberate() {
    static ONCE: Once = Once::new();
    keep_events_on();
    ONCE.call_once(|| {
        let default_hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let message = info.payload_as_str().unwrap_or_default();
            if !message.starts_with(DELIBERATE) {
                default_hook(info);
            }
        }));
    });
}

#[derive(Debug)]
struct Interceptor(Panics);

impl Intercept for Interceptor {
    fn name(&self) -> &'static str {
        "Interceptor"
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.maybe(Part::Call);
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        _context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.maybe(Part::CallAfter);
        Ok(())
    }
}

/// A tracing layer that enables events only when a panic is due.
struct Layer(Panics);

impl tracing::Subscriber for Layer {
    fn register_callsite(
        &self,
        metadata: &'static tracing::Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        interest_in(metadata)
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        is_of_crate(metadata) && (metadata.is_span() || self.0.is_armed(Part::Layer))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        self.0.maybe(Part::Layer);
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.maybe(Part::Layer);
    }

    fn enter(&self, _: &span::Id) {
        self.0.maybe(Part::Layer);
    }

    fn exit(&self, _: &span::Id) {
        self.0.maybe(Part::Layer);
    }

    fn try_close(&self, _: span::Id) -> bool {
        self.0.maybe(Part::Layer);
        true
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Layer")
    }
}

#[cfg(not(feature = "metrics"))]
fn recorded<T>(_panics: &Panics, scenario: impl FnOnce() -> T) -> T {
    scenario()
}

#[cfg(feature = "metrics")]
fn recorded<T>(panics: &Panics, scenario: impl FnOnce() -> T) -> T {
    metrics::with_local_recorder(&recorder::Recorder(panics.clone()), scenario)
}

#[cfg(feature = "metrics")]
mod recorder {
    use std::sync::Arc;

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, SharedString, Unit,
    };

    use super::{Panics, Part};

    #[derive(Clone)]
    pub(super) struct Recorder(pub(super) Panics);

    impl CounterFn for Recorder {
        fn increment(&self, _: u64) {
            self.0.maybe(Part::Recorder);
        }

        fn absolute(&self, _: u64) {}
    }

    impl GaugeFn for Recorder {
        fn increment(&self, _: f64) {}

        fn decrement(&self, _: f64) {}

        fn set(&self, _: f64) {
            self.0.maybe(Part::Recorder);
        }
    }

    impl metrics::Recorder for Recorder {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            self.0.maybe(Part::Recorder);
            Counter::from_arc(Arc::new(self.clone()))
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            self.0.maybe(Part::Recorder);
            Gauge::from_arc(Arc::new(self.clone()))
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }
}
