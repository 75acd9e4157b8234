//! Polls a stream from its waker, on the stack of the task that wakes it, while the caller waits
//! for an item.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use futures::{Stream, StreamExt};

use crate::panics::{Panics, Part, is_deliberate};
use crate::raw_waker::{WakerCall, WakerCode, raw_waker};

/// The maximum number of polls in a row. A stream that has used up the task's cooperative budget is
/// polled again later.
const MAX_POLLS: usize = 16;

type Next<S> = Option<<S as Stream>::Item>;

/// A stream that is polled by its waker as well as by its caller.
pub(crate) struct Inline<S: Stream>(Arc<InlineStream<S>>);

impl<S: Stream> Drop for Inline<S> {
    /// Drops the stream explicitly: the stream holds wakers, which hold the stream.
    fn drop(&mut self) {
        let stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(stream);
    }
}

struct InlineStream<S: Stream> {
    /// `None` after the caller has dropped the stream.
    stream: Mutex<Option<S>>,
    /// True while the caller waits for an item. An unrequested poll would finish the record that
    /// the caller holds.
    is_requested: AtomicBool,
    /// Set if the stream was woken while it was polled.
    again: AtomicBool,
    found: Mutex<Option<Next<S>>>,
    /// Set while this file drops the waker of a poll, as opposed to a drop by the crate.
    drops_own: AtomicBool,
    /// The waker of the caller.
    caller: AtomicWaker,
    panics: Panics,
}

impl<S: Stream<Item: Send> + Unpin + Send + 'static> Inline<S> {
    pub(crate) fn new(stream: S, panics: Panics) -> Self {
        Self(Arc::new(InlineStream {
            stream: Mutex::new(Some(stream)),
            is_requested: AtomicBool::new(false),
            again: AtomicBool::new(false),
            found: Mutex::default(),
            drops_own: AtomicBool::new(false),
            caller: AtomicWaker::new(),
            panics,
        }))
    }

    /// Calls `work` with the stream. Nothing polls the stream during the call.
    pub(crate) fn with(&self, work: impl FnOnce(&mut S)) {
        let mut stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = &mut *stream {
            work(stream);
        }
    }

    /// Returns the next item. If the future is dropped early, the request for an item is withdrawn.
    #[allow(dead_code, reason = "fleets call poll_next")]
    pub(crate) async fn next(&self) -> Option<S::Item> {
        let _request = RequestGuard(&self.0.is_requested);
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Requests the next item. The request stays until an item is found or [`Inline::withdraw_request`]
    /// is called.
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.caller.register(context.waker());
        // Returns an item that was already found before another one is requested.
        let mut found = self.0.found.lock().unwrap().take();
        if found.is_none() {
            self.0.is_requested.store(true, Ordering::SeqCst);
            self.0.poll();
            found = self.0.found.lock().unwrap().take();
        }
        found.map_or(Poll::Pending, Poll::Ready)
    }

    /// Withdraws the request: no waker polls until the caller polls again.
    #[allow(dead_code, reason = "a single reader calls next, which withdraws the request")]
    pub(crate) fn withdraw_request(&self) {
        self.0.is_requested.store(false, Ordering::SeqCst);
    }
}

struct RequestGuard<'a>(&'a AtomicBool);

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl<S: Stream<Item: Send> + Unpin + Send + 'static> InlineStream<S> {
    /// Polls until an item is found or the stream is pending.
    fn poll(self: &Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        let mut polls = 0;
        while self.again.load(Ordering::SeqCst) && self.is_requested.load(Ordering::SeqCst) {
            let mut stream = match self.stream.try_lock() {
                Ok(stream) => stream,
                // The thread that holds the lock polls again.
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            polls += 1;
            if polls > MAX_POLLS {
                return self.caller.wake();
            }
            self.again.store(false, Ordering::SeqCst);
            let Some(stream) = &mut *stream else { return };
            if let Poll::Ready(next) = self.poll_once(stream) {
                self.is_requested.store(false, Ordering::SeqCst);
                *self.found.lock().unwrap() = Some(next);
                self.caller.wake();
            }
        }
    }

    /// Polls with a new waker, and retries if the clone of that waker has panicked.
    fn poll_once(self: &Arc<Self>, stream: &mut S) -> Poll<Next<S>> {
        loop {
            let waker = raw_waker(Arc::new(Code(Arc::clone(self))));
            let poll = || stream.poll_next_unpin(&mut Context::from_waker(&waker));
            let polled = catch_unwind(AssertUnwindSafe(poll));
            self.drops_own.store(true, Ordering::SeqCst);
            drop(waker);
            self.drops_own.store(false, Ordering::SeqCst);
            match polled {
                Ok(polled) => return polled,
                Err(panic) if is_deliberate(&*panic) => {}
                Err(panic) => resume_unwind(panic),
            }
        }
    }
}

/// The behaviour of the waker.
struct Code<S: Stream>(Arc<InlineStream<S>>);

impl<S: Stream<Item: Send> + Unpin + Send + 'static> WakerCode for Code<S> {
    fn call(&self, call: WakerCall) {
        let Self(shared) = self;
        match call {
            WakerCall::Drop if shared.drops_own.load(Ordering::SeqCst) => {}
            WakerCall::Clone | WakerCall::Drop => shared.panics.maybe(Part::Waker),
            WakerCall::Wake => {
                // The caller polls the stream again in any case.
                shared.again.store(true, Ordering::SeqCst);
                shared.caller.wake();
                shared.panics.maybe(Part::Waker);
                if shared.panics.polls_inline() {
                    shared.poll();
                }
            }
        }
    }
}
