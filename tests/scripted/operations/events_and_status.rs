//! Events and the status of an application.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::Outcome;
use kinestream::{
    Checkpoint, CheckpointOn, Consumer, ErrorKind, Event, Events, MemoryStore, OnTrimmed, Record,
    ShardId, ShardState, StartingPosition, WireFormat,
};
use tokio::time::{sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{consumer, next, orders, shards};

const SECOND: Duration = Duration::from_secs(1);

/// Returns the events since the last call.
fn drain_events(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.next().now_or_never()).flatten().collect()
}

fn id(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

/// Asserts that the expected events happened in this order, possibly among others.
fn assert_in_order(happened: &[Event], expected: &[Event]) {
    let mut left = happened.iter();
    for event in expected {
        assert!(left.any(|it| it == event), "expected {event:?} in this order in {happened:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn events_follow_a_shard_from_its_lease_to_its_end() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    let shard = orders.shard(0);
    shard.put("0");
    next(&mut records).await;
    assert!(timeout(5 * SECOND, records.next()).await.is_err());
    let [left, right] = shard.split();
    for child in [&left, &right] {
        child.put("1");
        next(&mut records).await;
    }
    let happened = drain_events(&mut events);
    let shard_id = || id(0);
    let epoch = shards(&consumer).await[&id(0)].epoch;
    assert!(matches!(happened[0], Event::WorkerJoined { .. }), "{happened:#?}");
    let position = Some(Checkpoint::TrimHorizon);
    assert_in_order(
        &happened,
        &[
            Event::LeaseGained { shard_id: shard_id(), epoch },
            Event::ShardStarted { shard_id: shard_id(), position: position.clone() },
            Event::CaughtUp { shard_id: shard_id() },
            Event::ShardEnded { shard_id: shard_id(), children: vec![id(1), id(2)] },
            Event::Resharded { shard_id: id(1), parents: vec![id(0)] },
            Event::ShardFinished { shard_id: shard_id() },
            Event::ShardStarted { shard_id: id(1), position },
        ],
    );
    let caught_up = Event::CaughtUp { shard_id: shard_id() };
    assert_eq!(happened.iter().filter(|event| **event == caught_up).count(), 1);
    drop((records, consumer));
    #[cfg(feature = "serde")]
    {
        let text = serde_json::to_string(&happened).unwrap();
        assert!(text.contains(r#"{"caught_up":{"shard_id":"shardId-000000000000"}}"#), "{text}");
        assert_eq!(serde_json::from_str::<Vec<Event>>(&text).unwrap(), happened);
    }
    let rest = timeout(60 * SECOND, events.collect::<Vec<_>>()).await;
    assert!(rest.is_ok(), "expected the events to end with the consumer");
}

#[tokio::test(start_paused = true)]
async fn shard_finished_event_is_emitted_once_and_not_before_it_is_stored() {
    let finished =
        |event: &Event| matches!(event, Event::ShardFinished { shard_id } if *shard_id == id(0));
    for is_seek in [false, true] {
        let (kinesis, orders) = orders(1);
        let consumer = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
        let (mut events, mut records) = (consumer.events(), consumer.records());
        orders.shard(0).put("0");
        orders.shard(0).split();
        let held = next(&mut records).await;
        assert!(timeout(60 * SECOND, records.next()).await.is_err());
        assert!(
            !drain_events(&mut events).iter().any(finished),
            "expected no event for a shard that is read and not finished"
        );
        if is_seek {
            consumer.seek(StartingPosition::TrimHorizon).await.unwrap();
        }
        held.ack();
        drop(records);
        consumer.close().await.unwrap();
        let happened = drain_events(&mut events);
        let count = happened.iter().filter(|event| finished(event)).count();
        assert_eq!(count, usize::from(!is_seek), "{happened:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retried_calls_emit_events_with_their_attempts() {
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    for (operation, times, outcome) in [
        ("ListShards", 2, Outcome::Refused),
        ("GetRecords", 2, Outcome::throttled()),
        ("GetRecords", 1, Outcome::failed(500, "InternalFailureException", "internal failure")),
    ] {
        kinesis.next_calls(operation, times, outcome);
        orders.shard(0).put("0");
        next(&mut records).await;
    }
    let mut seen = Vec::new();
    for event in drain_events(&mut events) {
        match event {
            Event::Throttled { shard_id, attempt } => seen.push((shard_id, None, attempt)),
            Event::Retried { shard_id, kind, message, attempt } => {
                assert!(message.starts_with("stream orders"), "{message}");
                seen.push((shard_id, Some(kind), attempt));
            }
            _ => {}
        }
    }
    let unavailable = Some(ErrorKind::Unavailable);
    assert_eq!(
        seen,
        [
            (None, unavailable, 1),
            (None, unavailable, 2),
            (Some(id(0)), None, 1),
            (Some(id(0)), None, 2),
            (Some(id(0)), unavailable, 1),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn gap_event_has_the_last_sequence_number() {
    let (kinesis, orders) = orders(1);
    let store = MemoryStore::new();
    let shard = orders.shard(0);
    let numbers: Vec<_> = (0..5).map(|number| shard.put(number.to_string())).collect();
    let read = |count| {
        let builder = consumer(&kinesis).store(store.clone()).on_trimmed(OnTrimmed::TrimHorizon);
        let consumer = builder.build().unwrap();
        async move {
            let mut events = consumer.events();
            for _ in 0..count {
                next(&mut consumer.records()).await.ack();
            }
            consumer.close().await.unwrap();
            drain_events(&mut events)
        }
    };
    read(1).await;
    shard.trim(3);
    let gaps: Vec<Event> =
        read(1).await.into_iter().filter(|event| matches!(event, Event::Gap { .. })).collect();
    let position = Checkpoint::TrimHorizon;
    assert_eq!(gaps, [Event::Gap { shard_id: id(0), after: Some(numbers[0].clone()), position }]);
}

#[tokio::test(start_paused = true)]
async fn store_outage_emits_its_start_and_its_end() {
    let (kinesis, orders) = orders(1);
    let store = RecordingStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    orders.shard(0).put("0");
    next(&mut records).await;
    store.set_down(true);
    assert!(timeout(10 * SECOND, records.next()).await.is_err());
    store.set_down(false);
    assert!(timeout(10 * SECOND, records.next()).await.is_err());
    let happened = drain_events(&mut events);
    let failed = happened.iter().filter(|event| matches!(event, Event::StoreFailed { .. }));
    assert_eq!(failed.count(), 1, "{happened:#?}");
    let recovered = happened.iter().find_map(|event| match event {
        Event::StoreRecovered { after } => Some(*after),
        _ => None,
    });
    assert!(recovered.is_some_and(|after| after >= 9 * SECOND), "{happened:#?}");
}

#[tokio::test(start_paused = true)]
async fn status_shows_the_state_of_every_shard() {
    let (kinesis, orders) = orders(2);
    let store = MemoryStore::new();
    let worker = |name: &str| {
        let builder = consumer(&kinesis).store(store.clone()).worker_id(name);
        builder.checkpoint_on(CheckpointOn::Ack).build().unwrap()
    };
    let state = async |consumer: &Consumer, number: usize| {
        let status = consumer.status().await.unwrap();
        let shard = status.shards.get(&id(number)).cloned();
        shard.map(|shard| (shard.state, shard.owner, shard.millis_behind_latest))
    };
    let (first, other) = (worker("first"), worker("other"));
    assert!(
        first.status().await.unwrap().shards.is_empty(),
        "expected no shards before the first reader"
    );
    let mut records = first.records();
    orders.shard(0).put("0");
    let held = next(&mut records).await;
    let mine = |state, lag| Some((state, Some("first".to_owned()), lag));
    assert_eq!(state(&first, 0).await, mine(ShardState::Reading, Some(0)));
    // The other worker knows everything but the lag.
    assert_eq!(state(&other, 0).await, mine(ShardState::Reading, None));
    assert_eq!(other.status().await.unwrap().workers, ["first"]);
    orders.shard(0).split();
    assert!(timeout(60 * SECOND, records.next()).await.is_err());
    assert_eq!(state(&other, 2).await, Some((ShardState::Waiting, None, None)));
    Record::ack(&held);
    let _nothing = timeout(10 * SECOND, records.next()).await;
    assert_eq!(state(&other, 0).await, Some((ShardState::Finished, None, None)));
    assert_eq!(state(&other, 2).await, mine(ShardState::Reading, None));
    drop(records);
    first.close().await.unwrap();
    sleep(SECOND).await;
    assert_eq!(state(&other, 2).await, Some((ShardState::Unassigned, None, None)));
    let status = other.status().await.unwrap();
    assert_eq!(status.shards[&id(2)].parents, [id(0)]);
    #[cfg(feature = "serde")]
    {
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<kinestream::ApplicationStatus>(&text).unwrap(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn response_without_lag_is_not_caught_up() {
    let (kinesis, orders) = orders(1);
    for number in 0..10 {
        orders.shard(0).put(number.to_string());
    }
    // All records but the last one are an hour behind.
    sleep(3600 * SECOND).await;
    let mut calls = 0;
    kinesis.on_call(move |call| {
        calls += usize::from(call.operation == "GetRecords");
        match calls {
            1 | 5 if call.operation == "GetRecords" => Outcome::without(["MillisBehindLatest"]),
            _ => Outcome::Served,
        }
    });
    let builder = consumer(&kinesis).wire_format(WireFormat::Json);
    let consumer = builder.limit(1).prefetch(0).build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    for number in 0..9 {
        let record = next(&mut records).await;
        let is_known = number != 0;
        assert_eq!(record.millis_behind_latest() > 0, is_known, "record {number}");
        let behind = consumer.status().await.unwrap().shards[&id(0)].millis_behind_latest;
        assert_eq!(behind.is_some_and(|millis| millis > 0), is_known, "record {number}");
        let happened = drain_events(&mut events);
        let caught_up = Event::CaughtUp { shard_id: id(0) };
        assert!(!happened.contains(&caught_up), "record {number}: {happened:#?}");
    }
    next(&mut records).await;
    assert!(timeout(5 * SECOND, records.next()).await.is_err());
    assert!(drain_events(&mut events).contains(&Event::CaughtUp { shard_id: id(0) }));
}

/// A subscription lives for 5 minutes, and the next one reports its lag.
#[tokio::test(start_paused = true)]
async fn fan_out_event_without_lag_is_not_caught_up() {
    let (kinesis, orders) = orders(1);
    orders.shard(0).put("0");
    kinesis.next_calls("SubscribeToShard", 1, Outcome::without(["MillisBehindLatest"]));
    let consumer = consumer(&kinesis).fan_out("billing").build().unwrap();
    let (mut events, mut records) = (consumer.events(), consumer.records());
    assert_eq!(next(&mut records).await.millis_behind_latest(), 0);
    assert!(timeout(240 * SECOND, records.next()).await.is_err());
    let caught_up = Event::CaughtUp { shard_id: id(0) };
    let happened = drain_events(&mut events);
    assert!(!happened.contains(&caught_up), "{happened:#?}");
    assert_eq!(consumer.status().await.unwrap().shards[&id(0)].millis_behind_latest, None);
    assert!(timeout(120 * SECOND, records.next()).await.is_err());
    assert!(drain_events(&mut events).contains(&caught_up));
    assert_eq!(consumer.status().await.unwrap().shards[&id(0)].millis_behind_latest, Some(0));
}
