//! Drops everything at each await point in turn: no record is skipped, no finished record is
//! repeated, and no call or task is left running.
//!
//! A reader advances step by step, by one poll of each task. For each step in which something may
//! have happened (a call, a save, a record), one run stops after it by dropping the caller's future
//! with the streams and the consumer inside.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::{CheckpointOn, Consumer, Record};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{consumer, next, orders, shard_of};
use kinestream::testing::{Kinesis, Stream};

/// The number of records of each shard. Shard 0 is split into 2 and 3.
const RECORDS: [usize; 4] = [4, 4, 2, 2];
const ALL: usize = 12;

/// The caller's way of reading until it is dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Reads the merged stream. The poll for the next record acknowledges the previous one.
    Records,
    /// Reads each shard by its own stream and acknowledges each record.
    Shards,
    /// Reads all records and closes the consumer.
    Close,
}

/// The number of records received and finished of each shard, and the shard of the record that the
/// caller is handling.
#[derive(Debug, Default)]
struct Progress {
    received: BTreeMap<usize, usize>,
    finished: BTreeMap<usize, usize>,
    in_flight: Option<usize>,
}

impl Progress {
    /// Adds a record, and asserts that it is the next one of its shard.
    fn take(&mut self, record: &Record) {
        let shard = shard_of(record);
        let place: usize = std::str::from_utf8(record.data()).unwrap().parse().unwrap();
        let received = self.received.entry(shard).or_default();
        assert_eq!(place, *received, "shard {shard} skips or repeats a record");
        *received += 1;
        if [2, 3].contains(&shard) {
            assert_eq!(
                self.finished.get(&0),
                Some(&RECORDS[0]),
                "shard {shard} starts before its parent is finished"
            );
        }
        self.in_flight = Some(shard);
    }

    fn finish(&mut self) {
        if let Some(shard) = self.in_flight.take() {
            self.finished.insert(shard, self.received[&shard]);
        }
    }

    fn count(&self) -> usize {
        self.received.values().sum()
    }
}

struct World {
    kinesis: Kinesis,
    orders: Stream,
    store: RecordingStore,
    seen: RefCell<Progress>,
}

impl World {
    fn new() -> Self {
        let (kinesis, orders) = orders(2);
        kinesis.set_latency(Duration::from_millis(3));
        let put = |shard: usize| {
            for place in 0..RECORDS[shard] {
                orders.shard(shard).put(place.to_string());
            }
        };
        put(0);
        put(1);
        orders.shard(0).split();
        put(2);
        put(3);
        let store = RecordingStore::slow(Duration::from_millis(2));
        Self { kinesis, orders, store, seen: RefCell::default() }
    }

    fn consumer(&self, mode: CheckpointOn) -> Consumer {
        consumer(&self.kinesis)
            .limit(2)
            .checkpoint_on(mode)
            .checkpoint_interval(Duration::from_millis(150))
            .store(self.store.clone())
            .build()
            .unwrap()
    }

    async fn read(&self, way: Way) {
        let seen = &self.seen;
        if way == Way::Shards {
            let shards = self.consumer(CheckpointOn::Ack).shards();
            let each = |record: kinestream::Result<Record>| {
                let record = record.expect("no error");
                seen.borrow_mut().take(&record);
                record.ack();
                seen.borrow_mut().finish();
                std::future::ready(())
            };
            return shards
                .for_each_concurrent(None, |shard| shard.expect("no error").for_each(each))
                .await;
        }
        let consumer = self.consumer(CheckpointOn::Pull);
        let mut records = consumer.records();
        while seen.borrow().count() < ALL || way == Way::Records {
            // The poll for the next record acknowledges this one.
            seen.borrow_mut().finish();
            let record = records.next().await.expect("an open stream").expect("no error");
            seen.borrow_mut().take(&record);
            if seen.borrow().count() == ALL {
                record.ack();
                seen.borrow_mut().finish();
            }
        }
        consumer.close().await.unwrap();
    }

    /// Returns counters that change with every call, save and record.
    fn progress(&self) -> [usize; 5] {
        let saves = self.store.saves().len();
        let count = self.seen.borrow().count();
        let calls = self.kinesis.call_count();
        [calls, self.kinesis.in_flight(), self.store.attempts(), saves, count]
    }

    /// Reads for `steps` steps and drops the reader. Returns `false` if the reader was done before
    /// that: all records were read and saved.
    async fn interrupt(&self, way: Way, steps: usize) -> bool {
        /// More steps than the tasks need to pass work to each other while the clock is paused.
        const QUIET: usize = 8;
        let mut reading = pin!(self.read(way));
        let (mut progress, mut quiet) = (self.progress(), 0);
        let mut all_read = None;
        for _ in 0..steps {
            if reading.as_mut().now_or_never().is_some() {
                return false;
            }
            tokio::task::yield_now().await;
            let now = self.progress();
            quiet = if now == progress { quiet + 1 } else { 0 };
            progress = now;
            if self.seen.borrow().count() == ALL {
                let since: &mut Instant = all_read.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_millis(300) {
                    return false;
                }
            }
            // Nothing more happens until the clock advances.
            while quiet >= QUIET && self.progress() == progress {
                if timeout(Duration::from_millis(1), reading.as_mut()).await.is_ok() {
                    return false;
                }
            }
        }
        true
    }

    /// Asserts that no call or task is left, and that the stored positions match the finished
    /// records.
    async fn check(&self, context: &str) {
        sleep(Duration::from_millis(50)).await;
        assert_eq!(self.kinesis.in_flight(), 0, "{context}: expected no call in flight");
        assert_eq!(
            Handle::current().metrics().num_alive_tasks(),
            0,
            "{context}: expected no live task"
        );
        let finished = self.seen.borrow().finished.clone();
        for (shard, finished) in &finished {
            let stored = self.store.position(*shard).await;
            let number = &self.orders.shard(*shard).sequence_numbers()[finished - 1];
            let place = format!("AFTER_SEQUENCE_NUMBER:{number}");
            let whole = *finished == RECORDS[*shard] && stored.as_deref() == Some("SHARD_END");
            assert!(
                whole || stored.as_ref() == Some(&place),
                "{context}: shard {shard} is stored at {stored:?}, expected {place}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drop_at_any_point_loses_and_repeats_no_record() {
    for way in [Way::Records, Way::Shards, Way::Close] {
        let mut steps = 0;
        loop {
            steps += 1;
            let context = format!("{way:?} dropped after {steps} steps");
            let world = World::new();
            let interrupted = world.interrupt(way, steps).await;
            world.check(&context).await;
            // Kinesis allows five calls in a second, whichever reader makes them.
            sleep(Duration::from_secs(1)).await;
            // The next reader resumes after the last finished record of each shard.
            {
                let mut seen = world.seen.borrow_mut();
                seen.received = seen.finished.clone();
                seen.in_flight = None;
            }
            if world.seen.borrow().count() < ALL {
                let consumer = world.consumer(CheckpointOn::Pull);
                let mut records = consumer.records();
                while world.seen.borrow().count() < ALL {
                    world.seen.borrow_mut().finish();
                    let record = next(&mut records).await;
                    world.seen.borrow_mut().take(&record);
                }
            }
            assert_eq!(world.kinesis.violations(), [""; 0], "{context}");
            if !interrupted {
                break;
            }
        }
        assert!(steps > 100, "expected more than 100 points to drop {way:?} at, found {steps}");
    }
}
