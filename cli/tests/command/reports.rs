//! `--output json` of `streams`, `describe` and `status`, and `status --watch`.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};

use crate::applications::{of_billing, signal};
use crate::ferrokinesis_server::{put_numbers, split_first_shard};
use crate::redis_server::RedisServer;
use crate::run::{Finished, Server, command};

/// Returns the object that is the only line of the output.
fn object(finished: &Finished) -> Value {
    let lines = finished.lines();
    assert_eq!(lines.len(), 1, "{finished:?}");
    serde_json::from_str(lines[0]).expect(lines[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_are_one_object_on_one_line() {
    let (server, redis) = (Server::with_orders(1).await, RedisServer::start(&[]));
    split_first_shard(&server.client, "orders").await.unwrap();
    put_numbers(&server.client, "orders", 0..10).await.unwrap();

    let streams = object(&server.run("streams --output json").await);
    assert_eq!(streams["region"], "us-east-1");
    assert_eq!(streams["streams"][0]["name"], "orders");
    assert_eq!(streams["streams"][0]["open_shards"], 2);

    let described = object(&server.run("describe orders -o json").await);
    assert_eq!(described["status"], "active");
    assert_eq!(described["open_shards"], 2);
    assert_eq!(described["shards"][0]["is_open"], false);
    assert_eq!(described["shards"][2]["parents"], serde_json::json!(["shardId-000000000000"]));
    assert_eq!(described["consumers"], serde_json::json!([]));

    let listing = format!("status -o json --redis {}", redis.url());
    assert_eq!(object(&server.run(&listing).await), serde_json::json!({"applications": []}));
    let of_billing = of_billing(&redis);
    let read = format!("tail orders --since trim-horizon --exit-at-end {of_billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10);
    assert_eq!(
        object(&server.run(&listing).await),
        serde_json::json!({"applications": [
            {"application": "billing", "stream": "orders", "kcl_table": null}
        ]})
    );
    let status = object(&server.run(&format!("status orders {of_billing} -o json")).await);
    assert_eq!(status["application"], "billing");
    assert_eq!(status["workers"], serde_json::json!([]));
    let shards: Vec<_> =
        status["shards"].as_array().unwrap().iter().map(|it| &it["state"]).collect();
    assert_eq!(shards, ["finished", "unassigned", "unassigned"]);
}

async fn next_line(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>) -> String {
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await;
    line.expect("expected a line within a minute").unwrap().expect("expected a line")
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn watch_continues_after_an_outage_of_the_store() {
    let server = Server::with_orders(1).await;
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let of_billing = of_billing(&redis);
    let read = format!("tail orders --since trim-horizon -n 10 {of_billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10);

    let words = format!("status orders {of_billing} --watch=1s --output json");
    let mut watching = server.command(&words).spawn().unwrap();
    let mut reports = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut notes = BufReader::new(watching.stderr.take().unwrap()).lines();
    let before: Value = serde_json::from_str(&next_line(&mut reports).await).unwrap();
    redis.kill();
    let note = next_line(&mut notes).await;
    assert!(note.starts_with("error: stream orders: Redis at 127.0.0.1:"), "{note}");
    redis.restart();
    let restarted = jiff::Timestamp::now();
    // Reports from before the outage may be left in the pipe.
    let after = loop {
        let after: Value = serde_json::from_str(&next_line(&mut reports).await).unwrap();
        let time: jiff::Timestamp = after["time"].as_str().unwrap().parse().unwrap();
        if time > restarted {
            break after;
        }
    };
    assert_eq!(after["shards"], before["shards"]);
    assert_eq!(signal(&mut watching, "-TERM").await, Some(0));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn watch_ends_by_a_signal_while_the_store_does_not_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let redis = format!("redis://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let words = format!("status orders --application billing --redis {redis} --watch");
    let endpoint = ["--endpoint-url", "http://127.0.0.1:1"];
    let mut watching = command(&words).args(endpoint).spawn().unwrap();
    let (_silent, _) = listener.accept().await.unwrap();
    assert_eq!(signal(&mut watching, "-TERM").await, Some(0));
}
