//! Reserves the memory of one response, once its length is known and before it is read.
//!
//! ```text
//!   expected size ──length is known──► size needed ──► read
//!        │                  └── too little is free ──► rejected
//!        └── length is unknown ──► grows while read ──► rejected at its end if it cannot grow
//! ```
//!
//! A rejected response is requested again once memory is free, or with a lower record limit. It
//! does not wait in its connection: responses share an HTTP/2 connection, and an unread response
//! would block the others. The rest of a response of unknown length is read and discarded, since
//! Kinesis counts its bytes and the next call depends on its length.

use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, ready};

use aws_sdk_kinesis::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextMut,
};
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame};

use super::demand::Demand;
use super::field_scanner::FieldScanner;
use super::memory_budget::Reservation;

use crate::mutex::Mutex;

/// The most bytes of records that one response holds:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(super) const MAX_RESPONSE_BYTES: usize = 10 * 1024 * 1024;

/// The most bytes that are read of a response of unknown length. The records of [`MAX_RESPONSE_BYTES`]
/// take 14 MiB in base64.
const MAX_READ_BYTES: usize = 2 * MAX_RESPONSE_BYTES;

/// The memory that a response takes while it is read, as a multiple of the length of its text. It
/// covers the text and the records parsed from it, which hold three quarters of the text as
/// payloads, plus their keys and sequence numbers.
const WHILE_READ: usize = 2;

const TOO_LITTLE_MEMORY: &str = "too little free memory for the response";

/// The memory of one response.
#[derive(Debug, Clone)]
pub(crate) struct ResponseMemory(Arc<Mutex<ResponseSize>>);

#[derive(Debug)]
struct ResponseSize {
    /// The length of the response, as far as it is known.
    length: usize,
    space: Reservation,
    was_rejected: bool,
    /// The response lacks the member `Records`.
    lacks_records: bool,
    /// Set if one record was requested: while the caller waits, the response is read even if too
    /// little memory is free.
    least: Option<Demand>,
}

impl ResponseMemory {
    /// Creates the memory of a response from the memory that was granted. `least` is the demand of
    /// the caller, set if the call cannot request fewer records.
    pub(super) fn new(space: Reservation, least: Option<Demand>) -> Self {
        let (length, was_rejected, lacks_records) = (0, false, false);
        Self(Arc::new(Mutex::new(ResponseSize {
            length,
            space,
            was_rejected,
            lacks_records,
            least,
        })))
    }

    /// Returns the length of the response, or the bytes read so far if its length is unknown.
    /// Returns 0 before a response begins.
    pub(super) fn length(&self) -> usize {
        self.lock().length
    }

    /// Returns true if a response did not fit into free memory.
    pub(super) fn was_rejected(&self) -> bool {
        self.lock().was_rejected
    }

    /// Returns true if the response lacks the member `Records`.
    pub(super) fn lacks_records(&self) -> bool {
        self.lock().lacks_records
    }

    /// Returns the memory of the response's records, which hold `bytes`, and releases the rest.
    pub(super) fn keep(self, bytes: usize) -> Reservation {
        let mut response = self.lock();
        response.space.resize_up_to(bytes);
        let empty = response.space.empty();
        std::mem::replace(&mut response.space, empty)
    }

