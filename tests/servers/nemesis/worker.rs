//! A worker, its caller, and its proxies to the servers.

use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Kinesis;
use kinestream::{CheckpointOn, Consumer, StartingPosition};
use tokio::task::JoinSet;

use super::servers::Servers;
use super::tally::Tally;
use super::{INTERVAL, LEASE};
use crate::proxy::Proxy;

pub(super) struct Worker {
    pub(super) proxies: Vec<Proxy>,
    consumer: Consumer,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Starts a worker that connects to its store through new proxies.
    pub(super) async fn start(
        index: usize,
        kinesis: &Kinesis,
        servers: &Servers,
        acknowledges: bool,
        tally: &Tally,
    ) -> Self {
        let (proxies, store) = servers.connect().await;
        let on = if acknowledges { CheckpointOn::Ack } else { CheckpointOn::Pull };
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .application("billing")
            .starting_position(StartingPosition::TrimHorizon)
            .interval(INTERVAL)
            .checkpoint_on(on)
            .checkpoint_interval(Duration::from_millis(100))
            .discovery_interval(Duration::from_secs(30))
            .lease_duration(LEASE)
            .worker_id(format!("worker-{index}"))
            .store(store)
            .build()
            .unwrap();
        let mut tasks = JoinSet::new();
        let mut events = consumer.events();
        let observer = tally.clone();
        tasks.spawn(async move {
            while let Some(event) = events.next().await {
                observer.note_event(index, &event);
            }
        });
        let (mut records, observer) = (consumer.records(), tally.clone());
        tasks.spawn(async move {
            while let Some(record) = records.next().await {
                match record {
                    Ok(record) => {
                        observer.deliver(index, &record);
                        record.ack();
                    }
                    Err(error) => observer.note_error(index, &error),
                }
            }
            observer.note_end(index);
        });
        Self { proxies, consumer, tasks }
    }

    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
        drop(self.consumer);
    }
}
