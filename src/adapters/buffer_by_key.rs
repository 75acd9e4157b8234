//! Runs handlers at once, one per key.
//!
//! ```text
//!                 key free, slot free                      output
//!   stream ─────────────────────────────► handler ─────────────────────────► caller
//!      │                                   ▲    │ its key is free, or ready
//!      │ key busy                slot free │    ▼
//!      └──────────► queue of the key ──────┴── the first record that waits
//! ```
//!
//! | state of a record | counts against | bound |
//! |---|---|---|
//! | in a handler | slots | `limit` |
//! | waiting for its key, or for a slot when its key is ready | waiting records | 16 × `limit` |
//!
//! A poll starts the records whose keys are ready. While a slot is free and the bound of waiting
//! records is not reached, it takes records from the stream. Then it polls the handlers. A handler
//! that completes leaves its slot and its key before its output is yielded.
//!
//! A panic of `f`, of a handler or of a handler's destructor is caught, the slot and the key are
//! left as after an output, and the panic continues. The next poll then does not wait for a handler
//! that is gone, and does not run two records of a key at once.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::{FusedStream, FuturesUnordered};
use futures::{Stream, StreamExt, TryStream};
use pin_project_lite::pin_project;

use super::MAX_TAKEN_PER_POLL;
use super::key_queue::{Key, KeyHasher, KeyQueue};
use crate::record::{Acker, Record};

/// The most records that wait, for each slot. A burst of one key is absorbed without slowing down
/// the other keys if it is not longer than this times `limit`; with 64 slots, 1,024 records.
const MAX_WAITING_PER_SLOT: usize = 16;

pin_project! {
    /// The stream of [`buffer_by_key`](crate::RecordStreamExt::buffer_by_key).
    #[must_use = "streams do nothing unless polled"]
    pub struct BufferByKey<S, F, Fut>
    where
        S: TryStream,
    {
        #[pin]
        stream: S,
        handlers: Handlers<S::Ok, F, Fut>,
        is_done: bool,
        // The last item was an error of the stream.
        has_failed: bool,
    }
}

/// The handlers that run, and the records that wait.
struct Handlers<R, F, Fut> {
    f: F,
    limit: usize,
    hasher: KeyHasher,
    queue: KeyQueue<Taken<R>>,
    running: FuturesUnordered<Handler<Fut>>,
    /// The deferred acknowledgement of the record whose output was yielded last.
    yielded: Option<Acker>,
}

/// A record that was taken from the stream.
struct Taken<R> {
    record: R,
    /// The poll after its output acknowledges it.
    is_deferred: bool,
}

pin_project! {
    /// The future of a record. `None` after its end.
    struct Handler<Fut> {
        #[pin]
        future: Option<Fut>,
        key: Key,
        deferred: Option<Acker>,
    }
}

/// The end of a handler.
struct Finished<T> {
    key: Key,
    deferred: Option<Acker>,
    outcome: Result<T, Box<dyn Any + Send>>,
}

impl<S, F, Fut> BufferByKey<S, F, Fut>
where
    S: TryStream,
{
    #[track_caller]
    pub(super) fn new(stream: S, limit: usize, f: F) -> Self {
        assert!(limit > 0, "limit of buffer_by_key must be at least 1");
        let handlers = Handlers {
            f,
            limit,
            hasher: KeyHasher::default(),
            queue: KeyQueue::new(),
            running: FuturesUnordered::new(),
            yielded: None,
        };
        Self { stream, handlers, is_done: false, has_failed: false }
    }
}

impl<R, F, Fut> Handlers<R, F, Fut> {
    fn has_free_slot(&self) -> bool {
        self.running.len() < self.limit
    }

    /// Returns true if another record may be taken from the stream.
    fn has_room(&self) -> bool {
        self.has_free_slot()
            && self.queue.waiting() < self.limit.saturating_mul(MAX_WAITING_PER_SLOT)
    }

    fn records(&self) -> usize {
        self.running.len() + self.queue.waiting()
    }
}

