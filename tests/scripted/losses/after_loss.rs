//! The time between a reported loss and the next delivered record: the loss is reported once.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Outcome;
use kinestream::{MemoryStore, OnTrimmed};
use tokio::time::{Instant, sleep, timeout};

use crate::losses::retention::{HOUR, gaps, numbers, read_three_and_lose_two, sources, stop_after};
use crate::losses::sparse_shards::{sparse_shard, stored_after, stored_in_gap};
use crate::store::recording_store::RecordingStore;
use crate::{consumer, number, orders};

/// The retention period is lowered, and the oldest retained record is about to be trimmed. Events
/// without records precede it for up to two minutes.
#[tokio::test(start_paused = true)]
async fn loss_near_the_trim_horizon_is_reported_once() {
    let minute = Duration::from_secs(60);
    for (approach, left) in [(0, 12), (60, 12), (120, 12), (60, 6), (120, 6)] {
        for accepted in [false, true] {
            let (kinesis, orders) = orders(1);
            kinesis.set_retention(48 * HOUR);
            kinesis.set_trimmed_numbers_accepted(accepted);
            let builder = consumer(&kinesis).fan_out("billing").store(MemoryStore::new());
            let builder = builder.on_trimmed(OnTrimmed::TrimHorizon);
            for (number, age) in [40 * 60, 30 * 60, 24 * 60 - left].into_iter().enumerate() {
                orders.shard(0).put_at(kinesis.now() - age * minute, number.to_string());
            }
            kinesis.set_approach(minute);
            let reader = builder.clone().build().unwrap();
            let mut records = reader.records();
            numbers(&mut records, 0..1).await;
            stop_after(Duration::from_millis(1), reader, records).await;
            kinesis.set_approach(Duration::ZERO);
            kinesis.set_retention(24 * HOUR);
            let reader = builder.build().unwrap();
            let (mut events, mut records) = (reader.events(), reader.records());
            let (began, mut found, mut read) = (Instant::now(), 0, None);
            while began.elapsed() < (left - 1) * minute && read.is_none() {
                if let Ok(record) = timeout(Duration::from_millis(100), records.next()).await {
                    read = Some(number(&record.unwrap().unwrap()));
                }
                found += gaps(&mut events).len();
                if found > 0 {
                    kinesis.set_approach(Duration::from_secs(approach));
                }
            }
            let case = format!("{approach} s, {left} min, accepted: {accepted}");
            assert_eq!((read, found), (Some(2), 1), "{case}");
        }
    }
}

/// `Latest` skips records, which the reader finds on the way to the oldest retained record. Events
/// without records precede the record after it.
#[tokio::test(start_paused = true)]
async fn records_skipped_by_latest_stay_skipped_after_empty_events() {
    for accepted in [true, false] {
        let (kinesis, orders) = sparse_shard(60, None, [40, 30, 10]);
        kinesis.set_trimmed_numbers_accepted(accepted);
        let first = orders.shard(0).sequence_numbers()[0].clone();
        let store = stored_after(first, &kinesis, &orders, 5).await;
        orders.shard(0).trim(1);
        let builder = consumer(&kinesis).fan_out("billing").store(store);
        let reader = builder.on_trimmed(OnTrimmed::Latest).build().unwrap();
        let (mut events, mut records) = (reader.events(), reader.records());
        let left_out = timeout(Duration::from_secs(600), records.next()).await;
        assert!(left_out.is_err(), "accepted: {accepted}: {left_out:?}");
        assert_eq!(gaps(&mut events).len(), 1, "accepted: {accepted}");
        orders.shard(0).put("3");
        numbers(&mut records, 3..4).await;
    }
}

