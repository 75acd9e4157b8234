//! The consumer with a real Redis: a killed server, killed reader processes, and keys of another
//! program.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use futures::StreamExt;
use kinestream::{Consumer, ErrorKind, RedisStore, StartingPosition};
use redis::AsyncCommands;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use crate::ferrokinesis_server::{create_stream, put_numbers, start_kinesis};
use crate::redis_server::{RedisServer, connect};

const STREAM: &str = "orders";
const PATIENCE: Duration = Duration::from_secs(60);

async fn put(client: &Client, numbers: std::ops::Range<usize>) {
    put_numbers(client, STREAM, numbers).await.unwrap();
}

fn consumer(client: &Client, store: RedisStore) -> Consumer {
    Consumer::builder(client.clone(), STREAM)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .interval(Duration::from_millis(200))
        .checkpoint_interval(Duration::from_millis(100))
        // The time that a killed reader keeps its shards.
        .lease_duration(Duration::from_secs(2))
        .store(store)
        .build()
        .unwrap()
}

/// The consumer reads while the store is unavailable, and later saves the records that were
/// acknowledged in that time.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_keeps_reading_while_redis_is_down_and_loses_no_ack() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (client, _port) = start_kinesis().await.unwrap();
    create_stream(&client, STREAM, 2).await.unwrap();
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let first = consumer(&client, store.clone());
    let mut records = first.records();
    let mut seen = BTreeSet::new();
    for round in 0..3 {
        put(&client, round * 100..(round + 1) * 100).await;
        while seen.len() < (round + 1) * 100 {
            let record = timeout(PATIENCE, records.next()).await.unwrap().unwrap().unwrap();
            assert!(seen.insert(record.data().to_vec()), "expected each record once");
            record.ack();
        }
        if round == 0 {
            server.kill();
        }
        if round == 1 {
            server.restart();
        }
    }
    drop(records);
    first.close().await.unwrap();

    put(&client, 300..301).await;
    let second = consumer(&client, RedisStore::connect(&server.url()).await.unwrap());
    let record = timeout(PATIENCE, second.records().next()).await.unwrap().unwrap().unwrap();
    assert_eq!(record.data(), b"300", "expected no redelivery of acknowledged records");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_key_is_reported_to_the_caller() {
    let server = RedisServer::start(&[]);
    let mut raw = connect(server.url()).await.unwrap();
    raw.set::<_, _, ()>("kinestream:{billing:orders}:checkpoints", "?").await.unwrap();
    let (client, _port) = start_kinesis().await.unwrap();
    create_stream(&client, STREAM, 1).await.unwrap();
    let consumer = consumer(&client, RedisStore::connect(&server.url()).await.unwrap());
    let error = timeout(PATIENCE, consumer.records().next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
    assert_eq!(
        error.to_string(),
        "stream orders: the Redis key kinestream:{billing:orders}:checkpoints does not hold \
         checkpoints; delete it if it is a leftover, or use another application"
    );
}

/// The reader process of the test below. It prints one line per record before it reads the next.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by killed_readers_lose_no_record as a separate process"]
async fn reader() {
    use std::io::Write;
    let port = std::env::var("TEST_KINESIS_PORT").unwrap().parse().unwrap();
    let store = RedisStore::connect(&std::env::var("TEST_REDIS_URL").unwrap()).await.unwrap();
    let client = crate::ferrokinesis_server::client_of(port);
    let mut records = consumer(&client, store).records();
    let mut output = std::io::stdout();
    while let Some(record) = records.next().await {
        let record = record.unwrap();
        let number = std::str::from_utf8(record.data()).unwrap();
        writeln!(output, "read {number}").unwrap();
        output.flush().unwrap();
        // Simulates a slow handler.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_readers_lose_no_record() {
    const RECORDS: usize = 4000;
    /// The most records that a reader handles in a checkpoint interval of 100 ms and during a save.
    const MAX_REPEATED: usize = 300;

    let redis = RedisServer::start(&[]);
    let (client, port) = start_kinesis().await.unwrap();
    create_stream(&client, STREAM, 2).await.unwrap();
    let writing = tokio::spawn(async move {
        for batch in 0..RECORDS / 50 {
            put(&client, batch * 50..(batch + 1) * 50).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });

    let mut seen = BTreeSet::new();
    let mut kills = 0;
    let began = Instant::now();
    while seen.len() < RECORDS {
        assert!(began.elapsed() < PATIENCE * 2, "expected {RECORDS} records, got {}", seen.len());
        let mut reader = Command::new(std::env::current_exe().unwrap())
            .args(["redis_consumer::reader", "--exact", "--ignored", "--nocapture"])
            .env("TEST_KINESIS_PORT", port.to_string())
            .env("TEST_REDIS_URL", redis.url())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
        // The reader is killed after 500 records, while it reads. It may be ahead of this test, so
        // what it printed until then counts too.
        let (mut read, mut repeated, mut killed) = (0, 0, false);
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await;
            let Some(line) = line.expect("expected a further record in time").unwrap() else {
                assert!(killed, "expected the reader to run until it is killed");
                break;
            };
            let Some((_, number)) = line.split_once("read ") else {
                continue;
            };
            let number: usize = number.parse().unwrap();
            read += 1;
            if !seen.insert(number) {
                repeated += 1;
            }
            if !killed && (read >= 500 || seen.len() == RECORDS) {
                reader.kill().await.unwrap();
                killed = true;
            }
        }
        kills += 1;
        assert!(
            repeated <= MAX_REPEATED,
            "expected at most {MAX_REPEATED} redelivered records after a kill, got {repeated}"
        );
    }
    writing.await.unwrap();
    assert!(kills > 2, "expected more than 2 kills, got {kills}");
    assert_eq!(seen, (0..RECORDS).collect());
}
