//! The recorded metrics, compared with the table in the guide and with the dashboard.
// All values are small integers or are compared with bounds.
#![allow(clippy::float_cmp, clippy::cast_precision_loss)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::{Outcome, aggregate};
use kinestream::{CheckpointOn, OnTrimmed, WireFormat};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::{sleep, timeout};

use crate::store::recording_store::RecordingStore;
use crate::{consumer, next, orders};

const SECOND: Duration = Duration::from_secs(1);

/// The sum of each counter and the last value of each gauge.
#[derive(Default)]
struct MetricTotals(BTreeMap<(String, Vec<(String, String)>), f64>);

impl MetricTotals {
    fn update(&mut self, snapshotter: &Snapshotter) {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let (_, key) = key.into_parts();
            let label =
                |label: &::metrics::Label| (label.key().to_owned(), label.value().to_owned());
            let mut labels: Vec<_> = key.labels().map(label).collect();
            assert_eq!(labels.remove(0), ("stream".to_owned(), "orders".to_owned()));
            assert_eq!(labels.remove(0), ("application".to_owned(), "default".to_owned()));
            let seen = self.0.entry((key.name().to_owned(), labels)).or_default();
            match value {
                // A snapshot resets the counter.
                DebugValue::Counter(count) => *seen += count as f64,
                DebugValue::Gauge(gauge) => *seen = gauge.into_inner(),
                DebugValue::Histogram(_) => panic!("the crate records no histogram"),
            }
        }
    }

    fn get(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let labels: Vec<_> =
            label.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let found = self.0.get(&(format!("kinestream_{name}"), labels));
        *found.unwrap_or_else(|| panic!("no {name} with {label:?} among {:?}", self.0.keys()))
    }
}

/// Returns the metric names in the table of the guide.
fn documented() -> BTreeSet<&'static str> {
    let rows = include_str!("../../../src/guide/operations.md").lines();
    let names = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    names.filter(|name| name.starts_with("kinestream_")).collect()
}

#[tokio::test(start_paused = true)]
async fn recorded_metrics_are_exactly_the_documented_ones() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // A recorder of this thread is enough: all tasks of this test run on it.
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    let shard = Some(("shard", "shardId-000000000000"));
    let mut seen = MetricTotals::default();

    let (kinesis, orders) = orders(2);
    let store = RecordingStore::default();
    let builder = consumer(&kinesis).wire_format(WireFormat::Json);
    let builder = builder.store(store.clone()).checkpoint_on(CheckpointOn::Ack);
    let consumer = builder.on_trimmed(OnTrimmed::TrimHorizon).build().unwrap();
    let mut records = consumer.records();
    for text in ["0", "1", "2"] {
        orders.shard(0).put(text);
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut records).await);
    }
    held.pop().unwrap().ack();
    kinesis.next_calls("GetRecords", 2, Outcome::throttled());
    assert!(timeout(30 * SECOND, records.next()).await.is_err());
    seen.update(&snapshotter);
    assert_eq!(seen.get("records_fetched_total", shard), 3.0);
    assert_eq!(seen.get("batches_fetched_total", shard), 1.0);
    let bytes = kinesis.calls().iter().map(|call| call.bytes).sum::<usize>();
    assert_eq!(seen.get("bytes_fetched_total", shard), bytes as f64);
    assert_eq!(seen.get("millis_behind_latest", shard), 0.0);
    assert_eq!(seen.get("unacknowledged_records", shard), 2.0);
    let oldest = seen.get("oldest_unacknowledged_seconds", shard);
    assert!((25.0..=30.0).contains(&oldest), "{oldest}");
    assert_eq!(seen.get("retries_total", Some(("kind", "throttled"))), 2.0);
    assert_eq!(seen.get("leases_held", None), 2.0);
    assert_eq!(seen.get("lease_moves_total", Some(("move", "gained"))), 2.0);

    // The store fails, and a large record stays buffered.
    store.set_down(true);
    held.drain(..).for_each(|record| record.ack());
    orders.shard(1).put(vec![0; 100_000]);
    orders.shard(1).put(vec![0; 100_000]);
    let first = next(&mut records).await;
    sleep(20 * SECOND).await;
    seen.update(&snapshotter);
    assert!(seen.get("buffered_bytes", None) >= 100_000.0);
    assert!(seen.get("checkpoint_failures_total", None) >= 3.0);
    let age = seen.get("checkpoint_age_seconds", None);
    assert!((15.0..=20.0).contains(&age), "{age}");
    assert_eq!(seen.get("unacknowledged_records", shard), 0.0);
    store.set_down(false);
    assert!(timeout(20 * SECOND, records.next()).await.is_ok());
    assert!(timeout(20 * SECOND, records.next()).await.is_err());
    seen.update(&snapshotter);
    assert!(seen.get("buffered_bytes", None) >= 100_000.0, "a kept record keeps its response");
    drop(first);
    assert!(timeout(20 * SECOND, records.next()).await.is_err());
    seen.update(&snapshotter);
    assert_eq!(seen.get("checkpoint_age_seconds", None), 0.0);
    // One write for the records, and one a minute later for the shard that has caught up.
    assert_eq!(seen.get("checkpoints_saved_total", None), 2.0);
    assert_eq!(seen.get("checkpoint_writes_total", None), 2.0);
    assert_eq!(seen.get("gaps_total", None), 0.0);
    assert_eq!(seen.get("buffered_bytes", None), 0.0);

    let names: BTreeSet<&str> = seen.0.keys().map(|(name, _)| &**name).collect();
    assert_eq!(names, documented());
    drop((records, consumer));
    sleep(SECOND).await;
    seen.update(&snapshotter);
    assert_eq!(seen.get("unacknowledged_records", Some(("shard", "shardId-000000000001"))), 0.0);
}

#[tokio::test(start_paused = true)]
async fn left_out_user_records_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = ::metrics::set_default_local_recorder(&recorder);
    let (kinesis, orders) = orders(2);
    let user_records = (0..10).map(|number| (format!("key-{number}"), number.to_string()));
    let all = aggregate(user_records);
    let mut records = consumer(&kinesis).build().unwrap().records();
    for shard in orders.shards() {
        shard.put(all.clone());
        shard.put("10");
        shard.put(all.clone());
    }
    let mut delivered = [0.0; 2];
    for _ in 0..22 {
        delivered[crate::shard_of(&next(&mut records).await)] += 1.0;
    }
    let mut seen = MetricTotals::default();
    seen.update(&snapshotter);
    for (index, delivered) in delivered.into_iter().enumerate() {
        let shard = orders.shard(index).id();
        let left_out = seen.get("user_records_left_out_total", Some(("shard", shard.as_str())));
        assert_eq!(
            left_out,
            21.0 - delivered,
            "expected the rest of two aggregates of ten and a plain record"
        );
        assert!(left_out > 0.0);
    }
}

/// Collects the metric names in the queries of the dashboard.
fn names_in(value: &serde_json::Value, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            if let Some(query) = fields.get("expr").and_then(serde_json::Value::as_str) {
                let words =
                    query.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
                names.extend(
                    words.filter(|word| word.starts_with("kinestream_")).map(str::to_owned),
                );
            }
            fields.values().for_each(|value| names_in(value, names));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| names_in(value, names)),
        _ => {}
    }
}

#[test]
fn dashboard_shows_exactly_the_documented_metrics() {
    let dashboard = include_str!("../../../dashboards/kinestream.json");
    let mut names = BTreeSet::new();
    names_in(&serde_json::from_str(dashboard).unwrap(), &mut names);
    assert!(names.iter().map(String::as_str).eq(documented()), "{names:?}");
}
