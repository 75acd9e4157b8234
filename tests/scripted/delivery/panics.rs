//! Panics in the caller's code: each is reported, no stream ends, and no record is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::BoxError;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kinestream::store::Scope;
use kinestream::testing::Kinesis;
use kinestream::{
    Checkpoint, CheckpointStore, ConsumerBuilder, ErrorKind, Event, MemoryStore, Result, ShardId,
    StartingPosition, Task,
};
use tokio::time::{sleep, timeout};

use crate::fleet::fleets::Fleet;
use crate::gated::{Gated, GatedCall};
use crate::listening::{is_of_crate, keep_events_on};
use crate::simulated_clock::consumer_of;
use crate::{assert_silent, consumer, next, number, orders};

const SECOND: Duration = Duration::from_secs(1);

/// Code that panics in the next calls, as often as [`Panics::next`] sets.
#[derive(Debug, Clone, Default)]
struct Panics(Arc<AtomicUsize>);

impl Panics {
    fn next(&self, times: usize) {
        self.0.store(times, Ordering::SeqCst);
    }

    fn left(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn maybe(&self, what: &str) {
        let less = |left: usize| left.checked_sub(1);
        let panics = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        assert!(!panics, "{what} is broken");
    }
}

/// An SDK interceptor that may panic in calls of one operation.
#[derive(Debug)]
struct Interceptor {
    operation: &'static str,
    panics: Panics,
}

impl Intercept for Interceptor {
    fn name(&self) -> &'static str {
        "Interceptor"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let target = context.request().headers().get("x-amz-target").unwrap_or_default();
        if target.ends_with(self.operation) {
            self.panics.maybe("the interceptor");
        }
        Ok(())
    }
}

fn intercepted(kinesis: &Kinesis, operation: &'static str, panics: &Panics) -> ConsumerBuilder {
    let config = kinesis.client().config().to_builder();
    let interceptor = Interceptor { operation, panics: panics.clone() };
    let client = Client::from_conf(config.interceptor(interceptor).build());
    consumer_of(kinesis, client, "orders").starting_position(StartingPosition::TrimHorizon)
}

/// Returns the content of the `TaskRestarted` events so far.
fn restarted(events: &mut kinestream::Events) -> Vec<(Task, Option<ShardId>, String)> {
    let all = std::iter::from_fn(|| events.next().now_or_never().flatten());
    let restarted = |event| match event {
        Event::TaskRestarted { task, shard_id, message } => Some((task, shard_id, message)),
        _ => None,
    };
    all.filter_map(restarted).collect()
}

