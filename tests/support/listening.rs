//! Lets a subscriber of one thread receive every event of the crate on that thread.
//!
//! `tracing` decides once for each place in the code whether anything listens there, when any thread
//! first reaches it. While only one subscriber exists, it asks that thread's own, and a thread
//! without one turns the place off for all.

use std::sync::Once;

use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, span};

/// Keeps every place of the crate on, whichever thread reaches it first.
pub(crate) fn keep_events_on() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::subscriber::set_global_default(Undecided).expect("no other global subscriber");
    });
}

/// Whether a span or an event is the crate's. A subscriber decides this in `enabled` as well, which
/// `tracing` asks about every place that another thread is registering at that moment: the SDK draws a
/// random number for each of its spans that is enabled.
pub(crate) fn is_of_crate(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("kinestream")
}

/// Receives nothing itself.
struct Undecided;

impl Subscriber for Undecided {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_of_crate(metadata) { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
