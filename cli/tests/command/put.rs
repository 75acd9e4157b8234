use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};

use crate::applications::signal;
use crate::ferrokinesis_server::put_numbers;
use crate::run::{Server, command, run};

/// Returns the data of all records by key, in the order of the stream.
async fn contents(server: &Server) -> BTreeMap<String, Vec<String>> {
    let words = "tail orders --since trim-horizon --exit-at-end --output json";
    let read = server.run(words).await;
    let mut contents: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in read.lines() {
        let record: Value = serde_json::from_str(line).expect(line);
        let text = |name: &str| record[name].as_str().expect(name).to_owned();
        contents.entry(text("partition_key")).or_default().push(text("data"));
    }
    contents
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_put_in_order_by_their_keys() {
    let server = Server::with_orders(3).await;
    let lines: Vec<String> = (0..1200)
        .map(|number| format!(r#"{{"customer":{{"id":{}}},"n":{number}}}"#, number % 7))
        .collect();
    let put = server.run_with_input("put orders --key {.customer.id}", &lines.join("\n")).await;
    put.lines();
    assert!(put.stderr.contains("put 1,200 records ("), "{}", put.stderr);
    let contents = contents(&server).await;
    assert_eq!(contents.len(), 7);
    for (key, data) in contents {
        let expected: Vec<&String> = lines.iter().skip(key.parse().unwrap()).step_by(7).collect();
        assert_eq!(data.iter().collect::<Vec<_>>(), expected, "key {key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_are_no_record_are_noted_and_fail_the_command() {
    let server = Server::with_orders(1).await;
    let put =
        server.run_with_input("put orders --key {.id}", "{\"id\":\"a\"}\nno json\n{}\n").await;
    let failure = put.failure();
    assert!(failure.contains("note: line 2 of stdin: the line is not JSON"), "{failure}");
    assert!(failure.contains("note: line 3 of stdin: the line has no field .id"), "{failure}");
    assert!(
        failure.ends_with(
            "error: 2 lines not put\n  The first line that is not put is line 2 of stdin.\n"
        ),
        "{failure}"
    );
    assert_eq!(contents(&server).await["a"], ["{\"id\":\"a\"}"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_put_and_a_missing_one_puts_nothing() {
    let server = Server::with_orders(1).await;
    let folder = std::env::temp_dir().join(format!("kinestream-put-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (one, two) = (folder.join("one"), folder.join("two"));
    std::fs::write(&one, "a\nb\n").unwrap();
    std::fs::write(&two, "c").unwrap();
    let missing = folder.join("missing").display().to_string();
    let refused = server.run(&format!("put orders {} {missing} --key k", one.display())).await;
    assert!(refused.failure().contains(&format!("cannot open {missing}")), "{}", refused.stderr);
    let refused = server.run(&format!("put orders {} {}", one.display(), folder.display())).await;
    assert!(refused.failure().ends_with(": it is a directory\n"), "{}", refused.stderr);
    server.run(&format!("put orders {} {} --key k", one.display(), two.display())).await.lines();
    assert_eq!(contents(&server).await["k"], ["a", "b", "c"]);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_shows_the_keys_and_puts_nothing() {
    let server = Server::with_orders(1).await;
    let shown = server.run_with_input("put orders --key host-{number} --dry-run", "a\nbb\n").await;
    assert_eq!(shown.lines(), ["host-1 1 B", "host-2 2 B"]);
    put_numbers(&server.client, "orders", 0..1).await.unwrap();
    assert_eq!(contents(&server).await.len(), 1);
}

/// Starts a server that describes a stream with this record limit, which ferrokinesis does not do, and
/// stores all records. Returns its port, and the lengths of the stored records.
async fn server_with_record_limit(kib: Option<u32>) -> (u16, Arc<Mutex<Vec<usize>>>) {
    let stored = Arc::new(Mutex::new(Vec::new()));
    let lengths = Arc::clone(&stored);
    let handler = move |headers: HeaderMap, body: Bytes| async move {
        let operation = headers["x-amz-target"].to_str().unwrap();
        let request: Value = serde_json::from_slice(&body).unwrap();
        if operation.ends_with(".DescribeStreamSummary") {
            let summary = json!({
                "StreamName": "orders",
                "StreamARN": "arn:aws:kinesis:us-east-1:123456789012:stream/orders",
                "StreamStatus": "ACTIVE",
                "RetentionPeriodHours": 24,
                "StreamCreationTimestamp": 1_767_225_600,
                "EnhancedMonitoring": [],
                "OpenShardCount": 1,
                "MaxRecordSizeInKiB": kib,
            });
            return Json(json!({"StreamDescriptionSummary": summary}));
        }
        assert!(operation.ends_with(".PutRecords"), "{operation}");
        let mut answers = Vec::new();
        for record in request["Records"].as_array().unwrap() {
            let data = record["Data"].as_str().unwrap();
            let data = base64_simd::STANDARD.decode_to_vec(data).unwrap();
            lengths.lock().unwrap().push(data.len());
            answers.push(json!({"SequenceNumber": "1", "ShardId": "shardId-000000000000"}));
        }
        Json(json!({"FailedRecordCount": 0, "Records": answers}))
    };
    let app = Router::new().fallback(handler).layer(DefaultBodyLimit::disable());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, app).into_future());
    (port, stored)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_record_is_put_if_the_stream_allows_it() {
    const MIB: usize = 1 << 20;
    // With their key of one byte.
    let lengths = [MIB - 1, MIB, 2 * MIB - 1, 2 * MIB];
    let lines = lengths.map(|length| "x".repeat(length)).join("\n");
    for (kib, shown, allowed) in
        [(None, "1.0 MiB", 1), (Some(1024), "1.0 MiB", 1), (Some(2048), "2.0 MiB", 3)]
    {
        let (port, stored) = server_with_record_limit(kib).await;
        let words = format!("put orders --key k --endpoint-url http://127.0.0.1:{port}");
        let put = run(&mut command(&words), &lines).await;
        let failure = put.failure();
        assert_eq!(*stored.lock().unwrap(), lengths[..allowed], "{failure}");
        for number in allowed + 1..=lengths.len() {
            let note =
                format!("line {number} of stdin: longer than a record of {shown} with its key");
            assert!(failure.contains(&note), "{failure}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_stream_fails_with_the_first_line_that_is_not_put() {
    let server = Server::with_orders(1).await;
    let put = server.run_with_input("put order", "a\n").await;
    let failure = put.failure();
    assert!(failure.contains("error: stream order does not exist"), "{failure}");
    assert!(failure.contains("The first line that is not put is line 1 of stdin."), "{failure}");
    assert!(failure.contains("Did you mean orders?"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_request_is_sent_as_often_as_the_option_says() {
    let calls = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&calls);
    let handler = move || async move {
        *counted.lock().unwrap() += 1;
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, Router::new().fallback(handler)).into_future());
    let words = format!("put orders --retries 1 --endpoint-url http://127.0.0.1:{port}");
    let put = run(&mut command(&words), "a\n").await;
    assert!(put.failure().contains("error: gave up after 1 retries: "), "{put:?}");
    assert_eq!(*calls.lock().unwrap(), 2);
}

/// A file that can be opened and not be read.
#[cfg(target_os = "linux")]
const UNREADABLE: &str = "/proc/self/mem";

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn lines_before_a_failed_read_are_put() {
    let server = Server::with_orders(1).await;
    let put = server.run_with_input(&format!("put orders - {UNREADABLE} --key k"), "a\nb\n").await;
    let failure = put.failure();
    assert!(failure.contains(&format!("error: cannot read {UNREADABLE}: ")), "{failure}");
    assert_eq!(contents(&server).await["k"], ["a", "b"]);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn dry_run_shows_the_lines_before_a_failed_read() {
    let words = format!("put orders --dry-run - {UNREADABLE} --key k");
    let shown = run(&mut command(&words), "a\nbb\n").await;
    let failure = shown.failure();
    assert!(failure.contains(&format!("error: cannot read {UNREADABLE}: ")), "{failure}");
    assert_eq!(shown.stdout, "k 1 B\nk 2 B\n");
}

/// Starts to put, and writes these lines. The input stays open.
async fn start_put(server: &Server, lines: &str) -> (Child, ChildStdin) {
    let mut command = server.command("put orders --key k");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines.as_bytes()).await.unwrap();
    (child, stdin)
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_steady_source_are_put_before_it_ends() {
    let server = Server::with_orders(1).await;
    let (_child, mut stdin) = start_put(&server, "").await;
    // Each line follows before the request is due, and too few follow to fill it.
    let writing = tokio::spawn(async move {
        while stdin.write_all(b"line\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let put = async {
        while !contents(&server).await.contains_key("k") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let put = tokio::time::timeout(Duration::from_secs(30), put).await;
    assert!(put.is_ok(), "expected records while the source writes");
    writing.abort();
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn signal_puts_the_lines_that_were_read() {
    let server = Server::with_orders(1).await;
    let expected: Vec<String> = (0..700).map(|number: u32| number.to_string()).collect();
    let lines = expected.join("\n") + "\n";
    let (mut child, _stdin) = start_put(&server, &lines).await;
    // The first request is stored, so the command listens for signals.
    while contents(&server).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let process = child.id().unwrap().to_string();
    let killed = std::process::Command::new("kill").args(["-TERM", &process]).status().unwrap();
    assert!(killed.success());
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    assert_eq!(ended.expect("expected an end within 30 s").unwrap().code(), Some(0));
    assert_eq!(contents(&server).await["k"], expected);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn dry_run_ends_by_a_signal_while_its_output_is_not_read() {
    let mut command = command("put orders --dry-run --key k");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More lines than the two pipes hold, so the command waits for the reader of its output.
    let writing = tokio::spawn(async move { stdin.write_all(&b"line\n".repeat(200_000)).await });
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"k 4 B\n");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!writing.is_finished(), "expected lines that are not read");
    assert_eq!(signal(&mut child, "-TERM").await, Some(0));
}

/// Starts a dry run whose first line is refused and whose further lines have no end, and reads a line of
/// its output.
#[cfg(unix)]
async fn dry_run_with_a_refused_line() -> Child {
    let mut command = command("put orders --dry-run --key {.id}");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"no json\n").await.unwrap();
    tokio::spawn(async move {
        while stdin.write_all(&b"{\"id\":\"k\"}\n".repeat(1000)).await.is_ok() {}
    });
    let mut first = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"k 10 B\n");
    child
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn dry_run_with_a_refused_line_fails_also_after_a_signal_or_a_closed_pipe() {
    let mut signalled = dry_run_with_a_refused_line().await;
    assert_eq!(signal(&mut signalled, "-TERM").await, Some(1));
    let mut closed = dry_run_with_a_refused_line().await;
    drop(closed.stdout.take());
    let ended = tokio::time::timeout(Duration::from_secs(30), closed.wait()).await;
    assert_eq!(ended.expect("expected an end within 30 s").unwrap().code(), Some(1));
}

/// Starts a server that never answers a `DescribeStreamSummary`. Returns its port, and a receiver of the
/// calls.
#[cfg(unix)]
async fn server_without_descriptions() -> (u16, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let (called, calls) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |headers: HeaderMap| async move {
        let operation = headers["x-amz-target"].to_str().unwrap();
        assert!(operation.ends_with(".DescribeStreamSummary"), "{operation}");
        let _received = called.send(());
        std::future::pending::<()>().await;
    };
    let app = Router::new().fallback(handler);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, app).into_future());
    (port, calls)
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn line_that_waits_for_the_record_limit_is_the_first_that_is_not_put() {
    let (port, mut calls) = server_without_descriptions().await;
    let words = format!("put orders --key k --endpoint-url http://127.0.0.1:{port}");
    let mut child = command(&words).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let large = "x".repeat(2 << 20);
    stdin.write_all(format!("{large}\nnext\n").as_bytes()).await.unwrap();
    calls.recv().await.expect("expected a call");
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    let process = child.id().unwrap().to_string();
    let kill = || std::process::Command::new("kill").args(["-INT", &process]).status().unwrap();
    assert!(kill().success());
    // While the call lasts. The second signal follows the first one, so the two are not one.
    let note = tokio::time::timeout(Duration::from_secs(30), notes.next_line()).await;
    let note = note.expect("expected a note within 30 s").unwrap().expect("expected a note");
    assert!(note.contains("stopping: the lines that are read already are put"), "{note}");
    assert!(kill().success());
    let mut rest = String::new();
    notes.into_inner().read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("error: stopped at once by a second signal\n"), "{rest}");
    assert!(rest.contains("The first line that is not put is line 1 of stdin.\n"), "{rest}");
    assert_eq!(child.wait().await.unwrap().code(), Some(1));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn second_signal_ends_with_the_first_line_that_is_not_put() {
    let server = Server::with_orders(1).await;
    let mut command = server.command("put orders --key k --rate 1");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // At one record per second, the lines take much longer than the test.
    stdin.write_all("line\n".repeat(400).as_bytes()).await.unwrap();
    while contents(&server).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let process = child.id().unwrap().to_string();
    for _ in 0..2 {
        // Signals that arrive together are one.
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::process::Command::new("kill").args(["-INT", &process]).status().unwrap();
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let ended = ended.expect("expected an end within 30 s").unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: stopped at once by a second signal\n"), "{stderr}");
    assert!(stderr.contains("The first line that is not put is line "), "{stderr}");
}
