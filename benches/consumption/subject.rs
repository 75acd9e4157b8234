//! One measurement: a process reads a canned stream in one way and reports the cost.

use std::time::Instant;

use aws_sdk_kinesis::Client;
use cpu_time::ProcessTime;
use kinestream::{CheckpointOn, Consumer, RedisStore, StartingPosition};
use serde::{Deserialize, Serialize};

use crate::ANSWERS;
use crate::bare;
use crate::canned::Contents;
use crate::drain::drain;
use crate::ferrokinesis_server::client_of;
use crate::peak::peak_bytes;

/// The configuration that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) reader: Reader,
    pub(crate) shards: usize,
    pub(crate) ack: bool,
    /// True for checkpoints in Redis, false for checkpoints in memory.
    pub(crate) redis: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reader {
    /// `GetRecords` in a loop by the SDK. Each record is counted and dropped.
    Bare,
    Records,
}

/// The parameters of a measurement.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) subject: Subject,
    pub(crate) kinesis: u16,
    pub(crate) redis: String,
    pub(crate) record_bytes: usize,
    pub(crate) unique: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) records: usize,
    pub(crate) cpu_seconds: f64,
    pub(crate) seconds: f64,
    pub(crate) peak_bytes: u64,
}

/// Reads all records on one thread.
pub(crate) fn measure(task: &Task) -> Cost {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let contents = Contents {
        shards: task.subject.shards,
        record_bytes: task.record_bytes,
        max_records: (1_000_000 / task.record_bytes).min(1000),
        answers: ANSWERS,
    };
    let stream = contents.stream(task.unique);
    let records = contents.records();
    let client = client_of(task.kinesis);
    runtime.block_on(async {
        // The first call initializes the client. It is not measured.
        client.list_shards().stream_name(&stream).send().await.unwrap();
        let (cpu, began) = (ProcessTime::now(), Instant::now());
        match task.subject.reader {
            Reader::Bare => bare::read(&client, &stream, task.subject.shards, records).await,
            Reader::Records => {
                let consumer = consumer(client, &stream, task).await;
                drain(consumer.records(), records, task.subject.ack).await;
            }
        }
        Cost {
            records,
            cpu_seconds: cpu.elapsed().as_secs_f64(),
            seconds: began.elapsed().as_secs_f64(),
            peak_bytes: peak_bytes(),
        }
    })
}

async fn consumer(client: Client, stream: &str, task: &Task) -> Consumer {
    let builder = Consumer::builder(client, stream)
        .starting_position(StartingPosition::TrimHorizon)
        .checkpoint_on(if task.subject.ack { CheckpointOn::Ack } else { CheckpointOn::Pull });
    let builder = if task.subject.redis {
        builder.store(RedisStore::connect(&task.redis).await.unwrap())
    } else {
        builder
    };
    builder.build().unwrap()
}
