//! Wakers that panic or call the crate in their clone, wake or drop: no stream ends, and no record
//! is lost.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use futures::{FutureExt, Stream, StreamExt};
use kinestream::testing::Kinesis;
use kinestream::{CheckpointOn, Consumer, Event, Record, ShardStream, Shards};
use tokio::time::{sleep, timeout};

use crate::delivery::polling::without_deadlock;
use crate::inline::Inline;
use crate::raw_waker::{WakerCall, WakerCode, raw_waker};
use crate::{consumer, number, orders, shard_of};

const SECOND: Duration = Duration::from_secs(1);

/// The behavior of all wakers of one caller.
#[derive(Default)]
struct Caller {
    /// The kind of call that panics, and the number of calls per panic. A wake that panics wakes no
    /// task.
    panics: Option<(WakerCall, usize)>,
    calls: AtomicUsize,
    panicked: AtomicUsize,
    executor: AtomicWaker,
    /// Runs within each call of a waker.
    runs: Option<Box<dyn Fn() + Send + Sync>>,
}

impl WakerCode for Caller {
    fn call(&self, call: WakerCall) {
        if let Some(runs) = &self.runs {
            runs();
        }
        if let Some((panics, every)) = self.panics
            && panics == call
            && self.calls.fetch_add(1, Ordering::SeqCst) % every == every - 1
        {
            self.panicked.fetch_add(1, Ordering::SeqCst);
            resume_unwind(Box::new("a waker panics"));
        }
        if call == WakerCall::Wake {
            self.executor.wake();
        }
    }
}

impl Caller {
    fn panicking(call: WakerCall, every: usize) -> Arc<Self> {
        Arc::new(Self { panics: Some((call, every)), ..Self::default() })
    }

    /// Polls with a new waker, and again after a panic, like an executor that catches panics.
    fn poll<S: Stream + Unpin>(self: &Arc<Self>, stream: &mut S) -> Poll<Option<S::Item>> {
        loop {
            let waker = raw_waker(Arc::clone(self));
            let poll = || stream.poll_next_unpin(&mut Context::from_waker(&waker));
            let polled = catch_unwind(AssertUnwindSafe(poll));
            let _dropped = catch_unwind(AssertUnwindSafe(|| drop(waker)));
            if let Ok(polled) = polled {
                return polled;
            }
        }
    }

    async fn next<S: Stream + Unpin>(self: &Arc<Self>, stream: &mut S) -> Option<S::Item> {
        poll_fn(|context| {
            self.executor.register(context.waker());
            self.poll(stream)
        })
        .await
    }
}

/// The records of all shards, from `Records` or from `Shards` and its streams.
enum Open {
    Records(Box<kinestream::Records>),
    Shards { shards: Option<Shards>, open: Vec<ShardStream> },
}

impl Open {
    fn new(consumer: &Consumer, by_shard: bool) -> Self {
        if by_shard {
            Self::Shards { shards: Some(consumer.shards()), open: Vec::new() }
        } else {
            Self::Records(Box::new(consumer.records()))
        }
    }

    async fn next(&mut self, caller: &Arc<Caller>) -> Option<Record> {
        match self {
            Self::Records(records) => caller.next(records).await.map(Result::unwrap),
            Self::Shards { shards, open } => {
                poll_fn(|context| {
                    caller.executor.register(context.waker());
                    while let Some(more) = shards {
                        match caller.poll(more) {
                            Poll::Ready(Some(shard)) => open.push(shard.unwrap()),
                            Poll::Ready(None) => *shards = None,
                            Poll::Pending => break,
                        }
                    }
                    for at in (0..open.len()).rev() {
                        match caller.poll(&mut open[at]) {
                            Poll::Ready(Some(record)) => return Poll::Ready(Some(record.unwrap())),
                            Poll::Ready(None) => drop(open.swap_remove(at)),
                            Poll::Pending => {}
                        }
                    }
                    let has_ended = shards.is_none() && open.is_empty();
                    if has_ended { Poll::Ready(None) } else { Poll::Pending }
                })
                .await
            }
        }
    }
}

/// The configuration of a reader.
#[derive(Debug, Clone, Copy)]
struct Reader {
    mode: CheckpointOn,
    by_shard: bool,
    is_inline: bool,
    saves_each: bool,
}

