//! Merges the shards by the arrival time of their records.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::stream::{FuturesUnordered, StreamExt, StreamFuture};
use futures::{FutureExt, Stream, stream};
use kinestream::{Consumer, Event, Events, Record, SequenceNumber, ShardId, ShardStream, Shards};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep};

/// A record is held until it is this old, so that a shard that has caught up is polled in between.
const DELAY: Duration = Duration::from_secs(2);
/// No record is delivered for this time after a shard has opened or ended, since further shards
/// follow.
const SETTLING: Duration = Duration::from_millis(500);
/// A shard that yields nothing for this time does not hold the others back.
const PATIENCE: Duration = Duration::from_secs(10);
/// The interval at which held records are checked.
const CHECK: Duration = Duration::from_millis(50);

/// Returns the records of all shards in the order of their arrival times. One record of each shard
/// is held, so a shard that is ahead of the others is not read further.
///
/// The order is exact as long as every shard yields a record, or reports that it has caught up,
/// within ten seconds.
pub(super) fn by_arrival(
    consumer: &Consumer,
) -> impl Stream<Item = kinestream::Result<Record>> + Send + use<> {
    let sorted = Sorted {
        events: consumer.events(),
        shards: Some(consumer.shards()),
        waiting: FuturesUnordered::new(),
        waiting_since: HashMap::new(),
        caught_up: HashSet::new(),
        heads: BTreeMap::new(),
        changed: Instant::now(),
    };
    stream::unfold(sorted, |mut sorted| async move {
        let next = sorted.next().await?;
        Some((next, sorted))
    })
}

/// The place of a record in the order. The number and the part tell records of one time apart.
type Place = (SystemTime, ShardId, SequenceNumber, u64);

struct Sorted {
    events: Events,
    /// `None` when no further shard can open.
    shards: Option<Shards>,
    /// The shards of which no record is held.
    waiting: FuturesUnordered<StreamFuture<ShardStream>>,
    waiting_since: HashMap<ShardId, Instant>,
    caught_up: HashSet<ShardId>,
    heads: BTreeMap<Place, (Record, ShardStream)>,
    /// The time at which a shard opened or ended.
    changed: Instant,
}

impl Sorted {
    async fn next(&mut self) -> Option<kinestream::Result<Record>> {
        loop {
            if let Some(error) = self.hold_fetched() {
                return Some(Err(error));
            }
            if let Some(record) = self.pop() {
                return Some(Ok(record));
            }
            if self.shards.is_none() && self.waiting.is_empty() {
                return None;
            }
            let shards = &mut self.shards;
            tokio::select! {
                biased;
                Some(event) = self.events.next() => {
                    self.on_event(event);
                }
                shard = next_shard(shards) => match shard {
                    Some(Ok(shard)) => {
                        self.changed = Instant::now();
                        self.wait_for(shard);
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None => self.shards = None,
                },
                Some((record, shard)) = self.waiting.next() => {
                    if let Some(error) = self.hold(record, shard) {
                        return Some(Err(error));
                    }
                }
                () = sleep(CHECK) => {}
            }
        }
    }

    fn wait_for(&mut self, shard: ShardStream) {
        self.waiting_since.insert(shard.shard_id().clone(), Instant::now());
        self.waiting.push(shard.into_future());
    }

    /// Holds a record of each waiting shard that has fetched one. Returns an error of a shard.
    ///
    /// A shard that has caught up may still have fetched records, which are older than those of
    /// other shards.
    fn hold_fetched(&mut self) -> Option<kinestream::Error> {
        // The budget of the task would make a shard look empty.
        while let Some(Some((record, shard))) = unconstrained(self.waiting.next()).now_or_never() {
            if let Some(error) = self.hold(record, shard) {
                return Some(error);
            }
        }
        None
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::CaughtUp { shard_id } => {
                self.caught_up.insert(shard_id);
            }
            // Until its next fetch succeeds, the shard may have records that are not fetched.
            Event::Throttled { shard_id: Some(shard_id), .. }
            | Event::Retried { shard_id: Some(shard_id), .. } => {
                // The patience with a shard that was quiet for long begins now.
                if self.caught_up.remove(&shard_id)
                    && let Some(since) = self.waiting_since.get_mut(&shard_id)
                {
                    *since = Instant::now();
                }
            }
            _ => {}
        }
    }

