//! Reads a shard by enhanced fan-out, with `SubscribeToShard`.
//!
//! ```text
//!             no subscription, or one that is due for renewal
//!             ▼
//!   turn ─► registered consumer ─► memory ─► SubscribeToShard ─► event ─► yield
//!    ▲                                              │              │
//!    ├── refused, failed ◄──────────────────────────┘              ├─► end of the shard
//!    └── ended, lost, silent, not enough memory ◄──────────────────┘
//! ```
//!
//! Each event names the position at which the next subscription must begin, so subscriptions follow
//! each other without a gap. While nothing reads it, because the caller does not poll, memory is
//! lacking or another call lasts, the subscription is kept for [`REST_AFTER`]. Then it is dropped,
//! and the next fetch subscribes again at the position. Dropping the source at any await point drops
//! the subscription and loses nothing else.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::types::SubscribeToShardEvent;
use tokio::time::{Instant, timeout};

use super::ShardFetcher;
use super::batch::Batch;
use super::demand::Demand;
use super::fetch_state::{
    FetchState, FetchedResponse, Interrupt, MeasuredRecords, Unpacked, children,
};
use super::memory_budget::{ShardBudget, while_parsed};
use super::registered_consumer::RegisteredConsumer;
use super::response::{FirstRecord, RecordRange, children_of_sdk, records_of_sdk};
use super::retention::Beginning;
use super::subscription::{
    EventMessage, MAX_SUBSCRIPTION_AGE, MessageMeter, Subscription, SubscriptionMessage,
};
use super::unproven_end::{INVALID_NUMBER, OpenEnd};
use crate::error::{ClassifiedError, ErrorKind, RetryAction};
use crate::record::SequenceNumber;
use crate::telemetry::log_line;

/// The time after which a subscription that nothing reads is dropped. A new subscription takes at
/// most as long, and pushed data that is not read blocks other shards of the same connection.
const REST_AFTER: Duration = Duration::from_secs(10);

/// The time for which the old subscription continues after an attempt to replace it has failed.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// The time after its start in which a subscription shows every loss of records after its position.
/// Later, records may leave retention while events without records approach the next record.
const CHECKED_FOR: Duration = Duration::from_secs(10);

/// The time for which a subscription may yield events without records that do not show whether
/// records after the position were lost. Then the oldest kept record is fetched, which shows it.
/// Otherwise each new subscription would begin at the same position again.
const UNDECIDED_FOR: Duration = Duration::from_secs(60);

/// Fetches the records of one shard by enhanced fan-out.
pub(super) struct FanOutFetcher {
    fetch_state: FetchState,
    registered_consumer: Arc<RegisteredConsumer>,
    memory: ShardBudget,
    demand: Demand,
    /// The subscription, between two fetches.
    subscription: Option<Subscription>,
    /// The length of the message for which there was not enough memory, or 0.
    expected: usize,
    /// True until the subscription has brought a record after the position or has caught up.
    placed: bool,
    /// The start of the subscription.
    placed_at: Instant,
    /// The age up to which a subscription without a new record is kept while the last record is
    /// within retention. It doubles with each replacement, so that the next record is reached.
    patience: Duration,
}

/// A subscription that has started.
struct StartedSubscription {
    subscription: Subscription,
    /// The time of the response, by the server's clock.
    date: Option<SystemTime>,
    /// The time of the call.
    asked: Instant,
}

/// Further life of a subscription after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequel {
    Ends,
    Continues,
    /// Another subscription replaces it.
    Renewed,
}

/// The reason that a subscription has not started.
enum SubscribeError {
    /// There was not enough memory for its first message, which has this length.
    NoRoom(usize),
    Failed(ClassifiedError),
}

