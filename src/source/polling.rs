//! A shard read by `GetRecords`.
//!
//! ```text
//!            no iterator, or an old one ◄── expired
//!            ▼                                 │
//!   turn ─► GetShardIterator ─► room ──► GetRecords ─► records ─► yield
//!    ▲                                         │          │ none
//!    └───── throttled, failed, no room ◄───────┴──────────┘
//!                                              └─► end of the shard
//! ```
//!
//! What moves on is the position: it follows the last record fetched, as soon as its answer is
//! there, and an iterator is only ever a short-lived form of it. A drop at any await point
//! leaves nothing behind but a call that may still be carried out, which changes nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_stream::stream;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::types;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use super::batch::{Batch, size};
use super::kinesis::server_time;
use super::room::{LARGEST_ANSWER, Room};
use super::{Budget, Fetched, Kinesis, KnownShard, OnTrimmed, Position, Source};
use crate::error::{Error, ErrorKind, Failure, Remedy, Result};
use crate::pace::Pace;
use crate::record::{Finish, Origin, ShardId};

/// An iterator lives for 5 minutes; one that waited this long for a slow caller is replaced
/// before it is refused:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetShardIterator.html>.
const ITERATOR_LIFE: Duration = Duration::from_secs(270);

/// What is granted at least, before it is known how much it takes.
const SMALL_ANSWER: usize = 32 * 1024;

/// What it takes to poll one shard.
pub(crate) struct Polling {
    pub(crate) kinesis: Kinesis,
    pub(crate) shard_id: ShardId,
    /// Of the lease under which it is read.
    pub(crate) epoch: u64,
    pub(crate) position: Position,
    pub(crate) interval: Duration,
    pub(crate) limit: u32,
    pub(crate) on_trimmed: OnTrimmed,
    /// Whether records that a producer has packed into one are handed out one by one.
    pub(crate) deaggregate: bool,
    pub(crate) budget: Budget,
    pub(crate) finish: Arc<dyn Finish>,
    /// The record that the position is behind is read again; at first it is not.
    pub(crate) again: bool,
}

impl Polling {
    /// The source. It asks for nothing until it is polled.
    pub(crate) fn into_source(self) -> Source {
        self.run().boxed()
    }

    fn run(mut self) -> impl Stream<Item = Result<Fetched>> + Send {
        stream! {
            let mut pace = Pace::new(self.interval);
            let mut iterator: Option<Iterator> = None;
            let mut expected = SMALL_ANSWER;
            let mut told = None;
            // Nothing has been read since the iterator was placed but what lay there already.
            let mut placed = true;
            loop {
                pace.turn().await;
                let token = match iterator.take().filter(Iterator::is_young) {
                    Some(fresh) => fresh,
                    None => match self.place().await {
                        Ok(fresh) => {
                            placed = true;
                            fresh
                        }
                        Err(failure) => {
                            pace.asks();
                            match self.recover(failure, &mut pace, &mut told) {
                                Recovery::Again => continue,
                                Recovery::Tell(error) => { yield Err(error); continue }
                                Recovery::End(error) => { yield Err(error); return }
                            }
                        }
                    },
                };
                // Only an answer takes memory: iterators are asked for without waiting for it.
                let room = Room::reserve(&self.budget, expected).await;
                if !token.is_young() {
                    continue;
                }
                pace.asks();
                let answer = match self.kinesis.records(&token.text, self.limit(), &room).await {
                    Ok(answer) => answer,
                    Err(failure) => {
                        if failure.remedy != Remedy::RestartIterator {
                            iterator = Some(token);
                        }
                        // Asked again, it will be as long: then the room is there before.
                        expected = expected.max(room.length());
                        if room.was_short() {
                            tracing::debug!(shard = %self.shard_id, expected, "no room for an answer");
                            pace.answered(expected.min(LARGEST_ANSWER), true);
                            continue;
                        }
                        drop(room);
                        match self.recover(failure, &mut pace, &mut told) {
                            Recovery::Again => continue,
                            Recovery::Tell(error) => { yield Err(error); continue }
                            Recovery::End(error) => { yield Err(error); return }
                        }
                    }
                };
                told = None;
                let bytes = answer.records.iter().map(size).sum();
                let behind = answer.millis_behind_latest.unwrap_or(0) > 0
                    // Some servers never say that they have more: a full answer does.
                    || answer.records.len() >= self.limit as usize
                    || bytes > LARGEST_ANSWER / 2;
                pace.answered(bytes, behind);
                expected = room.length().max(SMALL_ANSWER);
                let space = room.keep(bytes);
                let end = answer.next_shard_iterator.is_none().then(|| children(&answer));
                iterator = answer.next_shard_iterator.clone().map(Iterator::new);
                let mut batch = match self.unpack(answer, placed) {
                    Ok(batch) => batch,
                    Err(error) => { yield Err(error); return }
                };
                placed &= behind && batch.len() == 0;
                while batch.is_aggregated() {
                    match self.kinesis.hash_range(&self.shard_id).await {
                        Ok(range) => { batch.retain(&range); break }
                        Err(failure) => {
                            pace.asks();
                            match self.recover(failure, &mut pace, &mut told) {
                                Recovery::Again => {}
                                Recovery::Tell(error) => yield Err(error),
                                Recovery::End(error) => { yield Err(error); return }
                            }
                            pace.turn().await;
                        }
                    }
                }
                if batch.len() > 0 {
                    yield Ok(Fetched::Records(batch, space));
                }
                if let Some(children) = end {
                    yield Ok(Fetched::End(children));
                    return;
                }
            }
        }
    }