/// After a loss is reported, every placement fails until the oldest retained record is trimmed as
/// well.
#[tokio::test(start_paused = true)]
async fn loss_that_grows_before_the_next_record_is_reported_once() {
    for placement in ["GetShardIterator", "SubscribeToShard"] {
        let (kinesis, orders) = sparse_shard(0, None, [40, 30, 10]);
        kinesis.set_trimmed_numbers_accepted(true);
        let store = stored_in_gap(&kinesis, &orders, 39).await;
        let builder = consumer(&kinesis).on_trimmed(OnTrimmed::TrimHorizon).store(store);
        let is_pushed = placement == "SubscribeToShard";
        let builder = if is_pushed { builder.fan_out("billing") } else { builder };
        orders.shard(0).trim(1);
        let reader = builder.build().unwrap();
        let (mut events, mut records) = (reader.events(), reader.records());
        let (began, mut placements) = (Instant::now(), 0);
        kinesis.on_call(move |call| {
            placements += usize::from(call.operation == placement);
            let is_late = placements > 2 && began.elapsed() < Duration::from_secs(2000);
            if call.operation == placement && is_late { Outcome::Lost } else { Outcome::Served }
        });
        kinesis.set_retention(35 * HOUR);
        let early = timeout(HOUR / 2, records.next()).await;
        assert!(early.is_err(), "{placement}: {early:?}");
        assert_eq!(gaps(&mut events).len(), 1, "{placement}");
        orders.shard(0).trim(2);
        numbers(&mut records, 2..3).await;
        assert_eq!(gaps(&mut events), [], "{placement}");
    }
}

/// The decision of `Latest` to skip records holds for later starts, until a record is finished.
#[tokio::test(start_paused = true)]
async fn records_after_those_skipped_by_latest_are_read_after_a_restart() {
    for source in 0..2 {
        for accepted in [false, true] {
            for away in [0, 1, 30] {
                let (kinesis, orders) = orders(1);
                kinesis.set_trimmed_numbers_accepted(accepted);
                kinesis.set_retention(48 * HOUR);
                let builder = sources(&kinesis)[source].clone().on_trimmed(OnTrimmed::Latest);
                let builder = builder.store(RecordingStore::default());
                let last = read_three_and_lose_two(&kinesis, &orders, builder.clone()).await;
                sleep(HOUR).await;
                let case = format!("source {source}, accepted: {accepted}, away for {away} h");
                // The skipped records are retained for another 48 hours, and a restart reports them
                // again. With enhanced fan-out, the stored position is after them.
                let left_out = |is_kept: bool| Vec::from_iter(is_kept.then(|| Some(last.clone())));
                for expected in [left_out(true), left_out(source == 0)] {
                    let reader = builder.clone().build().unwrap();
                    let mut events = reader.events();
                    let mut records = reader.records();
                    let quiet = timeout(Duration::from_secs(300), records.next()).await;
                    assert!(quiet.is_err(), "{case}: {quiet:?}");
                    assert_eq!(gaps(&mut events), expected, "{case}");
                    drop(records);
                    reader.close().await.unwrap();
                    sleep(away * HOUR).await;
                }
                orders.shard(0).put("7");
                let reader = builder.build().unwrap();
                let mut events = reader.events();
                let mut records = reader.records();
                numbers(&mut records, 7..8).await;
                assert_eq!(gaps(&mut events), left_out(source == 0 && away < 30), "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn second_loss_is_reported_after_the_first() {
    for source in 0..2 {
        for accepted in [false, true] {
            for policy in [OnTrimmed::TrimHorizon, OnTrimmed::Latest] {
                let (kinesis, orders) = orders(1);
                kinesis.set_trimmed_numbers_accepted(accepted);
                kinesis.set_retention(24 * HOUR);
                let builder = sources(&kinesis)[source].clone().on_trimmed(policy);
                let builder = builder.store(RecordingStore::default());
                let last = read_three_and_lose_two(&kinesis, &orders, builder.clone()).await;
                orders.shard(0).trim(7);
                let mut read = Vec::new();
                for _start in 0..2 {
                    let reader = builder.clone().build().unwrap();
                    let mut events = reader.events();
                    let mut records = reader.records();
                    if let Ok(Some(Ok(record))) =
                        timeout(Duration::from_secs(300), records.next()).await
                    {
                        read.push(number(&record));
                    }
                    let case = format!("source {source}, accepted: {accepted}, {policy:?}");
                    // With enhanced fan-out, the position advances while the shard is quiet.
                    let reported = gaps(&mut events);
                    assert_eq!(reported.len(), 1, "{case}");
                    assert!(reported[0] >= Some(last.clone()), "{case}: {reported:?}");
                    drop(records);
                    reader.close().await.unwrap();
                    orders.shard(0).put("7");
                    sleep(30 * HOUR).await;
                    orders.shard(0).put("8");
                    sleep(HOUR).await;
                }
                let oldest = if policy == OnTrimmed::Latest { vec![] } else { vec![8] };
                assert_eq!(read, oldest);
            }
        }
    }
}
