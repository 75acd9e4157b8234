//! The state machine that reads one shard.
//!
//! ```text
//!   Idle ──first poll──► Reading ──end, ending position, fatal error, close, lease over──► Done
//! ```
//!
//! The lease of a shard that is `Done`:
//!
//! | `Done` because of | lease |
//! |---|---|
//! | its end | released when every record is acknowledged |
//! | the ending position | kept until the caller's stream has ended and every record is acknowledged |
//! | a fatal error of its source or of a record | released; this worker pauses the shard with back-off |
//! | a panic of the fetch task, a dropped stream | released; this worker pauses the shard for one renewal |
//! | the close of the consumer | released when the worker leaves |
//! | the end of the lease | already handed off or lost |
//! | the shutdown of the runtime | expires, since the worker ends with the runtime |
//!
//! All work in progress belongs to the reader or to the prefetcher's task, so a dropped `next()`
//! loses nothing. A poll of `ShardReader` checks what could hold it up in this order: the close,
//! the lease, the store, the caller's unacknowledged records. Then it checks for fetched records.
//! Each check registers the waker before it returns `Pending`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;

use super::delivery::{CurrentBatch, MAX_RUN_RECORDS, NextRun, RecordRun};
use super::prefetcher::{Prefetcher, Received};
use super::{CheckpointOn, CloseSignal, LeaseHandle, ReadReport};
use crate::checkpoint::{Allowance, InFlightConfig, QuietPosition};
use crate::error::{Error, Result};
use crate::record::ShardId;
use crate::source::{Fetched, Source};
use crate::store::{ReaderGate, TrackedWatermark, Writer};
use crate::telemetry::{Event, ShardTelemetry};

/// The parts and settings of a shard reader.
pub(crate) struct ReaderConfig {
    pub(crate) telemetry: ShardTelemetry,
    pub(crate) parents: Vec<ShardId>,
    pub(crate) source: Source,
    pub(crate) checkpoint_on: CheckpointOn,
    pub(crate) in_flight: InFlightConfig,
    pub(crate) prefetch: usize,
    /// True if a record is delivered only after the position before it was saved.
    pub(crate) save_each: bool,
    pub(crate) watermark: Arc<TrackedWatermark>,
    pub(crate) writer: Writer,
    pub(crate) close_signal: CloseSignal,
    pub(crate) lease_handle: LeaseHandle,
    pub(crate) report: ReadReport,
    /// The session, which all its streams keep alive together.
    pub(crate) session: Arc<dyn Send + Sync>,
}

/// Reads one shard, as a stream of runs.
pub(crate) struct ShardReader {
    telemetry: ShardTelemetry,
    parents: Vec<ShardId>,
    checkpoint_on: CheckpointOn,
    prefetch: usize,
    /// The most records of a run. The store's gate is checked once per run.
    longest_run: usize,
    watermark: Arc<TrackedWatermark>,
    /// Open while the store saves checkpoints.
    gate: ReaderGate,
    /// Closed when the writer's task is dropped with its runtime.
    writer_gone: CloseSignal,
    close_signal: CloseSignal,
    lease_handle: LeaseHandle,
    /// Sends nothing if the reader is `Done` for a reason that the worker knows.
    report: ReadReport,
    state: ReaderState,
    /// A record was delivered.
    has_delivered: bool,
    _session: Arc<dyn Send + Sync>,
}

enum ReaderState {
    /// Not polled yet.
    Idle(Source),
    Reading {
        prefetcher: Prefetcher,
        current: Option<CurrentBatch>,
    },
    Done,
}

impl ShardReader {
    pub(crate) fn new(plan: ReaderConfig) -> Self {
        match plan.checkpoint_on {
            CheckpointOn::Ack => plan.watermark.set_limits(plan.in_flight),
            // Only the last record delivered is unacknowledged, until the next poll; the adapters
            // that defer acknowledgements have limits of their own.
            CheckpointOn::Pull => plan.watermark.acknowledge_by_polls(),
        }
        Self {
            telemetry: plan.telemetry,
            parents: plan.parents,
            checkpoint_on: plan.checkpoint_on,
            prefetch: plan.prefetch,
            longest_run: if plan.save_each { 1 } else { MAX_RUN_RECORDS },
            watermark: plan.watermark,
            writer_gone: plan.writer.gone(),
            gate: plan.writer.gate(),
            close_signal: plan.close_signal,
            lease_handle: plan.lease_handle,
            report: plan.report,
            state: ReaderState::Idle(plan.source),
            has_delivered: false,
            _session: plan.session,
        }
    }

    pub(crate) fn shard_id(&self) -> &ShardId {
        self.telemetry.shard_id()
    }

    pub(crate) fn parents(&self) -> &[ShardId] {
        &self.parents
    }

