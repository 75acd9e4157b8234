//! Ensures that the subscriber of one thread receives every event of the crate on that thread.
//!
//! `tracing` caches the interest in each callsite when a thread first reaches it. While only one
//! subscriber exists, `tracing` queries the subscriber of that thread. A thread without a subscriber
//! then disables the callsite for all threads.

use std::sync::Once;

use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, span};

/// Keeps every callsite of the crate enabled, regardless of the thread that reaches it first.
pub(crate) fn keep_events_on() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::subscriber::set_global_default(Undecided)
            .expect("expected no other global subscriber");
    });
}

/// Returns true if a span or an event belongs to the crate.
///
/// A subscriber must also check this in `enabled`, which `tracing` calls for each callsite that
/// another thread is registering at that moment. Otherwise spans of the SDK may be enabled, and the
/// SDK draws a random number for each enabled span.
pub(crate) fn is_of_crate(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("kinestream")
}

/// Returns the interest in a callsite: queried each time, if the callsite belongs to the crate.
pub(crate) fn interest_in(metadata: &Metadata<'_>) -> Interest {
    if is_of_crate(metadata) { Interest::sometimes() } else { Interest::never() }
}

/// A global subscriber that receives no events.
struct Undecided;

impl Subscriber for Undecided {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        interest_in(metadata)
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