    /// Both bounds are checked where the option is set.
    fn limit(&self) -> i32 {
        i32::try_from(self.limit).unwrap_or(i32::MAX)
    }

    /// An iterator at the position.
    async fn place(&self) -> Result<Iterator, Failure> {
        let at = match &self.position {
            Position::After(number, None) if self.again => {
                Some(Position::AtSequence(number.clone()))
            }
            _ => None,
        };
        let position = at.as_ref().unwrap_or(&self.position);
        match self.kinesis.shard_iterator(&self.shard_id, position).await? {
            Some(text) => Ok(Iterator::new(text)),
            None => Err(Failure {
                remedy: Remedy::Retry,
                error: Error::new(ErrorKind::Unavailable, "GetShardIterator gave no iterator"),
                answered: None,
            }),
        }
    }

    /// What a failed call leads to. `told` is the kind of error that the caller knows of.
    fn recover(
        &mut self,
        failure: Failure,
        pace: &mut Pace,
        told: &mut Option<ErrorKind>,
    ) -> Recovery {
        let error = failure.error.in_stream(self.kinesis.name()).in_shard(self.shard_id.as_str());
        match failure.remedy {
            Remedy::SlowDown => {
                tracing::debug!(%error, "throttled");
                pace.throttled();
                Recovery::Again
            }
            Remedy::Retry | Remedy::RestartListing => {
                tracing::debug!(%error, "trying again");
                pace.failed();
                Recovery::Again
            }
            Remedy::RestartIterator => {
                tracing::debug!(%error, "a new iterator");
                pace.failed();
                Recovery::Again
            }
            Remedy::Trimmed => {
                self.trimmed(error, server_time(failure.answered, SystemTime::now()), pace)
            }
            Remedy::Gone => Recovery::End(error),
            Remedy::Report => {
                pace.reported();
                match told.replace(error.kind()) {
                    Some(kind) if kind == error.kind() => Recovery::Again,
                    _ => Recovery::Tell(error),
                }
            }
        }
    }

    fn trimmed(&mut self, error: Error, now: SystemTime, pace: &mut Pace) -> Recovery {
        // The last number of a closed shard may be refused as what to read after, and yet be
        // there: then it is read once more, and passed over.
        if matches!(self.position, Position::After(_, None)) && !self.again {
            self.again = true;
            pace.failed();
            return Recovery::Again;
        }
        let position = match self.on_trimmed {
            OnTrimmed::Fail => return Recovery::End(error),
            OnTrimmed::TrimHorizon => Position::TrimHorizon,
            OnTrimmed::Latest => Position::AtTimestamp(now),
        };
        tracing::warn!(%error, ?position, "records were lost before they were read: going on");
        (self.position, self.again) = (position, false);
        pace.failed();
        Recovery::Again
    }

    /// The records of the answer, less those before the position, and moves the position.
    /// `placed` says that the iterator has just been placed.
    fn unpack(&mut self, answer: GetRecordsOutput, placed: bool) -> Result<Batch> {
        let last = answer.records.last().map(|record| record.sequence_number.parse());
        let origin = Origin {
            stream: Arc::clone(self.kinesis.name()),
            shard_id: self.shard_id.clone(),
            millis_behind_latest: answer.millis_behind_latest.unwrap_or(0),
            epoch: self.epoch,
            finish: Arc::clone(&self.finish),
        };
        let mut batch = Batch::new(answer.records, self.deaggregate, origin);
        if placed {
            batch.skip_past(&self.position)?;
        }
        // A place that is none is told by the record that has it.
        if let (1.., Some(Ok(last))) = (batch.len(), last) {
            (self.position, self.again) = (Position::After(last, None), false);
        }
        Ok(batch)
    }
}

/// What a failed call leads to.
enum Recovery {
    Again,
    /// The caller is told, and reading goes on.
    Tell(Error),
    /// The caller is told, and the shard is read no further.
    End(Error),
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

fn children(answer: &GetRecordsOutput) -> Vec<KnownShard> {
    let parsed = |child: &types::ChildShard| {
        Some(KnownShard {
            id: child.shard_id().parse().ok()?,
            parents: child.parent_shards().iter().filter_map(|id| id.parse().ok()).collect(),
        })
    };
    answer.child_shards().iter().filter_map(parsed).collect()
}
