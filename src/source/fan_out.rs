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
//! [`FanOut::rest`] finds it: it is let go then, and taken up where the caller left off. A drop at any
//! await point drops the subscription and nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_stream::stream;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use super::batch::size;
use super::progress::{Progress, Recovery, children};
use super::registration::Registration;
use super::subscription::{Gauge, Next, Subscription};
use super::{Budget, Fetched, Position, Source};
use crate::error::{Failure, Remedy, Result};
use crate::pace::{Pace, SHORTEST_PAUSE};
use crate::record::SequenceNumber;

/// A quiet shard moves its checkpoint so often: far more often than it could leave retention, which is
/// a day at least, and so rarely that a thousand of them are nothing to a store.
const PASSED_EACH: Duration = Duration::from_secs(60);

/// How long the old subscription goes on where a new one could not take over.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// What it takes to be pushed the records of one shard.
pub(super) struct FanOut {
    pub(super) progress: Progress,
    pub(super) registration: Arc<Registration>,
    pub(super) budget: Budget,
}

/// The subscription while nobody asks for more.
type Slot = Arc<Mutex<Option<Subscription>>>;

fn take(slot: &Slot) -> Option<Subscription> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn put(slot: &Slot, subscription: Subscription) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(subscription);
}

impl FanOut {
    /// The source. It asks for nothing until it is polled.
    pub(super) fn into_source(self) -> Source {
        let slot = Slot::default();
        let batches = self.run(Arc::clone(&slot)).boxed();
        Source::resting(batches, move || drop(take(&slot)))
    }

    fn run(self, slot: Slot) -> impl Stream<Item = Result<Fetched>> + Send {
        let Self { mut progress, registration, budget } = self;
        stream! {
            let mut pace = Pace::new(SHORTEST_PAUSE);
            let mut expected = 0;
            // Nothing has been pushed since the subscription was placed but what lay there already.
            let mut placed = true;
            let mut last_passed: Option<Instant> = None;
            loop {
                let mut subscription = match take(&slot) {
                    Some(young) if Instant::now() < young.renew_at => young,
                    old => {
                        pace.turn().await;
                        pace.asks();
                        let subscribed = subscribe(&progress, &registration, &budget, expected).await;
                        match subscribed {
                            Ok(new) => {
                                pace.subscribed();
                                placed = true;
                                new
                            }
                            Err(failure) => {
                                if let Some(mut old) = old {
                                    old.renew_at = Instant::now() + RENEW_AGAIN;
                                    put(&slot, old);
                                }
                                match progress.recover(failure, &mut pace) {
                                    Recovery::Again => continue,
                                    Recovery::Tell(error) => { yield Err(error); continue }
                                    Recovery::End(error) => { yield Err(error); return }
                                }
                            }
                        }
                    }
                };
                let (event, message) = match subscription.next().await {
                    Next::Event(event, message) => (event, message),
                    Next::Nothing | Next::Renew => {
                        put(&slot, subscription);
                        continue;
                    }
                    Next::NoRoom(length) => {
                        tracing::debug!(shard = %progress.shard_id, length, "no room for an event");
                        expected = length;
                        continue;
                    }
                    Next::Ended => {
                        tracing::debug!(shard = %progress.shard_id, "a subscription has ended");
                        continue;
                    }
                    Next::Failed(failure) => {
                        drop(subscription);
                        forget_what_is_gone(&registration, &failure).await;
                        match progress.recover(failure, &mut pace) {
                            Recovery::Again => continue,
                            Recovery::Tell(error) => { yield Err(error); continue }
                            Recovery::End(error) => { yield Err(error); return }
                        }
                    }
                };
                expected = 0;
                let space = message.keep(event.records.iter().map(size).sum());
                let next: Option<SequenceNumber> = event.continuation_sequence_number.parse().ok();
                let named = event.child_shards.unwrap_or_default();
                // Some servers name the children as soon as the shard is closed.
                let is_over = next.is_none() || !named.is_empty() && event.records.is_empty();
                let lag = event.millis_behind_latest;
                let mut batch = match progress.unpack(event.records, lag, placed) {
                    Ok(batch) => batch,
                    Err(error) => { yield Err(error); return }
                };
                placed &= lag > 0 && batch.len() == 0;
                while let Err(told) = progress.retain_own(&mut batch, &mut pace).await {
                    match told {
                        Recovery::Again => {}
                        Recovery::Tell(error) => yield Err(error),
                        Recovery::End(error) => { yield Err(error); return }
                    }
                    pace.turn().await;
                }
                if is_over {
                    if batch.len() > 0 {
                        yield Ok(Fetched::Records(batch, space));
                    }
                    yield Ok(Fetched::End(children(&named)));
                    return;
                }
                put(&slot, subscription);
                let has_passed = next.filter(|next| progress.advance(next));
                if batch.len() > 0 {
                    yield Ok(Fetched::Records(batch, space));
                } else if let Some(next) = has_passed
                    && last_passed.is_none_or(|last| last.elapsed() >= PASSED_EACH)
                {
                    last_passed = Some(Instant::now());
                    yield Ok(Fetched::Passed(next));
                }
            }
        }
    }
}

async fn subscribe(
    progress: &Progress,
    registration: &Registration,
    budget: &Budget,
    expected: usize,
) -> Result<Subscription, Failure> {
    let consumer = registration.arn().await?;
    let gauge = Gauge::reserve(budget, expected).await;
    let position: Position = progress.begin();
    let subscribed = progress.kinesis.subscribe(&consumer, &progress.shard_id, &position, gauge);
    let subscribed = subscribed.await;
    if let Err(failure) = &subscribed {
        forget_what_is_gone(registration, failure).await;
    }
    subscribed
}

/// It may be the consumer that is gone, which the next reading is to find or to register.
async fn forget_what_is_gone(registration: &Registration, failure: &Failure) {
    if failure.remedy == Remedy::Gone {
        registration.forget().await;
    }
}
