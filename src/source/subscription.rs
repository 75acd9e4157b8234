//! One subscription of a shard: what is pushed, and the memory that it takes.
//!
//! The length of a message stands at its beginning, so its memory is taken before the rest of it
//! is read. Where that much is not free, the subscription is let go, and taken up again when it is:
//! subscriptions share a connection by HTTP/2, and one that nobody reads would hold up the others.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_kinesis::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use aws_sdk_kinesis::primitives::event_stream::EventReceiver;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{SubscribeToShardEvent, SubscribeToShardEventStream};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, timeout_at};

use super::connections::Place;
use super::demand::Demand;
use super::field_scanner::{MessageFieldScanner, NamedFields};
use super::memory_budget::Reservation;
use super::response_memory::while_read;
use crate::error::{ClassifiedError, contain};

/// A subscription ends by itself after five minutes:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>.
pub(super) const LONGEST_LIFE: Duration = Duration::from_secs(300);

/// Another subscription takes over before, at a moment of its own for each shard.
const RENEW_AFTER: Duration = Duration::from_secs(260);
const RENEW_SPREAD: Duration = Duration::from_secs(30);

/// Kinesis says every few seconds that there is nothing new. Where it has said nothing for so long,
/// six times over, there is nobody any more; the SDK for Java waits as long.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// A subscription under way.
pub(super) struct Subscription {
    events: EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>,
    gauge: Gauge,
    pub(super) renew_at: Instant,
    _on: Place,
}

/// What comes of waiting for an event.
pub(super) enum Next {
    Event(SubscribeToShardEvent, Message),
    /// Another subscription is to take over.
    Renew,
    /// Something that is no event.
    Nothing,
    /// There was no room for a message of that length.
    NoRoom(usize),
    /// It has ended, before its time or not.
    Ended,
    Failed(ClassifiedError),
}

/// The message that an event was made of.
pub(super) struct Message {
    space: Reservation,
    /// What it names.
    pub(super) named: NamedFields,
}

impl Message {
    /// The memory of so many bytes, which are what the event was found to hold.
    pub(super) fn keep(mut self, bytes: usize) -> Reservation {
        self.space.stretch(bytes);
        self.space
    }
}

impl Subscription {
    pub(super) fn new(
        events: EventReceiver<SubscribeToShardEventStream, SubscribeToShardEventStreamError>,
        gauge: Gauge,
        on: Place,
    ) -> Self {
        let renew_at = Instant::now() + RENEW_AFTER + RENEW_SPREAD.mul_f64(fastrand::f64());
        gauge.lock().begin();
        Self { events, gauge, renew_at, _on: on }
    }

    /// Waits for the next event.
    ///
    /// Cancel safe: what was read of it is kept.
    pub(super) async fn next(&mut self) -> Next {
        let dead_at = Instant::now() + DEAD_AFTER;
        let received = contain(timeout_at(dead_at.min(self.renew_at), self.events.recv())).await;
        let received = match received {
            Err(panic) => {
                return Next::Failed(ClassifiedError::panicked("SubscribeToShard", panic));
            }
            Ok(Ok(received)) => received,
            Ok(Err(_elapsed)) if self.renew_at <= dead_at => return Next::Renew,
            Ok(Err(_elapsed)) => {
                return Next::Failed(ClassifiedError::timed_out(
                    "SubscribeToShard",
                    DEAD_AFTER.as_secs(),
                ));
            }
        };
        let mut gauge = self.gauge.lock();
        match received {
            Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => {
                Next::Event(event, gauge.take_message())
            }
            Ok(Some(_of_a_later_version)) => {
                drop(gauge.take_message());
                Next::Nothing
            }
            Ok(None) => Next::Ended,
            Err(_) if gauge.short > 0 => Next::NoRoom(gauge.short),
            Err(error) => Next::Failed(ClassifiedError::of_event("SubscribeToShard", error)),
        }
    }
}

/// What has been read of a subscription, and the memory for it.
#[derive(Debug, Clone)]
pub(super) struct Gauge(Arc<Mutex<Measured>>);

#[derive(Debug)]
struct Measured {
    demand: Demand,
    /// What was taken for the first event, before anything was read.
    spare: Reservation,
    /// The memory of the messages that have begun, and of which no event was made yet.
    messages: VecDeque<(Reservation, MessageFieldScanner)>,
    /// The first message, by which a subscription begins, has been read.
    has_begun: bool,
    /// The beginning of the next message, as far as it is there.
    length: Vec<u8>,
    /// What is missing of the last one.
    left: usize,
    /// The length of a message for which there was no room.
    short: usize,
}

/// The bytes at the beginning of a message that say how long it is:
/// <https://smithy.io/2.0/aws/amazon-eventstream.html>.
const LENGTH: usize = 4;

impl Gauge {
    /// For a subscription whose first event was granted `spare`.
    pub(super) fn new(spare: Reservation, demand: Demand) -> Self {
        Self(Arc::new(Mutex::new(Measured {
            demand,
            spare,
            messages: VecDeque::new(),
            has_begun: false,
            length: Vec::with_capacity(LENGTH),
            left: 0,
            short: 0,
        })))
    }