impl FanOutFetcher {
    pub(super) fn new(
        fetch_state: FetchState,
        registered_consumer: Arc<RegisteredConsumer>,
        memory: ShardBudget,
    ) -> Self {
        Self {
            fetch_state,
            registered_consumer,
            memory,
            demand: Demand::default(),
            subscription: None,
            expected: 0,
            placed: true,
            placed_at: Instant::now(),
            patience: CHECKED_FOR,
        }
    }

    /// Subscribes again. If that fails, returns `None`, and the old subscription continues for
    /// [`RENEW_AGAIN`].
    async fn renew(
        &mut self,
        mut old: Option<Subscription>,
    ) -> Result<Option<Subscription>, Interrupt> {
        let subscribing = async {
            self.fetch_state.pace.ready().await;
            self.fetch_state.pace.note_call();
            self.subscribe().await
        };
        let refused = match resting(&mut old, subscribing).await {
            Ok(new) => {
                self.fetch_state.pace.subscribed();
                (self.placed, self.placed_at) = (true, new.asked);
                self.fetch_state.placed(new.date, new.asked);
                return Ok(Some(new.subscription));
            }
            Err(refused) => refused,
        };
        if let Some(mut old) = old {
            old.renew_at = Instant::now() + RENEW_AGAIN;
            self.subscription = Some(old);
        }
        match refused {
            SubscribeError::NoRoom(length) => {
                // The subscription had started nevertheless.
                self.fetch_state.pace.subscribed();
                self.note_memory_shortage(length);
            }
            SubscribeError::Failed(failure) => self.fetch_state.recover(failure).await?,
        }
        Ok(None)
    }

    async fn subscribe(&self) -> Result<StartedSubscription, SubscribeError> {
        let consumer = self.registered_consumer.arn().await.map_err(SubscribeError::Failed)?;
        let spare = self.memory.grant(&self.demand, while_parsed(self.expected)).await;
        let meter = MessageMeter::new(spare, self.demand.clone());
        let (kinesis, shard) = (&self.fetch_state.kinesis, self.fetch_state.shard_id());
        let (position, asked) = (self.fetch_state.begin(), Instant::now());
        match kinesis.subscribe(&consumer, shard, &position, meter.clone()).await {
            Ok((subscription, date)) => Ok(StartedSubscription { subscription, date, asked }),
            Err(failure) if meter.short() > 0 && failure.error.kind() != ErrorKind::Panicked => {
                Err(SubscribeError::NoRoom(meter.short()))
            }
            Err(failure) => {
                self.forget_missing_consumer(&failure).await;
                Err(SubscribeError::Failed(failure))
            }
        }
    }

    fn note_memory_shortage(&mut self, length: usize) {
        log_line!(debug, shard = %self.fetch_state.shard_id(), length, "not enough memory for message");
        self.expected = self.expected.max(length);
    }

