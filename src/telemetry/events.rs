use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_stream::stream;
use futures::Stream;
use futures::stream::{BoxStream, FusedStream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Event;
use crate::wakers::CallerWaker;

/// A stream of the events of a consumer.
///
/// Created by [`Consumer::events`](crate::Consumer::events). A slow listener never blocks reading:
/// a listener that is more than 1,024 events behind misses the oldest ones, and receives their
/// number as [`Event::Lagged`]. The stream ends when the consumer and all its streams are dropped.
/// It is fused.
///
/// # Cancel safety
///
/// Dropping `next()` loses no event.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) {
/// use futures::StreamExt;
/// use kinestream::Event;
///
/// let mut events = consumer.events();
/// tokio::spawn(async move {
///     while let Some(event) = events.next().await {
///         if let Event::Gap { shard_id, .. } = event {
///             eprintln!("records of {shard_id} were lost before they were read");
///         }
///     }
/// });
/// # }
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct Events {
    inner: BoxStream<'static, Event>,
    has_ended: bool,
    caller: CallerWaker,
}

impl Events {
    pub(super) fn new(mut receiver: Receiver<Event>) -> Self {
        let inner = stream! {
            loop {
                match receiver.recv().await {
                    Ok(event) => yield event,
                    Err(RecvError::Lagged(events)) => yield Event::Lagged { events },
                    Err(RecvError::Closed) => return,
                }
            }
        };
        Self { inner: Box::pin(inner), has_ended: false, caller: CallerWaker::new() }
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let waker = self.caller.follow(context.waker());
        let next = self.inner.as_mut().poll_next(&mut Context::from_waker(&waker));
        self.has_ended = matches!(next, Poll::Ready(None));
        next
    }
}

impl FusedStream for Events {
    fn is_terminated(&self) -> bool {
        self.has_ended
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::super::{LONGEST_BACKLOG, Telemetry};
    use super::*;

    fn caught_up() -> Event {
        Event::CaughtUp { shard_id: "shardId-000000000000".parse().unwrap() }
    }

    #[test]
    fn slow_listener_receives_the_number_of_missed_events() {
        let telemetry = Telemetry::new(&"orders".into(), &"billing".into());
        telemetry.emit(caught_up());
        let mut events = telemetry.events();
        assert!(events.next().now_or_never().is_none(), "earlier events are not delivered");
        for _ in 0..LONGEST_BACKLOG + 5 {
            telemetry.emit(caught_up());
        }
        let next = events.next().now_or_never();
        assert_eq!(next, Some(Some(Event::Lagged { events: 5 })));
        let rest = std::iter::from_fn(|| events.next().now_or_never()).flatten();
        assert_eq!(rest.count(), LONGEST_BACKLOG);
        drop(telemetry);
        assert_eq!(events.next().now_or_never(), Some(None));
        assert!(events.is_terminated());
        assert_eq!(events.next().now_or_never(), Some(None));
    }
}