impl<R, F, Fut> Handlers<R, F, Fut>
where
    R: AsRef<Record>,
    F: FnMut(R) -> Fut,
    Fut: Future,
{
    /// Starts the records whose keys are ready.
    fn start_ready(&mut self) {
        while self.has_free_slot() {
            let Some((key, taken)) = self.queue.next_ready() else { return };
            self.start(key, taken);
        }
    }

    /// Starts a record from the stream, or lets it wait for its key.
    fn take(&mut self, record: R) {
        let key = self.hasher.key(record.as_ref());
        let is_deferred = record.as_ref().defer_ack();
        if let Some(taken) = self.queue.push(key, Taken { record, is_deferred }) {
            self.start(key, taken);
        }
    }

    fn start(&mut self, key: Key, taken: Taken<R>) {
        let Taken { record, is_deferred } = taken;
        let deferred = is_deferred.then(|| record.as_ref().acker());
        match catch_unwind(AssertUnwindSafe(|| (self.f)(record))) {
            Ok(future) => self.running.push(Handler { future: Some(future), key, deferred }),
            Err(panic) => {
                self.queue.finish(key);
                resume_unwind(panic);
            }
        }
    }

    /// Polls the handlers for an output. Ready with `None` while no handler runs.
    fn poll_output(&mut self, context: &mut Context<'_>) -> Poll<Option<Fut::Output>> {
        let Some(finished) = ready!(self.running.poll_next_unpin(context)) else {
            return Poll::Ready(None);
        };
        let Finished { key, deferred, outcome } = finished;
        self.queue.finish(key);
        match outcome {
            Ok(output) => {
                self.yielded = deferred;
                Poll::Ready(Some(output))
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl<Fut: Future> Future for Handler<Fut> {
    type Output = Finished<Fut::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            // Never polled after its end.
            return Poll::Pending;
        };
        let outcome = match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        // The destructor is code of the handler too.
        let dropped = catch_unwind(AssertUnwindSafe(|| this.future.set(None)));
        let (key, deferred) = (*this.key, this.deferred.take());
        Poll::Ready(Finished { key, deferred, outcome: dropped.and(outcome) })
    }
}

impl<S, F, Fut, T, E> Stream for BufferByKey<S, F, Fut>
where
    S: TryStream<Ok: AsRef<Record>>,
    F: FnMut(S::Ok) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: From<S::Error>,
{
    type Item = Result<T, E>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        let handlers = this.handlers;
        if let Some(acker) = handlers.yielded.take() {
            acker.ack();
        }
        // A run of errors does not starve the handlers.
        if std::mem::take(this.has_failed)
            && let Poll::Ready(Some(output)) = handlers.poll_output(context)
        {
            return Poll::Ready(Some(output));
        }
        handlers.start_ready();
        let mut taken = 0;
        while !*this.is_done && handlers.has_room() {
            if taken == MAX_TAKEN_PER_POLL {
                context.waker().wake_by_ref();
                break;
            }
            match this.stream.as_mut().try_poll_next(context) {
                Poll::Ready(Some(Ok(record))) => handlers.take(record),
                Poll::Ready(Some(Err(error))) => {
                    *this.has_failed = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => *this.is_done = true,
                Poll::Pending => break,
            }
            taken += 1;
        }
        match handlers.poll_output(context) {
            // A record waits only while one of its key is in a handler.
            Poll::Ready(None) if !*this.is_done => Poll::Pending,
            polled => polled,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = if self.is_done { (0, Some(0)) } else { self.stream.size_hint() };
        let records = self.handlers.records();
        (least.saturating_add(records), most.and_then(|most| most.checked_add(records)))
    }
}

impl<S, F, Fut, T, E> FusedStream for BufferByKey<S, F, Fut>
where
    S: TryStream<Ok: AsRef<Record>>,
    F: FnMut(S::Ok) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: From<S::Error>,
{
    fn is_terminated(&self) -> bool {
        // The next poll acknowledges the last record.
        self.is_done && self.handlers.records() == 0 && self.handlers.yielded.is_none()
    }
}

impl<S, F, Fut> fmt::Debug for BufferByKey<S, F, Fut>
where
    S: TryStream + fmt::Debug,
{
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BufferByKey")
            .field("stream", &self.stream)
            .field("limit", &self.handlers.limit)
            .field("running", &self.handlers.running.len())
            .field("waiting", &self.handlers.queue.waiting())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
