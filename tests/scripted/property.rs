//! Random shard trees, batches, faults, restarts and orders of acknowledgement: whatever the
//! schedule, every record comes at least once, in order, children after parents, and no position
//! passes an unfinished record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, Stream};
use kinestream::{Checkpoint, CheckpointOn, CheckpointStore, MemoryStore, Record};
use proptest::prelude::*;
use tokio::time::{sleep, timeout};

use crate::{consumer, shard_of};

/// One thing that happens between records.
#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    Split(usize),
    Merge(usize),
    /// The next calls go wrong like this.
    Fail(usize, u8),
    /// The caller takes its time, in seconds.
    Wait(u64),
    /// So many records are pulled.
    Read(usize),
    /// One of the records in hand is finished.
    Finish(usize),
    /// The reader is dropped without a word, as by a crash, or closed.
    Restart {
        close: bool,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8_usize).prop_map(Step::Put),
        1 => (0..8_usize).prop_map(Step::Split),
        1 => (0..8_usize).prop_map(Step::Merge),
        2 => (1..4_usize, 0..6_u8).prop_map(|(times, kind)| Step::Fail(times, kind)),
        4 => (0..5_u64).prop_map(Step::Wait),
        // Longer than an iterator lives, which is rare: idle shards are asked all the while.
        1 => Just(Step::Wait(310)),
        6 => (1..6_usize).prop_map(Step::Read),
        6 => any::<usize>().prop_map(Step::Finish),
        1 => any::<bool>().prop_map(|close| Step::Restart { close }),
    ]
}

fn fault(kind: u8) -> Outcome {
    match kind {
        0 => Outcome::failed(400, "ProvisionedThroughputExceededException", "Rate exceeded"),
        1 => Outcome::failed(500, "InternalFailureException", ""),
        2 => Outcome::failed(400, "ExpiredIteratorException", "expired"),
        3 => Outcome::Refused,
        4 => Outcome::Lost,
        _ => Outcome::Delayed(Duration::from_secs(3)),
    }
}

/// What the test knows of the world.
struct World {
    kinesis: Kinesis,
    orders: Stream,
    store: MemoryStore,
    mode: CheckpointOn,
    /// For each shard, what was put, and its parents.
    put: Vec<Vec<String>>,
    /// What the caller has finished with.
    finished: Vec<BTreeSet<String>>,
    /// What it has finished with since the last restart.
    lately: BTreeSet<String>,
}

impl World {
    fn new(shards: usize, mode: CheckpointOn) -> Self {
        let (kinesis, orders) = crate::orders(shards);
        orders.number_from(8);
        Self {
            kinesis,
            orders,
            store: MemoryStore::new(),
            mode,
            put: vec![Vec::new(); shards],
            finished: vec![BTreeSet::new(); shards],
            lately: BTreeSet::new(),
        }
    }

    fn change(&mut self, step: &Step) {
        let open = self.orders.open_shards();
        match *step {
            Step::Put(pick) => {
                let shard = &open[pick % open.len()];
                self.put[shard.index()].push(shard.put("x").to_string());
            }
            Step::Split(pick) if self.put.len() < 12 => {
                open[pick % open.len()].split();
                self.grow(2);
            }
            Step::Merge(pick) if open.len() > 1 => {
                let low = pick % (open.len() - 1);
                open[low].merge(&open[low + 1]);
                self.grow(1);
            }
            Step::Fail(times, kind) => {
                let mut times = times;
                self.kinesis.on_call(move |call| {
                    // A listing before the first answer may take its time to be told of.
                    if times == 0 || call.operation == "ListShards" {
                        return Outcome::Served;
                    }
                    times -= 1;
                    fault(kind)
                });
            }
            _ => {}
        }
    }

    fn grow(&mut self, shards: usize) {
        for _ in 0..shards {
            self.put.push(Vec::new());
            self.finished.push(BTreeSet::new());
        }
    }

    fn all_finished(&self) -> bool {
        self.put.iter().zip(&self.finished).all(|(put, finished)| put.len() == finished.len())
    }

    fn finish(&mut self, record: &Record) {
        let number = record.sequence_number().to_string();
        self.lately.insert(number.clone());
        self.finished[shard_of(record)].insert(number);
    }

    /// How many records of each shard the stored position has passed.
    async fn positions(&self) -> BTreeMap<usize, usize> {
        let stored = self.store.load(&Scope::new("default", "orders")).await.unwrap();
        let passed = stored.into_iter().map(|(shard, checkpoint)| {
            let shard: usize = shard.as_str()[8..].parse().unwrap();
            let passed = match checkpoint {
                Checkpoint::AfterSequence { sequence_number, .. } => {
                    let place = |number: &String| *number == sequence_number.to_string();
                    1 + self.put[shard].iter().position(place).expect("a record of this shard")
                }
                Checkpoint::ShardEnd => self.put[shard].len(),
                _ => 0,
            };
            (shard, passed)
        });
        passed.collect()
    }

