//! Polls a shard with `GetRecords`.
//!
//! ```text
//!            no iterator, or an old one ◄─── expired
//!            ▼                                  │
//!   turn ─► GetShardIterator ─► memory ─► GetRecords ─► records ─► yield
//!    ▲                                          │          │ none
//!    └───── throttled, failed, no memory ◄──────┴──────────┘
//!                                               └─► end of the shard
//! ```
//!
//! The position is the state of the source. It advances to the last record fetched as soon as the
//! response has arrived; an iterator is only a short-lived form of it. Dropping the future at any
//! await point leaves at most a call that Kinesis may still carry out, and that call changes
//! nothing.

use std::time::Duration;

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use tokio::time::Instant;

use super::batch::size;
use super::demand::Demand;
use super::fetch_limit::FetchLimit;
use super::fetch_state::{Answer, FetchState, StreamError, Unpacked, children};
use super::memory_budget::ShardBudget;
use super::response_memory::{LARGEST_ANSWER, ResponseMemory};
use super::retention::Beginning;
use super::unproven_end::{MISNUMBERED, OpenEnd};
use super::{Position, ShardFetcher, Source, batches};
use crate::error::{ClassifiedError, ErrorKind, RetryAction};
use crate::telemetry::log_line;

/// The age at which an iterator is replaced, before Kinesis rejects it: iterators expire after 5
/// min (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetShardIterator.html>). A
/// slow caller lets an iterator grow this old.
const ITERATOR_LIFE: Duration = Duration::from_secs(270);

/// The maximum age of an iterator near the horizon, where the next records may leave retention.
const LIFE_NEAR_HORIZON: Duration = Duration::from_secs(1);

/// The same for the second and later iterators at one position. It exceeds the pause of 5 s that
/// follows a response of 10 MiB; otherwise the byte rate limit would keep the reader at the
/// position.
const LIFE_AFTER_REPLACEMENT: Duration = Duration::from_secs(10);

/// Fetches the records of one shard by polling.
pub(super) struct PollingFetcher {
    progress: FetchState,
    fetch_limit: FetchLimit,
    memory: ShardBudget,
    demand: Demand,
    iterator: Option<Iterator>,
    /// No new record has been read since the iterator was placed, so finished records are skipped.
    placed: bool,
    /// True if retention may overtake the reader.
    is_near_horizon: bool,
    /// The position of the last iterator that was replaced for this reason.
    replaced_at: Option<Position>,
}

impl PollingFetcher {
    pub(super) fn new(progress: FetchState, limit: u32, memory: ShardBudget) -> Self {
        let (fetch_limit, demand) = (FetchLimit::new(limit), Demand::default());
        Self {
            progress,
            fetch_limit,
            memory,
            demand,
            iterator: None,
            placed: true,
            is_near_horizon: false,
            replaced_at: None,
        }
    }

    /// Returns the source. It makes no call until it is polled.
    pub(super) fn into_source(self) -> Source {
        let demand = self.demand.clone();
        Source { batches: batches(self), demand, rest: None }
    }

    /// Returns the record limit of the next call. If the option is 1 and the iterator is placed at
    /// a finished record, the limit is 2: that record is returned together with the next one.
    fn limit(&self) -> u32 {
        let begins_at_finished = !self.progress.is_sound() && self.progress.begins_at_finished();
        self.fetch_limit.limit() + u32::from(self.fetch_limit.is_one() && begins_at_finished)
    }

    /// Returns true if records after the last one may have left retention since the iterator was
    /// created. A new iterator at the last record shows whether they have.
    fn may_be_overtaken(&self, iterator: &Iterator) -> bool {
        let is_replaced = self.replaced_at.as_ref() == Some(&self.progress.position);
        let life = if is_replaced { LIFE_AFTER_REPLACEMENT } else { LIFE_NEAR_HORIZON };
        self.is_near_horizon && self.progress.is_sound() && iterator.given.elapsed() > life
    }

    /// Creates an iterator at the position. Returns `None` if the call failed and is to be retried.
    async fn place(&mut self) -> Result<Option<Iterator>, StreamError> {
        let (kinesis, shard) = (&self.progress.kinesis, self.progress.shard_id());
        let failure = match kinesis.shard_iterator(shard, &self.progress.begin()).await {
            Ok((Some(text), date)) => {
                self.placed = true;
                self.progress.placed(date);
                return Ok(Some(Iterator::new(text)));
            }
            Ok((None, _)) => ClassifiedError::without("GetShardIterator", "iterator"),
            Err(failure) => failure,
        };
        self.progress.pace.asks();
        self.progress.recover(failure).await?;
        Ok(None)
    }

