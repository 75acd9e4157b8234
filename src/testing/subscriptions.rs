//! Enhanced fan-out: the events of subscriptions.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_stream::stream;
use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http_body::{Body, Frame};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::answer::{Answer, error_response, record_json};
use super::calls::Interruption;
use super::contents::{ShardContents, Subscribed, index_of};
use super::model::{Model, ModelHandle};
use super::operations::{describe_children, not_found, place, records_that_fit};
use crate::mutex::Mutex;
use crate::record::SequenceNumber;

/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>.
const SUBSCRIPTION_LIFETIME: Duration = Duration::from_secs(5 * 60);
const RESUBSCRIBE_LIMIT: Duration = Duration::from_secs(5);
/// The length of a message's prelude, which begins with the length of the message:
/// <https://smithy.io/2.0/aws/amazon-eventstream.html>.
const PRELUDE: usize = 12;
/// The time between the arrivals of two records, in milliseconds, that counts as a gap.
const GAP: u64 = 3_600_000;
/// The longest time without an event if there is nothing new.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The next action of a subscription.
enum SubscriptionStep {
    Push(EncodedMessage),
    /// Wait until something changes.
    Wait,
    End,
    Reset,
    Stall,
}

/// An encoded message and the records in it.
struct EncodedMessage {
    text: Bytes,
    records: usize,
    bytes: usize,
    last: Option<SequenceNumber>,
    /// The subscription ends after this message.
    is_last: bool,
}

impl EncodedMessage {
    fn exception(code: &str, message: &str) -> SubscriptionStep {
        let text = exception(code, message);
        SubscriptionStep::Push(Self { text, records: 0, bytes: 0, last: None, is_last: true })
    }
}

impl Model {
    /// Starts a subscription whose events lack `fields`.
    pub(super) fn subscribe(
        &mut self,
        call: usize,
        body: &Value,
        fields: Vec<String>,
    ) -> Result<SubscriptionFeed, Answer> {
        let (now, instant) = (self.now(), Instant::now());
        let (name, index) = self.consumer_of(body)?;
        let stream = self.streams.get_mut(&name).ok_or_else(|| not_found("Stream"))?;
        if stream.consumers[index].active > now {
            return Err(error_response(
                400,
                "ResourceInUseException",
                "the consumer is not ACTIVE yet",
            ));
        }
        let consumer = stream.consumers[index].arn.clone();
        let accepted = self.trimmed_accepted;
        let shard = body["ShardId"].as_str().and_then(index_of).unwrap_or(usize::MAX);
        let contents = stream
            .shards
            .get_mut(shard)
            .filter(|contents| !contents.expired)
            .ok_or_else(|| not_found("Shard"))?;
        let last = contents.subscribed.get(&consumer);
        if last.is_some_and(|last| instant < *last + RESUBSCRIBE_LIMIT) {
            return Err(error_response(
                400,
                "ResourceInUseException",
                "the consumer has subscribed to this shard less than 5 s ago",
            ));
        }
        let position = &body["StartingPosition"];
        let next = place(
            contents,
            position["Type"].as_str().unwrap_or_default(),
            position["SequenceNumber"].as_str().unwrap_or_default(),
            &position["Timestamp"],
            now,
            accepted,
        )?;
        let number = position["SequenceNumber"].as_str().unwrap_or_default();
        // A subscription that starts at an existing record does not approach it.
        let is_there = contents.records.get(next).is_some_and(|record| record.number == number);
        let remaining = contents.continuations.get(number).copied();
        let remaining = if is_there { Some(Duration::ZERO) } else { remaining };
        let approached = remaining.map(|remaining| (next, instant + remaining));
        let changed = Arc::clone(&contents.changed);
        contents.subscribed.insert(consumer.clone(), instant);
        // The new subscription replaces the previous one of the consumer.
        contents.subscriptions.retain(|known| known.consumer != consumer);
        contents.subscriptions.push(Subscribed { id: call, consumer, interruption: None });
        changed.notify_waiters();
        Ok(SubscriptionFeed { stream: name, shard, id: call, next, changed, fields, approached })
    }

    /// Marks the connection of a new subscription as lost.
    pub(super) fn cut(&mut self, call: usize) {
        let contents = self.streams.values_mut().flat_map(|stream| &mut stream.shards);
        for subscription in contents.flat_map(|contents| &mut contents.subscriptions) {
            if subscription.id == call {
                subscription.interruption = Some(Interruption::Resets);
            }
        }
    }

