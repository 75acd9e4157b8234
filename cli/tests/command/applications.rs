use std::time::Duration;

use futures::StreamExt;
use kinestream::testing::Kinesis;
use kinestream::{Consumer, RedisStore, StartingPosition};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::ferrokinesis_server::put_numbers;
use crate::redis_server::RedisServer;
use crate::run::{Server, command, run};

pub(crate) fn of_billing(redis: &RedisServer) -> String {
    format!("--application billing --redis {}", redis.url())
}

/// Starts to read as the application, and waits for the first record.
pub(crate) async fn reader_of(server: &Server, application: &str) -> Child {
    let words = format!("tail orders --since trim-horizon {application}");
    let mut child = server.command(&words).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next_line().await.unwrap().expect("expected a record");
    // Keeps the pipe open and empty.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

pub(crate) async fn signal(child: &mut Child, signal: &str) -> Option<i32> {
    let process = child.id().unwrap().to_string();
    assert!(
        std::process::Command::new("kill").args([signal, &process]).status().unwrap().success()
    );
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    ended.expect("expected an end within 30 s").unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_release_the_leases_and_save_the_positions() {
    let (server, redis) = (Server::with_orders(2).await, RedisServer::start(&[]));
    put_numbers(&server.client, "orders", 0..100).await.unwrap();
    for kind in ["-INT", "-TERM", "-HUP"] {
        let mut reader = reader_of(&server, &of_billing(&redis)).await;
        // A running application shows its worker, and refuses changes.
        let status = server.run(&format!("status orders {}", of_billing(&redis))).await;
        assert!(status.lines()[2].starts_with("workers     1 worker: "), "{status:?}");
        for change in ["seek orders --to latest", "reset orders"] {
            let refused = server.run(&format!("{change} --yes {}", of_billing(&redis))).await;
            let failure = refused.failure();
            assert!(failure.starts_with("error: application billing is running: "), "{failure}");
            assert!(failure.contains("Stop its workers first."), "{failure}");
        }
        assert_eq!(signal(&mut reader, kind).await, Some(0));
        let status = server.run(&format!("status orders {}", of_billing(&redis))).await;
        let lines = status.lines();
        assert_eq!(lines[2], "workers     none: the application does not run", "{status:?}");
        assert!(lines[6].contains("unassigned") && lines[6].contains(" -  "), "{status:?}");
        server.run(&format!("reset orders --yes {}", of_billing(&redis))).await.lines();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_is_moved_and_reset_after_confirmation() {
    let (server, redis) = (Server::with_orders(1).await, RedisServer::start(&[]));
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let billing = of_billing(&redis);
    let read = format!("tail orders --since trim-horizon --exit-at-end {billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10);
    assert_eq!(server.run(&read).await.lines().len(), 0, "expected the positions to be stored");

    let seek = format!("seek orders --to trim-horizon {billing}");
    let unconfirmed = server.run(&seek).await;
    assert!(unconfirmed.failure().contains("Add --yes"), "{}", unconfirmed.stderr);
    let planned = server.run(&format!("{seek} --dry-run")).await;
    assert_eq!(
        planned.lines()[0],
        "application billing of stream orders: move 1 shard to the oldest record in retention"
    );
    assert!(planned.stderr.contains("nothing is changed"), "{}", planned.stderr);
    assert_eq!(server.run(&read).await.lines().len(), 0, "expected no change");
    server.run(&format!("{seek} --yes")).await.lines();
    assert_eq!(server.run(&read).await.lines().len(), 10, "expected all records again");

    let one = format!("seek orders --to trim-horizon --shard 0 --yes {billing}");
    let moved = server.run(&format!("{one} --shard 0")).await;
    assert!(moved.lines()[0].contains(": move 1 shard to "), "{moved:?}");
    assert_eq!(server.run(&read).await.lines().len(), 10, "expected all records again");
    let unknown = server.run(&format!("{one} --shard 9")).await;
    assert!(unknown.failure().contains("the application knows no shard"), "{}", unknown.stderr);

    server.run(&format!("reset orders --yes {billing}")).await.lines();
    let status = server.run(&format!("status orders {billing}")).await;
    assert!(
        status
            .failure()
            .starts_with("error: nothing is stored for application billing of stream orders"),
        "{}",
        status.stderr
    );
    let listed = server.run(&format!("status --redis {}", redis.url())).await;
    assert_eq!(listed.lines(), ["no applications in this store"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_of_a_store_are_listed() {
    let (server, redis) = (Server::with_orders(1).await, RedisServer::start(&[]));
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let empty = server.run(&format!("status --redis {}", redis.url())).await;
    assert_eq!(empty.lines(), ["no applications in this store"]);
    for application in ["a:b", "billing"] {
        let words = format!(
            "tail orders --since trim-horizon -n 1 --application {application} --redis {}",
            redis.url()
        );
        server.run(&words).await.lines();
    }
    let listed = server.run(&format!("status --redis {}", redis.url())).await;
    assert_eq!(
        listed.lines(),
        ["APPLICATION  STREAM", "a:b          orders", "billing      orders"]
    );
    // The variable names the store as the option does, and does not disturb other commands.
    let mut of_orders = command("status orders");
    let listed = run(of_orders.env("KINESTREAM_REDIS", redis.url()), "").await;
    assert_eq!(listed.lines().len(), 3);
    let mut read = server.command("tail orders --since trim-horizon -n 1");
    assert_eq!(run(read.env("KINESTREAM_REDIS", redis.url()), "").await.lines().len(), 1);
    let none = server.run(&format!("status order --redis {}", redis.url())).await;
    assert_eq!(none.lines()[0], "no applications of stream order in this store");
    assert!(none.lines()[1].contains("arn:aws:kinesis:"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn application_of_an_arn_is_listed_with_it() {
    // ferrokinesis knows no ARNs in calls. The lag stays unknown.
    let (server, redis) = (Server::with_orders(1).await, RedisServer::start(&[]));
    let kinesis = Kinesis::new();
    kinesis.create_stream("orders", 1).put("key", "data");
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
    let consumer = Consumer::builder(kinesis.client(), arn)
        .application("billing")
        .starting_position(StartingPosition::TrimHorizon)
        .store(RedisStore::connect(&redis.url()).await.unwrap())
        .build()
        .unwrap();
    let record = consumer.records().next().await.expect("expected a record");
    assert_eq!(record.unwrap().data(), b"data");
    let of_billing = of_billing(&redis);
    let listing = format!("status --redis {} --output json", redis.url());
    let listed: Value = serde_json::from_str(server.run(&listing).await.lines()[0]).unwrap();
    let expected = json!({"application": "billing", "stream": arn, "kcl_table": null});
    assert_eq!(listed["applications"][0], expected);
    let status = server.run(&format!("status {arn} {of_billing} --output json")).await;
    let status: Value = serde_json::from_str(status.lines()[0]).unwrap();
    assert_eq!(status["stream"], arn);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_redis_is_reported() {
    let server = Server::with_orders(1).await;
    let words = "status orders --application billing --redis redis://:secret@127.0.0.1:1/";
    let failed = server.run(words).await;
    let failure = failed.failure();
    assert!(failure.starts_with("error: Redis at 127.0.0.1:1 is unreachable: "), "{failure}");
    assert!(!failure.contains("secret"), "{failure}");
}
