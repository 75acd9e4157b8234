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
        assert!(script.lines().join("\n").contains("exit-at-end"), "{shell}");
    }
    let version = run(&mut command("--version"), "").await;
    assert_eq!(version.lines(), [format!("kinestream {}", env!("CARGO_PKG_VERSION"))]);
}