    /// Judges an event, and sets what becomes of the subscription.
    async fn read(
        &mut self,
        mut event: SubscribeToShardEvent,
        message: EventMessage,
        sequel: &mut Sequel,
    ) -> Result<Option<FetchedResponse>, Interrupt> {
        self.expected = 0;
        let named = message.named;
        if !named.records {
            return self.fetch_state.lacks_records().map(|()| None);
        }
        let (buffer, records) = records_of_sdk(&event.records);
        // Only the copy is counted from here on.
        drop(std::mem::take(&mut event.records));
        let bytes = records.iter().map(RecordRange::size).sum();
        let space = message.keep(buffer.len() + size_of_val(&*records));
        let next: Option<SequenceNumber> = event.continuation_sequence_number.parse().ok();
        let children =
            children(self.fetch_state.shard_id(), &children_of_sdk(event.child_shards()));
        let has_records = !records.is_empty();
        let lag = named.lag.then_some(event.millis_behind_latest);
        let first = FirstRecord::of(&records, &buffer);
        let is_tip = lag.is_some_and(|lag| lag <= 0) || next.is_none() && children.is_some();
        let moves = || lag.and(next.as_ref()).is_some_and(|next| self.fetch_state.is_further(next));
        let reached = match &first {
            // A record without an arrival time may be the newest one.
            Some(first) => Some(first.arrival.unwrap_or_else(|| self.fetch_state.time_behind(0))),
            None if children.is_some() || moves() => {
                Some(self.fetch_state.time_behind(lag.unwrap_or(0)))
            }
            // The position does not move.
            None => None,
        };
        if let Some(reached) = reached {
            let checked = self.is_overtaken(reached).await;
            if self.fetch_state.checked(checked)? {
                self.patience = self.patience.saturating_mul(2);
                // A new subscription at the last record shows whether records after it have left
                // retention.
                return Ok(None);
            }
        }
        let beginning = self.fetch_state.judge_beginning(first, is_tip).await?;
        if matches!(beginning, Beginning::Replaced | Beginning::Postponed) {
            return Ok(None);
        }
        let is_open = next.is_some() && children.is_none();
        if beginning == Beginning::Sound && is_open && self.fetch_state.end_at_tip().await? {
            return Ok(None);
        }
        if !has_records {
            let is_long = self.placed_at.elapsed() >= UNDECIDED_FOR;
            if beginning == Beginning::Undecided && is_long && self.fetch_state.seek_oldest() {
                return Ok(None);
            }
            self.fetch_state.approach(lag.and(next.as_ref()));
        }
        let (buffer, memory) = space.hold(buffer);
        let Unpacked { batch, is_reached, has_invalid_number } = self
            .fetch_state
            .unpack(MeasuredRecords { records, buffer, memory, bytes, lag }, self.placed);
        let may_be_behind = lag.is_none_or(|lag| lag > 0);
        self.placed &= may_be_behind && batch.len() == 0;
        if is_reached {
            return Ok(Some(FetchedResponse::last(batch)));
        }
        let is_empty = batch.len() == 0;
        if !is_empty {
            self.patience = CHECKED_FOR;
        }
        let mut response =
            FetchedResponse { error: None, batch, passed: None, end: None, is_reached: false };
        // Without a valid next position, the next subscription begins where this one stopped.
        match next {
            _ if has_invalid_number => {
                let doubt = self.fetch_state.doubt(INVALID_NUMBER, is_empty);
                FetchedResponse::doubtful(response.batch, doubt).map(Some)
            }
            // Some servers name the children as soon as the shard is closed, before its end.
            Some(next) if children.is_none() || has_records || may_be_behind => {
                self.fetch_state.note_next_position(is_empty && has_records, has_records);
                self.fetch_state.report_recovery(is_empty);
                let shows_tip = beginning == Beginning::Sound && is_open && !may_be_behind;
                *sequel = if shows_tip { self.note_tip() } else { Sequel::Continues };
                if beginning == Beginning::Sound
                    && let Some(lag) = lag
                {
                    let reached = self.fetch_state.time_behind(lag);
                    if !self.fetch_state.precedes_start(reached) {
                        // The event may have been buffered for as long as a subscription lives.
                        let until = reached.checked_sub(MAX_SUBSCRIPTION_AGE).unwrap_or(reached);
                        response.passed = self.fetch_state.advance(next, until, lag <= 0);
                    }
                }
                Ok(Some(response))
            }
            None if children.is_none() => {
                let end = OpenEnd { is_empty, has_records, lag };
                self.end_open(response, beginning, &end).await
            }
            _ => {
                self.fetch_state.note_next_position(is_empty && has_records, has_records);
                self.fetch_state.report_recovery(is_empty);
                response.end = children;
                Ok(Some(response))
            }
        }
    }

    /// Returns true if records between the position and an event at `reached` may have been lost,
    /// which a new subscription shows. A subscription that is not judged yet shows it itself.
    async fn is_overtaken(&mut self, reached: SystemTime) -> Result<bool, ClassifiedError> {
        let age = self.placed_at.elapsed();
        if !self.fetch_state.is_sound() || self.placed && age < CHECKED_FOR {
            return Ok(false);
        }
        if self.placed && age < self.patience {
            return self.fetch_state.may_have_left().await;
        }
        self.fetch_state.may_be_overtaken(reached).await
    }

