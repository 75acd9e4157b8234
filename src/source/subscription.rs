//! Reads one subscription of a shard, and reserves the memory of its events.
//!
//! A message begins with its length, so its memory is taken before the rest of it is read. If too
//! little memory is free, the subscription is dropped, and a new one begins once there is enough:
//! subscriptions share an HTTP/2 connection, and an unread one would block the others.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use aws_sdk_kinesis::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use aws_sdk_kinesis::primitives::event_stream::EventReceiver;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{SubscribeToShardEvent, SubscribeToShardEventStream};
use tokio::time::{Instant, timeout_at};

use super::connections::ConnectionSlot;
use super::demand::Demand;
use super::field_scanner::{MessageFieldScanner, NamedFields};
use super::memory_budget::{Reservation, while_parsed};
use super::metered_body::{BodyMeter, meter_body};
use crate::error::{ClassifiedError, contain};
use crate::mutex::Mutex;

/// The age at which Kinesis ends a subscription:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>.
pub(super) const MAX_SUBSCRIPTION_AGE: Duration = Duration::from_secs(300);

/// The minimum age at which a subscription is renewed, before Kinesis ends it.
const RENEW_AFTER: Duration = Duration::from_secs(260);
/// The range of the random time that is added, so that shards renew at different moments.
const RENEW_SPREAD: Duration = Duration::from_secs(30);

/// The time without an event after which a subscription counts as dead. Kinesis sends an event
/// every few seconds even if there are no records; this is six times as long. The SDK for Java
/// waits for the same time.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// An open subscription.
pub(super) struct Subscription {
    events: EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>,
    meter: MessageMeter,
    pub(super) renew_at: Instant,
    _on: ConnectionSlot,
}

/// The outcome of waiting for an event.
pub(super) enum SubscriptionMessage {
    Event(SubscribeToShardEvent, EventMessage),
    /// The subscription is due for renewal.
    Renew,
    /// A message of an unknown type, which is ignored.
    Nothing,
    /// Too little memory was free for a message of this length.
    TooLittleMemory(usize),
    /// The server has ended the subscription, on time or early.
    Ended,
    Failed(ClassifiedError),
}

/// The memory and the fields of the message that an event was parsed from.
pub(super) struct EventMessage {
    space: Reservation,
    /// The fields that the message names.
    pub(super) named: NamedFields,
}

impl EventMessage {
    /// Returns the memory of the event's records, which hold `bytes`, and releases the rest.
    pub(super) fn keep(mut self, bytes: usize) -> Reservation {
        self.space.resize_up_to(bytes);
        self.space
    }
}

impl Subscription {
    pub(super) fn new(
        events: EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>,
        meter: MessageMeter,
        on: ConnectionSlot,
    ) -> Self {
        let renew_at = Instant::now() + RENEW_AFTER + RENEW_SPREAD.mul_f64(fastrand::f64());
        meter.lock().begin();
        Self { events, meter, renew_at, _on: on }
    }

    /// Waits for the next event.
    ///
    /// Cancel safe: the part of the event that was read is kept.
    pub(super) async fn next(&mut self) -> SubscriptionMessage {
        let dead_at = Instant::now() + DEAD_AFTER;
        let received = contain(timeout_at(dead_at.min(self.renew_at), self.events.recv())).await;
        let received = match received {
            Err(panic) => {
                return SubscriptionMessage::Failed(ClassifiedError::panicked(
                    "SubscribeToShard",
                    panic,
                ));
            }
            Ok(Ok(received)) => received,
            Ok(Err(_elapsed)) if self.renew_at <= dead_at => return SubscriptionMessage::Renew,
            Ok(Err(_elapsed)) => {
                return SubscriptionMessage::Failed(ClassifiedError::timed_out(
                    "SubscribeToShard",
                    DEAD_AFTER.as_secs(),
                ));
            }
        };
        let mut meter = self.meter.lock();
        match received {
            Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => {
                SubscriptionMessage::Event(event, meter.take_message())
            }
            Ok(Some(_of_a_later_version)) => {
                drop(meter.take_message());
                SubscriptionMessage::Nothing
            }
            Ok(None) => SubscriptionMessage::Ended,
            Err(_) if meter.short > 0 => SubscriptionMessage::TooLittleMemory(meter.short),
            Err(error) => {
                SubscriptionMessage::Failed(ClassifiedError::of_event("SubscribeToShard", error))
            }
        }
    }
}

