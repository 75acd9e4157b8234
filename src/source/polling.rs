//! A shard read by `GetRecords`.
//!
//! ```text
//!           ┌──────────── no iterator, or an old one ◄────────────┐
//!           ▼                                                     │ expired
//!   turn ─► space ─► GetShardIterator ─► GetRecords ─► records ─► yield
//!    ▲                                        │           │ none
//!    └────────── throttled, failed ◄──────────┴───────────┘
//!                                             └─► end of the shard
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

use super::kinesis::server_time;
use super::{Budget, Fetched, Kinesis, KnownShard, OnTrimmed, Position, Source};
use crate::error::{Error, ErrorKind, Failure, Remedy, Result};
use crate::pace::Pace;
use crate::record::{Batch, EncryptionType, Entry, Finish, Record, SequenceNumber, ShardId};

/// An iterator lives for 5 minutes; one that waited this long for a slow caller is replaced
/// before it is refused:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetShardIterator.html>.
const ITERATOR_LIFE: Duration = Duration::from_secs(270);

/// The most that one answer holds:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const LARGEST_ANSWER: usize = 10 * 1024 * 1024;

/// What the answer of a shard that has caught up is granted at least.
const SMALL_ANSWER: usize = 256 * 1024;

/// What it takes to poll one shard.
pub(crate) struct Polling {
    pub(crate) kinesis: Kinesis,
    pub(crate) shard_id: ShardId,
    pub(crate) position: Position,
    pub(crate) interval: Duration,
    pub(crate) limit: u32,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) budget: Budget,
    pub(crate) finish: Arc<dyn Finish>,
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
            let mut expected = LARGEST_ANSWER;
            let mut fetched = 0;
            let mut told = None;
            // Nothing has been read since the iterator was placed but what lay there already.
            let mut placed = true;
            loop {
                pace.turn().await;
                let granted = expected;
                let mut space = self.budget.reserve(granted).await;
                let token = match iterator.take().filter(Iterator::is_young) {
                    Some(fresh) => fresh,
                    None => match self.place().await {
                        Ok(fresh) => {
                            placed = true;
                            fresh
                        }
                        Err(failure) => {
                            pace.asks();
                            drop(space);
                            match self.recover(failure, &mut pace, &mut told) {
                                Recovery::Again => continue,
                                Recovery::Tell(error) => { yield Err(error); continue }
                                Recovery::End(error) => { yield Err(error); return }
                            }
                        }
                    },
                };
                pace.asks();
                let answer = match self.kinesis.records(&token.text, self.limit()).await {
                    Ok(answer) => answer,
                    Err(failure) => {
                        drop(space);
                        if failure.remedy != Remedy::RestartIterator {
                            iterator = Some(token);
                        }
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
                expected = if behind { LARGEST_ANSWER } else { (2 * bytes).clamp(SMALL_ANSWER, LARGEST_ANSWER) };
                if !self.budget.resize(&mut space, bytes) && granted < LARGEST_ANSWER {
                    // More than was granted, and no room for it: the same again with room.
                    tracing::debug!(shard = %self.shard_id, bytes, "answer larger than the memory granted");
                    expected = LARGEST_ANSWER;
                    iterator = Some(token);
                    continue;
                }
                let end = answer.next_shard_iterator.is_none().then(|| children(&answer));
                iterator = answer.next_shard_iterator.clone().map(Iterator::new);
                let records = match self.unpack(answer, fetched, placed) {
                    Ok(records) => records,
                    Err(error) => { yield Err(error); return }
                };
                placed &= behind && records.is_empty();
                if !records.is_empty() {
                    fetched += records.len() as u64;
                    yield Ok(Fetched::Records(records, space));
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
        let placed = match self.kinesis.shard_iterator(&self.shard_id, &self.position).await {
            // The last number of a closed shard may be refused as what to read after, and yet
            // be there: then it is read once more, and passed over.
            Err(trimmed) if trimmed.remedy == Remedy::Trimmed => match &self.position {
                Position::After(number, None) => {
                    let at = Position::AtSequence(number.clone());
                    let again = self.kinesis.shard_iterator(&self.shard_id, &at).await;
                    again.map_err(|failure| match failure.remedy {
                        Remedy::Trimmed => trimmed,
                        _ => failure,
                    })?
                }
                _ => return Err(trimmed),
            },
            placed => placed?,
        };
        match placed {
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
        let position = match self.on_trimmed {
            OnTrimmed::Fail => return Recovery::End(error),
            OnTrimmed::TrimHorizon => Position::TrimHorizon,
            OnTrimmed::Latest => Position::AtTimestamp(now),
        };
        tracing::warn!(%error, ?position, "records were lost before they were read: going on");
        self.position = position;
        pace.failed();
        Recovery::Again
    }

    /// Makes records of the answer, less those before the position, and moves the position.
    /// `placed` says that the iterator has just been placed.
    fn unpack(
        &mut self,
        answer: GetRecordsOutput,
        first: u64,
        placed: bool,
    ) -> Result<Vec<Record>> {
        let millis_behind_latest = answer.millis_behind_latest.unwrap_or(0);
        let mut entries = Vec::with_capacity(answer.records.len());
        let mut payloads = Vec::with_capacity(answer.records.len());
        for record in answer.records {
            let sequence_number: SequenceNumber =
                record.sequence_number.try_into().map_err(|error: Error| {
                    Error::new(ErrorKind::Rejected, "GetRecords gave a record without a place")
                        .with_source(error)
                        .in_stream(self.kinesis.name())
                        .in_shard(self.shard_id.as_str())
                })?;
            let entry = Entry {
                sequence_number,
                sub_sequence_number: 0,
                approximate_arrival: record
                    .approximate_arrival_timestamp
                    .and_then(|time| time.try_into().ok()),
                encryption_type: match record.encryption_type {
                    Some(types::EncryptionType::Kms) => EncryptionType::Kms,
                    _ => EncryptionType::None,
                },
            };
            // Only at the beginning: times of arrival do not rise from record to record.
            if !entries.is_empty() || !placed || !self.position.is_past(&entry) {
                entries.push(entry);
                payloads.push((record.data.into_inner(), record.partition_key));
            }
        }
        if let Some(last) = entries.last() {
            self.position = Position::After(last.sequence_number.clone(), None);
        }
        let batch = Arc::new(Batch {
            stream: Arc::clone(self.kinesis.name()),
            shard_id: self.shard_id.clone(),
            millis_behind_latest,
            epoch: 0,
            entries: Arc::new(entries),
            finish: Arc::clone(&self.finish),
            first,
        });
        Ok((0..)
            .zip(payloads)
            .map(|(index, (data, key))| Record::new(Arc::clone(&batch), index, data, key))
            .collect())
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

fn size(record: &types::Record) -> usize {
    record.data.as_ref().len() + record.partition_key.as_ref().map_or(0, String::len)
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