impl Reader {
    fn consumer(self, kinesis: &Kinesis) -> Consumer {
        let interval = if self.saves_each { Duration::ZERO } else { SECOND };
        let builder = consumer(kinesis).checkpoint_on(self.mode).max_in_flight(2);
        builder.checkpoint_interval(interval).poll_timeout(Some(60 * SECOND)).build().unwrap()
    }
}

fn readers() -> impl Iterator<Item = Reader> {
    (0..16).map(|bits| Reader {
        mode: if bits & 1 == 0 { CheckpointOn::Pull } else { CheckpointOn::Ack },
        by_shard: bits & 2 != 0,
        is_inline: bits & 4 != 0,
        saves_each: bits & 8 != 0,
    })
}

/// Reads 60 records of a shard until the consumer is closed, and asserts that each is delivered
/// once and in order.
async fn read_all(reader: Reader, caller: Arc<Caller>) {
    let (kinesis, orders) = orders(1);
    let consumer = reader.consumer(&kinesis);
    let seen = Arc::new(Mutex::new(BTreeMap::<usize, Vec<usize>>::new()));
    let reading = {
        let (seen, mut open) = (Arc::clone(&seen), Open::new(&consumer, reader.by_shard));
        async move {
            let mut held: Option<Record> = None;
            while let Some(record) = open.next(&caller).await {
                seen.lock().unwrap().entry(shard_of(&record)).or_default().push(number(&record));
                if reader.mode == CheckpointOn::Ack
                    && let Some(before) = held.replace(record)
                {
                    // In another task, so that the ack wakes the stream that waits at its in-flight
                    // limit.
                    tokio::spawn(async move {
                        sleep(SECOND / 4).await;
                        before.ack();
                    });
                }
            }
        }
    };
    let (mut task, mut inline) = (None, None);
    if reader.is_inline {
        inline = Some(Inline::start(reading));
    } else {
        task = Some(tokio::spawn(reading));
    }
    let all = |seen: &BTreeMap<usize, Vec<usize>>| seen.values().map(Vec::len).sum::<usize>();
    for round in 0..20 {
        for place in 0..3 {
            orders.shard(0).put((3 * round + place).to_string());
        }
        sleep(7 * SECOND).await;
        assert_eq!(all(&seen.lock().unwrap()), 3 * (round + 1), "{reader:?}: round {round}");
    }
    assert_eq!(seen.lock().unwrap()[&0], (0..60).collect::<Vec<_>>(), "{reader:?}");
    consumer.close().await.unwrap();
    sleep(SECOND).await;
    let has_ended = task.is_some_and(|task| task.now_or_never().is_some_and(|end| end.is_ok()))
        || inline.is_some_and(|inline| inline.has_ended());
    assert!(has_ended, "{reader:?}: expected the closed stream to end");
}

fn assert_survives_panics(call: WakerCall) {
    for reader in readers() {
        for every in [2, 3, 7] {
            without_deadlock(move || async move {
                let caller = Caller::panicking(call, every);
                read_all(reader, Arc::clone(&caller)).await;
                let panicked = caller.panicked.load(Ordering::SeqCst);
                assert!(panicked > 0, "{reader:?}: expected at least one panic");
            });
        }
    }
}

#[test]
fn panicking_waker_clone_loses_and_repeats_no_record() {
    assert_survives_panics(WakerCall::Clone);
}

#[test]
fn panicking_wake_loses_and_repeats_no_record() {
    assert_survives_panics(WakerCall::Wake);
}

#[test]
fn panicking_waker_drop_loses_and_repeats_no_record() {
    assert_survives_panics(WakerCall::Drop);
}

/// The wakers acknowledge records, poll the events and request the status.
#[test]
fn waker_that_calls_the_crate_in_clone_and_drop_does_not_deadlock() {
    for reader in readers().filter(|reader| reader.mode == CheckpointOn::Ack) {
        for call in 1..20 {
            without_deadlock(move || acknowledge_in_wakers(reader, call));
        }
    }
}

