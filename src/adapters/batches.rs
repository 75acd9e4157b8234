//! Collects records into batches.
//!
//! ```text
//!             record                max records, max_age, an error, the end
//!   empty ──────────────► collecting ──────────────────────────────────────► yield, empty
//!                          │      ▲
//!                          └──────┘
//!                           record of another epoch: yield, collecting with this record
//! ```
//!
//! An error that has ended a batch is kept and yielded by the next poll. Everything that is
//! collected belongs to the stream, so a dropped `next()` loses nothing. A panic of the inner
//! stream leaves the records that it has yielded.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::FusedStream;
use futures::{Stream, TryStream};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::shard_epochs::ShardEpochs;
use super::{MAX_TAKEN_PER_POLL, RecordBatch};
use crate::record::{Acker, Record};

pin_project! {
    /// The stream of [`batches`](crate::RecordStreamExt::batches).
    #[must_use = "streams do nothing unless polled"]
    pub struct Batches<S>
    where
        S: TryStream,
    {
        #[pin]
        stream: S,
        collector: Collector<S::Ok>,
        // The error after the last batch.
        error: Option<S::Error>,
        is_done: bool,
    }
}

/// The records of the next batch.
struct Collector<R> {
    max: usize,
    records: Vec<R>,
    epochs: ShardEpochs,
    timer: BatchTimer,
    /// The deferred acknowledgements of the records that are collected.
    collected: Vec<Acker>,
    /// The deferred acknowledgements of the last batch.
    yielded: Vec<Acker>,
}

/// Measures the age of a batch.
struct BatchTimer {
    max_age: Duration,
    /// `None` without a record, and if the time is beyond the range of the clock.
    deadline: Option<Instant>,
    /// Created when a batch is waited for, and used for all later ones.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<S: TryStream> Batches<S> {
    #[track_caller]
    pub(super) fn new(stream: S, max: usize, max_age: Duration) -> Self {
        assert!(max > 0, "max of batches must be at least 1");
        let timer = BatchTimer { max_age, deadline: None, sleep: None };
        let collector = Collector {
            max,
            records: Vec::new(),
            epochs: ShardEpochs::default(),
            timer,
            collected: Vec::new(),
            yielded: Vec::new(),
        };
        Self { stream, collector, error: None, is_done: false }
    }
}

impl BatchTimer {
    fn start(&mut self) {
        self.deadline = Instant::now().checked_add(self.max_age);
    }

    /// Returns true if the batch is due, from now or from an earlier time on.
    fn is_due(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(context)
    }
}

impl<R: AsRef<Record>> Collector<R> {
    fn acknowledge_yielded(&mut self) {
        for acker in self.yielded.drain(..) {
            acker.ack();
        }
    }

    fn is_due(&self) -> bool {
        !self.records.is_empty() && (self.is_full() || self.timer.is_due())
    }

    fn is_full(&self) -> bool {
        self.records.len() >= self.max
    }

    /// Adds a record. Returns the batch that is due: a full one, or the one that the record must
    /// not join.
    fn add(&mut self, record: R) -> Option<RecordBatch<R>> {
        let is_admitted = match self.records.last() {
            Some(last) if record.as_ref().is_of_response_of(last.as_ref()) => true,
            _ => self.epochs.admit(record.as_ref()),
        };
        let before = if is_admitted { None } else { self.take() };
        if self.records.is_empty() {
            self.timer.start();
            if !is_admitted {
                self.epochs.admit(record.as_ref());
            }
        }
        if record.as_ref().defer_ack() {
            self.collected.push(record.as_ref().acker());
        }
        self.records.push(record);
        before.or_else(|| if self.is_full() { self.take() } else { None })
    }

    /// Takes the collected records; `None` if there are none.
    fn take(&mut self) -> Option<RecordBatch<R>> {
        if self.records.is_empty() {
            return None;
        }
        self.epochs.clear();
        self.timer.deadline = None;
        // The last batch is acknowledged.
        std::mem::swap(&mut self.yielded, &mut self.collected);
        Some(std::mem::take(&mut self.records).into())
    }
}

impl<S: TryStream<Ok: AsRef<Record>>> Stream for Batches<S> {
    type Item = Result<RecordBatch<S::Ok>, S::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        let collector = this.collector;
        collector.acknowledge_yielded();
        if let Some(error) = this.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if *this.is_done {
            return Poll::Ready(None);
        }
        if collector.is_due() {
            return Poll::Ready(collector.take().map(Ok));
        }
        for _ in 0..MAX_TAKEN_PER_POLL {
            match this.stream.as_mut().try_poll_next(context) {
                Poll::Ready(Some(Ok(record))) => {
                    if let Some(batch) = collector.add(record) {
                        return Poll::Ready(Some(Ok(batch)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    let Some(batch) = collector.take() else {
                        return Poll::Ready(Some(Err(error)));
                    };
                    *this.error = Some(error);
                    return Poll::Ready(Some(Ok(batch)));
                }
                Poll::Ready(None) => {
                    *this.is_done = true;
                    return Poll::Ready(collector.take().map(Ok));
                }
                Poll::Pending => {
                    if !collector.records.is_empty() && collector.timer.poll_due(context).is_ready()
                    {
                        return Poll::Ready(collector.take().map(Ok));
                    }
                    return Poll::Pending;
                }
            }
        }
        if collector.is_due() {
            return Poll::Ready(collector.take().map(Ok));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: TryStream<Ok: AsRef<Record>>> FusedStream for Batches<S> {
    fn is_terminated(&self) -> bool {
        // The next poll acknowledges the last batch.
        self.is_done && self.error.is_none() && self.collector.yielded.is_empty()
    }
}

impl<S: TryStream + fmt::Debug> fmt::Debug for Batches<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Batches")
            .field("stream", &self.stream)
            .field("max", &self.collector.max)
            .field("max_age", &self.collector.timer.max_age)
            .field("collected", &self.collector.records.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
