//! The records of all shards, by `records()` or by `shards()`. Tracks which record a poll finishes.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use kinestream::{Consumer, Record, Records, ShardId, ShardStream, Shards};

use crate::plan::{Plan, ReadMethod};
use crate::truth::{Place, Truth};

pub(crate) struct Merged {
    truth: Truth,
    open: Open,
}

enum Open {
    Records { records: Box<Records>, in_flight: Option<Place> },
    Shards { shards: Option<Shards>, open: Vec<OpenShard>, turn: usize },
}

struct OpenShard {
    stream: ShardStream,
    in_flight: Option<Place>,
}

impl Merged {
    pub(crate) fn new(consumer: &Consumer, truth: Truth, plan: &Plan) -> Self {
        let open = match plan.read_method {
            ReadMethod::Records => {
                Open::Records { records: Box::new(consumer.records()), in_flight: None }
            }
            ReadMethod::Shards => {
                Open::Shards { shards: Some(consumer.shards()), open: Vec::new(), turn: 0 }
            }
        };
        Self { truth, open }
    }

    /// Sets the record that the caller holds. With `CheckpointOn::Pull`, the next poll of the
    /// stream that delivered it finishes it.
    pub(crate) fn hold(&mut self, place: Place) {
        match &mut self.open {
            Open::Records { in_flight, .. } => *in_flight = Some(place),
            Open::Shards { open, turn, .. } => open[*turn].in_flight = Some(place),
        }
    }

    /// Drops one of the shard streams and returns its shard id. The record that the caller holds
    /// from it is not finished.
    #[allow(dead_code, reason = "only in fleets another worker continues a dropped shard")]
    pub(crate) fn drop_one(&mut self, some: usize) -> Option<ShardId> {
        let Open::Shards { open, turn, .. } = &mut self.open else { return None };
        let dropped = open.remove(some.checked_rem(open.len())?);
        *turn = 0;
        Some(dropped.stream.shard_id().clone())
    }
}

impl Stream for Merged {
    type Item = kinestream::Result<Record>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { truth, open } = self.get_mut();
        let finish = |in_flight: &mut Option<Place>| {
            if let Some(place) = in_flight.take() {
                truth.lock().finish(place);
            }
        };
        match open {
            Open::Records { records, in_flight } => {
                finish(in_flight);
                records.poll_next_unpin(context)
            }
            Open::Shards { shards, open, turn } => {
                while let Some(more) = shards {
                    match more.poll_next_unpin(context) {
                        Poll::Ready(Some(Ok(stream))) => {
                            open.push(OpenShard { stream, in_flight: None });
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                        Poll::Ready(None) => *shards = None,
                        Poll::Pending => break,
                    }
                }
                let mut left = open.len();
                while left > 0 {
                    left -= 1;
                    *turn = (*turn + 1) % open.len();
                    let shard = &mut open[*turn];
                    finish(&mut shard.in_flight);
                    match shard.stream.poll_next_unpin(context) {
                        Poll::Ready(Some(next)) => return Poll::Ready(Some(next)),
                        Poll::Ready(None) => {
                            open.remove(*turn);
                            // The next shard has moved to this index, so the turn goes back by one.
                            *turn = turn.checked_sub(1).unwrap_or(open.len().saturating_sub(1));
                        }
                        Poll::Pending => {}
                    }
                }
                if open.is_empty() && shards.is_none() { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    }
}
