//! The memory of one answer, taken when its length is known and before it is read.
//!
//! ```text
//!   as much as is expected ──the length is known──► as much as it takes ──► read
//!            │                       └── not that much is free ──► turned away
//!            └── no length is known ──► grows as it is read ──► turned away where it cannot
//! ```
//! What is turned away is asked for again when there is room, or with a lower limit. It is not kept
//! waiting in its connection: answers share one by HTTP/2, and those that nobody reads would hold up the
//! others.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use aws_sdk_kinesis::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame};

use super::budget::Space;
use super::demand::Demand;

/// The most bytes that one answer holds:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(super) const LARGEST_ANSWER: usize = 10 * 1024 * 1024;

/// What an answer takes while it is read, in lengths of its text: the text, and the records that
/// are made of it, which hold three quarters of it as payloads, beside their keys and numbers.
const WHILE_READ: usize = 2;

/// The memory of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Mutex<Answer>>);

#[derive(Debug)]
struct Answer {
    /// As far as it is known.
    length: usize,
    space: Space,
    was_short: bool,
    /// Read also without room while its caller waits for it: one record was asked for.
    least: Option<Demand>,
}

impl Room {
    /// For an answer with the memory that it was granted. `least` says whose caller waits where no
    /// fewer records can be asked for.
    pub(super) fn new(space: Space, least: Option<Demand>) -> Self {
        Self(Arc::new(Mutex::new(Answer { length: 0, space, was_short: false, least })))
    }

    /// How long the answer is, or what was read of one of unknown length; 0 where none has begun.
    pub(super) fn length(&self) -> usize {
        self.lock().length
    }

    /// Whether there was an answer that did not fit.
    pub(super) fn was_short(&self) -> bool {
        self.lock().was_short
    }

    /// The memory of so many bytes, which are what the answer was found to hold.
    pub(super) fn keep(self, bytes: usize) -> Space {
        let mut answer = self.lock();
        answer.space.stretch(bytes);
        let empty = answer.space.none();
        std::mem::replace(&mut answer.space, empty)
    }

    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer {
    /// Makes room for an answer of that length, where that much is free.
    fn fit(&mut self, length: usize) -> Result<(), BoxError> {
        self.length = length;
        let bytes = while_read(length);
        if bytes <= self.space.taken() || self.space.resize(bytes) {
            return Ok(());
        }
        if self.least.as_ref().is_some_and(Demand::is_urgent) {
            self.space.stretch(bytes);
            return Ok(());
        }
        self.was_short = true;
        Err("there is no room for the answer".into())
    }
}

pub(super) fn while_read(length: usize) -> usize {
    length.saturating_mul(WHILE_READ)
}

impl Intercept for Room {
    fn name(&self) -> &'static str {
        "Room"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        if let Some(length) = body.content_length() {
            return self.lock().fit(usize::try_from(length).unwrap_or(usize::MAX));
        }
        let inner = Mutex::new(std::mem::replace(body, SdkBody::taken()));
        *body = SdkBody::from_body_1_x(Measured { inner, room: self.clone() });
        Ok(())
    }
}

/// The body of an answer of unknown length, counted as it is read.
struct Measured {
    /// Never locked: only so that it may be shared, which nobody does.
    inner: Mutex<SdkBody>,
    room: Room,
}

impl Body for Measured {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = ready!(Pin::new(inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let mut answer = self.room.lock();
            let length = answer.length.saturating_add(data.len());
            if let Err(no_room) = answer.fit(length) {
                return Poll::Ready(Some(Err(no_room)));
            }
        }
        Poll::Ready(frame)
    }
}
