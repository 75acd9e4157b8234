//! A handler that blocks the only thread of its runtime for longer than a lease duration.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Kinesis;
use kinestream::{Consumer, Event, Record, RedisStore, StartingPosition};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::reading::{BOUND, DELAY, LEASE};
use crate::redis_server::RedisServer;

const SHARDS: usize = 2;

/// The time that the handler blocks: until another worker has taken over the lease.
const BLOCKED: Duration = BOUND.saturating_add(DELAY);

/// A delivered record.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    worker: usize,
    shard: usize,
    epoch: u64,
    number: usize,
}

#[derive(Clone, Default)]
struct Observed {
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    events: Arc<Mutex<Vec<(usize, Event)>>>,
    /// True if the next record of worker 0 blocks its thread.
    blocks: Arc<AtomicBool>,
}

impl Observed {
    fn deliver(&self, worker: usize, record: &Record) {
        let number: usize = std::str::from_utf8(record.data()).unwrap().parse().unwrap();
        let (shard, epoch) = (number % SHARDS, record.epoch());
        self.deliveries.lock().unwrap().push(Delivery { worker, shard, epoch, number });
        if worker == 0 && self.blocks.swap(false, Ordering::SeqCst) {
            std::thread::sleep(BLOCKED);
        }
    }

    fn all(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }

    /// Returns the shards of each worker's deliveries, without the first `deliveries` of all.
    fn shards_since(&self, deliveries: usize) -> [BTreeSet<usize>; 2] {
        let all = self.all();
        let of = |worker| {
            let of = all[deliveries..].iter().filter(move |delivery| delivery.worker == worker);
            of.map(|delivery| delivery.shard).collect()
        };
        [of(0), of(1)]
    }

    fn has_event(&self, worker: usize, is_it: impl Fn(&Event) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(|(of, event)| *of == worker && is_it(event))
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(30), "expected within 30 s: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connect(worker: usize, kinesis: &Kinesis, url: &str) -> Consumer {
    Consumer::builder(kinesis.client(), "orders")
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .checkpoint_interval(Duration::from_millis(100))
        .lease_duration(LEASE)
        .worker_id(format!("worker-{worker}"))
        .store(RedisStore::connect(url).await.unwrap())
        .build()
        .unwrap()
}

/// Reads until the task is aborted or its runtime ends.
async fn read(worker: usize, consumer: Consumer, seen: Observed) {
    let (mut events, mut records) = (consumer.events(), consumer.records());
    loop {
        tokio::select! {
            biased;
            record = records.next() => seen.deliver(worker, &record.unwrap().unwrap()),
            event = events.next() => seen.events.lock().unwrap().push((worker, event.unwrap())),
        }
    }
}

/// Starts worker 0 on a separate thread, which is the only one of its runtime.
fn start_alone(kinesis: &Kinesis, url: &str, seen: &Observed) -> (Consumer, impl FnOnce() + use<>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let consumer = std::thread::scope(|scope| {
        scope.spawn(|| runtime.block_on(connect(0, kinesis, url))).join().unwrap()
    });
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let reading = read(0, consumer.clone(), seen.clone());
    let thread = std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = reading => {}
                _ended = ended => {}
            }
        });
    });
    let end = move || {
        let _is_over = end.send(());
        thread.join().unwrap();
    };
    (consumer, end)
}

fn write(kinesis: &Kinesis) -> (Arc<Mutex<usize>>, JoinHandle<()>) {
    let stream = kinesis.create_stream("orders", SHARDS);
    let put = Arc::new(Mutex::new(0));
    let count = Arc::clone(&put);
    let writing = tokio::spawn(async move {
        for number in 0.. {
            stream.shard(number % SHARDS).put(number.to_string());
            *count.lock().unwrap() = number + 1;
            sleep(Duration::from_millis(10)).await;
        }
    });
    (put, writing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handler_that_blocks_its_runtime_loses_lease_and_no_record() {
    let server = RedisServer::start(&[]);
    let (kinesis, seen) = (Kinesis::new(), Observed::default());
    let (put, writing) = write(&kinesis);
    let (blocked, end) = start_alone(&kinesis, &server.url(), &seen);
    let other = connect(1, &kinesis, &server.url()).await;
    let reading = tokio::spawn(read(1, other, seen.clone()));
    until("each worker reads a shard", || {
        let since = seen.all().len().saturating_sub(100);
        seen.shards_since(since).iter().all(|shards| shards.len() == 1)
    })
    .await;

    let before = seen.all().len();
    seen.blocks.store(true, Ordering::SeqCst);
    until("the handler blocks", || !seen.blocks.load(Ordering::SeqCst)).await;
    until("the other worker reads all shards", || seen.shards_since(before)[1].len() == SHARDS)
        .await;
    // The health as a probe on another thread sees it.
    let health = blocked.health();
    assert!(!health.is_ready(), "{health:?}");
    assert!(health.since_renewal.unwrap() > LEASE, "{health:?}");

    let taken = seen.all().len();
    until("the blocked worker reads again", || !seen.shards_since(taken)[0].is_empty()).await;
    assert!(seen.has_event(0, |event| matches!(event, Event::LeaseLost { .. })));
    writing.abort();
    let _was_aborted = writing.await;
    let put = *put.lock().unwrap();
    let numbers = || seen.all().iter().map(|delivery| delivery.number).collect::<BTreeSet<_>>();
    until("every record is delivered", || numbers().len() == put).await;
    end();
    reading.abort();
    for shard in 0..SHARDS {
        let all = seen.all().into_iter().filter(|delivery| delivery.shard == shard);
        let epochs: Vec<_> = all.map(|delivery| (delivery.epoch, delivery.worker)).collect();
        assert!(epochs.is_sorted(), "expected ascending epochs of shard {shard}: {epochs:?}");
        let is_one = |pair: &[(u64, usize)]| pair[0].0 != pair[1].0 || pair[0].1 == pair[1].1;
        assert!(
            epochs.windows(2).all(is_one),
            "expected one worker per epoch of shard {shard}: {epochs:?}"
        );
    }
}
