use std::sync::Arc;
use std::task::Waker;

use futures::channel::mpsc;
use futures::{StreamExt, stream};
use proptest::prelude::*;
use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::adapters::RecordStreamExt;
use crate::adapters::fixtures::{Acks, RecordFixture};

#[derive(Debug, Clone)]
enum Step {
    Deliver {
        shard: usize,
    },
    /// Acquires a shard again, which starts another epoch.
    Acquire {
        shard: usize,
    },
    Fail,
    /// In tens of milliseconds.
    Wait(u64),
}

/// An item, and the time at which it is yielded.
type Yielded = (Duration, Result<Vec<usize>, usize>);

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_usize).prop_map(|shard| Step::Deliver { shard }),
        1 => (0..3_usize).prop_map(|shard| Step::Acquire { shard }),
        1 => Just(Step::Fail),
        3 => (1..5_u64).prop_map(Step::Wait),
    ]
}

fn number(record: &Record) -> usize {
    std::str::from_utf8(record.data()).unwrap().parse().unwrap()
}

/// The simplest model of `batches`.
#[derive(Default)]
struct Model {
    now: Duration,
    /// Shard, epoch and number.
    batch: Vec<(usize, u64, usize)>,
    began: Duration,
    yielded: Vec<Yielded>,
}

impl Model {
    fn end_batch(&mut self, at: Duration) {
        if !self.batch.is_empty() {
            let numbers = self.batch.drain(..).map(|(_, _, number)| number).collect();
            self.yielded.push((at, Ok(numbers)));
        }
    }

    fn wait(&mut self, time: Duration, max_age: Duration) {
        self.now += time;
        let due = self.began + max_age;
        if due <= self.now {
            self.end_batch(due);
        }
    }

    fn deliver(&mut self, shard: usize, epoch: u64, number: usize, max: usize) {
        if self.batch.iter().any(|(of, other, _)| *of == shard && *other != epoch) {
            self.end_batch(self.now);
        }
        if self.batch.is_empty() {
            self.began = self.now;
        }
        self.batch.push((shard, epoch, number));
        if self.batch.len() == max {
            self.end_batch(self.now);
        }
    }
}

/// Yields what the schedule yields, each item with its time. `patience` is the time after which the
/// future of `next()` is dropped, and another one made.
async fn collect(
    steps: &[Step],
    max: usize,
    max_age: Duration,
    patience: Duration,
) -> (Vec<Yielded>, Model) {
    let (source, records) = mpsc::unbounded();
    let began = Instant::now();
    let collected = tokio::spawn(async move {
        let (mut batches, mut yielded) = (records.batches(max, max_age), Vec::new());
        loop {
            let Ok(item) = timeout(patience, batches.next()).await else { continue };
            let Some(item) = item else { break };
            let item = item.map(|batch| batch.iter().map(number).collect());
            yielded.push((began.elapsed(), item));
        }
        assert!(batches.is_terminated());
        yielded
    });
    let (mut model, mut epochs) = (Model::default(), [1; 3]);
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Deliver { shard } => {
                let epoch = epochs[shard];
                let fixture = RecordFixture { shard, epoch, ..RecordFixture::default() };
                source.unbounded_send(Ok(fixture.record(number.to_string().as_bytes()))).unwrap();
                model.deliver(shard, epoch, number, max);
            }
            Step::Acquire { shard } => epochs[shard] += 1,
            Step::Fail => {
                source.unbounded_send(Err(number)).unwrap();
                model.end_batch(model.now);
                model.yielded.push((model.now, Err(number)));
            }
            Step::Wait(time) => {
                let time = Duration::from_millis(10 * time);
                sleep(time).await;
                model.wait(time, max_age);
            }
        }
    }
    source.close_channel();
    let yielded = collected.await.unwrap();
    model.end_batch(model.now);
    (yielded, model)
}

