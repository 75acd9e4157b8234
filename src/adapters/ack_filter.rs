use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::FusedStream;
use futures::{Stream, TryStream};
use pin_project_lite::pin_project;

use super::{MAX_TAKEN_PER_POLL, call_for};
use crate::record::Record;

pin_project! {
    /// The stream of [`ack_filter`](crate::RecordStreamExt::ack_filter).
    #[must_use = "streams do nothing unless polled"]
    pub struct AckFilter<S, F> {
        #[pin]
        stream: S,
        predicate: F,
        is_done: bool,
    }
}

impl<S, F> AckFilter<S, F> {
    pub(super) fn new(stream: S, predicate: F) -> Self {
        Self { stream, predicate, is_done: false }
    }
}

impl<S, F> Stream for AckFilter<S, F>
where
    S: TryStream<Ok: AsRef<Record>>,
    F: FnMut(&S::Ok) -> bool,
{
    type Item = Result<S::Ok, S::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        if *this.is_done {
            return Poll::Ready(None);
        }
        for _ in 0..MAX_TAKEN_PER_POLL {
            match ready!(this.stream.as_mut().try_poll_next(context)) {
                Some(Ok(record)) => {
                    if call_for(record.as_ref(), || (this.predicate)(&record)) {
                        return Poll::Ready(Some(Ok(record)));
                    }
                    record.as_ref().ack();
                }
                None => {
                    *this.is_done = true;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let most = if self.is_done { Some(0) } else { self.stream.size_hint().1 };
        (0, most)
    }
}

impl<S, F> FusedStream for AckFilter<S, F>
where
    S: TryStream<Ok: AsRef<Record>>,
    F: FnMut(&S::Ok) -> bool,
{
    fn is_terminated(&self) -> bool {
        self.is_done
    }
}

impl<S: fmt::Debug, F> fmt::Debug for AckFilter<S, F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AckFilter").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{FutureExt, StreamExt, stream};

    use crate::adapters::fixtures::RecordFixture;
    use crate::adapters::{MAX_TAKEN_PER_POLL, RecordStreamExt};

    #[test]
    fn dropped_records_are_acknowledged_and_errors_pass() {
        let acks = Arc::default();
        let record = |number| {
            let acks = Arc::clone(&acks);
            RecordFixture { number, acks, ..RecordFixture::default() }.record(b"")
        };
        let items = [Ok(record(0)), Ok(record(1)), Err("failed"), Ok(record(2)), Ok(record(3))];
        let even = stream::iter(items).ack_filter(|record| record.number.is_multiple_of(2));
        let even: Vec<_> = even.collect().now_or_never().unwrap();
        let numbers: Vec<_> = even.iter().map(|item| item.as_ref().map(|it| it.number)).collect();
        assert_eq!(numbers, [Ok(0), Err(&"failed"), Ok(2)]);
        assert_eq!(acks.numbers(), [1, 3]);
    }

    #[test]
    fn poll_drops_a_bounded_number_of_records() {
        let dropped = AtomicUsize::new(0);
        let endless = stream::repeat_with(|| Ok::<_, ()>(RecordFixture::default().record(b"")));
        let mut none = endless.ack_filter(|_| {
            dropped.fetch_add(1, Ordering::Relaxed);
            false
        });
        assert!(none.next().now_or_never().is_none());
        assert_eq!(dropped.into_inner(), MAX_TAKEN_PER_POLL);
    }
}
