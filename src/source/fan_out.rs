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
//! each other without a gap. While the caller does not poll, the subscription is kept in a slot.
//! [`Source::rest`] drops it from there, and the next poll subscribes again at the position.
//! Dropping the source at any await point drops the subscription and loses nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::types::SubscribeToShardEvent;
use tokio::time::Instant;

use super::batch::size;
use super::demand::Demand;
use super::fetch_state::{Answer, FetchState, StreamError, Unpacked, children};
use super::memory_budget::ShardBudget;
use super::registered_consumer::RegisteredConsumer;
use super::response_memory::while_read;
use super::retention::{Beginning, arrival};
use super::subscription::{Gauge, LONGEST_LIFE, Message, Next, Subscription};
use super::unproven_end::{MISNUMBERED, OpenEnd};
use super::{KnownShard, ShardFetcher, Source, batches};
use crate::error::{ClassifiedError, ErrorKind, RetryAction};
use crate::record::SequenceNumber;
use crate::telemetry::log_line;

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
    progress: FetchState,
    registered_consumer: Arc<RegisteredConsumer>,
    memory: ShardBudget,
    demand: Demand,
    slot: Slot,
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

/// Holds the subscription between two fetches.
type Slot = Arc<Mutex<Option<Subscription>>>;

fn take(slot: &Slot) -> Option<Subscription> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn put(slot: &Slot, subscription: Subscription) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscription);
}

/// A subscription that has started.
struct Placed {
    subscription: Subscription,
    /// The time of the response, by the server's clock.
    date: Option<SystemTime>,
    /// The time of the call.
    asked: Instant,
}

/// The reason that a subscription has not started.
enum Refused {
    /// There was not enough memory for its first message, which has this length.
    NoRoom(usize),
    Failed(ClassifiedError),
}

impl FanOutFetcher {
    pub(super) fn new(
        progress: FetchState,
        registered_consumer: Arc<RegisteredConsumer>,
        memory: ShardBudget,
    ) -> Self {
        let (demand, slot) = (Demand::default(), Slot::default());
        Self {
            progress,
            registered_consumer,
            memory,
            demand,
            slot,
            expected: 0,
            placed: true,
            placed_at: Instant::now(),
            patience: CHECKED_FOR,
        }
    }

    /// Creates the source. It makes no call until it is polled.
    pub(super) fn into_source(self) -> Source {
        let (demand, slot) = (self.demand.clone(), Arc::clone(&self.slot));
        Source { batches: batches(self), demand, rest: Some(Box::new(move || drop(take(&slot)))) }
    }

    /// Subscribes again. If that fails, returns `None`, and the old subscription continues for
    /// [`RENEW_AGAIN`].
    async fn renew(
        &mut self,
        old: Option<Subscription>,
    ) -> Result<Option<Subscription>, StreamError> {
        self.progress.pace.turn().await;
        self.progress.pace.asks();
        let refused = match self.subscribe().await {
            Ok(new) => {
                self.progress.pace.subscribed();
                (self.placed, self.placed_at) = (true, new.asked);
                self.progress.placed(new.date);
                return Ok(Some(new.subscription));
            }
            Err(refused) => refused,
        };
        if let Some(mut old) = old {
            old.renew_at = Instant::now() + RENEW_AGAIN;
            put(&self.slot, old);
        }
        match refused {
            Refused::NoRoom(length) => {
                // The subscription had started nevertheless.
                self.progress.pace.subscribed();
                self.lacks_room(length);
            }
            Refused::Failed(failure) => self.progress.recover(failure).await?,
        }
        Ok(None)
    }

    async fn subscribe(&self) -> Result<Placed, Refused> {
        let consumer = self.registered_consumer.arn().await.map_err(Refused::Failed)?;
        let spare = self.memory.grant(&self.demand, while_read(self.expected)).await;
        let gauge = Gauge::new(spare, self.demand.clone());
        let (kinesis, shard) = (&self.progress.kinesis, self.progress.shard_id());
        let (position, asked) = (self.progress.begin(), Instant::now());
        match kinesis.subscribe(&consumer, shard, &position, gauge.clone()).await {
            Ok((subscription, date)) => Ok(Placed { subscription, date, asked }),
            Err(failure) if gauge.short() > 0 && failure.error.kind() != ErrorKind::Panicked => {
                Err(Refused::NoRoom(gauge.short()))
            }
            Err(failure) => {
                self.forget_what_is_gone(&failure).await;
                Err(Refused::Failed(failure))
            }
        }
    }

    fn lacks_room(&mut self, length: usize) {
        log_line!(debug, shard = %self.progress.shard_id(), length, "not enough memory for message");
        self.expected = self.expected.max(length);
    }

