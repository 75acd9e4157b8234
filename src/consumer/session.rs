//! The session: the state that the streams of a consumer share, until the last of them is dropped.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Consumer;
use crate::discovery::{Memory, ScopeMigration, ShardDiscovery};
use crate::error::{Error, ErrorReporter, Result};
use crate::fleet::{AssignedShard, Assignment, Worker, WorkerDeps};
use crate::mutex::Mutex;
use crate::shard::{PollMonitor, ReaderConfig, ShardReader, ShardStream};
use crate::source::{Ending, MemoryBudget, SourceConfig};
use crate::store::Writer;

/// The time for which a session waits until the previous one has saved its checkpoints and released
/// its leases.
const PREVIOUS_SESSION_TIMEOUT: Duration = Duration::from_secs(5);

/// The exclusive right to read the stream: a consumer has at most one session.
pub(super) struct Session {
    consumer: Consumer,
    /// Dropped with the session, which signals the worker to leave.
    end_signal: Mutex<Option<oneshot::Sender<()>>>,
}

impl Session {
    /// Creates a session. The caller ensures that no other one exists.
    pub(super) fn new(consumer: Consumer) -> Self {
        Self { consumer, end_signal: Mutex::default() }
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Returns the poll monitor of a merged stream; `None` without a `poll_timeout`.
    pub(super) fn poll_monitor(&self) -> Option<PollMonitor> {
        self.consumer.inner.settings.worker_config.poll_timeout.map(|_limit| PollMonitor::new())
    }

    /// Starts the tasks that all shards share.
    pub(super) fn start(self: &Arc<Self>) -> Running {
        let writer = self.writer();
        let (assigned, assignments) = mpsc::unbounded_channel();
        let (message, messages) = mpsc::unbounded_channel();
        let inner = &self.consumer.inner;
        *inner.messages.lock() = Some(message.clone());
        let (error_reporter, errors) = ErrorReporter::new();
        inner.telemetry.set_error_reporter(error_reporter.clone());
        let has_ended = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(WorkerDeps {
            leases: inner.leases.clone(),
            scope: inner.scope.clone(),
            writer: writer.clone(),
            discovery: ShardDiscovery {
                kinesis: inner.kinesis.clone(),
                start: inner.settings.start.clone(),
                rules: inner.settings.worker_config.rules.clone(),
                on_trimmed: inner.settings.on_trimmed,
                discovery_interval: inner.settings.worker_config.discovery_interval,
                memory: Memory::begin(inner.settings.worker_config.clock.clone()),
                scope_migration: ScopeMigration::new(
                    &inner.leases,
                    &inner.scope,
                    &inner.settings.worker_config.worker_id,
                ),
                forgets_finished_shards: inner.leases.forgets_finished_shards(),
                telemetry: inner.telemetry.clone(),
                error_reporter,
            },
            telemetry: inner.telemetry.clone(),
            config: inner.settings.worker_config.clone(),
            assignments: assigned.clone(),
            messages: message,
        });
        let (end_signal, is_over) = oneshot::channel();
        *self.end_signal.lock() = Some(end_signal);
        let mut close_signal = inner.close_signal.clone();
        let (worker_running, worker_ended) = watch::channel(());
        let before = inner.worker.lock().replace(worker_ended);
        tokio::spawn({
            let (writer, has_ended) = (writer.clone(), Arc::clone(&has_ended));
            let (telemetry, session_guard) =
                (inner.telemetry.clone(), inner.telemetry.begin_session());
            async move {
                let ended = async {
                    tokio::select! {
                        _dropped = is_over => {}
                        () = poll_fn(|context| close_signal.poll_closed(context)) => {}
                    }
                };
                // Records that the previous session acknowledged count for this one. If the store
                // fails, the worker fails to join next and reports the error.
                let _saved = timeout(PREVIOUS_SESSION_TIMEOUT, async {
                    let _reported_elsewhere = writer.flush().await;
                    if let Some(mut before) = before {
                        let _ended = before.changed().await;
                    }
                })
                .await;
                drop(writer);
                tokio::select! {
                    biased;
                    () = worker.run(messages, ended) => {}
                    () = telemetry.watch() => {}
                }
                session_guard.end();
                // Before the last sender of shards is dropped, which ends the streams.
                has_ended.store(true, Ordering::SeqCst);
                drop((worker_running, assigned));
            }
        });
        let memory_budget = inner.settings.buffer();
        inner.telemetry.set_buffered_bytes(memory_budget.taken_counter());
        let ending = Ending::begin(inner.settings.ending, &inner.settings.worker_config.clock);
        Running {
            session: Arc::clone(self),
            ending,
            memory_budget,
            writer,
            assignments,
            errors,
            has_ended,
            is_exhausted: false,
        }
    }

    /// Returns the writer of the consumer. All sessions share it, so their saves never run
    /// concurrently.
    fn writer(&self) -> Writer {
        let inner = &self.consumer.inner;
        let mut writer = inner.writer.lock();
        if let Some(writer) = &*writer
            && writer.is_running()
        {
            return writer.clone();
        }
        let new = Writer::spawn(
            inner.leases.clone(),
            inner.scope.clone(),
            inner.settings.flush,
            inner.telemetry.clone(),
        );
        let before = writer.replace(new.clone());
        drop(writer);
        // Dropped outside the lock, since it holds wakers of the caller.
        drop(before);
        new
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.consumer.inner.has_session.store(false, Ordering::SeqCst);
    }
}

/// A session that has been polled, with its tasks.
pub(super) struct Running {
    session: Arc<Session>,
    ending: Ending,
    memory_budget: MemoryBudget,
    writer: Writer,
    assignments: mpsc::UnboundedReceiver<Assignment>,
    errors: mpsc::UnboundedReceiver<Error>,
    /// True after the worker has left in an orderly way, not because its runtime has shut down.
    has_ended: Arc<AtomicBool>,
    /// True after the worker has found nothing left to read.
    is_exhausted: bool,
}

impl Running {
    /// Polls for the next shard that can be read, or an error; `None` after the last shard.
    pub(super) fn poll_assigned(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<AssignedShard>>> {
        if let Poll::Ready(Some(error)) = self.errors.poll_recv(context) {
            return Poll::Ready(Some(Err(error)));
        }
        // Nothing follows the end, which stays known if an error is returned before it.
        if !self.is_exhausted {
            match ready!(self.assignments.poll_recv(context)) {
                Some(Assignment::Shard(assigned)) => return Poll::Ready(Some(Ok(*assigned))),
                Some(Assignment::End) => self.is_exhausted = true,
                None => {}
            }
        }
        // The worker may have reported an error between the two polls, and ended.
        if let Ok(error) = self.errors.try_recv() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.is_exhausted || self.has_ended.swap(true, Ordering::SeqCst) {
            return Poll::Ready(None);
        }
        let error = self.session.consumer.inner.in_this_stream(Error::runtime_shutdown());
        Poll::Ready(Some(Err(error)))
    }

    /// Returns true if the last shard is followed by nothing because nothing is left to read, and not
    /// because the worker has ended.
    pub(super) fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// Returns the stream of a shard that can be read now.
    pub(super) fn open(&self, assigned: AssignedShard) -> ShardStream {
        let AssignedShard { shard, position, added, lease_handle, watermark, poll_monitor, report } =
            assigned;
        let inner = &self.session.consumer.inner;
        let telemetry = inner.telemetry.shard(&shard.id, watermark.watermark());
        let source_config = SourceConfig {
            kinesis: inner.kinesis.clone(),
            telemetry: telemetry.clone(),
            epoch: lease_handle.epoch(),
            position,
            added,
            interval: inner.settings.interval,
            limit: inner.settings.limit,
            ending: self.ending.clone(),
            on_trimmed: inner.settings.on_trimmed,
            discovery_interval: inner.settings.worker_config.discovery_interval,
            start_time: inner.settings.start.time_of(&shard.id),
            deaggregate: inner.settings.deaggregate,
            fan_out: inner.fan_out.clone(),
            memory_budget: self.memory_budget.clone(),
            ack_sink: Arc::clone(&watermark) as _,
        };
        let reader = ShardReader::new(ReaderConfig {
            telemetry,
            parents: shard.parents,
            source: source_config.into_source(),
            checkpoint_on: inner.settings.worker_config.checkpoint_on,
            in_flight: inner.settings.in_flight,
            prefetch: inner.settings.prefetch,
            save_each: inner.settings.flush.interval.is_zero(),
            watermark,
            writer: self.writer.clone(),
            close_signal: inner.close_signal.clone(),
            lease_handle,
            report,
            session: Arc::clone(&self.session) as _,
        });
        ShardStream::new(reader, poll_monitor, inner.telemetry.polls())
    }
}
