use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::ferrokinesis_server::{create_stream, put_numbers, split_first_shard};
use crate::kinesis_local::KinesisLocal;
use crate::run::{Server, command, run};

fn numbers(lines: &[&str]) -> BTreeSet<usize> {
    lines.iter().map(|line| line.parse().expect(line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_to_the_end_prints_each_record_once_over_a_split() {
    let server = Server::with_orders(3).await;
    put_numbers(&server.client, "orders", 0..1000).await.unwrap();
    split_first_shard(&server.client, "orders").await.unwrap();
    put_numbers(&server.client, "orders", 1000..1500).await.unwrap();
    let read = server.run("tail orders --since trim-horizon --exit-at-end").await;
    let lines = read.lines();
    assert_eq!(lines.len(), 1500);
    assert_eq!(numbers(&lines), (0..1500).collect());
    assert!(read.stderr.contains("1,500 records (4.8 KiB) of 5 shards in "), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn selection_counts_printed_records() {
    let server = Server::with_orders(2).await;
    put_numbers(&server.client, "orders", 0..500).await.unwrap();
    let words = "tail orders --since trim-horizon -n 5 --grep ^1..$ --quiet";
    let read = server.run(words).await;
    assert_eq!(read.lines().len(), 5);
    assert!(numbers(&read.lines()).iter().all(|number| (100..200).contains(number)));
    assert_eq!(read.stderr, "");
    let words = "tail orders --since trim-horizon --exit-at-end --key customer-7";
    let read = server.run(words).await;
    assert_eq!(numbers(&read.lines()), (0..500).filter(|number| number % 97 == 7).collect());
    assert!(read.stderr.contains("6 of 500 records ("), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn last_records_are_printed_in_order() {
    let server = Server::with_orders(1).await;
    put_numbers(&server.client, "orders", 0..300).await.unwrap();
    let read = server.run("tail orders --last 3").await;
    assert_eq!(read.lines(), ["297", "298", "299"]);
    let read = server.run("tail orders --last 1000 --grep 42$").await;
    assert_eq!(read.lines(), ["42", "142", "242"]);
    assert!(read.stderr.contains("the stream holds only 3 records"), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn last_records_of_a_server_that_does_not_answer_are_noted() {
    // Nothing listens on the port once its listener is dropped.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let words = format!("tail orders --last 3 --endpoint-url http://127.0.0.1:{port}");
    let mut child = command(&words).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    let note = tokio::time::timeout(Duration::from_secs(60), notes.next_line()).await;
    let note = note.expect("expected a note within a minute").unwrap().unwrap();
    assert!(note.starts_with("note: retrying: stream orders: ListShards failed"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_data_that_grep_leaves_out_is_noted() {
    let server = Server::with_orders(1).await;
    put_numbers(&server.client, "orders", 0..3).await.unwrap();
    let words = "tail orders --since trim-horizon --exit-at-end --decode gzip --grep price";
    let read = server.run(words).await;
    assert_eq!(read.lines(), [""; 0]);
    assert!(read.stderr.contains(" is left out by --grep: cannot decode gzip"), "{}", read.stderr);
    assert!(read.stderr.contains("3 records could not be decoded"), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_the_fields_of_a_record_in_order_of_arrival() {
    let server = Server::with_orders(3).await;
    for number in 0..30 {
        put_numbers(&server.client, "orders", number..number + 1).await.unwrap();
    }
    let words = "tail orders --since trim-horizon --exit-at-end --sort --output json";
    let read = server.run(words).await;
    let records: Vec<Value> =
        read.lines().iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(records.len(), 30);
    let times: Vec<&str> =
        records.iter().map(|record| record["approximate_arrival"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let first = records.iter().find(|record| record["data"] == "0").unwrap();
    assert_eq!(first["partition_key"], "customer-0");
    assert!(records[0]["shard_id"].as_str().unwrap().starts_with("shardId-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_shard_is_read_alone_and_an_unknown_one_is_reported() {
    let server = Server::with_orders(2).await;
    put_numbers(&server.client, "orders", 0..100).await.unwrap();
    let words = "tail orders --since trim-horizon --exit-at-end --template {shard}";
    let all = server.run(words).await;
    let one = server.run(&format!("{words} --shard 1")).await;
    assert_eq!(one.lines().len(), all.lines().iter().filter(|line| **line == "1").count());
    assert!(one.lines().iter().all(|line| *line == "1") && !one.lines().is_empty());
    let unknown = server.run(&format!("{words} --shard 7")).await;
    let failure = unknown.failure();
    assert!(
        failure.contains("error: stream orders has no shard shardId-000000000007\n"),
        "{failure}"
    );
    assert!(failure.contains("  `kinestream describe orders` lists its shards.\n"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_decoded_and_undecodable_data_is_noted() {
    let server = Server::with_orders(1).await;
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(br#"{"id": 1}"#).unwrap();
    for data in [zipped.finish().unwrap(), b"plain".to_vec()] {
        let call = server.client.put_record().stream_name("orders").partition_key("k");
        call.data(Blob::new(data)).send().await.unwrap();
    }
    let words = "tail orders --since trim-horizon --exit-at-end --decode gzip --decode json";
    let read = server.run(words).await;
    assert_eq!(read.lines(), ["{", "  \"id\": 1", "}", "plain"]);
    assert!(read.stderr.contains("is shown as it is: cannot decode gzip: "), "{}", read.stderr);
    assert!(read.stderr.contains("1 record could not be decoded"), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_pipe_ends_a_quiet_stream_with_success() {
    let server = Server::with_orders(1).await;
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let mut child = server.command("tail orders --since trim-horizon").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("0"));
    // No further record is put, so only the closed pipe can end the command.
    drop(lines);
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let ended = ended.expect("expected an end within 30 s").unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn fan_out_registers_its_consumer_and_reads_over_a_split() {
    let server = Server::with_orders(2).await;
    put_numbers(&server.client, "orders", 0..300).await.unwrap();
    split_first_shard(&server.client, "orders").await.unwrap();
    put_numbers(&server.client, "orders", 300..500).await.unwrap();
    let words = "tail orders --fan-out dashboard --since trim-horizon --exit-at-end";
    let read = server.run(words).await;
    assert_eq!(read.lines().len(), 500);
    assert_eq!(numbers(&read.lines()), (0..500).collect());
    let described = server.run("describe orders").await;
    assert!(described.stdout.contains("\ndashboard            active  20"), "{described:?}");
    // The consumer exists already.
    let read = server.run(&format!("{words} -n 7 --sort")).await;
    assert_eq!(read.lines().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn demonstration_needs_no_account() {
    let words = "tail --demo --since trim-horizon -n 1000 --output raw";
    let read = run(&mut command(words), "").await;
    assert_eq!(read.lines().into_iter().collect::<BTreeSet<_>>().len(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_stream_is_reported_with_similar_names() {
    let server = Server::with_orders(1).await;
    let read = server.run("tail ordrs").await;
    let failure = read.failure();
    assert!(
        failure.contains("error: stream ordrs does not exist in this account and region\n"),
        "{failure}"
    );
    assert!(
        failure.contains("  The region is us-east-1; --region selects another one.\n"),
        "{failure}"
    );
    assert!(failure.contains("  Did you mean orders?\n"), "{failure}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_reported() {
    let server = Server::with_orders(1).await;
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    for words in [
        "tail orders --since trim-horizon",
        "tail orders --last 3",
        "describe orders",
        "streams --output json",
        "completions bash",
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut child = server.command(words).stdout(full).spawn().unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(1), "{words}");
        assert!(stderr.starts_with("error: cannot write to stdout: No space left"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_region_and_credentials_are_reported_with_the_options() {
    let read = run(&mut command("tail orders"), "").await;
    assert!(
        read.failure().starts_with("error: no AWS region is set\n  Pass --region"),
        "{}",
        read.stderr
    );
    let read = run(&mut command("tail orders --region eu-west-1"), "").await;
    assert!(
        read.failure().contains("error: no AWS credentials were found\n  Pass --profile"),
        "{}",
        read.stderr
    );
    let read = run(&mut command("streams --region eu-west-1"), "").await;
    assert!(read.failure().contains("error: no AWS credentials were found\n"), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_have_exit_code_2() {
    let read = run(&mut command("tail orders --until soon"), "").await;
    assert_eq!(read.code, Some(2));
    assert!(read.stderr.contains("expected a time such as 2026-11-01"), "{}", read.stderr);
    let read = run(&mut command("tail orders --until 10m"), "").await;
    assert_eq!(read.code, Some(2));
    assert!(read.stderr.contains("--until is in the past"), "{}", read.stderr);
    assert!(read.stderr.contains("Usage: kinestream tail "), "{}", read.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_local_is_read_and_written() {
    if std::env::var_os("KINESIS_LOCAL").is_none() {
        eprintln!("skipped: ./tests/run installs kinesis-local and sets KINESIS_LOCAL");
        return;
    }
    let emulator = KinesisLocal::start().await;
    let server = Server { client: emulator.client(), port: emulator.port() };
    create_stream(&server.client, "orders", 2).await.unwrap();
    let input = (0..100).map(|number| number.to_string()).collect::<Vec<_>>().join("\n");
    server.run_with_input("put orders", &input).await.lines();
    let read = server.run("tail orders --since trim-horizon --exit-at-end").await;
    assert_eq!(numbers(&read.lines()), (0..100).collect());
    let listed = server.run("streams").await;
    assert!(listed.lines()[1].starts_with("orders  active  "), "{listed:?}");
    let described = server.run("describe orders").await;
    assert!(described.stdout.contains("shards     2 open of 2\n"), "{described:?}");
}
