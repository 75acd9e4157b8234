//! The memory of one answer, taken when its length is known and before it is read.
//!
//! ```text
//!   as much as is expected ──the length is known──► as much as it takes ──► read
//!                                └── not that much is free ──► turned away
//! ```
//! What is turned away is asked for again when there is room. It is not kept waiting in its
//! connection: answers share one by HTTP/2, and those that nobody reads would hold up the others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_kinesis::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;

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
    /// `None` where it was turned away.
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

    /// Whether there was an answer that did not fit.
    pub(super) fn was_short(&self) -> bool {
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

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let length = context.response().body().content_length().map_or(LARGEST_ANSWER, |length| {
            // What is more than all the memory takes all of it.
            usize::try_from(length).unwrap_or(usize::MAX)
        });
        if self.fit(length) { Ok(()) } else { Err("there is no room for the answer".into()) }
    }
}