/// The first two panics are reported as events, the third also as an error. Reading continues.
#[tokio::test(start_paused = true)]
async fn interceptor_panic_in_a_fetch_is_retried_and_reported_if_it_repeats() {
    for (fan_out, operation) in
        [(false, "GetRecords"), (false, "GetShardIterator"), (true, "SubscribeToShard")]
    {
        let (kinesis, orders) = orders(1);
        let panics = Panics::default();
        let mut builder = intercepted(&kinesis, operation, &panics);
        if fan_out {
            builder = builder.fan_out("billing");
        }
        let consumer = builder.build().unwrap();
        let (mut records, mut events) = (consumer.records(), consumer.events());
        for place in 0..20 {
            orders.shard(0).put(place.to_string());
        }
        panics.next(2);
        for place in 0..20 {
            assert_eq!(number(&next(&mut records).await), place, "{operation}");
        }
        assert_eq!(panics.left(), 0);
        let restarts = restarted(&mut events);
        assert_eq!(restarts.len(), 2, "{restarts:?}");
        for (task, shard_id, message) in restarts {
            assert_eq!((task, shard_id), (Task::Fetch, Some(orders.shard(0).id())));
            for part in [operation, "the interceptor is broken"] {
                assert!(message.contains(part), "{part} in {message}");
            }
        }

        panics.next(10);
        if operation == "GetShardIterator" {
            sleep(SECOND / 10).await;
            kinesis.expire_iterators();
        } else if fan_out {
            orders.shard(0).interrupt(&kinestream::testing::Interruption::Ends);
        }
        let error = timeout(600 * SECOND, records.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
        assert_eq!(error.shard_id(), Some(&orders.shard(0).id()));
        orders.shard(0).put("20");
        assert_eq!(number(&next(&mut records).await), 20, "expected the record after one error");
        assert_eq!(panics.left(), 0);
        consumer.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn interceptor_panic_in_a_listing_is_retried_and_reported_if_it_repeats() {
    let (kinesis, orders) = orders(1);
    let panics = Panics::default();
    let consumer = intercepted(&kinesis, "ListShards", &panics).build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    panics.next(2);
    orders.shard(0).put("0");
    assert_eq!(number(&next(&mut records).await), 0);
    let restarts = restarted(&mut events);
    assert_eq!(restarts.len(), 2, "{restarts:?}");
    assert!(restarts.iter().all(|(task, shard, _)| *task == Task::Listing && shard.is_none()));
    consumer.close().await.unwrap();

    let other = intercepted(&kinesis, "ListShards", &panics).build().unwrap();
    let mut records = other.records();
    panics.next(10);
    let error = timeout(600 * SECOND, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    assert_eq!(number(&next(&mut records).await), 0, "the listing is retried");
    assert_eq!(panics.left(), 0);
}

/// A store of positions that may panic in its calls, before it returns a future or inside the
/// future.
#[derive(Debug, Clone, Default)]
struct PanickingStore {
    stored: MemoryStore,
    loads: Panics,
    saves: Panics,
    early: Panics,
}

impl CheckpointStore for PanickingStore {
    fn load<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
        async move {
            self.loads.maybe("load");
            self.stored.load(scope).await
        }
        .boxed()
    }

    fn save<'a>(
        &'a self,
        scope: &'a Scope,
        checkpoints: &'a [(ShardId, Checkpoint)],
    ) -> BoxFuture<'a, Result<()>> {
        self.early.maybe("save");
        async move {
            self.saves.maybe("save");
            self.stored.save(scope, checkpoints).await
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn store_panic_in_a_save_is_retried_and_loses_no_position() {
    let (kinesis, orders) = orders(1);
    let store = PanickingStore::default();
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    orders.shard(0).put("0");
    let first = next(&mut records).await.sequence_number().clone();
    store.saves.next(1);
    store.early.next(1);
    assert_silent(&mut records).await;
    let restarts = restarted(&mut events);
    assert_eq!(restarts.len(), 2, "{restarts:?}");
    assert!(restarts.iter().all(|(task, ..)| *task == Task::Checkpoints));
    let scope = Scope::new("default", "orders");
    let stored = store.stored.load(&scope).await.unwrap();
    assert_eq!(stored[&orders.shard(0).id()].to_string(), format!("AFTER_SEQUENCE_NUMBER:{first}"));

    orders.shard(0).put("1");
    assert_eq!(number(&next(&mut records).await), 1);
    store.saves.next(4);
    let error = timeout(60 * SECOND, records.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    assert!(error.to_string().contains("save is broken"), "{error}");
    assert_silent(&mut records).await;
    assert_eq!(store.saves.left(), 0, "expected saves to continue");
    orders.shard(0).put("2");
    let last = next(&mut records).await;
    last.ack();
    store.saves.next(1);
    consumer.close().await.unwrap();
    let stored = store.stored.load(&scope).await.unwrap();
    assert_eq!(
        stored[&orders.shard(0).id()].to_string(),
        format!("AFTER_SEQUENCE_NUMBER:{}", last.sequence_number())
    );
}

#[tokio::test(start_paused = true)]
async fn store_panic_at_the_start_is_retried() {
    let (kinesis, orders) = orders(1);
    let store = PanickingStore::default();
    store.loads.next(2);
    store.early.next(1);
    let consumer = consumer(&kinesis).store(store.clone()).build().unwrap();
    orders.shard(0).put("0");
    let mut records = consumer.records();
    assert_eq!(number(&next(&mut records).await), 0);
    store.loads.next(1);
    let error = consumer.status().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panicked, "{error}");
    consumer.status().await.unwrap();
}

/// Renewals continue, and no lease is lost.
#[tokio::test(start_paused = true)]
async fn lease_store_panic_in_an_exchange_does_not_let_leases_expire() {
    let fleet = Fleet::new(2);
    let panics = Panics::default();
    let store = Gated::new(fleet.store.clone(), {
        let panics = panics.clone();
        move |call| {
            if call == GatedCall::Exchange {
                panics.maybe("exchange");
            }
            std::future::ready(Ok(())).boxed()
        }
    });
    let consumer = fleet.builder("a").store(store).build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    fleet.orders.shard(0).put("0");
    assert_eq!(number(&next(&mut records).await), 0);
    for place in 1..10 {
        panics.next(2);
        assert!(timeout(6 * SECOND, records.next()).await.is_err());
        assert_eq!(panics.left(), 0);
        fleet.orders.shard(place % 2).put(place.to_string());
        assert_eq!(number(&next(&mut records).await), place);
    }
    let all: Vec<Event> = std::iter::from_fn(|| events.next().now_or_never().flatten()).collect();
    let is_shard_expired =
        |event: &Event| matches!(event, Event::LeaseLost { .. } | Event::LeasesSuspended);
    assert!(!all.iter().any(is_shard_expired), "{all:?}");
    let restarts = all.iter().filter(|event| matches!(event, Event::TaskRestarted { .. }));
    assert_eq!(restarts.count(), 18);
}

thread_local! {
    /// True while the subscriber of this thread panics.
    static LAYER_PANICS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// A subscriber that may panic in each of its calls.
struct PanickingLayer;

impl PanickingLayer {
    fn maybe() {
        assert!(!LAYER_PANICS.get(), "the layer is broken");
    }
}

impl tracing::Subscriber for PanickingLayer {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        is_of_crate(metadata)
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        Self::maybe();
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        Self::maybe();
    }
    fn enter(&self, _: &tracing::span::Id) {
        Self::maybe();
    }
    fn exit(&self, _: &tracing::span::Id) {
        Self::maybe();
    }
    fn try_close(&self, _: tracing::span::Id) -> bool {
        Self::maybe();
        true
    }
}

#[test]
fn event_first_reached_by_another_thread_is_received() {
    let log_event = || tracing::info!(target: "kinestream", "an event");
    keep_events_on();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let subscriber = tracing_subscriber::fmt().with_writer(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        std::io::sink()
    });
    let _counting = tracing::subscriber::set_default(subscriber.finish());
    std::thread::scope(|scope| scope.spawn(log_event).join()).unwrap();
    log_event();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn tracing_layer_panic_is_reported_and_ends_no_stream() {
    keep_events_on();
    let _logging = tracing::subscriber::set_default(PanickingLayer);
    let (kinesis, orders) = orders(1);
    let consumer = consumer(&kinesis).build().unwrap();
    let (mut records, mut events) = (consumer.records(), consumer.events());
    orders.shard(0).put("0");
    assert_eq!(number(&next(&mut records).await), 0);
    LAYER_PANICS.set(true);
    let mut errors = Vec::new();
    let mut place = 1;
    orders.shard(0).put(place.to_string());
    while place < 10 {
        match timeout(60 * SECOND, records.next()).await.unwrap().unwrap() {
            Ok(record) => {
                assert_eq!(number(&record), place);
                place += 1;
                orders.shard(0).put(place.to_string());
            }
            Err(error) => errors.push(error),
        }
    }
    orders.shard(0).split();
    let _children = timeout(60 * SECOND, records.next()).await;
    let restarts = restarted(&mut events);
    LAYER_PANICS.set(false);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].kind(), ErrorKind::Panicked);
    assert!(errors[0].to_string().contains("the layer is broken"), "{}", errors[0]);
    assert!(restarts.len() >= 3, "{restarts:?}");
    assert!(restarts.iter().all(|(task, ..)| *task == Task::Tracing), "{restarts:?}");
    consumer.close().await.unwrap();
}

#[cfg(feature = "metrics")]
mod recorder {
    use std::sync::Mutex;

    use ::metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder,
        SharedString, Unit,
    };
    use kinestream::CheckpointOn;

    use super::*;

    /// A recorder that may panic in each of its calls, and in those of the metrics that it
    /// registered.
    #[derive(Clone, Default)]
    struct PanickingRecorder(Arc<Mutex<bool>>);

    impl PanickingRecorder {
        fn maybe(&self) {
            let panics = *self.0.lock().unwrap();
            assert!(!panics, "the recorder is broken");
        }
    }

    impl CounterFn for PanickingRecorder {
        fn increment(&self, _: u64) {
            self.maybe();
        }
        fn absolute(&self, _: u64) {
            self.maybe();
        }
    }

    impl GaugeFn for PanickingRecorder {
        fn increment(&self, _: f64) {
            self.maybe();
        }
        fn decrement(&self, _: f64) {
            self.maybe();
        }
        fn set(&self, _: f64) {
            self.maybe();
        }
    }

    impl Recorder for PanickingRecorder {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            self.maybe();
            Counter::from_arc(Arc::new(self.clone()))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            self.maybe();
            Gauge::from_arc(Arc::new(self.clone()))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn recorder_panic_is_reported_and_ends_no_stream() {
        for at_the_start in [false, true] {
            let recorder = PanickingRecorder::default();
            let _recording = ::metrics::set_default_local_recorder(&recorder);
            let (kinesis, orders) = orders(1);
            *recorder.0.lock().unwrap() = at_the_start;
            let builder = consumer(&kinesis).checkpoint_on(CheckpointOn::Ack);
            let consumer = builder.build().unwrap();
            let (mut records, mut events) = (consumer.records(), consumer.events());
            orders.shard(0).put("0");
            let mut errors = Vec::new();
            let mut place = 0;
            while place < 10 {
                match timeout(60 * SECOND, records.next()).await.unwrap().unwrap() {
                    Ok(record) => {
                        assert_eq!(number(&record), place);
                        record.ack();
                        place += 1;
                        *recorder.0.lock().unwrap() = true;
                        orders.shard(0).put(place.to_string());
                    }
                    Err(error) => errors.push(error),
                }
            }
            assert!(timeout(30 * SECOND, records.next()).await.is_ok());
            let restarts = restarted(&mut events);
            assert!(errors.len() <= 1, "{errors:?}");
            assert!(errors.iter().all(|error| error.kind() == ErrorKind::Panicked), "{errors:?}");
            assert!(!restarts.is_empty(), "{restarts:?}");
            assert!(restarts.iter().all(|(task, ..)| *task == Task::Metrics), "{restarts:?}");
            consumer.close().await.unwrap();
            *recorder.0.lock().unwrap() = false;
        }
    }
}