/// Measures the messages of a subscription as they are read, and reserves their memory.
#[derive(Debug, Clone)]
pub(super) struct MessageMeter(Arc<Mutex<MeterState>>);

#[derive(Debug)]
struct MeterState {
    demand: Demand,
    /// The memory taken for the first event before anything was read.
    spare: Reservation,
    /// The memory and the scanners of messages that have begun and are not returned as events yet.
    messages: VecDeque<(Reservation, MessageFieldScanner)>,
    /// The initial message of the subscription has been read.
    has_begun: bool,
    /// The bytes received so far of the next message's length.
    length: Vec<u8>,
    /// The number of bytes of the last message that are still to come.
    left: usize,
    /// The length of the message that did not fit into free memory; 0 if all did.
    short: usize,
}

/// The number of bytes at the beginning of a message that hold its length:
/// <https://smithy.io/2.0/aws/amazon-eventstream.html>.
const LENGTH: usize = 4;

impl MessageMeter {
    /// Creates the meter of a subscription. `spare` is the memory granted for its first event.
    pub(super) fn new(spare: Reservation, demand: Demand) -> Self {
        Self(Arc::new(Mutex::new(MeterState {
            demand,
            spare,
            messages: VecDeque::new(),
            has_begun: false,
            length: Vec::with_capacity(LENGTH),
            left: 0,
            short: 0,
        })))
    }

    /// Returns the length of the message that did not fit into free memory; 0 if all did.
    pub(super) fn short(&self) -> usize {
        self.lock().short
    }

    fn lock(&self) -> MutexGuard<'_, MeterState> {
        self.0.lock()
    }
}

impl BodyMeter for MeterState {
    /// Scans received bytes. Passes all of them on, or those before the first message that does not
    /// fit into memory.
    fn read(&mut self, data: &[u8]) -> usize {
        let mut read = 0;
        while read < data.len() {
            let rest = &data[read..];
            if self.left > 0 {
                let part = self.left.min(rest.len());
                if let Some((_, members)) = self.messages.back_mut() {
                    members.read(&rest[..part]);
                }
                self.left -= part;
                read += part;
                continue;
            }
            let part = (LENGTH - self.length.len()).min(rest.len());
            self.length.extend_from_slice(&rest[..part]);
            if let Ok(length) = <[u8; LENGTH]>::try_from(&self.length[..]) {
                self.length.clear();
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.left = length.saturating_sub(LENGTH);
                if !self.admit(length) {
                    self.short = length;
                    return read;
                }
            }
            read += part;
        }
        read
    }

    fn error(&mut self, _is_read: bool) -> Option<BoxError> {
        (self.short > 0).then(|| "too little free memory for the message".into())
    }
}

impl MeterState {
    /// Takes the memory of a message. Returns false if too little is free. One event always fits
    /// while the caller waits for it.
    fn admit(&mut self, length: usize) -> bool {
        let bytes = while_parsed(length);
        let empty = self.spare.empty();
        let is_event = self.has_begun || !self.messages.is_empty();
        let mut space = if is_event { std::mem::replace(&mut self.spare, empty) } else { empty };
        let events_before = self.messages.len() - usize::from(!self.has_begun && is_event);
        if !space.resize(bytes) {
            let is_least = events_before == 0 && self.demand.is_urgent();
            if !is_least && is_event {
                return false;
            }
            space.resize_up_to(bytes);
        }
        self.messages.push_back((space, MessageFieldScanner::new(length)));
        true
    }

