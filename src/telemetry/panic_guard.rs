//! Containment of panics in the metrics recorder and the tracing layer.
//!
//! Both are called from the crate's tasks, the caller's polls, `ack()` and destructors.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use super::{Event, Task, Telemetry};
use crate::error::{Error, ErrorKind, Panic, TOLERATED_PANICS, contain_call};

/// The pause after the third consecutive panic, in which the recorder or layer is not called. It
/// doubles with each further panic, up to the longest pause.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Writes a log line. A panic of the tracing layer is discarded.
macro_rules! log_line {
    ($level:ident, $($line:tt)*) => {
        let _lost = $crate::error::contain_call(|| tracing::$level!($($line)*));
    };
}
pub(crate) use log_line;

/// The panic state of the metrics recorder or of the tracing layer.
#[derive(Debug)]
pub(super) struct Sink {
    began: Instant,
    /// The number of consecutive calls that panicked.
    panics: AtomicU32,
    /// The end of the pause, in milliseconds since `began`; 0 without a pause.
    resumes: AtomicU64,
}

impl Sink {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), panics: AtomicU32::new(0), resumes: AtomicU64::new(0) }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_paused(&self) -> bool {
        let resumes = self.resumes.load(Ordering::Relaxed);
        resumes > 0 && self.millis() < resumes
    }

    fn succeeded(&self) {
        if self.panics.load(Ordering::Relaxed) > 0 {
            self.panics.store(0, Ordering::Relaxed);
            self.resumes.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a panic, and returns the number of consecutive panics.
    fn failed(&self) -> u32 {
        let panics = self.panics.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if panics > TOLERATED_PANICS {
            let doublings = (panics - TOLERATED_PANICS - 1).min(16);
            let pause = (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE);
            let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            self.resumes.store(self.millis().saturating_add(pause), Ordering::Relaxed);
        }
        panics
    }
}

impl Telemetry {
    fn sink(&self, task: Task) -> &Sink {
        if task == Task::Metrics { &self.0.recorder } else { &self.0.layer }
    }

    /// Calls the metrics recorder or the tracing layer. Returns `None` if it panics, or if it is
    /// paused after repeated panics.
    pub(super) fn contain<T>(&self, task: Task, call: impl FnOnce() -> T) -> Option<T> {
        let sink = self.sink(task);
        if sink.is_paused() {
            return None;
        }
        match contain_call(call) {
            Ok(value) => {
                sink.succeeded();
                Some(value)
            }
            Err(panic) => {
                self.report(task, panic);
                None
            }
        }
    }

    /// Reports a panic of the recorder or layer to the listeners and to the other of the two. The
    /// third consecutive panic is also reported to the caller.
    fn report(&self, task: Task, panic: Panic) {
        let panics = self.sink(task).failed();
        let event = Event::TaskRestarted { task, shard_id: None, message: panic.to_string() };
        // A panic of the other one is reported with the next event.
        let _ = contain_call(|| match task {
            Task::Metrics => event.trace(&self.0.stream, &self.0.application),
            _ => self.0.metrics.count(&event),
        });
        self.send(event);
        if panics == TOLERATED_PANICS + 1 {
            let what = if task == Task::Metrics { "metrics recorder" } else { "tracing layer" };
            let message = format!(
                "the {what} panicked {panics} times in a row; fix the {what}, which is called again after \
                 a pause: {panic}"
            );
            let error = Error::new(ErrorKind::Panicked, message).with_source(panic);
            let _no_stream = self.report_error(error.in_stream(&self.0.stream));
        }
    }
}

/// A future that runs within a span. Panics of the tracing layer are contained; a panic of the
/// future is returned as its output.
pub(crate) struct Spanned<F> {
    future: Pin<Box<F>>,
    span: Span,
    telemetry: Telemetry,
}

impl<F: Future> Spanned<F> {
    pub(super) fn new(future: F, span: Span, telemetry: Telemetry) -> Self {
        Self { future: Box::pin(future), span, telemetry }
    }
}

impl<F: Future> Future for Spanned<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { future, span, telemetry } = &mut *self;
        let entered = telemetry.contain(Task::Tracing, || span.enter());
        let polled = contain_call(|| future.as_mut().poll(context));
        if let Err(panic) = contain_call(|| drop(entered)) {
            telemetry.report(Task::Tracing, panic);
        }
        match polled {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

impl<F> Drop for Spanned<F> {
    fn drop(&mut self) {
        let span = std::mem::replace(&mut self.span, Span::none());
        let _closed = contain_call(|| drop(span));
    }
}

impl<F> fmt::Debug for Spanned<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Spanned").field("span", &self.span).finish_non_exhaustive()
    }
}
