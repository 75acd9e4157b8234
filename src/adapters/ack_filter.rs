use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::FusedStream;
use futures::{Stream, TryStream};
use pin_project_lite::pin_project;

use super::MAX_TAKEN_PER_POLL;
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
                Some(Ok(record)) if !(this.predicate)(&record) => record.as_ref().ack(),
                None => {
                    *this.is_done = true;
                    return Poll::Ready(None);
                }
                wanted => return Poll::Ready(wanted),
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
