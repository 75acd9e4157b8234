//! Random worlds: whatever fails, is dropped, restarted or resharded, the adapters lose no record,
//! keep the order per key, and let no stored checkpoint pass an unacknowledged record.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Stream, aggregate};
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, DecodeError, MemoryStore, Record, RecordStreamExt,
    Result, ShardId,
};
use tokio::time::{sleep, timeout};

use crate::consumer;

const KEYS: usize = 12;
const RECORDS: usize = 250;
const SEEDS: u64 = 100;
const MILLI: Duration = Duration::from_millis(1);

/// The payload of a record: the number of its key, and its index in the key.
type Payload = (usize, usize);

/// The records that the program has received, handled and acknowledged.
#[derive(Debug, Default)]
struct Log {
    /// The positions of all records that the stream has delivered.
    delivered: BTreeMap<(ShardId, Payload), Checkpoint>,
    acknowledged: BTreeSet<Payload>,
    handled: BTreeSet<Payload>,
    broken: Vec<String>,
    /// The number of records that were delivered before.
    redelivered: usize,
    /// The number of runs that have failed.
    failed: usize,
}

impl Log {
    fn handled_of(&self, key: usize) -> usize {
        self.handled.range((key, 0)..(key + 1, 0)).count()
    }

    /// Asserts that every earlier record of the key is handled.
    fn check_order(&mut self, (key, index): Payload) {
        if index > self.handled_of(key) {
            self.broken.push(format!("record {index} of key {key} overtakes another"));
        }
    }
}

/// A store that compares each position with the records that are not acknowledged.
#[derive(Debug, Clone, Default)]
struct CheckingStore {
    stored: MemoryStore,
    log: Arc<Mutex<Log>>,
}

impl CheckpointStore for CheckingStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        self.stored.load(scope)
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        let mut log = self.log.lock().unwrap();
        for (shard, saved) in checkpoints {
            let passed: Vec<Payload> = log
                .delivered
                .iter()
                .filter(|((of, payload), position)| {
                    of == shard
                        && !position.supersedes(saved)
                        && !log.acknowledged.contains(payload)
                })
                .map(|((_, payload), _)| *payload)
                .collect();
            if !passed.is_empty() {
                log.broken.push(format!("{saved} of {shard} passes {passed:?}"));
            }
        }
        drop(log);
        self.stored.save(scope, checkpoints)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pipeline {
    ByKey,
    Batches,
    /// Undecodable records are dead letters, and some are filtered.
    DecodedByKey,
    DecodedBatches,
}

fn payload(record: &Record) -> Option<Payload> {
    let (key, index) = str::from_utf8(record.data()).unwrap().split_once(':')?;
    Some((key.trim_start_matches('!').parse().unwrap(), index.parse().unwrap()))
}

fn is_undecodable(record: &Record) -> bool {
    record.data().starts_with(b"!")
}

fn is_unwanted((_, index): Payload) -> bool {
    index % 7 == 3
}

/// Puts all records at random times, in some of them aggregated, and splits and merges shards.
async fn produce(orders: Stream, mut rng: Rng) {
    let mut next = [0; KEYS];
    let mut left = RECORDS;
    while left > 0 {
        let key = rng.usize(..KEYS).min(rng.usize(..KEYS));
        let mut data = || {
            let mark = if rng.u8(..) < 10 { "!" } else { "" };
            next[key] += 1;
            format!("{mark}{key}:{}", next[key] - 1)
        };
        let name = format!("key-{key}");
        if left >= 3 && left.is_multiple_of(5) {
            let parts = [data(), data(), data()].map(|data| (name.clone(), data));
            orders.put(&name, aggregate(parts));
            left -= 3;
        } else {
            orders.put(&name, data());
            left -= 1;
        }
        let open = orders.open_shards();
        match rng.usize(..40) {
            0 if open.len() < 6 => drop(open[rng.usize(..open.len())].split()),
            1 if open.len() > 1 => {
                let at = rng.usize(1..open.len());
                open[at - 1].merge(&open[at]);
            }
            _ => {}
        }
        if rng.bool() {
            sleep(MILLI * rng.u32(..100)).await;
        }
    }
}

