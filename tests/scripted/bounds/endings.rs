//! Ending positions: the stream delivers everything up to the ending, nothing after it, and ends.

use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};
use kinestream::store::Scope;
use kinestream::testing::{Kinesis, Outcome, aggregate};
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, ConsumerBuilder, EndingPosition, Event, MemoryStore,
    Records, ShardId, ShardState, StartingPosition, WireFormat,
};
use tokio::time::{Instant, sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, calls, consumer, next, number, orders, shards};

pub(super) const SECOND: Duration = Duration::from_secs(1);
/// The numbers of no records.
pub(super) const NOTHING: [usize; 0] = [];
/// Longer than a shard needs to be known as caught up after the ending.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// Returns the builder of a consumer that reads up to the records that arrived until `time`.
pub(super) fn until(kinesis: &Kinesis, time: SystemTime) -> ConsumerBuilder {
    consumer(kinesis).ending_position(EndingPosition::AtTimestamp(time))
}

pub(super) fn to_the_tip(kinesis: &Kinesis) -> ConsumerBuilder {
    consumer(kinesis).ending_position(EndingPosition::Latest)
}

/// Reads the stream to its end, which must come within an hour. Returns the numbers of the records,
/// sorted.
pub(super) async fn rest(records: &mut Records) -> Vec<usize> {
    let all = records.map_ok(|record| number(&record)).try_collect::<Vec<_>>();
    let mut all = timeout(LONG, all).await.expect("expected the stream to end").unwrap();
    all.sort_unstable();
    all
}

pub(super) async fn position(store: &impl CheckpointStore, shard: &ShardId) -> Option<Checkpoint> {
    store.load(&Scope::new("default", "orders")).await.unwrap().remove(shard)
}

fn after(number: &kinestream::SequenceNumber) -> Option<Checkpoint> {
    format!("AFTER_SEQUENCE_NUMBER:{number}").parse().ok()
}

