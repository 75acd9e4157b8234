use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::ferrokinesis_server::{create_stream, split_first_shard};
use crate::run::{Server, command, run};

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_listed_with_mode_status_and_shards() {
    let server = Server::with_orders(3).await;
    create_stream(&server.client, "clicks", 1).await.unwrap();
    let listed = server.run("streams").await;
    let lines = listed.lines();
    assert_eq!(lines[0], "STREAM  STATUS  MODE         OPEN SHARDS  RETENTION  CREATED");
    assert!(
        lines[1].starts_with("clicks  active  provisioned            1       24 h  20"),
        "{listed:?}"
    );
    assert!(
        lines[2].starts_with("orders  active  provisioned            3       24 h  20"),
        "{listed:?}"
    );
    assert_eq!(lines.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn described_stream_shows_splits_as_a_tree() {
    let server = Server::with_orders(2).await;
    split_first_shard(&server.client, "orders").await.unwrap();
    let described = server.run("describe orders").await;
    let text = described.lines().join("\n");
    assert!(text.contains("\nshards     3 open of 4\nretention  24 h\n"), "{text}");
    let shards: Vec<&str> = text.lines().filter(|line| line.contains(" % ")).collect();
    assert_eq!(shards.len(), 4, "{text}");
    assert!(shards[0].starts_with("0      closed   0 – 50 %"), "{text}");
    assert!(shards[1].starts_with("├─ 2   open     0 – 25 %"), "{text}");
    assert!(shards[2].starts_with("└─ 3   open     25 – 50 %"), "{text}");
    assert!(shards[3].starts_with("1      open     50 – 100 %"), "{text}");
    assert!(text.ends_with("no registered consumers"), "{text}");
    let unknown = server.run("describe order").await;
    assert!(unknown.failure().contains("Did you mean orders?"), "{}", unknown.stderr);
}

/// Starts a server with the streams `clicks`, whose description it denies, and `orders`. It denies the
/// listing of consumers as well. Returns its port.
async fn server_with_denials() -> u16 {
    let handler = |headers: HeaderMap, body: Bytes| async move {
        let request: Value = serde_json::from_slice(&body).unwrap();
        let operation = headers["x-amz-target"].to_str().unwrap();
        let (_, operation) = operation.split_once('.').unwrap();
        let answer = match operation {
            "ListStreams" => json!({"StreamNames": ["clicks", "orders"], "HasMoreStreams": false}),
            "ListShards" => json!({"Shards": []}),
            "DescribeStreamSummary" if request["StreamName"] == "orders" => {
                json!({"StreamDescriptionSummary": {
                    "StreamName": "orders",
                    "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
                    "StreamStatus": "ACTIVE",
                    "RetentionPeriodHours": 24,
                    "StreamCreationTimestamp": 1_767_225_600,
                    "EnhancedMonitoring": [],
                    "OpenShardCount": 7,
                }})
            }
            _ => {
                let denial = json!({"__type": "AccessDeniedException", "message": "no"});
                return (StatusCode::BAD_REQUEST, Json(denial));
            }
        };
        (StatusCode::OK, Json(answer))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, Router::new().fallback(handler)).into_future());
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_call_leaves_its_values_unknown_and_is_noted_once() {
    let endpoint = format!("--endpoint-url http://127.0.0.1:{}", server_with_denials().await);
    let streams = run(&mut command(&format!("streams -o json {endpoint}")), "").await;
    let json: Value = serde_json::from_str(streams.lines()[0]).unwrap();
    assert_eq!(json["streams"][0]["name"], "clicks");
    assert_eq!(json["streams"][0]["open_shards"], Value::Null);
    assert_eq!(json["streams"][1]["open_shards"], 7);
    assert_eq!(
        streams.stderr,
        "note: details of 1 stream unknown (access denied: DescribeStreamSummary)\n"
    );
    let described = run(&mut command(&format!("describe orders -o json {endpoint}")), "").await;
    let json: Value = serde_json::from_str(described.lines()[0]).unwrap();
    assert_eq!(json["consumers"], Value::Null);
    assert_eq!(
        described.stderr,
        "note: registered consumers: unknown (access denied: ListStreamConsumers)\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_values_end_with_exit_code_2_and_show_no_password() {
    let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
    for words in [
        "status --redis sekret",
        "status --redis redis://127.0.0.1/ --sentinel-master user:sekret@main",
        "tail redis://user:sekret@127.0.0.1/",
        "streams redis://user:sekret@127.0.0.1/",
        "streams --redis=redis://user:sekret@127.0.0.1/",
        "streams --endpoint-url redis://user:sekret@127.0.0.1/",
        &format!("describe {arn} --region us-east-1"),
    ] {
        let refused = run(&mut command(words), "").await;
        assert_eq!(refused.code, Some(2), "{words}: {refused:?}");
        assert!(!refused.stderr.contains("sekret"), "{}", refused.stderr);
    }
    let mut help = command("status --help");
    let help = run(help.env("KINESTREAM_REDIS", "redis://user:sekret@127.0.0.1/"), "").await;
    assert!(help.stdout.contains("KINESTREAM_REDIS"), "{help:?}");
    assert!(!help.stdout.contains("sekret"), "{help:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_endpoint_is_reported() {
    let read = run(&mut command("streams --endpoint-url http://127.0.0.1:1"), "").await;
    let failure = read.failure();
    assert!(
        failure.starts_with("error: ListStreams failed: no connection to Kinesis ("),
        "{failure}"
    );
    assert!(failure.contains("--endpoint-url"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut command(&format!("completions {shell}")), "").await;
        for option in ["exit-at-end", "kcl-table"] {
            assert!(script.stdout.contains(option), "{shell}: {option}");
        }
        assert_eq!(script.code, Some(0), "{script:?}");
    }
    let version = run(&mut command("--version"), "").await;
    assert_eq!(version.lines(), [format!("kinestream {}", env!("CARGO_PKG_VERSION"))]);
}
