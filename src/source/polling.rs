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

use tokio::time::Instant;

use super::demand::Demand;
use super::fetch_limit::FetchLimit;
use super::fetch_state::{
    FetchState, FetchedResponse, Interrupt, MeasuredRecords, Unpacked, children,
};
use super::get_records::{MAX_RESPONSE_BYTES, RecordsFailure, RecordsRequest, RecordsResponse};
use super::memory_budget::ShardBudget;
use super::response::{FirstRecord, Response};
use super::retention::Beginning;
use super::unproven_end::{INVALID_NUMBER, OpenEnd};
use super::wire_format::ShardFailures;
use super::{Position, ShardFetcher};
use crate::error::{ClassifiedError, ErrorKind, RetryAction};
use crate::telemetry::{Event, log_line};

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
    fetch_state: FetchState,
    fetch_limit: FetchLimit,
    cbor_failures: ShardFailures,
    memory: ShardBudget,
    demand: Demand,
    iterator: Option<ShardIterator>,
    /// No new record has been read since the iterator was placed, so records up to the position are
    /// skipped.
    placed: bool,
    /// True if retention may overtake the reader.
    is_near_horizon: bool,
    /// The position of the last iterator that was replaced for this reason.
    replaced_at: Option<Position>,
}

impl PollingFetcher {
    pub(super) fn new(fetch_state: FetchState, limit: u32, memory: ShardBudget) -> Self {
        let (fetch_limit, demand) = (FetchLimit::new(limit), Demand::default());
        Self {
            fetch_state,
            fetch_limit,
            cbor_failures: ShardFailures::default(),
            memory,
            demand,
            iterator: None,
            placed: true,
            is_near_horizon: false,
            replaced_at: None,
        }
    }

    /// Returns the record limit of the next call. If the option is 1 and the iterator is placed at
    /// the last record read, the limit is 2: that record is returned together with the next one.
    fn limit(&self) -> u32 {
        let begins_at_last_record =
            !self.fetch_state.is_sound() && self.fetch_state.begins_at_last_record();
        self.fetch_limit.limit()
            + u32::from(self.fetch_limit.is_single_record() && begins_at_last_record)
    }

    /// Returns true if records after the last one may have left retention since the iterator was
    /// created. A new iterator at the last record shows whether they have.
    fn may_be_overtaken(&self, iterator: &ShardIterator) -> bool {
        let is_replaced = self.replaced_at.as_ref() == Some(&self.fetch_state.position);
        let life = if is_replaced { LIFE_AFTER_REPLACEMENT } else { LIFE_NEAR_HORIZON };
        self.is_near_horizon && self.fetch_state.is_sound() && iterator.given.elapsed() > life
    }

    /// Creates an iterator at the position. Returns `None` if the call failed and is to be retried.
    async fn place(&mut self) -> Result<Option<ShardIterator>, Interrupt> {
        let (kinesis, shard) = (&self.fetch_state.kinesis, self.fetch_state.shard_id());
        let asked = Instant::now();
        let failure = match kinesis.shard_iterator(shard, &self.fetch_state.begin()).await {
            Ok((Some(text), date)) => {
                self.placed = true;
                self.fetch_state.placed(date, asked);
                return Ok(Some(ShardIterator::new(text)));
            }
            Ok((None, _)) => ClassifiedError::missing_field("GetShardIterator", "iterator"),
            Err(failure) => failure,
        };
        self.fetch_state.pace.note_call();
        self.fetch_state.recover(failure).await?;
        Ok(None)
    }