    async fn read(
        &mut self,
        answer: GetRecordsOutput,
        room: ResponseMemory,
        asked: Instant,
    ) -> Result<(), StreamError> {
        let bytes = answer.records.iter().map(size).sum();
        let lag = answer.millis_behind_latest;
        let behind = lag.unwrap_or(0) > 0
            // Some servers never report a lag, so a full response also counts as behind.
            || answer.records.len() >= self.fetch_limit.limit() as usize
            || bytes > LARGEST_ANSWER / 2;
        let (length, lacks_records) = (room.length(), room.lacks_records());
        let space = room.keep(bytes);
        self.fetch_limit.answered(length, self.memory.free());
        // The bytes count even if the response is discarded.
        self.progress.pace.read(bytes);
        if lacks_records {
            self.progress.pace.failed();
            return self.progress.lacks_records();
        }
        let children = children(self.progress.shard_id(), answer.child_shards());
        self.iterator =
            answer.next_shard_iterator.filter(|text| !text.is_empty()).map(Iterator::new);
        let is_last = self.iterator.is_none();
        let has_records = !answer.records.is_empty();
        let first = answer.records.first();
        let is_tip = lag.is_some_and(|lag| lag <= 0);
        let is_end = is_last && children.is_some();
        let beginning = self.progress.judge_beginning(first, is_tip || is_end).await?;
        match beginning {
            Beginning::Sound | Beginning::Undecided => {}
            Beginning::Replaced => {
                self.iterator = None;
                self.progress.pace.answered(true);
                return Ok(());
            }
            Beginning::Postponed => {
                self.iterator = None;
                return Ok(());
            }
        }
        let Unpacked { batch, is_misnumbered } =
            self.progress.unpack(answer.records, bytes, lag, self.placed);
        self.placed &= behind && batch.len() == 0;
        let is_empty = batch.len() == 0;
        if !is_empty || !is_tip || self.progress.state.next_passed.is_none() {
            self.progress.restart_quiet();
        }
        self.is_near_horizon = FetchState::is_near_horizon(lag);
        if !is_empty && self.iterator.is_some() && self.is_near_horizon {
            // The next records may leave retention before they are fetched. A new iterator at the
            // last record shows whether they have.
            self.iterator = None;
        }
        let is_open_end = is_last && children.is_none();
        let is_doubtful = is_misnumbered || is_open_end;
        if is_doubtful && bytes == 0 {
            self.progress.pace.failed();
        } else {
            self.progress.pace.answered(behind);
        }
        if is_misnumbered {
            self.iterator = None;
            self.progress.answered(Answer { batch, space, passed: None, end: None });
            return self.progress.doubt(MISNUMBERED, is_empty);
        }
        let open_end = OpenEnd { is_empty, has_records, lag };
        let mut end = children.filter(|_| is_last);
        if !is_open_end {
            self.progress.is_certain(is_empty, has_records);
            self.progress.is_cured(is_empty);
        } else if is_empty {
            end = self.progress.proven_end(&open_end).await?;
            if end.is_some() {
                if !self.progress.judge_end(beginning).await? {
                    return Ok(());
                }
                self.progress.telemetry.succeeded();
            }
        } else {
            self.progress.answered(Answer { batch, space, passed: None, end: None });
            return self.progress.proven_end(&open_end).await.map(drop);
        }
        let passed = match beginning {
            Beginning::Sound if is_empty && is_tip && !behind && end.is_none() && !is_open_end => {
                self.progress.caught_up(asked)
            }
            _ => None,
        };
        self.progress.answered(Answer { batch, space, passed, end });
        Ok(())
    }
}

impl ShardFetcher for PollingFetcher {
    fn progress(&mut self) -> &mut FetchState {
        &mut self.progress
    }

    async fn ask(&mut self) -> Result<(), StreamError> {
        self.progress.pace.turn().await;
        let mut token = match self.iterator.take().filter(Iterator::is_young) {
            Some(fresh) => fresh,
            None => match self.place().await? {
                Some(fresh) => fresh,
                None => return Ok(()),
            },
        };
        // Only a response takes memory, so iterators are requested without waiting for memory.
        let space = self.memory.grant(&self.demand, self.fetch_limit.needed()).await;
        if !token.is_young() {
            return Ok(());
        }
        if self.may_be_overtaken(&token) {
            self.replaced_at = Some(self.progress.position.clone());
            let Some(fresh) = self.place().await? else { return Ok(()) };
            token = fresh;
        }
        if space.taken() < self.fetch_limit.needed() {
            self.fetch_limit.reduce(space.taken());
        }
        let least = (self.fetch_limit.limit() == 1).then(|| self.demand.clone());
        let room = ResponseMemory::new(space, least);
        self.progress.pace.asks();
        let asked = Instant::now();
        // The builder checks both bounds of the option.
        let limit = i32::try_from(self.limit()).unwrap_or(i32::MAX);
        let failure = match self.progress.kinesis.records(&token.text, limit, &room).await {
            Ok(answer) => return self.read(answer, room, asked).await,
            Err(failure) => failure,
        };
        // After a rejected sequence number, the next iterator probes the oldest record. A shard
        // that is gone has no next iterator.
        if !matches!(
            failure.action,
            RetryAction::RestartIterator | RetryAction::Trimmed | RetryAction::Gone
        ) {
            self.iterator = Some(token);
        }
        let was_short = room.was_short();
        if was_short {
            let (shard, length) = (self.progress.shard_id(), room.length());
            log_line!(debug, %shard, length, "response exceeds free memory");
            // A retry returns a response of the same length, so the next call takes that much
            // memory first, or lowers the record limit.
            self.fetch_limit.turned_away(length);
        }
        self.progress.pace.read(room.length().min(LARGEST_ANSWER));
        if was_short && failure.error.kind() != ErrorKind::Panicked {
            self.progress.pace.answered(true);
            return Ok(());
        }
        drop(room);
        self.progress.recover(failure).await
    }
}

struct Iterator {
    text: String,
    given: Instant,
}

impl Iterator {
    fn new(text: String) -> Self {
        Self { text, given: Instant::now() }
    }

    fn is_young(&self) -> bool {
        self.given.elapsed() < ITERATOR_LIFE
    }
}
