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

/// The most that one answer holds, and what one is taken to hold that does not say how long it is:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(super) const LARGEST_ANSWER: usize = 10 * 1024 * 1024;

/// What an answer takes while it is read, in lengths of its text: the text, and the records that
/// are made of it, which hold three quarters of it as payloads, beside their keys and numbers.
const WHILE_READ: usize = 2;

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
    space: Space,
    was_short: bool,
}

impl Room {
    /// Waits for the memory of an answer that is expected to be so long.
    pub(super) async fn reserve(budget: &Budget, length: usize) -> Self {
        let space = budget.reserve(while_read(length)).await;
        let answer = Answer { length, space, was_short: false };
        Self { budget: budget.clone(), answer: Arc::new(Mutex::new(answer)) }
    }

    /// How long the answer is.
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
        self.budget.resize(&mut answer.space, bytes);
        answer.space.split(usize::MAX)
    }

    /// Makes room for an answer of that length, where that much is free.
    fn fit(&self, length: usize) -> bool {
        let mut answer = self.lock();
        answer.length = length;
        answer.was_short = !self.budget.resize(&mut answer.space, while_read(length));
        !answer.was_short
    }

    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn while_read(length: usize) -> usize {
    length.saturating_mul(WHILE_READ)
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
