//! The consumer with a real Redis: its server is killed, its process is killed, it is
//! misconfigured.

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
use crate::redis_server::RedisServer;

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
        // A reader that is killed keeps its shards for so long.
        .lease_duration(Duration::from_secs(2))
        .store(store)
        .build()
        .unwrap()
}

/// Reading goes on while the store is away, and what was finished meanwhile is not forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_killed_under_a_reader_is_waited_for() {
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
            assert!(seen.insert(record.data().to_vec()), "no record twice");
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
    assert_eq!(record.data(), b"300", "nothing finished is read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_something_else_are_told_to_the_reader() {
    let server = RedisServer::start(&[]);
    let redis = redis::Client::open(server.url()).unwrap();
    let mut raw = redis.get_multiplexed_async_connection().await.unwrap();
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

/// The reader of the test below, in a process of its own: writes what it has read to its output,
/// a line a record, before it asks for the next.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by readers_that_are_killed_lose_nothing, as a process that it can kill"]
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
        // A handler that takes its time.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_are_killed_lose_nothing() {
    const RECORDS: usize = 4000;
    /// A reader handles at most this many in a checkpoint interval of 100 ms and the save itself.
    const MOST_REPEATED: usize = 300;

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
        assert!(began.elapsed() < PATIENCE * 2, "only {} of {RECORDS} were read", seen.len());
        let mut reader = Command::new(std::env::current_exe().unwrap())
            .args(["redis_consumer::reader", "--exact", "--ignored", "--nocapture"])
            .env("TEST_KINESIS_PORT", port.to_string())
            .env("TEST_REDIS_URL", redis.url())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
        // After so many records it is killed in the middle of its work.
        let (mut read, mut repeated) = (0, 0);
        while read < 500 && seen.len() < RECORDS {
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
            let Some(line) = line else { panic!("the reader has ended by itself") };
            let Some((_, number)) = line.split_once("read ") else {
                continue;
            };
            let number: usize = number.parse().unwrap();
            read += 1;
            if !seen.insert(number) {
                repeated += 1;
            }
        }
        reader.kill().await.unwrap();
        kills += 1;
        assert!(repeated <= MOST_REPEATED, "{repeated} records were repeated after one kill");
    }
    writing.await.unwrap();
    assert!(kills >= RECORDS / 500, "{kills} kills");
    assert_eq!(seen, (0..RECORDS).collect());
}