    /// Notes an event that shows the tip of the open shard. The event may be as old as its
    /// subscription, which is renewed if only a later event is of use.
    fn note_tip(&mut self) -> Sequel {
        self.fetch_state.note_tip(self.placed_at);
        let is_renewed = self.fetch_state.needs_later_tip(self.placed_at);
        if is_renewed { Sequel::Renewed } else { Sequel::Continues }
    }

    /// Handles an event without a next position that names no child of the shard.
    async fn end_open(
        &mut self,
        mut response: FetchedResponse,
        beginning: Beginning,
        end: &OpenEnd,
    ) -> Result<Option<FetchedResponse>, Interrupt> {
        let proven = self.fetch_state.proven_end(end).await;
        if !end.is_empty {
            return FetchedResponse::doubtful(response.batch, proven.map(drop)).map(Some);
        }
        response.end = proven?;
        if response.end.is_some() {
            if !self.fetch_state.judge_end(beginning).await? {
                return Ok(None);
            }
            self.fetch_state.telemetry.succeeded();
        }
        Ok(Some(response))
    }

    /// Forgets the registered consumer if it may be gone, so that the next attempt looks it up or
    /// registers it.
    async fn forget_missing_consumer(&self, failure: &ClassifiedError) {
        if failure.action == RetryAction::Gone {
            self.registered_consumer.forget().await;
        }
    }
}

impl ShardFetcher for FanOutFetcher {
    fn fetch_state(&mut self) -> &mut FetchState {
        &mut self.fetch_state
    }

    fn demand(&self) -> &Demand {
        &self.demand
    }

    async fn permit(&mut self) {
        resting(&mut self.subscription, self.demand.permit()).await;
    }

    async fn retain_own(&mut self, batch: &mut Batch) -> Result<(), Interrupt> {
        resting(&mut self.subscription, self.fetch_state.retain_own(batch)).await
    }

    async fn fetch_once(&mut self) -> Result<Option<FetchedResponse>, Interrupt> {
        self.permit().await;
        let mut subscription = match self.subscription.take() {
            Some(young) if Instant::now() < young.renew_at => young,
            old => match self.renew(old).await? {
                Some(new) => new,
                None => return Ok(None),
            },
        };
        match subscription.next().await {
            SubscriptionMessage::Event(event, message) => {
                let (mut subscription, mut sequel) = (Some(subscription), Sequel::Ends);
                let reading = self.read(event, message, &mut sequel);
                let response = resting(&mut subscription, reading).await;
                self.subscription = subscription.filter(|_| sequel != Sequel::Ends);
                if let (Some(subscription), Sequel::Renewed) = (&mut self.subscription, sequel) {
                    subscription.renew_at = Instant::now();
                }
                return response;
            }
            SubscriptionMessage::Nothing | SubscriptionMessage::Renew => {
                self.subscription = Some(subscription);
            }
            SubscriptionMessage::TooLittleMemory(length) => self.note_memory_shortage(length),
            SubscriptionMessage::Ended => {
                log_line!(debug, shard = %self.fetch_state.shard_id(), "subscription ended");
            }
            SubscriptionMessage::Failed(failure) => {
                drop(subscription);
                self.forget_missing_consumer(&failure).await;
                self.fetch_state.recover(failure).await?;
            }
        }
        Ok(None)
    }
}

/// Waits for `other`. Drops the subscription if that takes [`REST_AFTER`], since nothing reads it
/// meanwhile.
async fn resting<T>(subscription: &mut Option<Subscription>, other: impl Future<Output = T>) -> T {
    let mut other = pin!(other);
    if let Ok(done) = timeout(REST_AFTER, &mut other).await {
        return done;
    }
    *subscription = None;
    other.await
}
