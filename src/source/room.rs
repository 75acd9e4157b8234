//! The memory of one answer, taken when its length is known and before it is read.
//!
//! ```text
//!   granted, as much as is expected ──the length is known──► granted, as much as it takes ─► read
//!                                        │ not that much is free             ▲
//!                                        └──► waits, holding nothing ────────┘
//! ```
//! An answer that waits is held up in its connection: what the caller does not ask for stays on
//! the way. Whoever waits holds nothing, so no two can wait for each other. Dropped at any moment,
//! it has taken nothing.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use aws_sdk_kinesis::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::budget::{Budget, Space};

/// What an answer is taken to hold that does not say how long it is: the most that there is,
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const LARGEST_ANSWER: usize = 10 * 1024 * 1024;

/// The memory of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    budget: Budget,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Debug)]
struct Answer {
    /// As it is expected, until it is known.
    length: usize,
    /// `None` while it waits.
    space: Option<Space>,
}

impl Room {
    /// Waits for the memory of an answer that is expected to be so long.
    pub(super) async fn reserve(budget: &Budget, length: usize) -> Self {
        let space = Some(budget.reserve(length).await);
        Self { budget: budget.clone(), answer: Arc::new(Mutex::new(Answer { length, space })) }
    }

    /// How long the answer is.
    pub(super) fn length(&self) -> usize {
        self.lock().length
    }

    /// Whether there is an answer that waits.
    pub(super) fn waits(&self) -> bool {
        self.lock().space.is_none()
    }

    /// The memory of so many bytes, which are what the answer was found to hold.
    pub(super) async fn keep(self, bytes: usize) -> Space {
        let space = self.lock().space.take();
        match space {
            Some(mut space) => {
                self.budget.resize(&mut space, bytes);
                space
            }
            None => self.budget.reserve(bytes).await,
        }
    }

    /// Makes room for an answer of that length, where that much is free.
    fn fit(&self, length: usize) -> bool {
        let mut answer = self.lock();
        answer.length = length;
        let fits = answer.space.as_mut().is_some_and(|space| self.budget.resize(space, length));
        if !fits {
            answer.space = None;
        }
        fits
    }

    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let length = body.content_length().map_or(LARGEST_ANSWER, |length| {
            // What is more than all the memory waits for all of it.
            usize::try_from(length).unwrap_or(usize::MAX)
        });
        if !self.fit(length) {
            let room = self.clone();
            let memory = Box::pin(async move {
                let space = room.budget.reserve(length).await;
                room.lock().space = Some(space);
            });
            let held = Held { memory: Some(memory), body: mem::replace(body, SdkBody::taken()) };
            *body = SdkBody::from_body_1_x(held);
        }
        Ok(())
    }
}

/// The body of an answer that is not read before there is memory for it.
struct Held {
    memory: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    body: SdkBody,
}

impl Body for Held {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(memory) = &mut self.memory {
            ready!(memory.as_mut().poll(context));
            self.memory = None;
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}