#[tokio::test(start_paused = true)]
async fn shard_ends_at_the_first_record_that_arrived_later_and_continues_after_it() {
    for fan_out in [false, true] {
        let (kinesis, orders) = orders(1);
        let (shard, store) = (orders.shard(0), MemoryStore::new());
        shard.put("0");
        let last = shard.put("1");
        let end = kinesis.now();
        sleep(SECOND).await;
        shard.put("2");
        let with = |builder: ConsumerBuilder| {
            let builder = builder.store(store.clone());
            if fan_out { builder.fan_out("billing") } else { builder }
        };
        for expected in [vec![0, 1], vec![]] {
            let job = with(until(&kinesis, end)).build().unwrap();
            let mut records = job.records();
            assert_eq!(rest(&mut records).await, expected);
            assert!(records.next().await.is_none(), "the stream is fused");
            job.close().await.unwrap();
            assert_eq!(position(&store, &shard.id()).await, after(&last));
        }
        let mut records = with(consumer(&kinesis)).build().unwrap().records();
        assert_eq!(number(&next(&mut records).await), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn quiet_shard_ends_when_it_has_caught_up_after_the_ending_and_makes_no_further_call() {
    for fan_out in [false, true] {
        let (kinesis, orders) = orders(1);
        let shard = orders.shard(0);
        shard.put("0");
        let end = kinesis.now() + 60 * SECOND;
        let builder = until(&kinesis, end);
        let builder = if fan_out { builder.fan_out("billing") } else { builder };
        let job = builder.build().unwrap();
        let (mut records, mut events) = (job.records(), job.events());
        assert_eq!(number(&next(&mut records).await), 0);
        // A host with a clock that is four minutes behind stamps the next record.
        assert!(timeout(4 * 60 * SECOND, records.next()).await.is_err());
        shard.put_at(end, "1");
        assert_eq!(number(&next(&mut records).await), 1);
        assert_eq!(rest(&mut records).await, NOTHING);
        let ended = kinesis.now().duration_since(end).unwrap();
        assert!(ended > 300 * SECOND && ended < 330 * SECOND, "{ended:?}");
        let mut reached = 0;
        while let Ok(Some(event)) = timeout(SECOND, events.next()).await {
            reached += usize::from(event == Event::EndingReached { shard_id: shard.id() });
            assert!(!matches!(event, Event::ShardEnded { .. }), "{event:?}");
        }
        assert_eq!(reached, 1);
        let state = &shards(&job).await[&shard.id()];
        assert_eq!(state.state, ShardState::EndingReached);
        assert_eq!(state.millis_behind_latest, None);
        let before =
            calls(&kinesis, "GetRecords").len() + calls(&kinesis, "SubscribeToShard").len();
        sleep(LONG).await;
        let read = calls(&kinesis, "GetRecords").len() + calls(&kinesis, "SubscribeToShard").len();
        assert_eq!(read, before, "a reached shard is not read");
        let health = job.health();
        assert!(health.is_live() && health.is_ready(), "{health:?}");
        assert_eq!((health.leases_held, health.stalled_for()), (0, Duration::ZERO));
        job.close().await.unwrap();
        assert_eq!(shards(&job).await[&shard.id()].state, ShardState::Unassigned);
    }
}

#[tokio::test(start_paused = true)]
async fn tip_is_the_moment_of_the_first_poll() {
    for fan_out in [false, true] {
        let (kinesis, orders) = orders(2);
        for number in 0..20 {
            orders.shard(number % 2).put(number.to_string());
        }
        let builder = to_the_tip(&kinesis).store(RecordingStore::default());
        let builder = if fan_out { builder.fan_out("billing") } else { builder };
        let job = builder.build().unwrap();
        let mut records = job.records();
        let began = Instant::now();
        let mut read = vec![number(&next(&mut records).await)];
        sleep(5 * SECOND).await;
        read.extend(rest(&mut records).await);
        read.sort_unstable();
        assert_eq!(read, (0..20).collect::<Vec<_>>());
        assert!(began.elapsed() < 30 * SECOND, "{:?}", began.elapsed());
        orders.shard(0).put("20");
        assert!(records.next().await.is_none());
        job.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn tip_delivers_a_record_of_a_host_whose_clock_is_ahead() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put_at(kinesis.now() + 290 * SECOND, "0");
    orders.shard(0).put("1");
    let mut records = to_the_tip(&kinesis).limit(1).build().unwrap().records();
    assert_eq!(rest(&mut records).await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn tip_of_a_shard_that_never_catches_up_is_bounded_by_arrival() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let mut records = to_the_tip(&kinesis).limit(1).build().unwrap().records();
    assert_eq!(number(&next(&mut records).await), 0);
    let putting = tokio::spawn(async move {
        for number in 1.. {
            orders.shard(0).put(number.to_string());
            sleep(SECOND / 10).await;
        }
    });
    let began = kinesis.now();
    let read = rest(&mut records).await;
    putting.abort();
    let arrived = SECOND / 10 * u32::try_from(read.len()).unwrap();
    assert!(arrived > 299 * SECOND && arrived < 303 * SECOND, "{arrived:?} since {began:?}");
}

#[tokio::test(start_paused = true)]
async fn lagging_shard_does_not_end_although_the_time_is_over() {
    let (kinesis, orders) = orders(1);
    for number in 0..50 {
        orders.shard(0).put(number.to_string());
    }
    let end = kinesis.now();
    sleep(LONG).await;
    // Each response but the last states a lag, and some hold no record.
    kinesis.next_calls("GetRecords", 5, Outcome::without(["Records"]));
    let mut records = until(&kinesis, end).limit(3).build().unwrap().records();
    assert_eq!(rest(&mut records).await, (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn records_without_a_lag_prove_nothing() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let end = kinesis.now();
    sleep(LONG).await;
    kinesis.next_calls("GetRecords", 100, Outcome::without(["MillisBehindLatest"]));
    let mut records = until(&kinesis, end).build().unwrap().records();
    assert_eq!(number(&next(&mut records).await), 0);
    let began = Instant::now();
    assert_eq!(rest(&mut records).await, NOTHING);
    assert!(began.elapsed() > 60 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn record_without_an_arrival_time_is_delivered() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let end = kinesis.now() - SECOND;
    sleep(LONG).await;
    kinesis.on_call(|call| match call.operation.as_str() {
        "GetRecords" => Outcome::without(["ApproximateArrivalTimestamp"]),
        _ => Outcome::Served,
    });
    let builder = until(&kinesis, end).wire_format(WireFormat::Json);
    let mut records = builder.build().unwrap().records();
    assert_eq!(rest(&mut records).await, [0]);
}

#[tokio::test(start_paused = true)]
async fn arrival_of_an_aggregated_record_decides_for_all_of_its_user_records() {
    let (kinesis, orders) = orders(1);
    let shard = orders.shard(0);
    let some = |from: usize| {
        let parts = (from..from + 3).map(|number| ("key".to_owned(), number.to_string()));
        aggregate(parts)
    };
    shard.put(some(0));
    shard.put("3");
    let end = kinesis.now();
    sleep(SECOND).await;
    shard.put(some(4));
    shard.put("7");
    let store = MemoryStore::new();
    let job = until(&kinesis, end).store(store.clone()).build().unwrap();
    let mut records = job.records();
    for expected in 0..2 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    drop(records);
    job.close().await.unwrap();
    // A restart inside an aggregated record that arrived in time.
    let job = until(&kinesis, end).store(store.clone()).build().unwrap();
    assert_eq!(rest(&mut job.records()).await, [1, 2, 3]);
    job.close().await.unwrap();
    // A restart inside one that arrived later.
    let job = until(&kinesis, end - 2 * SECOND).store(store).build().unwrap();
    assert_eq!(rest(&mut job.records()).await, NOTHING);
}

#[tokio::test(start_paused = true)]
async fn start_after_the_ending_ends_without_a_record() {
    // The clock of the host is an hour ahead, so no start is in the future.
    let kinesis = Kinesis::at(SystemTime::now() - LONG);
    let orders = kinesis.create_stream("orders", 2);
    orders.shard(0).put("0");
    sleep(600 * SECOND).await;
    let end = kinesis.now() - 30 * SECOND;
    for start in [
        StartingPosition::Latest,
        StartingPosition::AtTimestamp(end + SECOND),
        StartingPosition::AtTimestamp(kinesis.now()),
    ] {
        let job = until(&kinesis, end).starting_position(start).build().unwrap();
        let began = Instant::now();
        assert_eq!(rest(&mut job.records()).await, NOTHING, "{start:?}");
        assert!(began.elapsed() < 10 * SECOND, "{start:?}: {:?}", began.elapsed());
        job.close().await.unwrap();
    }
    assert_eq!(calls(&kinesis, "GetRecords").len(), 0);
    // A position by the store, after the ending.
    let (store, last) = (MemoryStore::new(), orders.shard(0).put("1"));
    let first = consumer(&kinesis).store(store.clone()).build().unwrap();
    let mut records = first.records();
    next(&mut records).await;
    next(&mut records).await.ack();
    drop(records);
    first.close().await.unwrap();
    let job = until(&kinesis, end).store(store.clone()).build().unwrap();
    assert_eq!(rest(&mut job.records()).await, NOTHING);
    job.close().await.unwrap();
    // The job may store that the shard was quiet, and not its end.
    let stored = position(&store, &orders.shard(0).id()).await.unwrap();
    assert!(stored.to_string().contains(last.as_str()), "{stored}");
}

#[tokio::test(start_paused = true)]
async fn latest_start_with_a_future_ending_delivers_what_arrives_between() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    sleep(2 * SECOND).await;
    let end = kinesis.now() + 60 * SECOND;
    let builder = until(&kinesis, end).starting_position(StartingPosition::Latest);
    let mut records = builder.build().unwrap().records();
    assert!(timeout(10 * SECOND, records.next()).await.is_err());
    orders.shard(0).put("1");
    assert_eq!(number(&next(&mut records).await), 1);
    sleep(60 * SECOND).await;
    orders.shard(0).put("2");
    assert_eq!(rest(&mut records).await, NOTHING);
}

#[tokio::test(start_paused = true)]
async fn stopped_job_continues_and_repeats_nothing_that_was_saved() {
    let (kinesis, orders) = orders(2);
    for number in 0..100 {
        orders.shard(number % 2).put(number.to_string());
    }
    let end = kinesis.now();
    sleep(SECOND).await;
    orders.shard(0).put("100");
    for store in [true, false] {
        let (leased, plain) = (MemoryStore::new(), RecordingStore::default());
        let builder = || {
            let builder = until(&kinesis, end).limit(7);
            if store { builder.store(leased.clone()) } else { builder.store(plain.clone()) }
        };
        let mut read = Vec::new();
        for _ in 0..4 {
            let job = builder().build().unwrap();
            let mut records = job.records();
            for _ in 0..20 {
                let record = next(&mut records).await;
                record.ack();
                read.push(number(&record));
            }
            drop(records);
            job.close().await.unwrap();
        }
        let job = builder().build().unwrap();
        read.extend(rest(&mut job.records()).await);
        job.close().await.unwrap();
        read.sort_unstable();
        assert_eq!(read, (0..100).collect::<Vec<_>>());
        let job = builder().build().unwrap();
        assert_eq!(rest(&mut job.records()).await, NOTHING);
    }
}

#[tokio::test(start_paused = true)]
async fn stream_ends_with_records_in_flight_and_close_saves_them_once_acknowledged() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let last = orders.shard(0).put("1");
    let end = kinesis.now();
    sleep(SECOND).await;
    orders.shard(0).put("2");
    let store = MemoryStore::new();
    let builder = until(&kinesis, end).checkpoint_on(CheckpointOn::Ack).store(store.clone());
    let job = builder.build().unwrap();
    let mut records = job.records();
    let held = [next(&mut records).await, next(&mut records).await];
    assert_eq!(rest(&mut records).await, NOTHING);
    assert_eq!(shards(&job).await[&orders.shard(0).id()].unacknowledged, Some(2));
    sleep(60 * SECOND).await;
    held.iter().for_each(kinestream::Record::ack);
    job.close().await.unwrap();
    assert_eq!(position(&store, &orders.shard(0).id()).await, after(&last));
}

#[tokio::test(start_paused = true)]
async fn stream_of_shards_ends_after_the_streams_of_its_shards() {
    let (kinesis, orders) = orders(3);
    for shard in 0..3 {
        orders.shard(shard).put(shard.to_string());
    }
    let end = kinesis.now();
    sleep(SECOND).await;
    orders.shard(0).put("3");
    sleep(600 * SECOND).await;
    let poll_timeout = Some(10 * SECOND);
    let job = until(&kinesis, end).poll_timeout(poll_timeout).build().unwrap();
    let mut events = job.events();
    let mut tasks = Vec::new();
    let mut streams = job.shards();
    let all = async {
        while let Some(shard) = streams.try_next().await.unwrap() {
            tasks.push(tokio::spawn(async move {
                let read = shard.try_collect::<Vec<_>>().await.unwrap();
                read.iter().map(number).collect::<Vec<_>>()
            }));
        }
    };
    timeout(LONG, all).await.expect("expected the stream of shards to end");
    let mut read = Vec::new();
    for task in tasks {
        read.extend(task.await.unwrap());
    }
    read.sort_unstable();
    assert_eq!(read, [0, 1, 2]);
    // The streams that have ended are not polled, and their callers have not stopped.
    sleep(60 * SECOND).await;
    assert_eq!(job.health().leases_held, 0);
    while let Ok(Some(event)) = timeout(SECOND, events.next()).await {
        assert!(!matches!(event, Event::ConsumerStalled { .. }), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stream_stays_open_while_an_error_keeps_a_shard_from_being_read() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let end = kinesis.now();
    sleep(SECOND).await;
    orders.shard(0).put("1");
    let began = Instant::now();
    kinesis.on_call(move |call| {
        let is_denied = call.operation == "GetRecords" && began.elapsed() < 300 * SECOND;
        if is_denied { crate::denied() } else { Outcome::Served }
    });
    let job = until(&kinesis, end).build().unwrap();
    let mut records = job.records();
    assert!(records.next().await.unwrap().is_err());
    assert_eq!(rest(&mut records).await, [0]);
}

#[tokio::test(start_paused = true)]
async fn stream_ends_only_after_a_listing_that_shows_nothing_else() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let end = kinesis.now();
    sleep(SECOND).await;
    orders.shard(0).put("1");
    let job = until(&kinesis, end).build().unwrap();
    let mut records = job.records();
    assert_eq!(number(&next(&mut records).await), 0);
    let unavailable = Outcome::failed(500, "InternalFailure", "no");
    kinesis.next_calls("ListShards", 3, unavailable);
    let before = calls(&kinesis, "ListShards").len();
    assert_eq!(rest(&mut records).await, NOTHING);
    assert!(calls(&kinesis, "ListShards").len() > before + 3);
}

#[tokio::test(start_paused = true)]
async fn reading_without_an_ending_does_not_end() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    let builder = consumer(&kinesis).ending_position(EndingPosition::Never);
    let mut records = builder.build().unwrap().records();
    next(&mut records).await;
    assert_silent(&mut records).await;
}

/// The listing that decides whether a shard at its tip is still open fails. The response that has
/// arrived by then is discarded, and its record must not be passed over.
#[tokio::test(start_paused = true)]
async fn record_of_a_discarded_response_at_the_tip_is_fetched_again() {
    for responses in 0..3 {
        let (kinesis, orders) = orders(1);
        orders.shard(0).put("0");
        let consumer = to_the_tip(&kinesis).build().unwrap();
        let mut records = consumer.records();
        assert_eq!(number(&next(&mut records).await), 0);
        kinesis.next_calls("ListShards", 1, Outcome::Refused);
        let before = calls(&kinesis, "GetRecords").len();
        let reading = tokio::spawn(async move { rest(&mut records).await });
        while calls(&kinesis, "GetRecords").len() < before + responses {
            sleep(SECOND / 100).await;
        }
        orders.shard(0).put("1");
        assert_eq!(reading.await.unwrap(), [1], "after {responses} responses");
    }
}
