//! Children that wait for longer than the retention period before they are read: their losses are
//! reported.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kinestream::testing::{Kinesis, Outcome, Stream};
use kinestream::{
    Checkpoint, CheckpointOn, CheckpointStore, ConsumerBuilder, ErrorKind, Event, Events, IfLeased,
    MemoryStore, OnTrimmed, Record, Records, ShardId,
};
use tokio::time::{sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{assert_silent, consumer, next, number, orders};

const HOUR: Duration = Duration::from_secs(3600);

fn gaps(events: &mut Events) -> Vec<ShardId> {
    let mut gaps = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        if let Event::Gap { shard_id, after, .. } = event {
            assert_eq!(after, None);
            gaps.push(shard_id);
        }
    }
    gaps
}

fn split(kinesis: &Kinesis, orders: &Stream) -> Vec<ShardId> {
    kinesis.set_retention(24 * HOUR);
    orders.shard(0).put("0");
    orders.shard(0).split().map(|child| child.id()).to_vec()
}

fn builder(kinesis: &Kinesis, policy: OnTrimmed) -> ConsumerBuilder {
    let rarely = Duration::from_secs(60);
    consumer(kinesis).on_trimmed(policy).interval(rarely).discovery_interval(HOUR)
}

/// Reads record 0 of the parent and does not finish it for `time`, while records are put into the
/// first child.
async fn hold_parent_record(records: &mut Records, orders: &Stream, time: Duration) -> Record {
    let record = next(records).await;
    assert_eq!(number(&record), 0);
    sleep(Duration::from_secs(60)).await;
    orders.shard(1).put("1");
    sleep(time).await;
    orders.shard(1).put("2");
    record
}

#[tokio::test(start_paused = true)]
async fn child_that_waited_for_longer_than_retention_reports_the_loss() {
    for is_pushed in [false, true] {
        for has_leases in [false, true] {
            let (kinesis, orders) = orders(1);
            let children = split(&kinesis, &orders);
            let builder = builder(&kinesis, OnTrimmed::TrimHorizon);
            let builder =
                if has_leases { builder } else { builder.store(RecordingStore::default()) };
            let builder = if is_pushed { builder.fan_out("billing") } else { builder };
            let reader = builder.build().unwrap();
            let mut events = reader.events();
            let mut records = reader.records();
            let _hung = hold_parent_record(&mut records, &orders, 30 * HOUR).await;
            assert_eq!(number(&next(&mut records).await), 2);
            assert_silent(&mut records).await;
            let mut reported = gaps(&mut events);
            reported.sort();
            assert_eq!(reported, children, "pushed: {is_pushed}, leases: {has_leases}");
            assert_eq!(kinesis.violations(), [""; 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn child_that_waited_within_retention_reports_no_loss() {
    for (retention, is_denied) in [(24, false), (168, false), (168, true)] {
        let (kinesis, orders) = orders(1);
        split(&kinesis, &orders);
        kinesis.set_retention(retention * HOUR);
        kinesis.on_call(move |call| match call.operation.as_str() {
            "DescribeStreamSummary" if is_denied => crate::denied(),
            _ => Outcome::Served,
        });
        let reader = builder(&kinesis, OnTrimmed::TrimHorizon).build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        let hours = if retention == 24 { 23 } else { 30 };
        let _hung = hold_parent_record(&mut records, &orders, hours * HOUR).await;
        for expected in 1..3 {
            assert_eq!(number(&next(&mut records).await), expected);
        }
        assert_silent(&mut records).await;
        // The other child is empty, and nothing shows whether it had records.
        let expected: &[ShardId] = if is_denied { &[orders.shard(2).id()] } else { &[] };
        assert_eq!(gaps(&mut events), expected, "retention of {retention} h");
    }
}

#[tokio::test(start_paused = true)]
async fn child_of_a_fleet_that_was_down_reports_the_loss() {
    let (kinesis, orders) = orders(1);
    split(&kinesis, &orders);
    let store = MemoryStore::new();
    let builder = builder(&kinesis, OnTrimmed::Fail).store(store.clone());
    let builder = builder.checkpoint_on(CheckpointOn::Ack);
    let reader = builder.clone().build().unwrap();
    let mut records = reader.records();
    let parent = hold_parent_record(&mut records, &orders, HOUR).await;
    assert_silent(&mut records).await;
    // The parent is finished, and no child is started.
    parent.ack();
    reader.close().await.unwrap();
    drop(records);
    let finished = orders.shard(0).id();
    let positions = store.load(&kinestream::store::Scope::new("default", "orders")).await.unwrap();
    assert_eq!(positions.get(&finished), Some(&Checkpoint::ShardEnd));
    sleep(30 * HOUR).await;
    orders.shard(1).put("3");
    let reader = builder.build().unwrap();
    let mut records = reader.records();
    for _child in 1..3 {
        let error = timeout(HOUR, records.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Trimmed);
    }
    assert_silent(&mut records).await;
    // A position that an operator sets is checked for losses from that time on.
    for child in [1, 2] {
        let (child, to) = (orders.shard(child).id(), Checkpoint::TrimHorizon);
        reader.set_position(&child, to, IfLeased::Force).await.unwrap();
    }
    assert_eq!(number(&next(&mut records).await), 3);
    assert_silent(&mut records).await;
}

/// A child is read at once, and no record of it is finished for a long time.
#[tokio::test(start_paused = true)]
async fn quiet_child_reports_no_loss_after_a_restart() {
    let (kinesis, orders) = orders(1);
    split(&kinesis, &orders);
    let builder = builder(&kinesis, OnTrimmed::TrimHorizon).store(MemoryStore::new());
    for _start in 0..2 {
        let reader = builder.clone().build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        let _first = timeout(30 * HOUR, records.next()).await;
        let quiet = timeout(30 * HOUR, records.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        assert_eq!(gaps(&mut events), []);
        drop(records);
        reader.close().await.unwrap();
        sleep(20 * HOUR).await;
    }
}
