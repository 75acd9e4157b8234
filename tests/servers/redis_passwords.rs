//! Password changes in Redis while clients are connected.

use std::time::Duration;

use futures::StreamExt;
use kinestream::store::CheckpointStore;
use kinestream::{Error, ErrorKind, Event, RedisStore};
use tokio::time::{Instant, sleep, timeout};

use crate::reading::{DELAY, LEASE, ReadingWorker};
use crate::redis_connection::{ALL, ProxiedStore, until_saved};
use crate::redis_server::{RedisServer, connect};
use crate::redis_store::{after, scope, shard, whole_text};

/// Sets a new password, and closes the connections of all other clients.
async fn set_password(server: &RedisServer, old: &str, new: &str) {
    let login = if old.is_empty() { String::new() } else { format!(":{old}@") };
    let mut raw = connect(server.url().replace("//", &format!("//{login}"))).await.unwrap();
    let set = ["SET", "requirepass", new];
    redis::cmd("CONFIG").arg(&set).exec_async(&mut raw).await.unwrap();
    let kill = ["KILL", "TYPE", "normal", "SKIPME", "yes"];
    redis::cmd("CLIENT").arg(&kill).exec_async(&mut raw).await.unwrap();
}

/// Saves until the server refuses, and returns the refusal.
async fn refused(store: &RedisStore) -> Error {
    let began = Instant::now();
    loop {
        match store.save(&scope(), &[(shard(0), after(2))]).await {
            // The server may have closed the connection.
            Err(error) if error.kind() != ErrorKind::StoreUnavailable => return error,
            other => assert!(began.elapsed() < LEASE, "expected a refusal, still {other:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn assert_credentials_error(error: &Error, code: &str, secrets: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", whole_text(error));
    assert!(text.contains(code) && text.contains("check both in the URL"), "{text}");
    assert!(secrets.iter().all(|secret| !whole_text(error).contains(secret)), "{text}");
}

#[tokio::test]
async fn changed_password_is_reported_with_remedy_until_restored() {
    let checks = ALL.iter().map(async |by| {
        let behind = ProxiedStore::started(*by).await;
        let open = behind.connect("").await.unwrap();
        set_password(&behind.server, "", "hunter2").await;
        assert_credentials_error(&refused(&open).await, "NOAUTH", &["hunter2"]);
        let store = behind.connect("hunter2").await.unwrap();
        set_password(&behind.server, "hunter2", "hunter3").await;
        assert_credentials_error(&refused(&store).await, "WRONGPASS", &["hunter2", "hunter3"]);
        set_password(&behind.server, "hunter3", "hunter2").await;
        until_saved(&store, 3).await;
        set_password(&behind.server, "hunter2", "").await;
        until_saved(&open, 4).await;
    });
    futures::future::join_all(checks).await;
}

#[tokio::test]
async fn worker_resumes_once_its_password_is_valid_again() {
    let server = RedisServer::start(&["--requirepass", "hunter2"]);
    let url = server.url().replace("//", "//:hunter2@");
    let mut reading = ReadingWorker::start(RedisStore::connect(&url).await.unwrap()).await;
    let mut events = reading.consumer.events();
    set_password(&server, "hunter2", "hunter3").await;
    let error =
        timeout(LEASE + DELAY, reading.error()).await.expect("expected an error for the caller");
    assert_credentials_error(&error, "WRONGPASS", &["hunter2", "hunter3"]);
    let reported = async {
        loop {
            if let Some(Event::StoreFailed { message }) = events.next().await
                && message.contains("WRONGPASS")
            {
                return;
            }
        }
    };
    timeout(LEASE + DELAY, reported).await.expect("expected an event that reports the refusal");
    // Waits until all leases have expired.
    sleep(LEASE).await;
    set_password(&server, "hunter3", "hunter2").await;
    reading.reads_on().await;
}