    /// Holds the record of a shard. Returns an error of the shard.
    fn hold(
        &mut self,
        record: Option<kinestream::Result<Record>>,
        shard: ShardStream,
    ) -> Option<kinestream::Error> {
        let id = shard.shard_id().clone();
        self.waiting_since.remove(&id);
        match record {
            Some(Ok(record)) => {
                // Fetched records may follow the event that the shard has caught up.
                if record.millis_behind_latest() == 0 {
                    self.caught_up.insert(id.clone());
                } else {
                    self.caught_up.remove(&id);
                }
                let arrival = record.approximate_arrival().unwrap_or(SystemTime::UNIX_EPOCH);
                let number = record.sequence_number().clone();
                let place = (arrival, id, number, record.sub_sequence_number());
                self.heads.insert(place, (record, shard));
                None
            }
            Some(Err(error)) => {
                self.wait_for(shard);
                Some(error)
            }
            None => {
                self.changed = Instant::now();
                None
            }
        }
    }

    /// Returns the earliest held record, if no shard can yield an earlier one. Every shard that has
    /// fetched a record holds one.
    fn pop(&mut self) -> Option<Record> {
        let (arrival, ..) = self.heads.first_key_value()?.0;
        let is_settled = self.shards.is_none() || self.changed.elapsed() >= SETTLING;
        // A clock that is behind the clock of Kinesis does not hold records for longer.
        let age = arrival.elapsed().unwrap_or(DELAY);
        let is_old = self.waiting.is_empty() || age >= DELAY;
        let is_quiet = |(shard, since): (&ShardId, &Instant)| {
            self.caught_up.contains(shard) || since.elapsed() >= PATIENCE
        };
        if !is_settled || !is_old || !self.waiting_since.iter().all(is_quiet) {
            return None;
        }
        let (_, (record, shard)) = self.heads.pop_first()?;
        self.wait_for(shard);
        Some(record)
    }
}

