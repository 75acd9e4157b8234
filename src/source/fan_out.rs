//! A shard that is pushed by `SubscribeToShard`.
//!
//! ```text
//!             none, or one that is to be renewed
//!             ▼
//!   turn ─► the consumer ─► room ─► SubscribeToShard ─► event ─► yield
//!    ▲                                     │              │
//!    ├── refused, failed ◄─────────────────┘              ├─► the end of the shard
//!    └── ended, lost, silent, no room ◄───────────────────┘
//! ```
//!
//! What moves on is the position: each event says where the next subscription is to begin, so one
//! follows the other without a gap. While nobody asks for more, the subscription lies in a slot where
//! [`FanOutFetcher::rest`] finds it: it is let go then, and taken up where the caller left off. A drop at any
//! await point drops the subscription and nothing else.

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

/// How long the old subscription goes on where a new one could not take over.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// The time after its start in which a subscription shows all losses behind its position. Later, records may
/// leave retention while events without records approach the next one.
const CHECKED_FOR: Duration = Duration::from_secs(10);

/// How long a subscription may approach its first record without an answer that shows whether records were lost
/// behind the position. Then the oldest kept record shows it: otherwise each subscription would begin at the
/// same position again.
const UNDECIDED_FOR: Duration = Duration::from_secs(60);

/// A shard that is pushed.
pub(super) struct FanOutFetcher {
    progress: FetchState,
    registered_consumer: Arc<RegisteredConsumer>,
    memory: ShardBudget,
    demand: Demand,
    slot: Slot,
    /// How long the message is for which there was no room.
    expected: usize,
    /// Nothing has been pushed since the subscription was placed but what lay there already.
    placed: bool,
    /// The start of the subscription.
    placed_at: Instant,
    /// The age up to which a subscription without a new record is kept while the last record is in retention. It
    /// doubles with each replacement, so that the next record is reached.
    patience: Duration,
}

/// The subscription while nobody asks for more.
type Slot = Arc<Mutex<Option<Subscription>>>;

fn take(slot: &Slot) -> Option<Subscription> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn put(slot: &Slot, subscription: Subscription) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscription);
}

/// A subscription that has begun.
struct Placed {
    subscription: Subscription,
    /// The time of its answer, by the server's clock.
    date: Option<SystemTime>,
    /// The time of the call.
    asked: Instant,
}

/// Why a subscription has not begun.
enum Refused {
    /// There was no room for what it begins with, which is that long.
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

    /// The source. It asks for nothing until it is polled.
    pub(super) fn into_source(self) -> Source {
        let (demand, slot) = (self.demand.clone(), Arc::clone(&self.slot));
        Source { batches: batches(self), demand, rest: Some(Box::new(move || drop(take(&slot)))) }
    }

    /// A new subscription, if there is one. Where there is none, the old one goes on for a while.
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
                // It had begun all the same.
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
        log_line!(debug, shard = %self.progress.shard_id(), length, "no room for what is pushed");
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
            // A record without a time may be the newest one.
            Some(first) => Some(arrival(first).unwrap_or_else(|| self.progress.time_behind(0))),
            None if children.is_some() || moves() => {
                Some(self.progress.time_behind(lag.unwrap_or(0)))
            }
            // The position stays.
            None => None,
        };
        if let Some(reached) = reached {
            let checked = self.is_overtaken(reached).await;
            if self.progress.checked(checked)? {
                self.patience = self.patience.saturating_mul(2);
                // A new subscription at the last record shows what has left retention behind it.
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
        // Without a next position, or with one that is none, the next subscription begins where this
        // one has come to.
        match next {
            _ if is_misnumbered => {
                self.progress.answered(answer);
                self.progress.doubt(MISNUMBERED, is_empty)
            }
            // Some servers name the children as soon as the shard is closed.
            Some(next) if children.is_none() || has_records || may_be_behind => {
                self.progress.is_certain(is_empty && has_records, has_records);
                self.progress.is_cured(is_empty);
                put(&self.slot, subscription);
                if beginning == Beginning::Sound
                    && let Some(lag) = lag
                {
                    let reached = self.progress.time_behind(lag);
                    if !self.progress.precedes_start(reached) {
                        // The event may have waited for as long as its subscription has lived.
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

    /// Whether losses may lie between the position and an event that has come to `reached`, which a new
    /// subscription shows. One that is not judged yet shows them itself.
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

    /// It may be the consumer that is gone, which the next reading is to find or to register.
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
                log_line!(debug, shard = %self.progress.shard_id(), "a subscription has ended");
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
