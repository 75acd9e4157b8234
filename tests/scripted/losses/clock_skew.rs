//! Arrival times come from hosts whose clocks differ by up to five minutes.

use std::time::Duration;

use kinestream::{Checkpoint, OnTrimmed};
use tokio::time::sleep;

use super::retention::{HOUR, gaps, numbers, stop_after};
use crate::store::recording_store::RecordingStore;
use crate::{consumer, orders};

const MINUTE: Duration = Duration::from_secs(60);

/// A record that arrived just after the stored time may have an earlier arrival time, and then it
/// has left retention.
#[tokio::test(start_paused = true)]
async fn position_within_five_minutes_of_the_retention_period_is_reported() {
    for (minutes, expected) in [(54, 0), (56, 1)] {
        let (kinesis, orders) = orders(1);
        kinesis.set_retention(24 * HOUR);
        let store = RecordingStore::default();
        let builder = consumer(&kinesis).store(store.clone()).on_trimmed(OnTrimmed::TrimHorizon);
        let reader = builder.clone().build().unwrap();
        let records = reader.records();
        stop_after(HOUR, reader, records).await;
        let stored: Checkpoint = store.position(0).await.unwrap().parse().unwrap();
        let Checkpoint::CaughtUp { until, .. } = stored else { panic!("{stored}") };
        let start = until + 23 * HOUR + minutes * MINUTE;
        sleep(start.duration_since(kinesis.now()).unwrap()).await;
        orders.shard(0).put("1");
        let reader = builder.build().unwrap();
        let mut events = reader.events();
        let mut records = reader.records();
        numbers(&mut records, 1..2).await;
        assert_eq!(gaps(&mut events).len(), expected, "after 23 h {minutes} min");
    }
}
