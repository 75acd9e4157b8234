//! Pacing by the limits of Kinesis, the caller's demand and the memory budget.

use std::collections::HashMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kinestream::{CheckpointOn, WireFormat};
use tokio::time::{Instant, sleep, timeout};

use crate::{calls, consumer, next, number, orders};
use kinestream::testing::Outcome;

const MEBIBYTE: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn lagging_shard_is_polled_at_five_calls_per_second() {
    let (kinesis, orders) = orders(1);
    for number in 0..100 {
        orders.shard(0).put(number.to_string());
    }
    sleep(Duration::from_secs(10)).await;
    let consumer = consumer(&kinesis).limit(1).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    for expected in 0..100 {
        assert_eq!(number(&next(&mut records).await), expected);
    }
    let took = began.elapsed();
    assert_eq!(kinesis.violations(), [""; 0]);
    assert!(took < Duration::from_secs(22), "expected 100 calls at five a second: {took:?}");
    for window in calls(&kinesis, "GetRecords").windows(6) {
        assert!(window[5].at - window[0].at >= Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn polling_stays_within_two_mebibytes_a_second() {
    let (kinesis, orders) = orders(1);
    for _ in 0..40 {
        orders.shard(0).put(vec![0; MEBIBYTE]);
    }
    // Without the second fetch of the first records, which compares the formats.
    let consumer = consumer(&kinesis).wire_format(WireFormat::Json).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    for _ in 0..40 {
        next(&mut records).await;
    }
    assert_eq!(kinesis.violations(), [""; 0]);
    let took = began.elapsed();
    // The bytes before the last response delay it: 36 of 40 MiB, at 2 MiB a second.
    assert!(took >= Duration::from_secs(15) && took < Duration::from_secs(21), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn quiet_shard_is_polled_once_per_interval() {
    let (kinesis, _orders) = orders(1);
    let consumer = consumer(&kinesis).interval(Duration::from_secs(3)).build().unwrap();
    let mut records = consumer.records();
    assert!(timeout(Duration::from_secs(60), records.next()).await.is_err());
    let calls = calls(&kinesis, "GetRecords").len();
    assert!((19..=21).contains(&calls), "{calls} calls in a minute");
}

#[tokio::test(start_paused = true)]
async fn prefetch_starts_with_the_second_record_of_a_batch() {
    for prefetch in [0, 1, 3] {
        let (kinesis, orders) = orders(1);
        for number in 0..100 {
            orders.shard(0).put(number.to_string());
        }
        let builder = consumer(&kinesis).wire_format(WireFormat::Json).limit(10);
        let consumer = builder.prefetch(prefetch).build().unwrap();
        let mut records = consumer.records();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            calls(&kinesis, "GetRecords").len(),
            0,
            "expected no call before the first poll"
        );
        next(&mut records).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(
            calls(&kinesis, "GetRecords").len(),
            1,
            "expected no prefetch before the second poll"
        );
        next(&mut records).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(calls(&kinesis, "GetRecords").len(), 1 + prefetch);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_between_polls_lose_no_record_and_fail_no_call() {
    let (kinesis, orders) = orders(2);
    for number in 0..20 {
        orders.shard(number % 2).put(number.to_string());
    }
    let consumer = consumer(&kinesis).limit(2).build().unwrap();
    let mut records = consumer.records();
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(number(&next(&mut records).await));
        sleep(Duration::from_secs(600)).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    assert!(calls(&kinesis, "GetRecords").iter().all(|call| call.status == Some(200)));
}

#[tokio::test(start_paused = true)]
async fn hot_shard_does_not_starve_the_others() {
    let (kinesis, orders) = orders(20);
    for number in 0..50_000 {
        orders.shard(0).put(number.to_string());
    }
    for shard in 1..20 {
        for number in 0..10 {
            orders.shard(shard).put(number.to_string());
        }
    }
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    let mut quiet = 0;
    let mut hot = 0;
    while quiet < 190 {
        match next(&mut records).await.shard_id().as_str() {
            "shardId-000000000000" => hot += 1,
            _ => quiet += 1,
        }
    }
    // The first batches of the other shards arrive within 200 ms, and then the shards take turns.
    assert!(
        hot <= 20_000,
        "{hot} records of the hot shard were delivered before the last of the others"
    );
}

#[tokio::test(start_paused = true)]
async fn buffered_bytes_stay_within_the_budget() {
    let (kinesis, orders) = orders(8);
    kinesis.set_latency(Duration::from_millis(50));
    for shard in 0..8 {
        for _ in 0..4 {
            orders.shard(shard).put(vec![0; 10 * MEBIBYTE - 3]);
        }
    }
    let consumer = consumer(&kinesis).max_buffered_bytes(32 * MEBIBYTE).build().unwrap();
    let mut records = consumer.records();
    let mut taken = 0;
    for _ in 0..32 {
        taken += next(&mut records).await.data().len() + 3;
        sleep(Duration::from_secs(20)).await;
        // A record that did not fit into memory, or was compared, is fetched again.
        let read = calls(&kinesis, "GetRecords").into_iter().filter(|call| call.status.is_some());
        let records: HashMap<_, _> = read.map(|call| (call.last, call.bytes)).collect();
        let fetched: usize = records.into_values().sum();
        // Each shard may have one record beyond the budget.
        let most = (32 + 8 * 10) * MEBIBYTE;
        assert!(fetched - taken <= most, "{} bytes are buffered", fetched - taken);
    }
    assert_eq!(kinesis.violations(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn budget_smaller_than_a_record_admits_one_batch_at_a_time() {
    let (kinesis, orders) = orders(3);
    for shard in 0..3 {
        orders.shard(shard).put(vec![0; 10 * MEBIBYTE - 3]);
    }
    let consumer = consumer(&kinesis).max_buffered_bytes(1).build().unwrap();
    let mut records = consumer.records();
    for _ in 0..3 {
        next(&mut records).await;
    }
}

/// A burst larger than the response that a quiet shard expects is read when the budget has room for
/// it.
#[tokio::test(start_paused = true)]
async fn burst_on_quiet_shards_stays_within_the_budget() {
    for chunked in [false, true] {
        let (kinesis, orders) = orders(8);
        kinesis.set_chunked(chunked);
        let consumer = consumer(&kinesis).max_buffered_bytes(20 * MEBIBYTE).build().unwrap();
        let mut records = consumer.records();
        assert!(timeout(Duration::from_secs(5), records.next()).await.is_err());
        for shard in 0..8 {
            orders.shard(shard).put(vec![u8::try_from(shard).unwrap(); 9 * MEBIBYTE]);
        }
        let mut seen = Vec::new();
        for _ in 0..8 {
            seen.push(next(&mut records).await.data()[0]);
            sleep(Duration::from_secs(10)).await;
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..8).collect::<Vec<u8>>());
        assert_eq!(kinesis.violations(), [""; 0]);
    }
}

/// A response without a `Content-Length` counts by its size, not by the largest possible size.
#[tokio::test(start_paused = true)]
async fn responses_without_length_are_prefetched_at_full_speed() {
    let (kinesis, orders) = orders(4);
    kinesis.set_chunked(true);
    for number in 0..400 {
        orders.shard(number % 4).put(number.to_string());
    }
    let consumer = consumer(&kinesis).limit(10).max_buffered_bytes(MEBIBYTE).build().unwrap();
    let mut records = consumer.records();
    let began = Instant::now();
    next(&mut records).await;
    for _ in 1..400 {
        next(&mut records).await;
    }
    let took = began.elapsed();
    // Ten responses of each shard, at five a second.
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(calls(&kinesis, "GetRecords").iter().map(|call| call.records).max(), Some(10));
    assert_eq!(kinesis.violations(), [""; 0]);
    for number in 400..480 {
        orders.shard(0).put(number.to_string());
    }
    for _ in 0..2 {
        next(&mut records).await;
    }
    let first_call = kinesis.call_count();
    sleep(Duration::from_secs(60)).await;
    let ahead = kinesis.calls_from(first_call).iter().map(|call| call.records).sum::<usize>();
    assert_eq!(ahead, 10, "expected one prefetched batch");
}

/// Each shard that the caller waits for reads one record beyond the budget and prefetches nothing.
#[tokio::test(start_paused = true)]
async fn shards_without_memory_read_one_record_each() {
    let (kinesis, orders) = orders(8);
    for shard in 0..8 {
        for _ in 0..3 {
            orders.shard(shard).put(vec![0; 3 * MEBIBYTE]);
        }
    }
    let consumer = consumer(&kinesis).max_buffered_bytes(20 * MEBIBYTE).build().unwrap();
    let mut records = consumer.records();
    next(&mut records).await;
    for _ in 0..3 {
        assert!(kinesis.violations().is_empty(), "{:?}", kinesis.violations());
        sleep(Duration::from_secs(600)).await;
        let calls = calls(&kinesis, "GetRecords").into_iter();
        let read: Vec<_> = calls.filter(|call| call.status.is_some()).collect();
        let bytes: usize = read.iter().map(|call| call.bytes).sum();
        assert!(bytes <= 20 * MEBIBYTE + 8 * (3 * MEBIBYTE + 3), "{bytes} bytes are buffered");
        let first_call = kinesis.call_count();
        sleep(Duration::from_secs(600)).await;
        assert_eq!(kinesis.in_flight(), 0);
        assert!(
            kinesis.calls_from(first_call).iter().all(|call| call.bytes == 0),
            "expected no further bytes"
        );
    }
    for _ in 1..24 {
        next(&mut records).await;
    }
    assert_eq!(kinesis.violations(), [""; 0]);
}

/// Returns the streams of `count` shards in the order of their IDs.
async fn shards_of(consumer: &kinestream::Consumer, count: usize) -> Vec<kinestream::ShardStream> {
    let mut shards: Vec<_> = consumer.shards().take(count).try_collect().await.unwrap();
    shards.sort_by_key(|shard| shard.shard_id().clone());
    shards
}

/// Shards that hold all memory and are never polled again block no other shard.
#[tokio::test(start_paused = true)]
async fn stuck_shards_do_not_block_a_healthy_one() {
    for (mode, taken) in [(CheckpointOn::Pull, 1), (CheckpointOn::Pull, 6), (CheckpointOn::Ack, 5)]
    {
        let (kinesis, orders) = orders(6);
        for shard in 0..5 {
            for _ in 0..40 {
                orders.shard(shard).put(vec![0; MEBIBYTE]);
            }
        }
        let consumer = consumer(&kinesis).checkpoint_on(mode).max_in_flight(5).build().unwrap();
        let mut shards = shards_of(&consumer, 6).await;
        let mut healthy = shards.pop().unwrap();
        let mut held = Vec::new();
        for shard in &mut shards {
            for _ in 0..taken {
                held.push(shard.next().await.unwrap().unwrap());
            }
            // Shards at their in-flight limit are polled and wait.
            assert!(
                timeout(Duration::ZERO, shard.next()).await.is_err() || mode == CheckpointOn::Pull
            );
        }
        sleep(Duration::from_secs(60)).await;
        for number in 0..10 {
            orders.shard(5).put(number.to_string());
            let record = timeout(Duration::from_secs(3), healthy.next()).await;
            let record = record.expect("a record of the healthy shard").unwrap().unwrap();
            assert_eq!(crate::number(&record), number);
            record.ack();
        }
        // A burst beyond the reserve arrives in smaller responses.
        for number in 10..210 {
            orders.shard(5).put(format!("{number:0>10000}"));
        }
        let began = Instant::now();
        for number in 10..210 {
            let record = healthy.next().await.unwrap().unwrap();
            assert_eq!(crate::number(&record), number);
            record.ack();
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(30), "2 MB through the reserve took {took:?}");
        assert_eq!(kinesis.violations(), [""; 0]);
        drop(held);
    }
}

/// The limits of the API, not the memory budget, bound the number of concurrent calls.
#[tokio::test(start_paused = true)]
async fn thousand_quiet_shards_are_polled_concurrently() {
    let (kinesis, _orders) = orders(1000);
    kinesis.set_latency(Duration::from_secs(1));
    let consumer = consumer(&kinesis).build().unwrap();
    let mut records = consumer.records();
    // Four calls in sequence: two listings, then one for an iterator and one for records.
    assert!(timeout(Duration::from_millis(4500), records.next()).await.is_err());
    let answered =
        calls(&kinesis, "GetRecords").iter().filter(|call| call.status.is_some()).count();
    assert_eq!(answered, 1000);
}

#[tokio::test(start_paused = true)]
async fn unacknowledged_records_pause_a_shard_at_max_in_flight() {
    let (kinesis, orders) = orders(1);
    for number in 0..10 {
        orders.shard(0).put(number.to_string());
    }
    let consumer =
        consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).max_in_flight(3).build().unwrap();
    let mut records = consumer.records();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut records).await);
    }
    assert!(timeout(Duration::from_secs(60), records.next()).await.is_err());
    held[1].ack();
    assert_eq!(number(&next(&mut records).await), 3);
    assert!(timeout(Duration::from_secs(60), records.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn unacknowledged_bytes_pause_a_shard_at_max_in_flight_bytes() {
    let (kinesis, orders) = orders(1);
    for number in 0..10 {
        orders.shard(0).put(format!("{number:0>99}"));
    }
    // A record has 99 bytes of data and a key of three bytes.
    for (limit, fitting) in [(306, 3), (305, 2), (1, 1)] {
        let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack);
        let consumer = builder.max_in_flight_bytes(limit).build().unwrap();
        let mut records = consumer.records();
        let mut held = Vec::new();
        for _ in 0..fitting {
            held.push(next(&mut records).await);
        }
        let size = held[0].data().len() + held[0].partition_key().unwrap().len();
        assert_eq!(size, 102);
        for number in fitting..10 {
            assert!(timeout(Duration::from_secs(60), records.next()).await.is_err(), "{limit}");
            let oldest = held.remove(0);
            oldest.ack();
            oldest.ack();
            let record = next(&mut records).await;
            assert_eq!(crate::number(&record), number);
            held.push(record);
        }
    }
}

/// With the default options, large records are limited by 64 MiB, and small ones by 10,000 records.
#[tokio::test(start_paused = true)]
async fn default_limits_bound_large_records_by_bytes_and_small_ones_by_number() {
    let (kinesis, orders) = orders(2);
    let key = "key";
    for _ in 0..70 {
        orders.shard(0).put_as(key, vec![0; MEBIBYTE - key.len()]);
    }
    for number in 0..10_010 {
        orders.shard(1).put(number.to_string());
    }
    let consumer = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack).build().unwrap();
    for (mut shard, most) in shards_of(&consumer, 2).await.into_iter().zip([64, 10_000]) {
        let mut held = Vec::new();
        while let Ok(record) = timeout(Duration::from_secs(60), shard.next()).await {
            held.push(record.unwrap().unwrap());
        }
        assert_eq!(held.len(), most);
        held.pop().unwrap().ack();
        shard.next().await.unwrap().unwrap();
    }
}

/// The user records of an aggregated record count one by one, and undelivered ones of a dropped
/// stream do not count.
#[tokio::test(start_paused = true)]
async fn user_records_of_an_aggregate_count_by_their_own_bytes() {
    let (kinesis, orders) = orders(1);
    let parts: Vec<_> = (0..9_u8).map(|number| ("key", vec![number; 97])).collect();
    orders.shard(0).put(kinestream::testing::aggregate(parts));
    let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack);
    let consumer = builder.max_in_flight_bytes(300).build().unwrap();
    let mut records = consumer.records();
    for _ in 0..3 {
        let held = [next(&mut records).await, next(&mut records).await, next(&mut records).await];
        assert!(timeout(Duration::from_secs(60), records.next()).await.is_err());
        held.iter().for_each(kinestream::Record::ack);
    }
}

/// The consumer slows down while other readers of the shard cause throttling, and recovers when
/// they stop.
#[tokio::test(start_paused = true)]
async fn throttled_consumer_slows_down_and_recovers() {
    let (kinesis, orders) = orders(1);
    for number in 0..200 {
        orders.shard(0).put(number.to_string());
    }
    sleep(Duration::from_secs(1)).await;
    let until = Instant::now() + Duration::from_secs(30);
    kinesis.on_call(move |call| {
        if call.operation == "GetRecords" && call.at < until {
            return Outcome::failed(400, "ProvisionedThroughputExceededException", "Rate exceeded");
        }
        Outcome::Served
    });
    let consumer = consumer(&kinesis).limit(1).build().unwrap();
    let mut records = consumer.records();
    next(&mut records).await;
    let refused = calls(&kinesis, "GetRecords").iter().filter(|call| call.at < until).count();
    assert!((5..20).contains(&refused), "{refused} calls in 30 throttled seconds");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        next(&mut records).await;
    }
    let began = Instant::now();
    for _ in 0..50 {
        next(&mut records).await;
    }
    assert!(
        began.elapsed() < Duration::from_millis(11_200),
        "expected 50 calls at five a second: {:?}",
        began.elapsed()
    );
}

/// All applications that read a shard share its five calls a second. With one record per call, only
/// the calls are limited.
#[tokio::test(start_paused = true)]
async fn applications_that_read_one_shard_share_its_calls() {
    const TIME: Duration = Duration::from_secs(300);
    for (seed, applications) in [2, 2, 2, 3, 3, 5, 5].into_iter().enumerate() {
        // A fixed seed makes the jitter reproducible.
        fastrand::seed(seed as u64);
        let (kinesis, orders) = orders(1);
        for number in 0..2000 {
            orders.shard(0).put(number.to_string());
        }
        let read = |application: usize| {
            let builder = consumer(&kinesis).application(format!("a{application}"));
            let mut records = builder.limit(1).build().unwrap().records();
            async move {
                let mut times = Vec::new();
                let _time_is_over = timeout(TIME, async {
                    loop {
                        next(&mut records).await;
                        times.push(Instant::now());
                    }
                })
                .await;
                times
            }
        };
        let began = Instant::now();
        let read = futures::future::join_all((0..applications).map(read)).await;
        // Only the last two thirds of the time count: the rates have settled by then.
        let settled = began + TIME / 3;
        let shares: Vec<usize> =
            read.iter().map(|times| times.iter().filter(|time| **time > settled).count()).collect();
        let all: usize = shares.iter().sum();
        let possible = 5 * usize::try_from(TIME.as_secs()).unwrap() * 2 / 3;
        assert!(all * 10 >= possible * 7, "{shares:?} of {possible}");
        for share in &shares {
            assert!(
                share * applications * 2 >= all,
                "expected at least half of an equal share each: {shares:?}"
            );
        }
        for times in &read {
            let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(
                pauses.max() < Some(Duration::from_secs(20)),
                "expected no pause of 20 s or more"
            );
        }
    }
}