    fn measure(&self, body: SdkBody) -> CountedBody {
        CountedBody { inner: Mutex::new(body), response_memory: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, ResponseSize> {
        self.0.lock()
    }
}

impl ResponseSize {
    /// Takes the memory of a response of this length. Fails if too little is free.
    fn fit(&mut self, length: usize) -> Result<(), BoxError> {
        self.length = length;
        let bytes = while_read(length);
        if bytes <= self.space.taken() || self.space.resize(bytes) {
            return Ok(());
        }
        if self.least.as_ref().is_some_and(Demand::is_urgent) {
            self.space.resize_up_to(bytes);
            return Ok(());
        }
        self.was_rejected = true;
        Err(TOO_LITTLE_MEMORY.into())
    }

    /// Counts the next bytes of a response of unknown length. Returns true if they fit into memory.
    fn grow(&mut self, bytes: usize) -> bool {
        let length = self.length.saturating_add(bytes);
        if self.was_rejected {
            self.length = length;
            return false;
        }
        self.fit(length).is_ok()
    }
}

pub(super) fn while_read(length: usize) -> usize {
    length.saturating_mul(WHILE_READ)
}

impl Intercept for ResponseMemory {
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
        let unmeasured = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(self.measure(unmeasured));
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Ok(output) = context.output_or_error() else { return Ok(()) };
        let has_none = output
            .downcast_ref()
            .is_some_and(|response: &GetRecordsOutput| response.records.is_empty());
        // Only a response without records is scanned again, and such a response is short.
        if has_none && let Some(text) = context.response().body().bytes() {
            self.lock().lacks_records = !FieldScanner::of(text).records;
        }
        Ok(())
    }
}

/// The body of a response of unknown length, counted as it is read.
struct CountedBody {
    /// Never locked. The mutex only makes the type `Sync`.
    inner: Mutex<SdkBody>,
    response_memory: ResponseMemory,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { inner, response_memory } = self.get_mut();
        let inner = inner.get_mut();
        loop {
            let frame = ready!(Pin::new(&mut *inner).poll_frame(context));
            let mut response = response_memory.lock();
            match &frame {
                Some(Ok(data)) if !response.grow(data.data_ref().map_or(0, Bytes::len)) => {
                    if response.length > MAX_READ_BYTES {
                        return Poll::Ready(Some(Err(TOO_LITTLE_MEMORY.into())));
                    }
                }
                None if response.was_rejected => {
                    return Poll::Ready(Some(Err(TOO_LITTLE_MEMORY.into())));
                }
                _ => return Poll::Ready(frame),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::super::memory_budget::{MemoryBudget, RESERVE};
    use super::*;

    const CHUNK: usize = 16 * 1024;

    /// A body of this many chunks, without a known length.
    struct Chunks(usize);

    impl Body for Chunks {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            let Some(left) = self.0.checked_sub(1) else { return Poll::Ready(None) };
            self.0 = left;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; CHUNK])))))
        }
    }

    /// Returns the number of chunks that were read, and true if all of them were.
    async fn read(response_memory: &ResponseMemory, chunks: usize) -> (usize, bool) {
        let mut body = response_memory.measure(SdkBody::from_body_1_x(Chunks(chunks)));
        let mut passed = 0;
        loop {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                Some(Ok(_)) => passed += 1,
                Some(Err(_)) => return (passed, false),
                None => return (passed, true),
            }
        }
    }

    #[tokio::test]
    async fn response_of_unknown_length_takes_the_memory_it_needs() {
        let budget = MemoryBudget::new(10 * CHUNK);
        let response_memory = ResponseMemory::new(budget.shard().empty(), None);
        assert_eq!(read(&response_memory, 5).await, (5, true));
        assert_eq!((response_memory.length(), response_memory.was_rejected()), (5 * CHUNK, false));
        assert_eq!(budget.taken(), while_read(5 * CHUNK) - RESERVE);
        let space = response_memory.keep(100);
        assert_eq!(
            (space.taken(), budget.taken()),
            (100, 0),
            "the records keep only their own bytes"
        );
    }

    #[tokio::test]
    async fn response_of_unknown_length_without_memory_is_counted_and_discarded() {
        let budget = MemoryBudget::new(2 * CHUNK);
        let response_memory = ResponseMemory::new(budget.shard().empty(), None);
        // The reserve is four chunks.
        assert_eq!(read(&response_memory, 100).await, (3, false));
        assert_eq!((response_memory.length(), response_memory.was_rejected()), (100 * CHUNK, true));
    }

    #[tokio::test]
    async fn endless_response_is_cut_off() {
        let response_memory = ResponseMemory::new(MemoryBudget::new(1).shard().empty(), None);
        let (passed, is_whole) = read(&response_memory, usize::MAX).await;
        assert_eq!((passed, is_whole), (2, false));
        assert!(response_memory.length() <= MAX_READ_BYTES + CHUNK, "{}", response_memory.length());
    }
}
