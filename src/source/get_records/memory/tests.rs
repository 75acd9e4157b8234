use std::task::{Context, Poll};

use http_body::Frame;

use super::super::super::memory_budget::{MemoryBudget, RESERVE};
use super::*;

const CHUNK: usize = 16 * 1024;

/// A body of this many chunks, and the length that it states.
struct Chunks(usize, Option<u64>);

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

    fn size_hint(&self) -> http_body::SizeHint {
        self.1.map_or_else(Default::default, http_body::SizeHint::with_exact)
    }
}

async fn read(
    memory: &ResponseMemory,
    chunks: usize,
    length: Option<usize>,
) -> Result<Vec<u8>, String> {
    let body = SdkBody::from_body_1_x(Chunks(chunks, length.map(|length| length as u64)));
    memory.read(body).await.map_err(|error| error.to_string())
}

fn memory(budget: &MemoryBudget) -> ResponseMemory {
    ResponseMemory::new(budget.shard().empty(), None)
}

#[tokio::test]
async fn response_takes_its_length_and_its_index() {
    let budget = MemoryBudget::new(10 * CHUNK);
    let memory = memory(&budget);
    let buffer = read(&memory, 8, Some(8 * CHUNK)).await.unwrap();
    assert_eq!((buffer.len(), buffer.capacity()), (8 * CHUNK, 8 * CHUNK));
    assert_eq!((memory.length(), memory.was_rejected()), (8 * CHUNK, false));
    assert_eq!(budget.taken(), 10 * CHUNK - RESERVE);
    let space = memory.keep(100);
    assert_eq!((space.taken(), budget.taken()), (100, 0), "the rest is released");
}

#[tokio::test]
async fn response_that_exceeds_free_memory_is_rejected_before_it_is_read() {
    let budget = MemoryBudget::new(CHUNK);
    let memory = memory(&budget);
    assert_eq!(read(&memory, 8, Some(8 * CHUNK)).await, Err(TOO_LITTLE_MEMORY.to_owned()));
    assert_eq!((memory.length(), memory.was_rejected()), (8 * CHUNK, true));
    memory.reuse();
    assert_eq!((memory.length(), memory.was_rejected()), (0, false));
}

#[tokio::test]
async fn response_of_another_length_than_stated_is_an_error() {
    let budget = MemoryBudget::new(1 << 30);
    for length in [0, CHUNK, 2 * CHUNK - 1, 2 * CHUNK + 1, MAX_READ_BYTES, MAX_READ_BYTES + 1] {
        let memory = memory(&budget);
        let error = read(&memory, 2, Some(length)).await.unwrap_err();
        let expected = match length {
            ..32_768 => "the response is longer than its Content-Length",
            32_768..=MAX_READ_BYTES => "the response is shorter than its Content-Length",
            _ => TOO_LONG,
        };
        let is_rejected = length > MAX_READ_BYTES;
        assert_eq!((&*error, memory.was_rejected()), (expected, is_rejected), "{length}");
    }
    assert_eq!(read(&memory(&budget), 2, Some(usize::MAX)).await, Err(TOO_LONG.to_owned()));
}

#[tokio::test]
async fn response_of_unknown_length_takes_the_memory_it_needs() {
    let budget = MemoryBudget::new(10 * CHUNK);
    let memory = memory(&budget);
    let buffer = read(&memory, 5, None).await.unwrap();
    assert_eq!((buffer.len(), buffer.capacity()), (5 * CHUNK, 5 * CHUNK));
    assert_eq!((memory.length(), memory.was_rejected()), (5 * CHUNK, false));
    assert_eq!(budget.taken(), while_parsed(5 * CHUNK) - RESERVE);
}

#[tokio::test]
async fn response_of_unknown_length_without_memory_is_counted_and_discarded() {
    let budget = MemoryBudget::new(2 * CHUNK);
    let memory = memory(&budget);
    assert_eq!(read(&memory, 100, None).await, Err(TOO_LITTLE_MEMORY.to_owned()));
    assert_eq!((memory.length(), memory.was_rejected()), (100 * CHUNK, true));
    assert_eq!(budget.taken(), 2 * CHUNK, "no memory beyond the budget is taken");
}

#[tokio::test]
async fn endless_response_is_cut_off() {
    for budget in [1, 1 << 30] {
        let memory = memory(&MemoryBudget::new(budget));
        assert_eq!(read(&memory, usize::MAX, None).await, Err(TOO_LONG.to_owned()));
        assert!(memory.length() <= MAX_READ_BYTES + CHUNK, "{}", memory.length());
        assert!(memory.was_rejected() && memory.needed() > 1 << 40, "the next limit is lower");
    }
}

#[tokio::test]
async fn response_of_one_record_that_is_too_long_is_an_error() {
    let (budget, demand) = (MemoryBudget::new(1 << 30), Demand::default());
    let memory = ResponseMemory::new(budget.shard().empty(), Some(demand));
    let length = Some(MAX_READ_BYTES + 1);
    assert_eq!(read(&memory, 2, length).await, Err(TOO_LONG.to_owned()));
    assert!(!memory.was_rejected(), "a lower limit does not help");
}
