//! One measurement: a process reads a canned stream in one way and reports the cost.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use cpu_time::ProcessTime;
use futures::{FutureExt, StreamExt};
use kinestream::{CheckpointOn, Consumer, RedisStore, StartingPosition, WireFormat};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::task::unconstrained;

use crate::bare;
use crate::canned::Contents;
use crate::drain::drain;
use crate::ferrokinesis_server::client_of;
use crate::floor;
use crate::peak::peak_bytes;
use crate::tls::Folder;

/// The shards of a stream.
const SHARDS: usize = 16;

/// The most responses that are measured: about ten seconds of reading.
const MOST_ANSWERS: usize = 400;

/// The bytes of the measured responses, if they are long.
const MEASURED_BYTES: usize = 800_000_000;

/// The parts of the measured responses that are read before.
const WARM_UP_PART: usize = 5;

/// The configuration that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) reader: Reader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reader {
    /// `GetRecords` in a loop by the SDK. Each record is counted and dropped.
    Bare { are_spread: bool },
    /// See [`floor`].
    Floor { is_paced: bool },
    /// [`Consumer::records`], with checkpoints in Redis.
    Records { is_json: bool, is_ack: bool, is_packed: bool },
}

/// The parameters of a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) subject: Subject,
    pub(crate) kinesis: u16,
    pub(crate) redis: String,
    /// Set for TLS.
    pub(crate) certificates: Option<Folder>,
    pub(crate) record_bytes: usize,
    /// True for the responses of shards far behind, false for those of shards at their write limit.
    pub(crate) is_behind: bool,
    pub(crate) threads: usize,
    pub(crate) unique: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) records: usize,
    pub(crate) cpu_seconds: f64,
    pub(crate) seconds: f64,
    pub(crate) peak_bytes: u64,
}

/// A measurement that has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measuring {
    pub(crate) cpu: ProcessTime,
    pub(crate) began: Instant,
}

impl Measuring {
    pub(crate) fn begin() -> Self {
        Self { cpu: ProcessTime::now(), began: Instant::now() }
    }

    pub(crate) fn end(self, records: usize) -> Cost {
        Cost {
            records,
            cpu_seconds: self.cpu.elapsed().as_secs_f64(),
            seconds: self.began.elapsed().as_secs_f64(),
            peak_bytes: peak_bytes(),
        }
    }
}

impl Task {
    fn contents(&self) -> Contents {
        let [bytes, records] =
            if self.is_behind { [10_000_000, 10_000] } else { [1_000_000, 1000] };
        let max_records = (bytes / self.record_bytes).min(records);
        let measured = (MEASURED_BYTES / (max_records * self.record_bytes)).min(MOST_ANSWERS);
        Contents {
            shards: SHARDS,
            record_bytes: self.record_bytes,
            max_records,
            answers: measured + measured / WARM_UP_PART,
            is_packed: matches!(self.subject.reader, Reader::Records { is_packed: true, .. }),
        }
    }

    /// Returns the number of all records.
    pub(crate) fn records(&self) -> usize {
        self.contents().records()
    }

    /// Returns the time between two calls, of any shard.
    pub(crate) fn pause(&self) -> Duration {
        let bytes = self.contents().records_an_answer() * self.record_bytes;
        let shard = Duration::from_millis(200)
            .max(Duration::from_micros(bytes as u64 * 1_000_000 / bare::BYTES_PER_SECOND));
        shard / u32::try_from(SHARDS).unwrap()
    }

    /// Returns the number of records to read before the measurement.
    pub(crate) fn warm_up_records(&self) -> usize {
        self.records() / (WARM_UP_PART + 1)
    }

    fn runtime(&self) -> Runtime {
        let mut runtime = match self.threads {
            1 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        runtime.worker_threads(self.threads).enable_all().build().unwrap()
    }

    fn client(&self) -> Client {
        match &self.certificates {
            Some(folder) => folder.client(self.kinesis),
            None => client_of(self.kinesis),
        }
    }
}

/// Reads all records, and measures all but the first.
pub(crate) fn measure(task: &Task) -> Cost {
    let stream = task.contents().stream(task.unique);
    match task.subject.reader {
        Reader::Floor { is_paced } => floor::measure(task, &stream, is_paced),
        Reader::Bare { are_spread } => {
            task.runtime().block_on(measure_bare(task, &stream, are_spread))
        }
        Reader::Records { is_json, is_ack, .. } => {
            // A task, as the loops of the bare reader: the main future does not run on the threads of
            // the runtime's tasks, so that each response would wake another thread.
            let reader = measure_records(task.clone(), stream, is_json, is_ack);
            task.runtime().block_on(async { tokio::spawn(reader).await.unwrap() })
        }
    }
}

async fn measure_bare(task: &Task, stream: &str, are_spread: bool) -> Cost {
    let (warm_up, records) = (task.warm_up_records(), task.records());
    let begun = Arc::new(OnceLock::new());
    let start = begun.clone();
    let watch = move |read| {
        if read >= warm_up {
            start.get_or_init(|| (Measuring::begin(), read));
        }
    };
    bare::read(&task.client(), stream, SHARDS, records, are_spread, watch).await;
    let (measuring, before) = begun.get().unwrap();
    measuring.end(records - before)
}

async fn measure_records(task: Task, stream: String, is_json: bool, is_ack: bool) -> Cost {
    let consumer = Consumer::builder(task.client(), stream)
        .starting_position(StartingPosition::TrimHorizon)
        .wire_format(if is_json { WireFormat::Json } else { WireFormat::Auto })
        .checkpoint_on(if is_ack { CheckpointOn::Ack } else { CheckpointOn::Pull })
        .store(RedisStore::connect(&task.redis).await.unwrap())
        .build()
        .unwrap();
    let mut records = pin!(consumer.records());
    drain(&mut records, task.warm_up_records(), is_ack).await;
    // Begins with nothing buffered, so that all measured records are fetched while it runs.
    let mut before = task.warm_up_records();
    while let Some(record) = unconstrained(records.next()).now_or_never() {
        let record = record.unwrap().unwrap();
        if is_ack {
            record.ack();
        }
        before += 1;
    }
    let (measuring, rest) = (Measuring::begin(), task.records() - before);
    drain(&mut records, rest, is_ack).await;
    measuring.end(rest)
}