    /// Returns the next action of a subscription. If `is_due`, an event is sent even without news.
    fn push(&mut self, subscription: &mut SubscriptionFeed, is_due: bool) -> SubscriptionStep {
        let (now, child_shards, oldest) = (self.now(), self.child_shards, self.oldest());
        let instant = Instant::now();
        let SubscriptionFeed { stream, shard, id, next, fields, approached, .. } = subscription;
        let gone =
            || EncodedMessage::exception("ResourceNotFoundException", "no such shard or consumer");
        let Some(stream) = self.streams.get_mut(stream) else { return gone() };
        // A stream that was created again may have fewer shards.
        let Some(contents) = stream.shards.get_mut(*shard) else { return gone() };
        contents.trim_expired(oldest);
        let contents = &stream.shards[*shard];
        let Some(known) = contents.subscriptions.iter().find(|known| known.id == *id) else {
            return EncodedMessage::exception(
                "ResourceInUseException",
                "another subscription of the consumer has replaced this one",
            );
        };
        match &known.interruption {
            Some(Interruption::Ends) => return SubscriptionStep::End,
            Some(Interruption::Resets) => return SubscriptionStep::Reset,
            Some(Interruption::Stalls) => return SubscriptionStep::Stall,
            Some(Interruption::Fails { code, message }) => {
                return EncodedMessage::exception(code, message);
            }
            None => {}
        }
        if contents.expired || !stream.consumers.iter().any(|one| one.arn == known.consumer) {
            return gone();
        }
        let first = (*next).max(contents.trimmed);
        let (mut limit, mut remaining) = (self.event_records, Duration::ZERO);
        if !self.approach.is_zero() {
            limit = contents.records_until_gap(first, limit);
            if contents.is_behind_gap(first) {
                let known = approached.filter(|(record, _)| *record == first);
                let (_, by) = *approached.insert(known.unwrap_or((first, instant + self.approach)));
                remaining = by.saturating_duration_since(instant);
                limit = if remaining.is_zero() { limit } else { 0 };
            }
        }
        let (count, bytes) = records_that_fit(&contents.records[first..], limit);
        let after = first + count;
        let at_end = contents.closed.is_some() && after >= contents.records.len();
        if count == 0 && !at_end && !is_due {
            return SubscriptionStep::Wait;
        }
        let records = &contents.records[first..after];
        let behind = contents.records.get(after);
        let mut event = json!({
            "Records": records.iter().cloned().map(record_json).collect::<Vec<_>>(),
            "MillisBehindLatest": behind.map_or(0, |record| now.saturating_sub(record.arrival)),
        });
        let last = records.last().map(|record| record.number.clone());
        *next = after;
        if at_end && child_shards {
            event["ChildShards"] = describe_children(stream, *shard);
        }
        if !at_end {
            // Without new records, the number is after all issued numbers and before all future
            // ones.
            let number = last.clone().unwrap_or_else(|| {
                let before = stream.shards[*shard].number_before(after, remaining.as_secs());
                let number = before.unwrap_or_else(|| stream.number());
                stream.shards[*shard].continuations.insert(number.clone(), remaining);
                number
            });
            event["ContinuationSequenceNumber"] = json!(number);
        }
        if let Some(event) = event.as_object_mut() {
            event.retain(|field, _| !fields.contains(field));
        }
        SubscriptionStep::Push(EncodedMessage {
            text: event_of(&event),
            records: count,
            bytes,
            last: last.and_then(|number| number.parse().ok()),
            is_last: at_end,
        })
    }

    /// Notes that a message has arrived as part of the response to a call.
    fn arrives(&mut self, call: usize, message: &EncodedMessage) {
        let call = &mut self.calls[call];
        (call.records, call.bytes) = (call.records + message.records, call.bytes + message.bytes);
        call.last = message.last.clone().or(call.last.take());
    }
}

/// The state of a running subscription.
pub(super) struct SubscriptionFeed {
    stream: String,
    shard: usize,
    id: usize,
    next: usize,
    changed: Arc<Notify>,
    /// The fields that the events lack.
    fields: Vec<String>,
    /// The record after a gap that the subscription approaches, and the time at which it arrives
    /// there.
    approached: Option<(usize, Instant)>,
}

