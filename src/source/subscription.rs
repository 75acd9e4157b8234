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

use super::budget::{Budget, Space};
use super::connections::Place;
use super::room::while_read;
use crate::error::{Failure, contain};

/// A subscription ends by itself after five minutes:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>. Another one
/// takes over before, at a moment of its own for each shard.
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
    Failed(Failure),
}

/// The memory of the message that an event was made of.
pub(super) struct Message {
    budget: Budget,
    space: Space,
}

impl Message {
    /// The memory of so many bytes, which are what the event was found to hold.
    pub(super) fn keep(mut self, bytes: usize) -> Space {
        self.budget.resize(&mut self.space, bytes);
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
            Err(panic) => return Next::Failed(Failure::panicked("SubscribeToShard", panic)),
            Ok(Ok(received)) => received,
            Ok(Err(_elapsed)) if self.renew_at <= dead_at => return Next::Renew,
            Ok(Err(_elapsed)) => {
                return Next::Failed(Failure::timed_out("SubscribeToShard", DEAD_AFTER.as_secs()));
            }
        };
        let mut gauge = self.gauge.lock();
        match received {
            Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => {
                let space = gauge.take_message();
                gauge.give_back();
                Next::Event(event, Message { budget: gauge.budget.clone(), space })
            }
            Ok(Some(_of_a_later_version)) => {
                drop(gauge.take_message());
                Next::Nothing
            }
            Ok(None) => Next::Ended,
            Err(_) if gauge.short > 0 => Next::NoRoom(gauge.short),
            Err(error) => Next::Failed(Failure::of_event("SubscribeToShard", error)),
        }
    }
}

/// What has been read of a subscription, and the memory for it.
#[derive(Debug, Clone)]
pub(super) struct Gauge(Arc<Mutex<Measured>>);

#[derive(Debug)]
struct Measured {
    budget: Budget,
    space: Space,
    /// What was taken for the first event, before anything was read.
    reserved: usize,
    /// What the space is for.
    granted: usize,
    /// The lengths of the messages that have begun, and of which no event was made yet.
    messages: VecDeque<usize>,
    /// The beginning of the next one, as far as it is there.
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
    /// Waits for the memory of a message of that length.
    pub(super) async fn reserve(budget: &Budget, length: usize) -> Self {
        let reserved = while_read(length);
        Self(Arc::new(Mutex::new(Measured {
            budget: budget.clone(),
            space: budget.reserve(reserved).await,
            reserved,
            granted: reserved,
            messages: VecDeque::new(),
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
    /// Looks at what was read; whether there is room for the messages that have begun.
    fn read(&mut self, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            if self.left > 0 {
                let part = self.left.min(data.len());
                self.left -= part;
                data = &data[part..];
                continue;
            }
            let part = (LENGTH - self.length.len()).min(data.len());
            self.length.extend_from_slice(&data[..part]);
            data = &data[part..];
            if let Ok(length) = <[u8; LENGTH]>::try_from(&self.length[..]) {
                self.length.clear();
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.left = length.saturating_sub(LENGTH);
                self.messages.push_back(length);
                if !self.grow() {
                    self.short = length;
                    return false;
                }
            }
        }
        true
    }

    fn needed(&self) -> usize {
        self.messages.iter().fold(0, |sum: usize, length| sum.saturating_add(while_read(*length)))
    }

    fn grow(&mut self) -> bool {
        let needed = self.needed();
        if needed > self.granted {
            if !self.budget.resize(&mut self.space, needed) {
                return false;
            }
            self.granted = needed;
        }
        true
    }

    /// The first message, by which a subscription begins, has been read: what was taken for the
    /// first event is whole again.
    fn begin(&mut self) {
        self.messages.pop_front();
        self.granted = self.reserved.max(self.needed());
        self.budget.resize(&mut self.space, self.granted);
    }

    /// The memory of the next message.
    fn take_message(&mut self) -> Space {
        let taken = self.messages.pop_front().map_or(0, while_read);
        self.granted = self.granted.saturating_sub(taken);
        self.space.split(taken)
    }

    /// Gives back what no message needs.
    fn give_back(&mut self) {
        self.granted = self.needed();
        self.budget.resize(&mut self.space, self.granted);
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
            let measured = MeasuredBody { body: Mutex::new(body), gauge: self.clone() };
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
}

impl Body for MeasuredBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && !self.gauge.lock().read(data)
        {
            return Poll::Ready(Some(Err("there is no room for the message".into())));
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    /// A message of so many bytes, of which only the first four are looked at.
    fn message(length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        message.resize(length.max(LENGTH), 0);
        message
    }

    fn gauge(budget: &Budget) -> Gauge {
        Gauge::reserve(budget, 0).now_or_never().unwrap()
    }

    proptest! {
        /// However the bytes come, the memory of each message is taken as it begins, and given back
        /// with it.
        #[test]
        fn takes_the_memory_of_what_has_begun(
            lengths in prop::collection::vec(4..5000_usize, 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let budget = Budget::new(1 << 20);
            let gauge = gauge(&budget);
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            let mut begin = 0;
            for end in cuts.into_iter().chain([bytes.len()]) {
                prop_assert!(gauge.lock().read(&bytes[begin..end]));
                begin = end;
            }
            let whole: usize = lengths.iter().map(|length| while_read(*length)).sum();
            let is_free = |bytes: usize| budget.reserve(bytes).now_or_never().is_some();
            prop_assert_eq!(gauge.lock().needed(), whole);
            prop_assert!(!is_free((1 << 20) - whole + 1024));
            let taken: Vec<Space> =
                lengths.iter().map(|_| gauge.lock().take_message()).collect();
            gauge.lock().give_back();
            prop_assert!(!is_free((1 << 20) - whole + 1024));
            drop(taken);
            prop_assert!(is_free(1 << 20));
        }
    }

    #[test]
    fn there_is_no_room_for_more_than_is_free() {
        let budget = Budget::new(64 << 10);
        let other = budget.reserve(32 << 10).now_or_never().unwrap();
        let first = gauge(&budget);
        assert!(first.lock().read(&message(10 << 10)));
        assert!(!first.lock().read(&message(10 << 10)[..4]), "at its beginning");
        assert_eq!(first.lock().short, 10 << 10);
        drop((first, other));
        // With its memory taken before, it fits; what a subscription begins with takes none of that.
        for length in (9 << 10..10 << 10).step_by(100) {
            let again = Gauge::reserve(&budget, length).now_or_never().unwrap();
            let other = budget.reserve(44 << 10).now_or_never().unwrap();
            assert!(again.lock().read(&message(160)));
            again.lock().begin();
            assert!(again.lock().read(&message(length)), "{length}");
            drop((again, other));
        }
        // Of what it begins with nothing is left.
        let other = gauge(&budget);
        assert!(other.lock().read(&message(160)));
        other.lock().begin();
        assert!(budget.reserve(64 << 10).now_or_never().is_some());
    }
}