/// One run of the program, from its start until it fails, ends or is dropped.
struct Run {
    log: Arc<Mutex<Log>>,
    rng: Rc<std::cell::RefCell<Rng>>,
    on: CheckpointOn,
    pipeline: Pipeline,
}

impl Run {
    fn fails(&self, percent: u32) -> bool {
        self.rng.borrow_mut().u32(..100) < percent
    }

    fn pause(&self, most: u32) -> Duration {
        MILLI * self.rng.borrow_mut().u32(..most)
    }

    fn acknowledged(&self, payloads: impl IntoIterator<Item = Payload>) {
        self.log.lock().unwrap().acknowledged.extend(payloads);
    }

    async fn handle(&self, payload: Payload, record: &Record) -> anyhow::Result<Payload> {
        self.log.lock().unwrap().check_order(payload);
        sleep(self.pause(50)).await;
        anyhow::ensure!(!self.fails(1), "the handler failed");
        self.log.lock().unwrap().handled.insert(payload);
        if self.on == CheckpointOn::Ack {
            self.acknowledged([payload]);
            record.ack();
        }
        Ok(payload)
    }

    async fn handle_batch<R: AsRef<Record>>(
        &self,
        batch: &kinestream::RecordBatch<R>,
    ) -> anyhow::Result<Vec<Payload>> {
        let payloads: Vec<_> =
            batch.iter().map(|record| payload(record.as_ref()).unwrap()).collect();
        sleep(self.pause(200)).await;
        anyhow::ensure!(!self.fails(4), "the batch failed");
        for payload in &payloads {
            let mut log = self.log.lock().unwrap();
            log.check_order(*payload);
            log.handled.insert(*payload);
        }
        if self.on == CheckpointOn::Ack {
            self.acknowledged(payloads.iter().copied());
            batch.ack();
        }
        Ok(payloads)
    }

    /// Notes a record that is handled without a handler, and acknowledges it.
    fn skip(&self, record: &Record) {
        let payload = payload(record).unwrap();
        let mut log = self.log.lock().unwrap();
        log.handled.insert(payload);
        log.acknowledged.insert(payload);
        drop(log);
        record.ack();
    }

    async fn read(&self, records: kinestream::Records) -> anyhow::Result<()> {
        let records = records.inspect_ok(|record| {
            let place = (record.shard_id().clone(), payload(record).unwrap());
            let mut log = self.log.lock().unwrap();
            let before = log.delivered.insert(place, record.checkpoint());
            log.redelivered += usize::from(before.is_some());
        });
        let limit = self.rng.borrow_mut().usize(1..9);
        let age = self.pause(500);
        match self.pipeline {
            Pipeline::ByKey => {
                let handled = records.buffer_by_key(limit, |record| async move {
                    self.handle(payload(&record).unwrap(), &record).await
                });
                let mut handled = std::pin::pin!(handled);
                while let Some(output) = handled.next().await {
                    self.acknowledged([output?]);
                }
            }
            Pipeline::Batches => {
                let mut batches = std::pin::pin!(records.batches(limit * 5, age));
                while let Some(batch) = batches.next().await {
                    self.acknowledged(self.handle_batch(&batch?).await?);
                }
            }
            Pipeline::DecodedByKey => {
                let handled = self.decoded(records).buffer_by_key(limit, |decoded| async move {
                    self.handle(*decoded, decoded.record()).await
                });
                let mut handled = std::pin::pin!(handled);
                while let Some(output) = handled.next().await {
                    self.acknowledged([output?]);
                }
            }
            Pipeline::DecodedBatches => {
                let mut batches = std::pin::pin!(self.decoded(records).batches(limit * 5, age));
                while let Some(batch) = batches.next().await {
                    self.acknowledged(self.handle_batch(&batch?).await?);
                }
            }
        }
        Ok(())
    }

