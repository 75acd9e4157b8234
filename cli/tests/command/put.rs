use std::collections::BTreeMap;

use serde_json::Value;

use crate::ferrokinesis_server::put_numbers;
use crate::run::Server;

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
    assert!(failure.ends_with("error: 2 lines not put\n"), "{failure}");
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

#[tokio::test(flavor = "multi_thread")]
async fn unknown_stream_fails_with_the_first_line_that_is_not_put() {
    let server = Server::with_orders(1).await;
    let put = server.run_with_input("put order", "a\n").await;
    let failure = put.failure();
    assert!(failure.contains("error: stream order does not exist"), "{failure}");
    assert!(failure.contains("The first line that is not put is line 1 of stdin."), "{failure}");
    assert!(failure.contains("Did you mean orders?"), "{failure}");
}