    /// No stored position is past a record that is not finished.
    async fn check_positions(&self) {
        for (shard, passed) in self.positions().await {
            for number in &self.put[shard][..passed] {
                assert!(
                    self.finished[shard].contains(number),
                    "shard {shard}: the position has passed {number}, which is not finished"
                );
            }
        }
    }

    /// What was finished up to a gap, since the reader began at these positions, will not come
    /// again.
    async fn check_saved(&self, began: &BTreeMap<usize, usize>) {
        let positions = self.positions().await;
        for (shard, put) in self.put.iter().enumerate() {
            let before = began.get(&shard).copied().unwrap_or(0);
            let lately = |number: &&String| self.lately.contains(*number);
            let finished = before + put[before..].iter().take_while(lately).count();
            let passed = positions.get(&shard).copied().unwrap_or(0);
            assert_eq!(passed, finished, "shard {shard}: not all that is finished is saved");
        }
    }
}

/// Runs a schedule, and then reads on without faults until everything is finished.
async fn run(shards: usize, mode: CheckpointOn, limit: u32, steps: &[Step]) {
    let mut world = World::new(shards, mode);
    let mut steps = steps.iter();
    let mut over = false;
    while !(over && world.all_finished()) {
        let reader = consumer(&world.kinesis)
            .limit(limit)
            .checkpoint_on(world.mode)
            .max_in_flight(4)
            .store(world.store.clone())
            .build()
            .unwrap();
        let mut records = reader.records();
        let began = world.positions().await;
        world.lately.clear();
        let mut held: Vec<Record> = Vec::new();
        let mut last_in_shard: BTreeMap<usize, usize> = BTreeMap::new();
        let mut close = true;
        loop {
            let step = steps.next();
            over |= step.is_none();
            // When the schedule is over, everything is read and finished in turn.
            let step = match step {
                Some(step) => step.clone(),
                None if world.all_finished() => break,
                None => {
                    world.kinesis.on_call(|_| Outcome::Served);
                    held.drain(..).for_each(|record| {
                        world.finish(&record);
                        record.ack();
                    });
                    Step::Read(1)
                }
            };
            match step {
                Step::Read(count) => {
                    for _ in 0..count {
                        // What is in hand is finished by asking for more.
                        if world.mode == CheckpointOn::Pull {
                            held.drain(..).for_each(|record| world.finish(&record));
                        }
                        let patience = Duration::from_secs(if over { 300 } else { 5 });
                        let Ok(record) = timeout(patience, records.next()).await else {
                            assert!(!over || world.all_finished(), "nothing comes any more");
                            break;
                        };
                        let record = record.expect("goes on").expect("no error");
                        check_order(&world, &mut last_in_shard, &record);
                        held.push(record);
                    }
                }
                Step::Finish(pick) if world.mode == CheckpointOn::Ack && !held.is_empty() => {
                    let record = held.swap_remove(pick % held.len());
                    world.finish(&record);
                    record.ack();
                }
                Step::Wait(seconds) => sleep(Duration::from_secs(seconds)).await,
                Step::Restart { close: graceful } => {
                    close = graceful;
                    break;
                }
                other => world.change(&other),
            }
            world.check_positions().await;
        }
        if close {
            drop(records);
            reader.close().await.unwrap();
        } else {
            drop((records, reader));
        }
        // The limits count for all readers of a shard, and the next one knows nothing of the last.
        sleep(Duration::from_secs(6)).await;
        world.check_positions().await;
        world.check_saved(&began).await;
    }
    assert_eq!(world.kinesis.violations(), [""; 0]);
}

/// In its shard each record follows the one before it, and all its parents are finished.
fn check_order(world: &World, last: &mut BTreeMap<usize, usize>, record: &Record) {
    let shard = shard_of(record);
    let number = record.sequence_number().to_string();
    let place = world.put[shard].iter().position(|other| *other == number).expect("was put");
    if let Some(before) = last.insert(shard, place) {
        assert_eq!(place, before + 1, "shard {shard} skips or repeats a record");
    } else {
        for skipped in &world.put[shard][..place] {
            assert!(world.finished[shard].contains(skipped), "shard {shard} skipped {skipped}");
        }
    }
    for parent in world.orders.shard(shard).parents() {
        let parent: usize = parent.as_str()[8..].parse().unwrap();
        assert_eq!(
            world.finished[parent].len(),
            world.put[parent].len(),
            "shard {shard} begins before its parent {parent} is finished"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_schedule_loses_a_record(
        shards in 1..4_usize,
        ack: bool,
        limit in prop_oneof![Just(1_u32), Just(3), Just(10_000)],
        steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let mode = if ack { CheckpointOn::Ack } else { CheckpointOn::Pull };
        runtime.block_on(run(shards, mode, limit, &steps));
    }
}