proptest! {
    /// `max_age` is never due at the time of another step.
    #[test]
    fn every_schedule_yields_the_batches_of_the_model(
        steps in prop::collection::vec(any_step(), 0..60),
        max in 1..6_usize,
        max_age in 0..8_u64,
        is_dropped: bool,
    ) {
        let max_age = Duration::from_millis(10 * max_age + 5);
        let patience = Duration::from_millis(if is_dropped { 3 } else { 1_000_000 });
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let (yielded, model) = runtime.block_on(collect(&steps, max, max_age, patience));
        prop_assert_eq!(yielded, model.yielded);
    }
}

fn records(count: u64, acks: &Arc<Acks>) -> impl Stream<Item = Result<Record, ()>> + use<> {
    let acks = Arc::clone(acks);
    stream::iter((0..count).map(move |number| {
        let fixture = RecordFixture { number, acks: Arc::clone(&acks), ..RecordFixture::default() };
        Ok(fixture.record(b""))
    }))
}

#[tokio::test(start_paused = true)]
async fn batch_acknowledges_each_of_its_records() {
    let acks = Arc::default();
    let mut batches = records(5, &acks).batches(3, Duration::from_secs(1));
    let batch = batches.next().await.unwrap().unwrap();
    assert_eq!((batch.len(), acks.numbers()), (3, vec![]));
    batch.ack();
    assert_eq!(acks.numbers(), [0, 1, 2]);
    let rest = batches.next().await.unwrap().unwrap();
    rest.into_iter().for_each(|record| record.ack());
    assert_eq!(acks.numbers(), [0, 1, 2, 3, 4]);
    assert!(batches.next().await.is_none() && batches.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn batch_that_is_due_is_yielded_without_a_poll_of_the_stream() {
    let (source, stream) = mpsc::unbounded::<Result<Record, ()>>();
    let mut batches = stream.batches(10, Duration::from_secs(1));
    source.unbounded_send(Ok(RecordFixture::default().record(b""))).unwrap();
    let waker = Waker::noop();
    assert!(batches.poll_next_unpin(&mut Context::from_waker(waker)).is_pending());
    // The caller is busy for longer than the batch may wait.
    advance(Duration::from_secs(5)).await;
    source.unbounded_send(Ok(RecordFixture::default().record(b""))).unwrap();
    let Poll::Ready(Some(Ok(batch))) = batches.poll_next_unpin(&mut Context::from_waker(waker))
    else {
        panic!("expected the batch that is due")
    };
    assert_eq!(batch.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn stream_that_is_always_ready_does_not_starve_the_timer() {
    let endless = stream::repeat_with(|| Ok::<_, ()>(RecordFixture::default().record(b"")));
    let mut batches = endless.batches(usize::MAX, Duration::from_secs(1));
    let ticking = tokio::spawn(async {
        // The clock moves on only if other tasks have turns.
        for _ in 0..10 {
            advance(Duration::from_millis(100)).await;
        }
    });
    let batch = batches.next().await.unwrap().unwrap();
    ticking.await.unwrap();
    assert_eq!(batch.len() % MAX_TAKEN_PER_POLL, 0);
    let mut ready = records(10, &Arc::default()).batches(4, Duration::ZERO);
    assert_eq!(ready.next().await.unwrap().unwrap().len(), 4, "expected all ready records");
}

#[tokio::test(start_paused = true)]
async fn batch_without_a_limit_of_time_waits_for_its_last_record() {
    let (source, stream) = mpsc::unbounded::<Result<Record, ()>>();
    let mut batches = stream.batches(2, Duration::MAX);
    source.unbounded_send(Ok(RecordFixture::default().record(b""))).unwrap();
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    assert!(timeout(year, batches.next()).await.is_err());
    source.unbounded_send(Ok(RecordFixture::default().record(b""))).unwrap();
    assert_eq!(batches.next().await.unwrap().unwrap().len(), 2);
}

#[test]
#[should_panic(expected = "max of batches must be at least 1")]
fn batches_of_zero_panic() {
    drop(records(1, &Arc::default()).batches(0, Duration::ZERO));
}