async fn next_shard(shards: &mut Option<Shards>) -> Option<kinestream::Result<ShardStream>> {
    match shards {
        Some(shards) => shards.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use kinestream::testing::{Kinesis, Outcome, aggregate};
    use kinestream::{CheckpointOn, EndingPosition, StartingPosition};

    use super::*;

    /// Reads all records of the stream in order, and returns their data.
    async fn sorted(kinesis: &Kinesis) -> Vec<String> {
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .starting_position(StartingPosition::TrimHorizon)
            .ending_position(EndingPosition::Latest)
            .checkpoint_on(CheckpointOn::Ack)
            .build()
            .unwrap();
        let records = by_arrival(&consumer).inspect_ok(Record::ack);
        let data = records.map_ok(|record| String::from_utf8(record.data().to_vec()).unwrap());
        data.try_collect().await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn shards_are_merged_by_arrival() {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 3);
        let begin = kinesis.now() - Duration::from_secs(3600);
        for number in 0..300_u32 {
            let at = begin + Duration::from_secs(u64::from(number));
            // One shard has a long run of records, then the next.
            orders.shard((number as usize * 7 / 100) % 3).put_at(at, number.to_string());
        }
        let expected: Vec<String> = (0..300).map(|number| number.to_string()).collect();
        assert_eq!(sorted(&kinesis).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn records_of_an_aggregate_stay_together() {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 2);
        let begin = kinesis.now() - Duration::from_secs(3600);
        let keys: Vec<String> = (0..100).map(|number| format!("key-{number}")).collect();
        let first: Vec<_> =
            keys.iter().filter(|key| orders.shard(0).has_key(key)).take(5).collect();
        orders
            .shard(0)
            .put_at(begin, aggregate(first.iter().map(|key| (key.as_str(), key.as_str()))));
        orders.shard(1).put_at(begin + Duration::from_secs(1), "later");
        let mut expected: Vec<String> = first.into_iter().cloned().collect();
        expected.push("later".to_owned());
        assert_eq!(sorted(&kinesis).await, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn children_of_a_split_follow_their_parent() {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 1);
        let begin = kinesis.now() - Duration::from_secs(3600);
        let at = |seconds| begin + Duration::from_secs(seconds);
        orders.shard(0).put_at(at(0), "0");
        let [left, right] = orders.shard(0).split();
        for number in 1..20 {
            let child = if number % 3 == 0 { &left } else { &right };
            child.put_at(at(number), number.to_string());
        }
        let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(sorted(&kinesis).await, expected);
    }

    /// Throttles all fetches of this shard from now on, for this time.
    fn throttle(kinesis: &Kinesis, shard: ShardId, time: Duration) {
        let began = Instant::now();
        kinesis.on_call(move |call| {
            let is_throttled = call.operation == "GetRecords"
                && call.shard_id.as_ref() == Some(&shard)
                && call.at.duration_since(began) < time;
            if is_throttled { Outcome::throttled() } else { Outcome::Served }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn throttled_shard_holds_the_others_back() {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 2);
        let begin = kinesis.now() - Duration::from_secs(3600);
        for number in 0..100_u32 {
            let at = begin + Duration::from_secs(u64::from(number));
            orders.shard(number as usize / 10 % 2).put_at(at, number.to_string());
        }
        throttle(&kinesis, orders.shard(0).id(), Duration::from_secs(6));
        let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(sorted(&kinesis).await, expected);
    }

    /// Returns the sorted records of a stream without an end, after both shards were quiet for a minute,
    /// shard 1 was throttled for `time`, and a record of shard 1 and a later one of shard 0 arrived.
    /// Returns the time until the first of the two as well.
    async fn after_a_quiet_minute(time: Duration) -> (Vec<String>, Duration) {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 2);
        let begin = kinesis.now() - Duration::from_secs(3600);
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .starting_position(StartingPosition::TrimHorizon)
            .checkpoint_on(CheckpointOn::Ack)
            .build()
            .unwrap();
        let mut records = std::pin::pin!(by_arrival(&consumer));
        let minute = tokio::time::timeout(Duration::from_secs(60), records.next()).await;
        assert!(minute.is_err(), "expected no record");
        throttle(&kinesis, orders.shard(1).id(), time);
        orders.shard(1).put_at(begin, "first");
        // Shard 1 has been throttled when the record of shard 0 arrives.
        let throttled = tokio::time::timeout(Duration::from_secs(3), records.next()).await;
        assert!(throttled.is_err(), "expected no record while the shard is throttled");
        orders.shard(0).put_at(begin + Duration::from_secs(1), "second");
        let waiting = Instant::now();
        let mut data = Vec::new();
        let mut waited = Duration::ZERO;
        for _ in 0..2 {
            let next = tokio::time::timeout(Duration::from_secs(90), records.next()).await;
            let record = next.expect("expected a record within 90 s").unwrap().unwrap();
            if data.is_empty() {
                waited = waiting.elapsed();
            }
            data.push(String::from_utf8(record.data().to_vec()).unwrap());
            record.ack();
        }
        (data, waited)
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_shard_that_is_throttled_keeps_its_place() {
        let (data, _) = after_a_quiet_minute(Duration::from_secs(7)).await;
        assert_eq!(data, ["first", "second"]);
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_throttling_holds_the_others_back_for_ten_seconds() {
        let (data, waited) = after_a_quiet_minute(Duration::from_secs(40)).await;
        assert_eq!(data, ["second", "first"]);
        // The throttling began up to three seconds before.
        let least = PATIENCE.saturating_sub(Duration::from_secs(3));
        assert!((least..=PATIENCE).contains(&waited), "waited for {waited:?}");
    }
}