    async fn read(
        &mut self,
        event: SubscribeToShardEvent,
        message: Message,
        subscription: Subscription,
    ) -> Result<(), StreamError> {
        self.expected = 0;
        let named = message.named;
        if !named.records {
            return self.progress.lacks_records();
        }
        let bytes = event.records.iter().map(size).sum();
        let space = message.keep(bytes);
        let next: Option<SequenceNumber> = event.continuation_sequence_number.parse().ok();
        let children = children(self.progress.shard_id(), event.child_shards());
        let has_records = !event.records.is_empty();
        let lag = named.lag.then_some(event.millis_behind_latest);
        let first = event.records.first();
        let is_tip = lag.is_some_and(|lag| lag <= 0) || next.is_none() && children.is_some();
        let moves = || lag.and(next.as_ref()).is_some_and(|next| self.progress.is_further(next));
        let reached = match first {
            // A record without an arrival time may be the newest one.
            Some(first) => Some(arrival(first).unwrap_or_else(|| self.progress.time_behind(0))),
            None if children.is_some() || moves() => {
                Some(self.progress.time_behind(lag.unwrap_or(0)))
            }
            // The position does not move.
            None => None,
        };
        if let Some(reached) = reached {
            let checked = self.is_overtaken(reached).await;
            if self.progress.checked(checked)? {
                self.patience = self.patience.saturating_mul(2);
                // A new subscription at the last record shows whether records after it have left
                // retention.
                return Ok(());
            }
        }
        let beginning = self.progress.judge_beginning(first, is_tip).await?;
        if matches!(beginning, Beginning::Replaced | Beginning::Postponed) {
            return Ok(());
        }
        if first.is_none() {
            let is_long = self.placed_at.elapsed() >= UNDECIDED_FOR;
            if beginning == Beginning::Undecided && is_long && self.progress.seek_oldest() {
                return Ok(());
            }
            self.progress.approach(lag.and(next.as_ref()));
        }
        let Unpacked { batch, is_misnumbered } =
            self.progress.unpack(event.records, bytes, lag, self.placed);
        let may_be_behind = lag.is_none_or(|lag| lag > 0);
        self.placed &= may_be_behind && batch.len() == 0;
        let is_empty = batch.len() == 0;
        if !is_empty {
            self.patience = CHECKED_FOR;
        }
        let mut answer = Answer { batch, space, passed: None, end: None };
        // Without a valid next position, the next subscription begins where this one stopped.
        match next {
            _ if is_misnumbered => {
                self.progress.answered(answer);
                self.progress.doubt(MISNUMBERED, is_empty)
            }
            // Some servers name the children as soon as the shard is closed, before its end.
            Some(next) if children.is_none() || has_records || may_be_behind => {
                self.progress.is_certain(is_empty && has_records, has_records);
                self.progress.is_cured(is_empty);
                put(&self.slot, subscription);
                if beginning == Beginning::Sound
                    && let Some(lag) = lag
                {
                    let reached = self.progress.time_behind(lag);
                    if !self.progress.precedes_start(reached) {
                        // The event may have been buffered for as long as a subscription lives.
                        let until = reached.checked_sub(LONGEST_LIFE).unwrap_or(reached);
                        answer.passed = self.progress.advance(next, until, lag <= 0);
                    }
                }
                self.progress.answered(answer);
                Ok(())
            }
            None if children.is_none() => {
                if is_empty {
                    answer.end = self.open_end(is_empty, has_records, lag).await?;
                    if answer.end.is_some() {
                        if !self.progress.judge_end(beginning).await? {
                            return Ok(());
                        }
                        self.progress.telemetry.succeeded();
                    }
                    self.progress.answered(answer);
                    return Ok(());
                }
                self.progress.answered(answer);
                self.open_end(is_empty, has_records, lag).await.map(drop)
            }
            _ => {
                self.progress.is_certain(is_empty && has_records, has_records);
                self.progress.is_cured(is_empty);
                answer.end = children;
                self.progress.answered(answer);
                Ok(())
            }
        }
    }

    /// Returns true if records between the position and an event at `reached` may have been lost,
    /// which a new subscription shows. A subscription that is not judged yet shows it itself.
    async fn is_overtaken(&mut self, reached: SystemTime) -> Result<bool, ClassifiedError> {
        let age = self.placed_at.elapsed();
        if !self.progress.is_sound() || self.placed && age < CHECKED_FOR {
            return Ok(false);
        }
        if self.placed && age < self.patience {
            return self.progress.may_have_left().await;
        }
        self.progress.may_be_overtaken(reached).await
    }

    async fn open_end(
        &mut self,
        is_empty: bool,
        has_records: bool,
        lag: Option<i64>,
    ) -> Result<Option<Vec<KnownShard>>, StreamError> {
        self.progress.proven_end(&OpenEnd { is_empty, has_records, lag }).await
    }

    /// Forgets the registered consumer if it may be gone, so that the next attempt looks it up or
    /// registers it.
    async fn forget_what_is_gone(&self, failure: &ClassifiedError) {
        if failure.action == RetryAction::Gone {
            self.registered_consumer.forget().await;
        }
    }
}

impl ShardFetcher for FanOutFetcher {
    fn progress(&mut self) -> &mut FetchState {
        &mut self.progress
    }

    async fn ask(&mut self) -> Result<(), StreamError> {
        let mut subscription = match take(&self.slot) {
            Some(young) if Instant::now() < young.renew_at => young,
            old => match self.renew(old).await? {
                Some(new) => new,
                None => return Ok(()),
            },
        };
        match subscription.next().await {
            Next::Event(event, message) => self.read(event, message, subscription).await?,
            Next::Nothing | Next::Renew => put(&self.slot, subscription),
            Next::NoRoom(length) => self.lacks_room(length),
            Next::Ended => {
                log_line!(debug, shard = %self.progress.shard_id(), "subscription ended");
            }
            Next::Failed(failure) => {
                drop(subscription);
                self.forget_what_is_gone(&failure).await;
                self.progress.recover(failure).await?;
            }
        }
        Ok(())
    }
}