    /// Decodes the records. Sends undecodable ones on, and filters unwanted ones.
    fn decoded(
        &self,
        records: impl futures::Stream<Item = Result<Record>>,
    ) -> impl futures::Stream<Item = anyhow::Result<kinestream::Decoded<Payload>>> {
        records
            .decode(|record| {
                let value = payload(record).unwrap();
                if is_undecodable(record) { Err("an undecodable record") } else { Ok(value) }
            })
            .filter_map(async |decoded| match decoded {
                Err(DecodeError::Undecodable { record, cause: _ }) => {
                    sleep(self.pause(20)).await;
                    self.skip(&record);
                    None
                }
                other => Some(other.map_err(anyhow::Error::from)),
            })
            .ack_filter(|decoded| {
                let is_unwanted = is_unwanted(**decoded);
                if is_unwanted {
                    // The adapter acknowledges it.
                    let mut log = self.log.lock().unwrap();
                    log.handled.insert(**decoded);
                    log.acknowledged.insert(**decoded);
                }
                !is_unwanted
            })
    }
}

/// Runs the program again and again until every record is handled. Returns the numbers of runs, of
/// failed runs and of redelivered records.
async fn run_world(seed: u64) -> [usize; 3] {
    let mut rng = Rng::with_seed(seed);
    let kinesis = Kinesis::new();
    kinesis.set_latency(5 * MILLI);
    let orders = kinesis.create_stream("orders", 2);
    let on = [CheckpointOn::Pull, CheckpointOn::Ack][rng.usize(..2)];
    let pipeline =
        [Pipeline::ByKey, Pipeline::Batches, Pipeline::DecodedByKey, Pipeline::DecodedBatches]
            [rng.usize(..4)];
    let about = format!("seed {seed}, {on:?}, {pipeline:?}");
    let store = CheckingStore::default();
    let producer = tokio::spawn(produce(orders, rng.fork()));
    let rng = Rc::new(std::cell::RefCell::new(rng));
    let build = |interval: Duration| {
        let builder = consumer(&kinesis)
            .store(store.clone())
            .checkpoint_on(on)
            .checkpoint_interval(interval)
            .discovery_interval(Duration::from_secs(1));
        builder.build().unwrap()
    };
    let mut runs = 0;
    while !producer.is_finished() || store.log.lock().unwrap().handled.len() < RECORDS {
        runs += 1;
        assert!(runs < 1000, "{about}: records are lost: {:?}", store.log.lock().unwrap().handled);
        let (interval, time) = {
            let mut rng = rng.borrow_mut();
            (MILLI * [0, 20, 200][rng.usize(..3)], MILLI * rng.u32(1..3_000))
        };
        let consumer = build(interval);
        let run = Run { log: Arc::clone(&store.log), rng: Rc::clone(&rng), on, pipeline };
        // At the end of its time, dropped with everything in progress.
        if let Ok(Err(_failure)) = timeout(time, run.read(consumer.records())).await {
            store.log.lock().unwrap().failed += 1;
        }
        if rng.borrow_mut().bool() {
            consumer.close().await.unwrap();
        }
    }
    let log = store.log.lock().unwrap();
    assert!(log.broken.is_empty(), "{about}: {:#?}", log.broken);
    assert_eq!(log.handled.len(), RECORDS, "{about}");
    [runs, log.failed, log.redelivered]
}

#[test]
fn adapters_keep_the_guarantees_in_random_worlds() {
    let mut totals = [0; 3];
    for seed in 0..SEEDS {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let counts = runtime.block_on(run_world(seed).boxed_local());
        totals = std::array::from_fn(|index| totals[index] + counts[index]);
    }
    let [runs, failed, redelivered] = totals;
    assert!(runs > 400 && failed > 100 && redelivered > 1000, "expected faults: {totals:?}");
}
