//! Enhanced fan-out: subscriptions, and the registered consumer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Interruption, Kinesis, Outcome, aggregate};
use kinestream::{
    CheckpointOn, ConsumerBuilder, ErrorKind, Event, Records, SequenceNumber, ShardState,
};
use tokio::time::{Instant, sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, calls, next, number, orders, shard_of};

const SECOND: Duration = Duration::from_secs(1);

fn fan_out_consumer(kinesis: &Kinesis) -> ConsumerBuilder {
    crate::consumer(kinesis).fan_out("billing")
}

async fn numbers(records: &mut Records, numbers: std::ops::Range<usize>) {
    for expected in numbers {
        assert_eq!(number(&next(records).await), expected);
    }
}

fn after(number: &SequenceNumber) -> String {
    format!("AFTER_SEQUENCE_NUMBER:{number}")
}

#[tokio::test(start_paused = true)]
async fn record_is_delivered_as_soon_as_it_is_put() {
    let (kinesis, orders) = orders(1);
    kinesis.set_registration_time(3 * SECOND);
    orders.shard(0).put("0");
    let consumer = fan_out_consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    numbers(&mut records, 0..1).await;
    for number in 1..20 {
        let putting = tokio::spawn({
            let orders = orders.clone();
            async move {
                sleep(7 * SECOND).await;
                orders.shard(0).put(number.to_string());
                Instant::now()
            }
        });
        assert_eq!(crate::number(&next(&mut records).await), number);
        assert_eq!(putting.await.unwrap().elapsed(), Duration::ZERO);
    }
    let named = |operation| calls(&kinesis, operation).len();
    assert_eq!(named("RegisterStreamConsumer"), 1);
    assert_eq!(named("GetRecords") + named("GetShardIterator"), 0, "expected no polling");
    consumer.close().await.unwrap();
    drop(records);
    assert_eq!(named("DeregisterStreamConsumer"), 0);
    // Another consumer uses the registered one.
    orders.shard(0).put("20");
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    numbers(&mut records, 0..21).await;
    assert_eq!(named("RegisterStreamConsumer"), 1);
}

#[tokio::test(start_paused = true)]
async fn subscriptions_follow_each_other_without_loss_or_delay() {
    let (kinesis, orders) = orders(2);
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    let writing = tokio::spawn(async move {
        for number in 0..400 {
            orders.shard(number % 2).put(number.to_string());
            sleep(7 * SECOND).await;
        }
    });
    // About three quarters of an hour.
    let began = Instant::now();
    for number in 0..400 {
        let record = next(&mut records).await;
        assert_eq!(crate::number(&record), number, "expected each record once and in order");
        let late = began.elapsed().saturating_sub(u32::try_from(number).unwrap() * 7 * SECOND);
        assert!(late < 6 * SECOND, "record {number} is {late:?} late");
    }
    writing.await.unwrap();
    let subscribed = calls(&kinesis, "SubscribeToShard");
    assert!((20..26).contains(&subscribed.len()), "{} subscriptions", subscribed.len());
    assert!(subscribed.iter().all(|call| call.status == Some(200)), "{subscribed:?}");
}

#[tokio::test(start_paused = true)]
async fn failed_subscription_loses_and_repeats_no_record() {
    let (kinesis, orders) = orders(1);
    let shard = orders.shard(0);
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    let mut put = 0;
    for interruption in [
        Interruption::Ends,
        Interruption::Resets,
        Interruption::Stalls,
        Interruption::fails("InternalFailureException", "internal failure"),
        Interruption::fails("KMSThrottlingException", "slow down"),
        Interruption::fails("ResourceInUseException", "taken over"),
        Interruption::fails("SomethingNewException", "unheard of"),
    ] {
        for _ in 0..3 {
            shard.put(put.to_string());
            numbers(&mut records, put..put + 1).await;
            put += 1;
            sleep(2 * SECOND).await;
            assert_eq!(shard.interrupt(&interruption), 1, "{interruption:?}");
            shard.put(put.to_string());
            let began = Instant::now();
            numbers(&mut records, put..put + 1).await;
            let waited = began.elapsed();
            assert!(waited < 40 * SECOND, "{interruption:?}: {waited:?}");
            put += 1;
        }
    }
    for outcome in [
        Outcome::failed(500, "InternalFailureException", "internal failure"),
        Outcome::failed(400, "LimitExceededException", "too many"),
        Outcome::failed(400, "ResourceInUseException", "not yet"),
        Outcome::Refused,
        Outcome::Lost,
        Outcome::Cut,
        Outcome::Hangs,
    ] {
        sleep(6 * SECOND).await;
        kinesis.next_calls("SubscribeToShard", 2, outcome.clone());
        shard.interrupt(&Interruption::Resets);
        shard.put(put.to_string());
        let began = Instant::now();
        numbers(&mut records, put..put + 1).await;
        assert!(began.elapsed() < 90 * SECOND, "{outcome:?}: {:?}", began.elapsed());
        put += 1;
    }
    assert_silent(&mut records).await;
}