    pub(crate) fn checkpoint_on(&self) -> CheckpointOn {
        self.checkpoint_on
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.close_signal.is_closed()
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, ReaderState::Done)
    }

    /// Polls for the next run of records.
    pub(crate) fn poll_run(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<RecordRun>>> {
        if self.is_done() {
            return Poll::Ready(None);
        }
        if let ReaderState::Reading { current, .. } = &mut self.state {
            // Releases the memory of the batch, also while the store or the caller holds up the next.
            if let Some(batch) = current.take_if(|batch| batch.is_over(&self.watermark)) {
                batch.end();
            }
        }
        if self.close_signal.poll_closed(context).is_ready() {
            return self.stop();
        }
        if self.writer_gone.poll_closed(context).is_ready() {
            return self.fail(Error::runtime_shutdown());
        }
        if !ready!(self.lease_handle.poll_holds(context)) {
            return self.stop();
        }
        if let Err(error) = ready!(self.gate.poll_open(context)) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let allowance = ready!(self.poll_allowance(context));
            let (prefetcher, current) =
                started(&mut self.state, self.prefetch, &self.lease_handle, &self.telemetry);
            if let Some(batch) = current {
                match batch.next_run(
                    self.longest_run,
                    allowance,
                    &self.lease_handle,
                    &self.watermark,
                ) {
                    NextRun::Run(run) => {
                        self.has_delivered = true;
                        self.telemetry.succeeded();
                        return Poll::Ready(Some(Ok(run)));
                    }
                    // The lease has ended since the check above.
                    NextRun::Over => return self.stop(),
                    NextRun::Refused => continue,
                    NextRun::Empty => *current = None,
                }
            }
            let Poll::Ready(received) = prefetcher.poll_receive(context) else {
                prefetcher.urge();
                return Poll::Pending;
            };
            let fetched = match received {
                Received::Fetched(fetched) => fetched,
                Received::Ended => return self.stop(),
                Received::Lost(error) => return self.fail(error),
            };
            match fetched {
                Ok(Fetched::Records(batch)) => *current = Some(CurrentBatch::new(batch)),
                Ok(Fetched::Quiet { after, until }) => {
                    self.watermark.note_passed(QuietPosition { after, until });
                }
                Ok(Fetched::End(children)) => {
                    self.state = ReaderState::Done;
                    self.telemetry.emit(Event::ShardEnded {
                        shard_id: self.shard_id().clone(),
                        children: children.iter().map(|child| child.id.clone()).collect(),
                    });
                    self.report.read(children, self.telemetry.clone());
                    self.watermark.end();
                    return Poll::Ready(None);
                }
                // The end of the shard is not stored: a later reading continues at the checkpoint.
                Ok(Fetched::Reached) => {
                    self.state = ReaderState::Done;
                    self.telemetry.reached();
                    self.report.reached(self.telemetry.clone());
                    return Poll::Ready(None);
                }
                Ok(Fetched::Failed(error)) => return self.end_failed(error),
                Err(error) => {
                    self.telemetry.failed(&error);
                    if self.telemetry.claims(&error) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    fn poll_allowance(&mut self, context: &mut Context<'_>) -> Poll<Allowance> {
        let allowance = self.watermark.poll_allowance(context);
        if allowance.is_pending()
            && let ReaderState::Reading { prefetcher, .. } = &mut self.state
        {
            prefetcher.hold();
        }
        allowance
    }

    /// Ends the stream for a reason that the worker knows.
    fn stop<T>(&mut self) -> Poll<Option<T>> {
        self.state = ReaderState::Done;
        self.report.cancel();
        Poll::Ready(None)
    }

    /// Ends the stream after an error that retrying does not fix, so that the lease is released.
    /// The caller receives each kind of error once until a record is delivered again.
    fn end_failed<T>(&mut self, error: Error) -> Poll<Option<Result<T>>> {
        self.state = ReaderState::Done;
        let error = self.telemetry.locate(error);
        let is_news = self.telemetry.failed(&error) && self.telemetry.claims(&error);
        self.telemetry.emit(Event::ShardFailed {
            shard_id: self.shard_id().clone(),
            kind: error.kind(),
            message: error.to_string(),
        });
        self.report.failed(self.has_delivered);
        Poll::Ready(is_news.then_some(Err(error)))
    }

    /// Ends the stream with an error. Another stream reads the shard from its checkpoint.
    fn fail<T>(&mut self, error: Error) -> Poll<Option<Result<T>>> {
        self.state = ReaderState::Done;
        self.report.dropped();
        Poll::Ready(Some(Err(self.telemetry.locate(error))))
    }
}

/// Returns the prefetcher, and starts it on the first poll. It fetches ahead once the caller has
/// requested the second record of its batch.
fn started<'a>(
    state: &'a mut ReaderState,
    prefetch: usize,
    lease_handle: &LeaseHandle,
    telemetry: &ShardTelemetry,
) -> (&'a mut Prefetcher, &'a mut Option<CurrentBatch>) {
    if let ReaderState::Idle(_) = state
        && let ReaderState::Idle(source) = std::mem::replace(state, ReaderState::Done)
    {
        let prefetcher = Prefetcher::start(source, lease_handle.over().clone(), telemetry.clone());
        *state = ReaderState::Reading { prefetcher, current: None };
    }
    match state {
        ReaderState::Reading { prefetcher, current } => {
            match current {
                // A caller that has only the first record of a batch may never request the second.
                Some(batch) if batch.is_untouched() => prefetcher.hold(),
                Some(_) => prefetcher.fetch_ahead(prefetch),
                None => {}
            }
            (prefetcher, current)
        }
        ReaderState::Idle(_) | ReaderState::Done => {
            unreachable!("the reader is not done, and was started")
        }
    }
}

impl Stream for ShardReader {
    type Item = Result<RecordRun>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_run(context)
    }
}
