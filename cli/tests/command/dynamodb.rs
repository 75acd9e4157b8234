//! Positions in DynamoDB, and in the lease table of a KCL: with dynoxide and ferrokinesis.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ScalarAttributeType,
};
use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::applications::{reader_of, signal};
use crate::dynamodb_server::{DynamoDbServer, TABLE};
use crate::ferrokinesis_server::put_numbers;
use crate::run::{Server, command, run};

const LEASES: &str = "billing-leases";

fn store(server: &DynamoDbServer) -> String {
    format!("--dynamodb {TABLE} --dynamodb-endpoint-url {}", server.url())
}

fn of_billing(server: &DynamoDbServer) -> String {
    format!("--application billing {}", store(server))
}

async fn servers(shards: i32) -> (Server, DynamoDbServer) {
    let server = Server::with_orders(shards).await;
    put_numbers(&server.client, "orders", 0..10).await.unwrap();
    let (dynamodb, _store) = DynamoDbServer::with_table().await;
    (server, dynamodb)
}

#[tokio::test(flavor = "multi_thread")]
async fn application_in_a_table_is_read_listed_moved_and_reset() {
    let (server, dynamodb) = servers(1).await;
    let (store, billing) = (store(&dynamodb), of_billing(&dynamodb));
    let listing = format!("status {store}");
    assert_eq!(server.run(&listing).await.lines(), ["no applications in this store"]);

    let read = format!("tail orders --since trim-horizon --exit-at-end {billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10);
    assert_eq!(server.run(&read).await.lines().len(), 0, "expected the positions to be stored");
    let status = server.run(&format!("status orders {billing}")).await;
    let lines = status.lines();
    assert_eq!(lines[2], "workers     none: the application does not run", "{status:?}");
    assert_eq!(lines[3], "behind      caught up", "{status:?}");
    assert!(lines[6].contains("unassigned") && lines[6].contains("caught up"), "{status:?}");
    assert_eq!(server.run(&listing).await.lines(), ["APPLICATION  STREAM", "billing      orders"]);
    let json = server.run(&format!("{listing} --output json")).await;
    assert_eq!(
        serde_json::from_str::<Value>(json.lines()[0]).unwrap(),
        json!({"applications": [{"application": "billing", "stream": "orders", "kcl_table": null}]})
    );

    let seek = format!("seek orders --to trim-horizon {billing}");
    let planned = server.run(&format!("{seek} --dry-run")).await;
    assert!(planned.lines()[0].ends_with(": move 1 shard to the oldest record in retention"));
    assert_eq!(server.run(&read).await.lines().len(), 0, "expected no change");
    for change in [&*seek, &format!("{seek} --shard 0")] {
        server.run(&format!("{change} --yes")).await.lines();
        assert_eq!(server.run(&read).await.lines().len(), 10, "expected all records again");
    }
    server.run(&format!("reset orders --yes {billing}")).await.lines();
    let status = server.run(&format!("status orders {billing}")).await;
    let failure = status.failure();
    assert!(failure.starts_with("error: nothing is stored for application billing"), "{failure}");
    assert!(failure.contains("`kinestream status --dynamodb kinestream` lists"), "{failure}");
    assert_eq!(server.run(&listing).await.lines(), ["no applications in this store"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn option_of_the_table_counts_more_than_the_variable_of_redis() {
    let dynamodb = DynamoDbServer::with_table().await.0;
    let mut listed = command(&format!("status {}", store(&dynamodb)));
    let listed = run(listed.env("KINESTREAM_REDIS", "redis://127.0.0.1:1/"), "").await;
    assert_eq!(listed.lines(), ["no applications in this store"]);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn running_application_is_confirmed_and_refuses_changes() {
    let (server, dynamodb) = servers(1).await;
    let billing = of_billing(&dynamodb);
    let mut reader = reader_of(&server, &billing).await;
    let status = server.run(&format!("status orders {billing} --output json")).await;
    let status: Value = serde_json::from_str(status.lines()[0]).unwrap();
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(status["workers"], status["unconfirmed_workers"], "{status}");
    for change in ["seek orders --to latest", "reset orders"] {
        let refused = server.run(&format!("{change} --yes {billing}")).await;
        let failure = refused.failure();
        assert!(failure.contains("note: waiting to see whether "), "{failure}");
        assert!(failure.contains("error: application billing is running: "), "{failure}");
    }
    server.run(&format!("seek orders --to latest --force --yes {billing}")).await.lines();
    assert_eq!(signal(&mut reader, "-TERM").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_worker_is_waited_out_before_a_change() {
    let (server, dynamodb) = servers(1).await;
    let billing = of_billing(&dynamodb);
    let read = format!("tail orders --since trim-horizon --exit-at-end {billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10);
    // A worker with a lease duration of two seconds that does not renew.
    let dead = [
        ("pk", "billing:orders"),
        ("sk", "heartbeat:dead"),
        ("text", "7 1 2000 3"),
        ("mark", "0123456789abcdef"),
    ];
    let dead = dead.map(|(name, text)| (name.to_owned(), AttributeValue::S(text.to_owned())));
    let put = dynamodb.client().put_item().table_name(TABLE);
    put.set_item(Some(HashMap::from(dead))).send().await.unwrap();
    let status = server.run(&format!("status orders {billing}")).await;
    assert_eq!(status.lines()[2], "workers     1 worker: dead (unconfirmed)", "{status:?}");
    let moved = server.run(&format!("seek orders --to trim-horizon --yes {billing}")).await;
    moved.lines();
    assert!(moved.stderr.starts_with("note: waiting to see whether dead renews, "), "{moved:?}");
    // A reading that ends by itself would leave the shard to the other worker.
    let read = format!("tail orders --since trim-horizon -n 10 {billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10, "expected all records again");
}

/// Creates a lease table with the row that a KCL writes for the first shard.
async fn create_lease_table(server: &DynamoDbServer) {
    let client = server.client();
    let key = KeySchemaElement::builder().attribute_name("leaseKey").key_type(KeyType::Hash);
    let attribute = AttributeDefinition::builder().attribute_name("leaseKey");
    let attribute = attribute.attribute_type(ScalarAttributeType::S);
    let create = client.create_table().table_name(LEASES).billing_mode(BillingMode::PayPerRequest);
    let create = create.key_schema(key.build().unwrap());
    create.attribute_definitions(attribute.build().unwrap()).send().await.unwrap();
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let row = HashMap::from([
        ("leaseKey".to_owned(), text("shardId-000000000000")),
        ("checkpoint".to_owned(), text("TRIM_HORIZON")),
        ("checkpointSubSequenceNumber".to_owned(), AttributeValue::N("0".to_owned())),
        ("leaseCounter".to_owned(), AttributeValue::N("7".to_owned())),
    ]);
    client.put_item().table_name(LEASES).set_item(Some(row)).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_in_the_lease_table_of_a_kcl_are_read_and_moved() {
    let (server, dynamodb) = servers(1).await;
    create_lease_table(&dynamodb).await;
    let (store, own) = (store(&dynamodb), of_billing(&dynamodb));
    let billing = format!("{own} --kcl-table {LEASES}");
    // Before the first start, the rows of the KCL are shown.
    let status = server.run(&format!("status orders {billing}")).await;
    assert!(status.lines()[6].ends_with("  trim-horizon"), "{status:?}");

    let read = format!("tail orders --since latest --exit-at-end {billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10, "expected the position of the KCL");
    assert_eq!(server.run(&read).await.lines().len(), 0);
    let status = server.run(&format!("status orders {billing}")).await;
    assert_eq!(status.lines()[3], "behind      caught up", "{status:?}");
    assert_eq!(
        server.run(&format!("status {store}")).await.lines(),
        ["APPLICATION  STREAM  KCL TABLE", "billing      orders  billing-leases"]
    );
    for forgotten in [format!("status orders {own}"), format!("tail orders {own}")] {
        let refused = server.run(&forgotten).await;
        let failure = refused.failure();
        let expected = format!(
            "error: the positions of the application are in the lease table {LEASES} of a KCL\n  \
             Add --kcl-table {LEASES}.\n"
        );
        assert!(failure.ends_with(&expected), "{failure}");
    }
    let seek = format!("seek orders --to trim-horizon --yes {billing}");
    let moved = server.run(&seek).await;
    moved.lines();
    let note = format!("note: the rows of KCL table {LEASES} change\n");
    assert!(moved.stderr.contains(&note), "{moved:?}");
    assert_eq!(server.run(&read).await.lines().len(), 10, "expected all records again");
    server.run(&format!("reset orders --yes {billing}")).await.lines();
    let rows = dynamodb.client().scan().table_name(LEASES).send().await.unwrap();
    assert_eq!(rows.count, 0, "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn running_kcl_keeps_a_reader_waiting_with_a_note() {
    let (server, dynamodb) = servers(1).await;
    create_lease_table(&dynamodb).await;
    let client = dynamodb.client();
    // A KCL that renews its lease.
    let renewing = tokio::spawn(async move {
        loop {
            let update = client.update_item().table_name(LEASES);
            let update =
                update.key("leaseKey", AttributeValue::S("shardId-000000000000".to_owned()));
            let update = update.update_expression("SET leaseOwner = :o ADD leaseCounter :n");
            let update =
                update.expression_attribute_values(":o", AttributeValue::S("kcl-1".to_owned()));
            let one = AttributeValue::N("1".to_owned());
            update.expression_attribute_values(":n", one).send().await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let billing = format!("{} --kcl-table {LEASES}", of_billing(&dynamodb));
    let mut child = server.command(&format!("tail orders -n 10 {billing}")).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    let note = tokio::time::timeout(Duration::from_secs(60), notes.next_line()).await;
    let note = note.expect("expected a note within a minute").unwrap().unwrap();
    let expected = format!(
        "note: waiting to join the application: a KCL that renews leases in KCL table {LEASES} must \
         be stopped first"
    );
    assert_eq!(note, expected);
    for words in ["reset orders", "seek orders --shard 0 --to latest"] {
        let refused = server.run(&format!("{words} --yes {billing}")).await;
        let failure = refused.failure();
        let expected = "error: application billing is running: worker kcl-1 of a KCL\n";
        assert!(failure.contains(expected), "{words}: {failure}");
    }
    // The workers of a KCL do not follow a seek, so --force does not help.
    let refused = server.run(&format!("seek orders --to latest --yes --force {billing}")).await;
    let failure = refused.failure();
    let expected =
        "kcl-1, another client of the store, is reading shardId-000000000000; stop it first";
    assert!(failure.contains(expected) && !failure.contains("IfLeased"), "{failure}");
    renewing.abort();
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    let ended = ended.expect("expected an end within a minute").unwrap();
    assert_eq!(String::from_utf8(ended.stdout).unwrap().lines().count(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn option_of_a_kcl_table_without_one_is_refused_with_advice() {
    let (server, dynamodb) = servers(1).await;
    create_lease_table(&dynamodb).await;
    let billing = of_billing(&dynamodb);
    let read = format!("tail orders --since trim-horizon --exit-at-end {billing}");
    assert_eq!(server.run(&read).await.lines().len(), 10);
    let refused = server.run(&format!("status orders {billing} --kcl-table {LEASES}")).await;
    let failure = refused.failure();
    assert!(failure.contains("and not in that of a KCL\n  Leave --kcl-table out"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_other_tables_are_reported_with_the_options() {
    let (server, dynamodb) = servers(1).await;
    create_lease_table(&dynamodb).await;
    let endpoint = format!("--dynamodb-endpoint-url {}", dynamodb.url());
    let of = |table: &str| format!("--dynamodb {table} {endpoint}");
    let billing = format!("orders --application billing {}", of("absent"));
    for words in [
        format!("status {}", of("absent")),
        format!("status {billing}"),
        format!("tail {billing}"),
        format!("seek {billing} --to latest --yes"),
        format!("reset {billing} --yes"),
    ] {
        let refused = server.run(&words).await;
        let failure = refused.failure();
        let expected = "error: DynamoDB table absent does not exist in this account and region\n";
        assert!(failure.contains(expected), "{words}: {failure}");
    }
    let billing = format!("orders --application billing {}", of(LEASES));
    for words in [format!("status {}", of(LEASES)), format!("status {billing}")] {
        let refused = server.run(&words).await;
        let failure = refused.failure();
        let expected = format!("error: DynamoDB table {LEASES} is of another kind: ");
        assert!(failure.starts_with(&expected), "{words}: {failure}");
        assert!(failure.contains("--kcl-table"), "{words}: {failure}");
    }
    let billing = of_billing(&dynamodb);
    for (table, expected) in [
        ("absent", "error: KCL table absent does not exist in this account and region\n"),
        (TABLE, "are one table; --dynamodb is that of the store"),
    ] {
        let refused = server.run(&format!("status orders {billing} --kcl-table {table}")).await;
        assert!(refused.stderr.contains(expected), "{refused:?}");
    }
}

/// Starts a DynamoDB that denies every call.
async fn denying_server() -> String {
    let handler = |headers: HeaderMap| async move {
        let target = headers["x-amz-target"].to_str().unwrap();
        let message = format!("User: jane is not authorized to perform: {target}");
        let kind = "com.amazon.coral.service#AccessDeniedException";
        (StatusCode::BAD_REQUEST, Json(json!({"__type": kind, "message": message})))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum::serve(listener, Router::new().fallback(handler)).into_future());
    format!("http://127.0.0.1:{port}")
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_and_unreachable_tables_are_reported_with_advice() {
    let server = Server::with_orders(1).await;
    let denying = denying_server().await;
    let of = |url: &str| format!("--dynamodb {TABLE} --dynamodb-endpoint-url {url}");
    for (words, operation) in [
        (format!("status {}", of(&denying)), "Scan"),
        (format!("status orders --application billing {}", of(&denying)), "Query"),
    ] {
        let refused = server.run(&words).await;
        let expected = format!(
            "error: access denied: {operation} of DynamoDB table {TABLE}\n  Grant \
             dynamodb:{operation} on the table to this user or role.\n  AWS says: User: jane is not \
             authorized to perform: DynamoDB_20120810.{operation}\n"
        );
        assert_eq!(refused.failure(), expected, "{words}");
    }
    let absent = "http://127.0.0.1:1";
    for words in [
        format!("status {}", of(absent)),
        format!("status orders --application billing {}", of(absent)),
    ] {
        let refused = server.run(&words).await;
        let failure = refused.failure();
        assert!(failure.contains("the endpoint (--dynamodb-endpoint-url)"), "{words}: {failure}");
    }
    let words = format!("status --dynamodb {TABLE} --region eu-west-1");
    let refused = run(&mut command(&words), "").await;
    let failure = refused.failure();
    assert!(failure.starts_with("error: no AWS credentials were found\n"), "{failure}");
    assert!(failure.contains("pass --dynamodb-endpoint-url http://127.0.0.1:8000"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_of_one_service_is_not_used_for_the_other() {
    let (local, other) = ("http://127.0.0.1:1", "http://127.0.0.1:2");
    for (words, expected) in [
        (format!("--endpoint-url {local}"), "pass --dynamodb-endpoint-url as well"),
        (format!("--dynamodb-endpoint-url {local}"), "pass --endpoint-url as well"),
    ] {
        let words = format!("status orders --application billing --dynamodb {TABLE} {words}");
        let refused = run(&mut command(&words), "").await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(expected), "{refused:?}");
    }
    let endpoints = format!("--endpoint-url {other} --dynamodb-endpoint-url {local}");
    let words = format!("status orders --application billing --dynamodb {TABLE} {endpoints}");
    let accepted = run(&mut command(&words), "").await;
    assert!(accepted.failure().contains("DynamoDB table"), "{accepted:?}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn watch_confirms_a_worker_and_ends_by_a_signal() {
    let (server, dynamodb) = servers(1).await;
    let billing = of_billing(&dynamodb);
    let mut reader = reader_of(&server, &billing).await;
    let words = format!("status orders {billing} --watch=1s --output json");
    let mut watching = server.command(&words).spawn().unwrap();
    let mut reports = BufReader::new(watching.stdout.take().unwrap()).lines();
    let confirmed = async {
        loop {
            let report = reports.next_line().await.unwrap().expect("expected a report");
            let report: Value = serde_json::from_str(&report).unwrap();
            if report["unconfirmed_workers"] == json!([]) {
                return report;
            }
        }
    };
    let report = tokio::time::timeout(Duration::from_secs(60), confirmed).await;
    let report = report.expect("expected a confirmed worker within a minute");
    assert_eq!(report["workers"].as_array().map(Vec::len), Some(1), "{report}");
    for child in [&mut watching, &mut reader] {
        assert_eq!(signal(child, "-INT").await, Some(0));
    }
}