    async fn read(
        &mut self,
        read: RecordsResponse,
        asked: Instant,
    ) -> Result<Option<FetchedResponse>, Interrupt> {
        let RecordsResponse { response, space, needed, limit } = read;
        let bytes = response.bytes();
        let Response { buffer, records, next_shard_iterator, .. } = response;
        let lag = response.millis_behind_latest;
        let lacks_records = records.is_none();
        let records = records.unwrap_or_default();
        let behind = lag.unwrap_or(0) > 0
            // Some servers never report a lag, so a full response also counts as behind.
            || records.len() >= self.fetch_limit.limit().min(limit) as usize
            || bytes > MAX_RESPONSE_BYTES / 2;
        self.fetch_limit.answered(needed, self.memory.free());
        // The bytes count even if the response is discarded.
        self.fetch_state.pace.read(bytes);
        if lacks_records {
            self.fetch_state.pace.failed();
            return self.fetch_state.lacks_records().map(|()| None);
        }
        let children = children(self.fetch_state.shard_id(), &response.child_shards);
        self.iterator = next_shard_iterator.filter(|text| !text.is_empty()).map(ShardIterator::new);
        let is_last = self.iterator.is_none();
        let has_records = !records.is_empty();
        let first = FirstRecord::of(&records, &buffer);
        let is_tip = lag.is_some_and(|lag| lag <= 0);
        let is_end = is_last && children.is_some();
        let judged = self.fetch_state.judge_beginning(first, is_tip || is_end).await;
        let beginning = match judged {
            Ok(beginning @ (Beginning::Sound | Beginning::Undecided)) => beginning,
            Ok(Beginning::Replaced) | Err(Interrupt::Moved { .. }) => {
                self.iterator = None;
                self.fetch_state.pace.answered(true);
                return judged.map(|_replaced| None);
            }
            Ok(Beginning::Postponed) => {
                self.iterator = None;
                return Ok(None);
            }
            Err(interrupt) => return Err(interrupt),
        };
        if beginning == Beginning::Sound && !is_last && self.fetch_state.end_at_tip().await? {
            self.iterator = None;
            return Ok(None);
        }
        let (buffer, memory) = space.hold(buffer);
        let Unpacked { batch, is_reached, has_invalid_number } = self
            .fetch_state
            .unpack(MeasuredRecords { records, buffer, memory, bytes, lag }, self.placed);
        self.placed &= behind && batch.len() == 0;
        if is_reached {
            return Ok(Some(FetchedResponse::last(batch)));
        }
        let is_empty = batch.len() == 0;
        if !is_empty || !is_tip || self.fetch_state.state.next_quiet_save.is_none() {
            self.fetch_state.restart_quiet();
        }
        self.is_near_horizon = FetchState::is_near_horizon(lag);
        if !is_empty && self.iterator.is_some() && self.is_near_horizon {
            // The next records may leave retention before they are fetched. A new iterator at the
            // last record shows whether they have.
            self.iterator = None;
        }
        let is_open_end = is_last && children.is_none();
        let is_doubtful = has_invalid_number || is_open_end;
        if is_doubtful && bytes == 0 {
            self.fetch_state.pace.failed();
        } else {
            self.fetch_state.pace.answered(behind);
        }
        if has_invalid_number {
            self.iterator = None;
            let doubt = self.fetch_state.doubt(INVALID_NUMBER, is_empty);
            return FetchedResponse::doubtful(batch, doubt).map(Some);
        }
        let open_end = OpenEnd { is_empty, has_records, lag };
        let mut end = children.filter(|_| is_last);
        if !is_open_end {
            self.fetch_state.note_next_position(is_empty, has_records);
            self.fetch_state.report_recovery(is_empty);
        } else if is_empty {
            end = self.fetch_state.proven_end(&open_end).await?;
            if end.is_some() {
                if !self.fetch_state.judge_end(beginning).await? {
                    return Ok(None);
                }
                self.fetch_state.telemetry.succeeded();
            }
        } else {
            let doubt = self.fetch_state.proven_end(&open_end).await.map(drop);
            return FetchedResponse::doubtful(batch, doubt).map(Some);
        }
        let is_caught_up = beginning == Beginning::Sound && is_tip && !behind && !is_last;
        if is_caught_up {
            self.fetch_state.note_tip(asked);
        }
        let passed =
            if is_caught_up && is_empty { self.fetch_state.caught_up(asked) } else { None };
        Ok(Some(FetchedResponse { error: None, batch, passed, end, is_reached: false }))
    }
}

impl ShardFetcher for PollingFetcher {
    fn fetch_state(&mut self) -> &mut FetchState {
        &mut self.fetch_state
    }

    fn demand(&self) -> &Demand {
        &self.demand
    }

    async fn fetch_once(&mut self) -> Result<Option<FetchedResponse>, Interrupt> {
        self.fetch_state.pace.ready().await;
        self.permit().await;
        let mut token = match self.iterator.take().filter(ShardIterator::is_young) {
            Some(fresh) => fresh,
            None => match self.place().await? {
                Some(fresh) => fresh,
                None => return Ok(None),
            },
        };
        // Only a response takes memory, so iterators are requested without waiting for memory.
        let space = self.memory.grant(&self.demand, self.fetch_limit.needed()).await;
        if !token.is_young() {
            return Ok(None);
        }
        if self.may_be_overtaken(&token) {
            self.replaced_at = Some(self.fetch_state.position.clone());
            let Some(fresh) = self.place().await? else { return Ok(None) };
            token = fresh;
        }
        if space.taken() < self.fetch_limit.needed() {
            self.fetch_limit.reduce(space.taken());
        }
        let least = (self.fetch_limit.limit() == 1).then(|| self.demand.clone());
        self.fetch_state.pace.note_call();
        let asked = Instant::now();
        let request = RecordsRequest { iterator: &token.text, limit: self.limit(), space, least };
        let FetchState { kinesis, pace, .. } = &mut self.fetch_state;
        let outcome = kinesis.records(request, &mut self.cbor_failures, pace).await;
        if let Some(reason) = outcome.fallback {
            self.fetch_state.telemetry.emit(Event::WireFormatFallback { reason });
        }
        let RecordsFailure { failure, length, needed, was_rejected } = match outcome.result {
            Ok(response) => return self.read(response, asked).await,
            Err(failed) => failed,
        };
        // After a rejected sequence number, the next iterator probes the oldest record. A shard
        // that is gone has no next iterator.
        if !matches!(
            failure.action,
            RetryAction::RestartIterator | RetryAction::Trimmed | RetryAction::Gone
        ) {
            self.iterator = Some(token);
        }
        if was_rejected {
            let shard = self.fetch_state.shard_id();
            log_line!(debug, %shard, length, "response exceeds free memory");
            // A retry returns a response of the same length, so the next call takes that much
            // memory first, or lowers the record limit.
            self.fetch_limit.did_not_fit(needed);
        }
        self.fetch_state.pace.read(length.min(MAX_RESPONSE_BYTES));
        if was_rejected && failure.error.kind() != ErrorKind::Panicked {
            self.fetch_state.pace.answered(true);
            return Ok(None);
        }
        self.fetch_state.recover(failure).await.map(|()| None)
    }
}

struct ShardIterator {
    text: String,
    given: Instant,
}

impl ShardIterator {
    fn new(text: String) -> Self {
        Self { text, given: Instant::now() }
    }

    fn is_young(&self) -> bool {
        self.given.elapsed() < ITERATOR_LIFE
    }
}
