//! Errors of `RedisStore` when a server refuses a command or a connection.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kinestream::store::CheckpointStore;
use kinestream::{Error, ErrorKind, RedisStore};
use tokio::time::{Instant, sleep};

use crate::proxy::Proxy;
use crate::redis_server::RedisServer;
use crate::redis_store::{after, raw, scope, shard, whole_text};

async fn command(server: &RedisServer, words: &[&str]) {
    let mut raw = raw(server).await;
    redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut raw).await.unwrap();
}

async fn save(store: &RedisStore) -> kinestream::Result<()> {
    store.save(&scope(), &[(shard(0), after(1))]).await
}

/// Checks that the error has this kind and contains these words.
fn assert_error(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{}", whole_text(error));
    for word in words {
        assert!(error.to_string().contains(word), "expected {word:?} in: {error}");
    }
}

#[tokio::test]
async fn full_memory_is_reported_as_temporary() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    save(&store).await.unwrap();
    command(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = store.save(&scope(), &[(shard(0), after(2))]).await.unwrap_err();
    let words = ["is out of memory", ": OOM command not allowed", "raise maxmemory"];
    assert_error(&error, ErrorKind::StoreUnavailable, &words);
    assert!(!error.to_string().contains("is unreachable"), "{error}");
    command(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    store.save(&scope(), &[(shard(0), after(2))]).await.unwrap();
}

#[tokio::test]
async fn failed_persistence_is_reported_as_temporary() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    save(&store).await.unwrap();
    command(&server, &["CONFIG", "SET", "save", "3600 1000000"]).await;
    server.remove_folder();
    command(&server, &["BGSAVE"]).await;
    let began = Instant::now();
    let mut number = 1;
    let error = loop {
        // Each checkpoint must be higher than the last, or nothing would be written.
        number += 1;
        match store.save(&scope(), &[(shard(0), after(number))]).await {
            Ok(()) => sleep(Duration::from_millis(20)).await,
            Err(error) => break error,
        }
        assert!(began.elapsed() < Duration::from_secs(20), "expected the save to disk to fail");
    };
    let words = ["cannot save to disk", ": MISCONF ", "see its log"];
    assert_error(&error, ErrorKind::StoreUnavailable, &words);
}

#[tokio::test]
async fn missing_replicas_are_reported_as_temporary() {
    let server = RedisServer::start(&["--min-replicas-to-write", "1"]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let words = ["too few replicas", ": NOREPLICAS Not enough good replicas", "min-replicas"];
    assert_error(&save(&store).await.unwrap_err(), ErrorKind::StoreUnavailable, &words);
}

#[tokio::test]
async fn protected_mode_is_reported_with_remedy() {
    let server = RedisServer::start(&[]);
    let proxy = Proxy::start(server.port()).await;
    proxy.connect_from([127, 0, 0, 2].into());
    for url in [proxy.url(), proxy.url().replace("//", "//:hunter2@")] {
        let error = RedisStore::connect(&url).await.unwrap_err();
        let words = ["is in protected mode", ": DENIED Redis is running in protected mode"];
        assert_error(&error, ErrorKind::Denied, &words);
    }
}

#[tokio::test]
async fn too_many_connections_are_reported_as_temporary() {
    let server = RedisServer::start(&["--maxclients", "1", "--requirepass", "secret"]);
    let url = server.url().replace("//", "//:secret@");
    let first = RedisStore::connect(&url).await.unwrap();
    let error = RedisStore::connect(&url).await.unwrap_err();
    assert_error(
        &error,
        ErrorKind::StoreUnavailable,
        &["max number of clients reached", "raise maxclients"],
    );
    drop(first);
}

#[tokio::test]
async fn missing_script_permission_is_reported_with_remedy() {
    let server = RedisServer::start(&[]);
    let user = ["ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-@scripting"];
    command(&server, &user).await;
    let url = server.url().replace("//", "//reader:secret@");
    let store = RedisStore::connect(&url).await.unwrap();
    let error = save(&store).await.unwrap_err();
    assert_error(&error, ErrorKind::Denied, &[": NOPERM ", "evalsha", "+@scripting"]);
    // Denies a command that the script calls.
    command(&server, &["ACL", "SETUSER", "reader", "+@scripting", "-hset"]).await;
    assert_error(&save(&store).await.unwrap_err(), ErrorKind::Denied, &["denies this user"]);
    // The permissions of the message suffice.
    let least = "on >secret resetkeys ~kinestream:* -@all +@read +@write +@scripting +@connection";
    let words: Vec<&str> =
        ["ACL", "SETUSER", "least"].into_iter().chain(least.split(' ')).collect();
    command(&server, &words).await;
    let url = server.url().replace("//", "//least:secret@");
    save(&RedisStore::connect(&url).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn disabled_command_is_reported_without_arguments() {
    let server = RedisServer::start(&["--rename-command", "EVALSHA", ""]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let error = save(&store).await.unwrap_err();
    let words = ["does not know a required command", "unknown command 'EVALSHA';", "enable EVAL"];
    assert_error(&error, ErrorKind::Configuration, &words);

    let server = RedisServer::start(&["--rename-command", "AUTH", ""]);
    let url = server.url().replace("//", "//me:hunter2@");
    let error = RedisStore::connect(&url).await.unwrap_err();
    assert!(!whole_text(&error).contains("hunter2"), "{}", whole_text(&error));
}

/// The text that a subscriber has logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Begins a log of this thread, which ends when the guard is dropped.
    pub(crate) fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        crate::listening::keep_events_on();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the log of connecting to a server with these options.
async fn logged(options: &[&str]) -> String {
    let server = RedisServer::start(options);
    let (log, _until_here) = Log::begin();
    RedisStore::connect(&server.url()).await.unwrap();
    log.text()
}

#[tokio::test]
async fn eviction_policy_is_logged_where_readable() {
    let text = logged(&["--maxmemory-policy", "allkeys-lru"]).await;
    assert!(text.contains("WARN") && text.contains("allkeys-lru"), "{text:?}");
    assert!(text.contains("set it to noeviction"), "{text:?}");
    assert_eq!(logged(&[]).await, "", "expected no warning for the default, noeviction");
    let hidden = ["--maxmemory-policy", "allkeys-lru", "--rename-command", "INFO", ""];
    assert_eq!(logged(&hidden).await, "");
}