#[tokio::test(start_paused = true)]
async fn subscription_ends_after_the_caller_stops_polling() {
    let (kinesis, orders) = orders(1);
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
    orders.shard(0).put("1");
    sleep(SECOND).await;
    orders.shard(0).put("2");
    sleep(5 * SECOND).await;
    assert_eq!(kinesis.in_flight(), 1, "expected the subscription to be kept for a few seconds");
    sleep(10 * SECOND).await;
    assert_eq!(kinesis.in_flight(), 0);
    orders.shard(0).put("3");
    sleep(600 * SECOND).await;
    assert_eq!(calls(&kinesis, "SubscribeToShard").len(), 1);
    numbers(&mut records, 1..4).await;
    assert_eq!(calls(&kinesis, "SubscribeToShard").len(), 2);
}

/// Pushed data that nothing reads blocks the other subscriptions of its connection.
#[tokio::test(start_paused = true)]
async fn subscription_ends_while_another_call_lasts() {
    let (kinesis, orders) = orders(1);
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
    let failing = Arc::new(AtomicBool::new(true));
    kinesis.on_call({
        let failing = failing.clone();
        move |call| match &*call.operation {
            "ListShards" if failing.load(Ordering::Relaxed) => {
                Outcome::failed(500, "InternalFailureException", "no listing")
            }
            _ => Outcome::Served,
        }
    });
    // The hash range of the child, which the listing shows, decides about its user record.
    let [left, right] = orders.shard(0).split();
    let packed = aggregate([("key", "1")]);
    left.put(packed.clone());
    right.put(packed);
    assert!(timeout(8 * SECOND, records.next()).await.is_err());
    assert_eq!(kinesis.in_flight(), 2, "expected the subscriptions to be kept for a few seconds");
    assert!(timeout(8 * SECOND, records.next()).await.is_err());
    assert_eq!(kinesis.in_flight(), 0);
    failing.store(false, Ordering::Relaxed);
    numbers(&mut records, 1..2).await;
    left.put("2");
    numbers(&mut records, 2..3).await;
}