/// Acknowledges a record in the waker call number `call` after the in-flight limit was reached.
async fn acknowledge_in_wakers(reader: Reader, call: usize) {
    let (kinesis, orders) = orders(1);
    let consumer = reader.consumer(&kinesis);
    let held = Arc::new(Mutex::new(Vec::<Record>::new()));
    let runs = {
        let held = Arc::clone(&held);
        let (events, consumer) = (Mutex::new(consumer.events()), consumer.clone());
        let calls = AtomicUsize::new(0);
        move || {
            let is_full = held.lock().unwrap().len() == 2;
            if !is_full || calls.fetch_add(1, Ordering::SeqCst) + 1 < call {
                return;
            }
            calls.store(0, Ordering::SeqCst);
            let record = held.lock().unwrap().pop();
            if let Some(record) = record {
                record.ack();
            }
            if let Ok(mut events) = events.try_lock() {
                let _event = events.next().now_or_never();
            }
            let _status = consumer.status().now_or_never();
        }
    };
    let caller = Arc::new(Caller { runs: Some(Box::new(runs)), ..Caller::default() });
    let mut open = Open::new(&consumer, reader.by_shard);
    for place in 0..20 {
        orders.shard(0).put(place.to_string());
    }
    for place in 0..20 {
        let record = loop {
            if let Ok(record) = timeout(5 * SECOND, open.next(&caller)).await {
                break record.unwrap();
            }
            // The wakers were called fewer times.
            let record = held.lock().unwrap().pop();
            record.expect("an unacknowledged record").ack();
        };
        assert_eq!(number(&record), place);
        held.lock().unwrap().push(record);
    }
}

#[test]
fn events_are_delivered_when_wakers_panic() {
    for call in [WakerCall::Clone, WakerCall::Wake, WakerCall::Drop] {
        for every in [2, 3] {
            without_deadlock(move || async move {
                let (kinesis, orders) = orders(1);
                let consumer = consumer(&kinesis).build().unwrap();
                let caller = Caller::panicking(call, every);
                let (mut events, ends) = (consumer.events(), Arc::new(AtomicUsize::new(0)));
                let listening = {
                    let (caller, ends) = (Arc::clone(&caller), Arc::clone(&ends));
                    tokio::spawn(async move {
                        while let Some(event) = caller.next(&mut events).await {
                            let is_end = matches!(event, Event::ShardEnded { .. });
                            ends.fetch_add(usize::from(is_end), Ordering::SeqCst);
                        }
                    })
                };
                let mut records = consumer.records();
                for generation in 0..6 {
                    orders.shard(generation).split();
                    let waiting = timeout(20 * SECOND, records.next()).await;
                    assert!(waiting.is_err(), "{waiting:?}");
                    assert_eq!(ends.load(Ordering::SeqCst), generation + 1, "{call:?} {every}");
                }
                assert!(caller.panicked.load(Ordering::SeqCst) > 0, "{call:?}");
                drop((records, consumer));
                timeout(60 * SECOND, listening)
                    .await
                    .expect("the end of the events within 60 s")
                    .unwrap();
            });
        }
    }
}

/// A second panic during an unwind would abort the process.
#[test]
fn stream_dropped_by_a_panic_survives_a_panicking_waker_drop() {
    without_deadlock(|| async {
        for by_shard in [false, true] {
            let (kinesis, orders) = orders(1);
            let consumer = consumer(&kinesis).poll_timeout(Some(60 * SECOND)).build().unwrap();
            let mut open = Open::new(&consumer, by_shard);
            let caller = Caller::panicking(WakerCall::Drop, 1);
            orders.shard(0).put("0");
            let record = timeout(60 * SECOND, open.next(&caller)).await.unwrap().unwrap();
            let waits = timeout(SECOND, pin!(open.next(&caller))).await;
            assert!(waits.is_err());
            let before = caller.panicked.load(Ordering::SeqCst);
            let unwound = catch_unwind(AssertUnwindSafe(move || {
                let _open = open;
                resume_unwind(Box::new("the caller panics"));
            }));
            assert!(unwound.is_err());
            assert!(
                caller.panicked.load(Ordering::SeqCst) > before,
                "expected the waker to be dropped"
            );
            drop(record);
            sleep(SECOND).await;
        }
    });
}