    /// The length of a message for which there was no room, or 0.
    pub(super) fn short(&self) -> usize {
        self.lock().short
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Measured {
    /// Looks at what was read, and returns how much of it there is room for: all of it, or what lies
    /// before the first message without.
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

    /// Takes the memory of a message. One always fits while the caller waits for it.
    fn admit(&mut self, length: usize) -> bool {
        let bytes = while_read(length);
        let empty = self.spare.none();
        let is_event = self.has_begun || !self.messages.is_empty();
        let mut space = if is_event { std::mem::replace(&mut self.spare, empty) } else { empty };
        let events_before = self.messages.len() - usize::from(!self.has_begun && is_event);
        if !space.resize(bytes) {
            let is_least = events_before == 0 && self.demand.is_urgent();
            if !is_least && is_event {
                return false;
            }
            space.stretch(bytes);
        }
        self.messages.push_back((space, MessageFieldScanner::new(length)));
        true
    }

    /// The first message has been read.
    fn begin(&mut self) {
        self.has_begun = true;
        self.messages.pop_front();
    }

    /// The next message.
    fn take_message(&mut self) -> Message {
        let (space, members) = self
            .messages
            .pop_front()
            .unwrap_or_else(|| (self.spare.none(), MessageFieldScanner::new(LENGTH)));
        Message { space, named: members.named() }
    }
}

impl Intercept for Gauge {
    fn name(&self) -> &'static str {
        "Gauge"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        // An error is short, and no stream of messages.
        if response.status().is_success() {
            let body = std::mem::replace(response.body_mut(), SdkBody::taken());
            let measured =
                MeasuredBody { body: Mutex::new(body), gauge: self.clone(), is_over: false };
            *response.body_mut() = SdkBody::from_body_1_x(measured);
        }
        Ok(())
    }
}

/// The body of an answer, looked at as it is read.
struct MeasuredBody {
    /// Never locked: only so that it may be shared, which nobody does.
    body: Mutex<SdkBody>,
    gauge: Gauge,
    /// A message has begun for which there is no room.
    is_over: bool,
}

impl Body for MeasuredBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // What lies before the message without room is still delivered.
        if self.is_over {
            return Poll::Ready(Some(Err("there is no room for the message".into())));
        }
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let read = self.gauge.lock().read(data);
            if read < data.len() {
                let before = data.slice(..read);
                self.is_over = true;
                return Poll::Ready(Some(Ok(Frame::data(before))));
            }
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::demand::Urgency;
    use super::super::memory_budget::{MemoryBudget, RESERVE, ShardBudget};
    use super::*;

    /// A message of so many bytes, of which only the first four are looked at.
    fn message(length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        message.resize(length.max(LENGTH), 0);
        message
    }

    fn gauge(memory: &ShardBudget, bytes: usize, urgency: Urgency) -> Gauge {
        let (mut space, demand) = (memory.empty(), Demand::default());
        assert!(space.resize(bytes));
        match urgency {
            Urgency::Urgent => demand.urge(0),
            _ => demand.fetch_ahead(),
        }
        Gauge::new(space, demand)
    }

    /// A gauge that has read the message by which a subscription begins.
    fn begun(memory: &ShardBudget, spare: usize, urgency: Urgency) -> Gauge {
        let gauge = gauge(memory, spare, urgency);
        assert_eq!(gauge.lock().read(&message(160)), 160);
        gauge.lock().begin();
        gauge
    }

    proptest! {
        /// However the bytes come, the memory of each message is taken as it begins, and released
        /// with it.
        #[test]
        fn takes_the_memory_of_what_has_begun(
            lengths in prop::collection::vec(4..5000_usize, 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let memory = MemoryBudget::new(1 << 20).shard();
            let all = memory.free();
            let gauge = gauge(&memory, 0, Urgency::Ahead);
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            let mut begin = 0;
            for end in cuts.into_iter().chain([bytes.len()]) {
                prop_assert_eq!(gauge.lock().read(&bytes[begin..end]), end - begin);
                begin = end;
            }
            let whole: usize = lengths.iter().map(|length| while_read(*length)).sum();
            prop_assert_eq!(memory.free(), all - whole);
            for length in lengths {
                let before = memory.free();
                drop(gauge.lock().take_message());
                prop_assert_eq!(memory.free(), before + while_read(length));
            }
            prop_assert_eq!(memory.free(), all);
        }
    }

    #[test]
    fn message_without_room_is_not_read_and_those_before_it_are() {
        let memory = MemoryBudget::new(0).shard();
        let gauge = begun(&memory, 0, Urgency::Ahead);
        let mut two = message(20 << 10);
        two.extend(message(20 << 10));
        assert_eq!(gauge.lock().read(&two), 20 << 10);
        assert_eq!(gauge.lock().short, 20 << 10);
    }

    #[test]
    fn message_fits_into_what_was_taken_before() {
        let memory = MemoryBudget::new(64 << 10).shard();
        let gauge = begun(&memory, RESERVE + (20 << 10), Urgency::Ahead);
        let mut other = memory.empty();
        other.stretch(usize::MAX);
        assert_eq!(gauge.lock().read(&message(42 << 10)), 42 << 10);
    }

    #[test]
    fn one_message_always_fits_while_the_caller_waits_for_it() {
        let memory = MemoryBudget::new(0).shard();
        let gauge = begun(&memory, 0, Urgency::Urgent);
        let mut two = message(1 << 20);
        two.extend(message(1 << 20));
        assert_eq!(gauge.lock().read(&two), 1 << 20, "one and no more");
        let gauge = begun(&memory, 0, Urgency::Ahead);
        assert_eq!(gauge.lock().read(&message(1 << 20)), 0);
    }
}