#[tokio::test(start_paused = true)]
async fn fan_out_stays_within_the_memory_budget() {
    let (kinesis, orders) = orders(4);
    let large = |number: usize| format!("{}{number:0>2}", "0".repeat(1_000_000));
    for number in 0..40 {
        orders.shard(number % 4).put(large(number));
    }
    // The budget has room for one response while it is read.
    let mut records =
        fan_out_consumer(&kinesis).max_buffered_bytes(3 << 20).build().unwrap().records();
    let mut read = vec![Vec::new(); 4];
    for _ in 0..40 {
        let record = next(&mut records).await;
        read[shard_of(&record)].push(number(&record));
        sleep(SECOND / 10).await;
    }
    for (shard, read) in read.into_iter().enumerate() {
        assert_eq!(read, (0..10).map(|place| place * 4 + shard).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn children_are_read_after_their_parents() {
    let (kinesis, orders) = orders(1);
    for named in [true, false] {
        kinesis.set_child_shards(named);
        let store = RecordingStore::default();
        let mut records =
            fan_out_consumer(&kinesis).store(store.clone()).build().unwrap().records();
        let parent = orders.open_shards()[0].clone();
        parent.put("0");
        let [left, right] = parent.split();
        left.put("1");
        right.put("1");
        let merged = left.merge(&right);
        merged.put("2");
        loop {
            let record = next(&mut records).await;
            if shard_of(&record) == merged.index() {
                assert_eq!(number(&record), 2);
                break;
            }
        }
        for shard in [parent, left, right] {
            assert_eq!(store.position(shard.index()).await.unwrap(), "SHARD_END");
        }
        drop(records);
        sleep(10 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn checkpoint_of_a_quiet_shard_advances_only_over_finished_records() {
    let (kinesis, orders) = orders(1);
    let first = orders.shard(0).put("0");
    let store = RecordingStore::default();
    let reader = fan_out_consumer(&kinesis).store(store.clone()).checkpoint_on(CheckpointOn::Ack);
    let reader = reader.build().unwrap();
    let mut records = reader.records();
    let held = next(&mut records).await;
    let waiting = timeout(300 * SECOND, records.next()).await;
    assert!(waiting.is_err());
    assert_eq!(
        store.position(0).await.unwrap(),
        "TRIM_HORIZON",
        "expected no checkpoint before the record is finished"
    );
    held.ack();
    let waiting = timeout(5 * SECOND, records.next()).await;
    assert!(waiting.is_err());
    let moved = store.position(0).await.unwrap();
    assert!(moved > after(&first), "{moved}");
    let saves = store.saves().len();
    let waiting = timeout(600 * SECOND, records.next()).await;
    assert!(waiting.is_err());
    assert!(store.position(0).await.unwrap() > moved);
    let saves = store.saves().len() - saves;
    assert!((8..12).contains(&saves), "{saves} saves in ten minutes");
    drop(records);
    reader.close().await.unwrap();
    // Record 0 was finished before it is trimmed, so its loss is not reported.
    let second = orders.shard(0).put("1");
    orders.shard(0).trim(1);
    for reader in [fan_out_consumer(&kinesis), crate::consumer(&kinesis)] {
        let mut records = reader.store(store.clone()).build().unwrap().records();
        let record = next(&mut records).await;
        assert_eq!(record.sequence_number(), &second);
    }
}

#[tokio::test(start_paused = true)]
async fn consumer_deregistered_while_reading_is_registered_again() {
    let (kinesis, orders) = orders(1);
    let consumer = fan_out_consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
    let client = kinesis.client();
    let arn = client.describe_stream_summary().stream_name("orders").send().await.unwrap();
    let arn = arn.stream_description_summary.unwrap().stream_arn;
    let deregistration =
        client.deregister_stream_consumer().stream_arn(arn).consumer_name("billing");
    deregistration.send().await.unwrap();
    let mut events = consumer.events();
    let reading = timeout(60 * SECOND, records.next()).await;
    assert!(reading.is_err(), "expected no error: {reading:?}");
    assert!(matches!(events.next().await, Some(Event::Retried { .. })));
    orders.shard(0).put("1");
    numbers(&mut records, 1..2).await;
    assert_eq!(calls(&kinesis, "RegisterStreamConsumer").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn last_worker_to_close_deregisters_the_consumer() {
    let (kinesis, orders) = orders(2);
    let store = kinestream::MemoryStore::new();
    let build = |name: &str| {
        fan_out_consumer(&kinesis)
            .store(store.clone())
            .worker_id(name)
            .deregister_on_close(true)
            .build()
    };
    let (first, second) = (build("a").unwrap(), build("b").unwrap());
    let mut reading: Vec<Records> = vec![first.records(), second.records()];
    let mut reading = futures::stream::select_all(reading.drain(..));
    orders.shard(0).put("0");
    assert!(reading.next().await.unwrap().is_ok());
    let _quiet = timeout(10 * SECOND, reading.next()).await;
    first.close().await.unwrap();
    assert_eq!(calls(&kinesis, "DeregisterStreamConsumer").len(), 0);
    second.close().await.unwrap();
    assert_eq!(calls(&kinesis, "DeregisterStreamConsumer").len(), 1);
    second.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn denied_registration_is_reported_once_for_all_shards() {
    let (kinesis, orders) = orders(20);
    let denied = crate::denied();
    kinesis.next_calls("RegisterStreamConsumer", usize::MAX, denied);
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    let error = records.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_silent(&mut records).await;
    assert!(calls(&kinesis, "RegisterStreamConsumer").len() < 60);
    kinesis.on_call(|_| Outcome::Served);
    orders.shard(7).put("0");
    numbers(&mut records, 0..1).await;
}

/// Kinesis allows 5 calls of `RegisterStreamConsumer` and 20 of `DescribeStreamConsumer` per
/// second.
#[tokio::test(start_paused = true)]
async fn registration_that_is_never_listed_stays_within_the_call_limits() {
    let (kinesis, _orders) = orders(20);
    kinesis.on_call(|call| match &*call.operation {
        "DescribeStreamConsumer" => Outcome::failed(400, "ResourceNotFoundException", "none"),
        "RegisterStreamConsumer" => Outcome::Garbled {
            status: 200,
            body: r#"{"Consumer":{"ConsumerName":"billing","ConsumerARN":"arn:c",
                "ConsumerStatus":"CREATING","ConsumerCreationTimestamp":0}}"#
                .to_owned(),
        },
        _ => Outcome::Served,
    });
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    assert_silent(&mut records).await;
    for (operation, limit) in [("RegisterStreamConsumer", 5), ("DescribeStreamConsumer", 20)] {
        let called: Vec<Instant> = calls(&kinesis, operation).iter().map(|call| call.at).collect();
        assert!(called.len() > 10, "expected more than 10 calls of {operation}: {}", called.len());
        let most = called
            .iter()
            .map(|first| called.iter().filter(|at| (*first..*first + SECOND).contains(at)).count());
        let most = most.max().unwrap();
        assert!(most <= limit, "{operation}: {most} calls in a second, but {limit} are allowed");
    }
}

#[tokio::test(start_paused = true)]
async fn consumer_that_is_never_found_is_reported_once_and_its_shards_released() {
    for is_known in [false, true] {
        let (kinesis, orders) = orders(3);
        kinesis.on_call(move |call| match &*call.operation {
            "DescribeStreamConsumer" => Outcome::failed(400, "ResourceNotFoundException", "none"),
            "RegisterStreamConsumer" if is_known => {
                Outcome::failed(400, "ResourceInUseException", "it exists")
            }
            _ => Outcome::Served,
        });
        let consumer = fan_out_consumer(&kinesis).build().unwrap();
        let mut events = consumer.events();
        let mut records = consumer.records();
        let began = Instant::now();
        let next = timeout(1000 * SECOND, records.next()).await.expect("an error within 1000 s");
        let error = next.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("DescribeStreamConsumer"), "{error}");
        assert!(began.elapsed() >= 300 * SECOND, "{:?}", began.elapsed());
        let is_retried = |event: &Event| matches!(event, Event::Retried { .. });
        let retried = std::iter::from_fn(|| events.next().now_or_never().flatten());
        assert!(retried.filter(is_retried).count() > 2, "expected events during the wait");
        let mut released = BTreeSet::new();
        for _ in 0..300 {
            let quiet = timeout(SECOND, records.next()).await;
            assert!(quiet.is_err(), "reported once: {quiet:?}");
            let shards = consumer.status().await.unwrap().shards;
            let free = shards.into_iter().filter(|(_, status)| status.owner.is_none());
            released.extend(free.map(|(shard, status)| {
                assert_eq!(status.state, ShardState::Failed, "{shard}");
                shard
            }));
        }
        assert_eq!(
            released.len(),
            3,
            "expected the lease of each shard to be released: {released:?}"
        );
        let quiet = timeout(1000 * SECOND, records.next()).await;
        assert!(quiet.is_err(), "reported once: {quiet:?}");
        kinesis.on_call(|_| Outcome::Served);
        orders.shard(1).put("0");
        let record = timeout(600 * SECOND, records.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(number(&record), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn registration_beyond_the_twentieth_consumer_is_reported_once() {
    let (kinesis, orders) = orders(2);
    let client = kinesis.client();
    let arn = client.describe_stream_summary().stream_name("orders").send().await.unwrap();
    let arn = arn.stream_description_summary.unwrap().stream_arn;
    let name = |number: usize| format!("consumer-{number}");
    for number in 0..20 {
        let call = client.register_stream_consumer().stream_arn(&arn);
        call.consumer_name(name(number)).send().await.unwrap();
    }
    let mut records = fan_out_consumer(&kinesis).build().unwrap().records();
    let error = timeout(60 * SECOND, records.next()).await.expect("an error").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("LimitExceededException"), "{error}");
    assert_silent(&mut records).await;
    let call = client.deregister_stream_consumer().stream_arn(&arn);
    call.consumer_name(name(7)).send().await.unwrap();
    orders.shard(0).put("0");
    numbers(&mut records, 0..1).await;
}

#[tokio::test(start_paused = true)]
async fn restart_resumes_inside_an_aggregated_record() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put(aggregate((0..5).map(|number| ("key", number.to_string()))));
    let store = RecordingStore::default();
    for first in 0..5 {
        let reader = fan_out_consumer(&kinesis).store(store.clone()).build().unwrap();
        let mut records = reader.records();
        let record = next(&mut records).await;
        assert_eq!(number(&record), first);
        record.ack();
        drop(records);
        reader.close().await.unwrap();
        sleep(6 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn handoff_between_fan_out_workers_repeats_no_record() {
    let (kinesis, orders) = orders(4);
    let store = kinestream::MemoryStore::new();
    let build = |name: &str| {
        fan_out_consumer(&kinesis).store(store.clone()).worker_id(name).build().unwrap()
    };
    let (first, second) = (build("a"), build("b"));
    let mut records = first.records();
    for number in 0..40 {
        orders.shard(number % 4).put(number.to_string());
    }
    let mut read = std::collections::BTreeSet::new();
    for _ in 0..40 {
        read.insert(number(&next(&mut records).await));
    }
    let mut both = futures::stream::select_all([records, second.records()]);
    let writing = tokio::spawn(async move {
        for number in 40..400 {
            orders.shard(number % 4).put(number.to_string());
            sleep(SECOND / 10).await;
        }
    });
    let mut repeated = 0;
    while read.len() < 400 {
        let record = timeout(60 * SECOND, both.next()).await.unwrap().unwrap().unwrap();
        repeated += usize::from(!read.insert(number(&record)));
    }
    assert_eq!(repeated, 0, "expected a handoff without redelivery");
    writing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fan_out_shard_makes_progress_while_another_holds_all_memory() {
    let (kinesis, orders) = orders(2);
    let consumer = fan_out_consumer(&kinesis)
        .checkpoint_on(CheckpointOn::Ack)
        .max_in_flight(1)
        .max_buffered_bytes(1)
        .build()
        .unwrap();
    let mut records = consumer.records();
    orders.shard(0).put("0");
    orders.shard(0).put("1");
    let first = next(&mut records).await;
    // The second record of its batch takes all the memory until the first one is acknowledged.
    orders.shard(1).interrupt(&Interruption::Ends);
    orders.shard(1).put("0");
    // Kinesis allows a new subscription after five seconds.
    let other = timeout(6 * SECOND, records.next())
        .await
        .expect("a record through the reserve of the shard");
    assert_eq!(shard_of(&other.unwrap().unwrap()), 1);
    first.ack();
    assert_eq!(shard_of(&next(&mut records).await), 0);
}

#[tokio::test(start_paused = true)]
async fn consumer_that_stays_creating_is_reported_after_five_minutes() {
    let (kinesis, orders) = orders(3);
    kinesis.set_registration_time(900 * SECOND);
    orders.shard(0).put("0");
    let consumer = fan_out_consumer(&kinesis).build().unwrap();
    let mut events = consumer.events();
    let mut records = consumer.records();
    let began = Instant::now();
    let error = timeout(600 * SECOND, records.next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("CREATING"), "{error}");
    let waited = began.elapsed();
    assert!((300..400).contains(&waited.as_secs()), "{waited:?}");
    let mut retried = 0;
    while let Some(Some(event)) = events.next().now_or_never() {
        retried += usize::from(matches!(event, Event::Retried { .. }));
    }
    assert!(retried > 1, "{retried} events");
    let read = timeout(3600 * SECOND, async {
        loop {
            if let Some(Ok(record)) = records.next().await {
                return number(&record);
            }
        }
    });
    assert_eq!(read.await, Ok(0), "expected the record after the consumer became ACTIVE");
}

#[tokio::test(start_paused = true)]
async fn shard_in_use_for_an_hour_is_retried_at_the_allowed_rate_and_then_read() {
    let (kinesis, orders) = orders(1);
    let in_use = Outcome::failed(400, "ResourceInUseException", "another subscription");
    kinesis.next_calls("SubscribeToShard", usize::MAX, in_use);
    orders.shard(0).put("0");
    let consumer = fan_out_consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let quiet = timeout(3600 * SECOND, records.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let attempts = calls(&kinesis, "SubscribeToShard");
    // The back-off is 5 s to 7.5 s.
    assert!(attempts.len() >= 3600 / 8, "{} attempts", attempts.len());
    for pair in attempts.windows(2) {
        let pause = pair[1].at - pair[0].at;
        assert!(pause >= 5 * SECOND, "{pause:?} between attempts");
    }
    kinesis.on_call(|_| Outcome::Served);
    numbers(&mut records, 0..1).await;
}
