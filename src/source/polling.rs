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

use std::time::Duration;

use async_stream::stream;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use super::batch::size;
use super::progress::{Progress, Recovery, children};
use super::room::{LARGEST_ANSWER, Room};
use super::{Budget, Fetched, Source};
use crate::error::{Failure, Remedy, Result};
use crate::pace::Pace;

/// An iterator lives for 5 minutes; one that waited this long for a slow caller is replaced
/// before it is refused:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetShardIterator.html>.
const ITERATOR_LIFE: Duration = Duration::from_secs(270);

/// What is granted at least, before it is known how much it takes.
const SMALL_ANSWER: usize = 32 * 1024;

/// What it takes to poll one shard.
pub(super) struct Polling {
    pub(super) progress: Progress,
    pub(super) interval: Duration,
    pub(super) limit: u32,
    pub(super) budget: Budget,
}

impl Polling {
    /// The source. It asks for nothing until it is polled.
    pub(super) fn into_source(self) -> Source {
        Source::new(self.run().boxed())
    }

    fn run(self) -> impl Stream<Item = Result<Fetched>> + Send {
        // Both bounds are checked where the option is set.
        let limit = i32::try_from(self.limit).unwrap_or(i32::MAX);
        let Self { mut progress, interval, limit: most, budget } = self;
        stream! {
            let mut pace = Pace::new(interval);
            let mut iterator: Option<Iterator> = None;
            let mut expected = SMALL_ANSWER;
            // Nothing has been read since the iterator was placed but what lay there already.
            let mut placed = true;
            loop {
                pace.turn().await;
                let token = match iterator.take().filter(Iterator::is_young) {
                    Some(fresh) => fresh,
                    None => match place(&progress).await {
                        Ok(fresh) => {
                            placed = true;
                            fresh
                        }
                        Err(failure) => {
                            pace.asks();
                            match progress.recover(failure, &mut pace) {
                                Recovery::Again => continue,
                                Recovery::Tell(error) => { yield Err(error); continue }
                                Recovery::End(error) => { yield Err(error); return }
                            }
                        }
                    },
                };
                // Only an answer takes memory: iterators are asked for without waiting for it.
                let room = Room::reserve(&budget, expected).await;
                if !token.is_young() {
                    continue;
                }
                pace.asks();
                let answer = match progress.kinesis.records(&token.text, limit, &room).await {
                    Ok(answer) => answer,
                    Err(failure) => {
                        if failure.remedy != Remedy::RestartIterator {
                            iterator = Some(token);
                        }
                        // Asked again, it will be as long: then the room is there before.
                        expected = expected.max(room.length());
                        if room.was_short() {
                            let shard = &progress.shard_id;
                            tracing::debug!(%shard, expected, "no room for an answer");
                            pace.answered(expected.min(LARGEST_ANSWER), true);
                            continue;
                        }
                        drop(room);
                        match progress.recover(failure, &mut pace) {
                            Recovery::Again => continue,
                            Recovery::Tell(error) => { yield Err(error); continue }
                            Recovery::End(error) => { yield Err(error); return }
                        }
                    }
                };
                let bytes = answer.records.iter().map(size).sum();
                let lag = answer.millis_behind_latest.unwrap_or(0);
                let behind = lag > 0
                    // Some servers never say that they have more: a full answer does.
                    || answer.records.len() >= most as usize
                    || bytes > LARGEST_ANSWER / 2;
                pace.answered(bytes, behind);
                expected = room.length().max(SMALL_ANSWER);
                let space = room.keep(bytes);
                let end = answer.next_shard_iterator.is_none().then(|| children(answer.child_shards()));
                iterator = answer.next_shard_iterator.map(Iterator::new);
                let mut batch = match progress.unpack(answer.records, lag, placed) {
                    Ok(batch) => batch,
                    Err(error) => { yield Err(error); return }
                };
                placed &= behind && batch.len() == 0;
                while let Err(told) = progress.retain_own(&mut batch, &mut pace).await {
                    match told {
                        Recovery::Again => {}
                        Recovery::Tell(error) => yield Err(error),
                        Recovery::End(error) => { yield Err(error); return }
                    }
                    pace.turn().await;
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
}

/// An iterator at the position.
async fn place(progress: &Progress) -> Result<Iterator, Failure> {
    let position = progress.begin();
    match progress.kinesis.shard_iterator(&progress.shard_id, &position).await? {
        Some(text) => Ok(Iterator::new(text)),
        None => Err(Failure::without("GetShardIterator", "iterator")),
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