impl SubscriptionFeed {
    /// Returns the body with all messages. `call` is kept as long as the body.
    pub(super) fn body<T: Send + 'static>(self, kinesis: ModelHandle, call: T) -> EventStreamBody {
        let open =
            Open { kinesis: kinesis.clone(), at: (self.stream.clone(), self.shard, self.id) };
        EventStreamBody(Mutex::new(self.run(kinesis, (open, call)).boxed()))
    }

    fn run<T: Send + 'static>(
        mut self,
        kinesis: ModelHandle,
        held: T,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream! {
            let _held = held;
            yield Ok(initial_response());
            let began = Instant::now();
            let mut heard = began;
            let changed = Arc::clone(&self.changed);
            loop {
                let notified = changed.notified();
                let is_due = heard + KEEP_ALIVE <= Instant::now();
                let step = kinesis.lock().push(&mut self, is_due);
                match step {
                    SubscriptionStep::Push(message) => {
                        heard = Instant::now();
                        // The length is sent first. A client without memory for the message stops
                        // reading here.
                        yield Ok(message.text.slice(..PRELUDE));
                        kinesis.lock().arrives(self.id, &message);
                        yield Ok(message.text.slice(PRELUDE..));
                        if message.is_last {
                            return;
                        }
                    }
                    SubscriptionStep::Wait => {
                        let next = (heard + KEEP_ALIVE).min(began + SUBSCRIPTION_LIFETIME);
                        tokio::select! {
                            () = notified => {}
                            () = sleep_until(next) => {}
                        }
                    }
                    SubscriptionStep::End => return,
                    SubscriptionStep::Reset => {
                        yield Err(io::ErrorKind::ConnectionReset.into());
                        return;
                    }
                    SubscriptionStep::Stall => std::future::pending().await,
                }
                if began + SUBSCRIPTION_LIFETIME <= Instant::now() {
                    return;
                }
            }
        }
    }
}

/// Removes the subscription when its connection is dropped.
struct Open {
    kinesis: ModelHandle,
    at: (String, usize, usize),
}

impl Drop for Open {
    fn drop(&mut self) {
        let (stream, shard, id) = &self.at;
        let mut model = self.kinesis.lock();
        let stream = model.streams.get_mut(stream);
        if let Some(contents) = stream.and_then(|stream| stream.shards.get_mut(*shard)) {
            contents.subscriptions.retain(|known| known.id != *id);
        }
    }
}

/// The response body of a subscription.
pub(super) struct EventStreamBody(Mutex<BoxStream<'static, io::Result<Bytes>>>);

impl Body for EventStreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let pushed = self.0.get_mut();
        pushed.poll_next_unpin(context).map(|next| next.map(|next| next.map(Frame::data)))
    }
}

impl ShardContents {
    /// Returns true if there is a gap before the record with this index.
    fn is_behind_gap(&self, record: usize) -> bool {
        let arrival = |index: usize| self.records.get(index).map(|record| record.arrival);
        let before = record.checked_sub(1).and_then(arrival);
        arrival(record).zip(before).is_some_and(|(arrival, before)| arrival >= before + GAP)
    }

    /// Returns the number of records from `first` on, up to the next gap and at most `limit`.
    fn records_until_gap(&self, first: usize, limit: usize) -> usize {
        let end = self.records.len().min(first.saturating_add(limit));
        let gap = (first + 1..end).find(|record| self.is_behind_gap(*record));
        gap.unwrap_or(end).saturating_sub(first)
    }

    /// Returns a sequence number before that of a record: the smaller `distance`, the closer.
    fn number_before(&self, record: usize, distance: u64) -> Option<String> {
        let mut digits = self.records.get(record)?.number.clone().into_bytes();
        for _ in 0..=distance {
            for digit in digits.iter_mut().rev() {
                if *digit > b'0' {
                    *digit -= 1;
                    break;
                }
                *digit = b'9';
            }
        }
        let number = String::from_utf8(digits).ok()?.trim_start_matches('0').to_owned();
        let last = &self.records.get(record.checked_sub(1)?)?.number;
        let is_between = (last.len(), last) < (number.len(), &number);
        Some(if is_between { number } else { last.clone() })
    }

    /// Interrupts the active subscriptions and returns their number.
    pub(super) fn interrupt(&mut self, interruption: &Interruption) -> usize {
        for subscription in &mut self.subscriptions {
            subscription.interruption = Some(interruption.clone());
        }
        self.subscriptions.len()
    }
}

fn event_of(event: &Value) -> Bytes {
    message("event", ":event-type", "SubscribeToShardEvent", event.to_string())
}

fn exception(code: &str, message_text: &str) -> Bytes {
    let payload = json!({ "message": message_text });
    message("exception", ":exception-type", code, payload.to_string())
}

fn initial_response() -> Bytes {
    message("event", ":event-type", "initial-response", "{}".to_owned())
}

fn message(of: &str, type_header: &'static str, is_a: &str, payload: String) -> Bytes {
    let text = |text: &str| HeaderValue::String(text.to_owned().into());
    let message = Message::new(payload)
        .add_header(Header::new(":message-type", text(of)))
        .add_header(Header::new(type_header, text(is_a)))
        .add_header(Header::new(":content-type", text("application/json")));
    let mut frame = Vec::new();
    match write_message_to(&message, &mut frame) {
        Ok(()) => frame.into(),
        Err(error) => unreachable!("short headers and small events always encode: {error}"),
    }
}