    /// Notes that the initial message has been read.
    fn begin(&mut self) {
        self.has_begun = true;
        self.messages.pop_front();
    }

    /// Takes the memory and the fields of the next message.
    fn take_message(&mut self) -> EventMessage {
        let (space, members) = self
            .messages
            .pop_front()
            .unwrap_or_else(|| (self.spare.empty(), MessageFieldScanner::new(LENGTH)));
        EventMessage { space, named: members.named() }
    }
}

impl Intercept for MessageMeter {
    fn name(&self) -> &'static str {
        "MessageMeter"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        // An error response is short and is not a stream of messages.
        if response.status().is_success() {
            meter_body(response.body_mut(), &self.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::demand::Urgency;
    use super::super::memory_budget::{MemoryBudget, RESERVE, ShardBudget};
    use super::*;

    /// Returns a message of `length` bytes. Only its first four bytes are read.
    fn message(length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        message.resize(length.max(LENGTH), 0);
        message
    }

    fn meter(memory: &ShardBudget, bytes: usize, urgency: Urgency) -> MessageMeter {
        let (mut space, demand) = (memory.empty(), Demand::default());
        assert!(space.resize(bytes));
        match urgency {
            Urgency::Urgent => demand.urge(0),
            _ => demand.fetch_ahead(),
        }
        MessageMeter::new(space, demand)
    }

    /// Returns a meter that has read the initial message of a subscription.
    fn begun(memory: &ShardBudget, spare: usize, urgency: Urgency) -> MessageMeter {
        let meter = meter(memory, spare, urgency);
        assert_eq!(meter.lock().read(&message(160)), 160);
        meter.lock().begin();
        meter
    }

    proptest! {
        /// For every split of the bytes, the memory of a message is taken when the message begins,
        /// and released with the message.
        #[test]
        fn message_takes_its_memory_when_it_begins(
            lengths in prop::collection::vec(4..5000_usize, 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let memory = MemoryBudget::new(1 << 20).shard();
            let all = memory.free();
            let meter = meter(&memory, 0, Urgency::Ahead);
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            let mut begin = 0;
            for end in cuts.into_iter().chain([bytes.len()]) {
                prop_assert_eq!(meter.lock().read(&bytes[begin..end]), end - begin);
                begin = end;
            }
            let whole: usize = lengths.iter().map(|length| while_parsed(*length)).sum();
            prop_assert_eq!(memory.free(), all - whole);
            for length in lengths {
                let before = memory.free();
                drop(meter.lock().take_message());
                prop_assert_eq!(memory.free(), before + while_parsed(length));
            }
            prop_assert_eq!(memory.free(), all);
        }
    }

    #[test]
    fn message_without_memory_is_not_read_but_earlier_ones_are() {
        let memory = MemoryBudget::new(0).shard();
        let meter = begun(&memory, 0, Urgency::Ahead);
        let mut two = message(20 << 10);
        two.extend(message(20 << 10));
        assert_eq!(meter.lock().read(&two), 20 << 10);
        assert_eq!(meter.lock().short, 20 << 10);
    }

    #[test]
    fn message_fits_into_memory_granted_in_advance() {
        let memory = MemoryBudget::new(64 << 10).shard();
        let meter = begun(&memory, RESERVE + (20 << 10), Urgency::Ahead);
        let mut other = memory.empty();
        other.resize_up_to(usize::MAX);
        assert_eq!(meter.lock().read(&message(42 << 10)), 42 << 10);
    }

    #[test]
    fn one_message_always_fits_while_the_caller_waits() {
        let memory = MemoryBudget::new(0).shard();
        let meter = begun(&memory, 0, Urgency::Urgent);
        let mut two = message(1 << 20);
        two.extend(message(1 << 20));
        assert_eq!(meter.lock().read(&two), 1 << 20, "only one message fits");
        let meter = begun(&memory, 0, Urgency::Ahead);
        assert_eq!(meter.lock().read(&message(1 << 20)), 0);
    }
}
