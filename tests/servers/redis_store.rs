//! Tests of `RedisStore` against a real server.

use std::time::{Duration, UNIX_EPOCH};

use kinestream::store::{CheckpointStore, Scope, conformance};
use kinestream::{Checkpoint, Error, ErrorKind, RedisStore, ShardId};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::redis_server::{RedisServer, connect};

const CHECKPOINTS: &str = "kinestream:{billing:orders}:checkpoints";
const FORMAT: &str = "kinestream:{billing:orders}:format";

pub(crate) fn scope() -> Scope {
    Scope::new("billing", "orders")
}

pub(crate) fn shard(index: u32) -> ShardId {
    format!("shardId-{index:012}").parse().unwrap()
}

pub(crate) fn after(number: u32) -> Checkpoint {
    format!("AFTER_SEQUENCE_NUMBER:{number}").parse().unwrap()
}

pub(crate) async fn raw(server: &RedisServer) -> MultiplexedConnection {
    connect(server.url()).await.unwrap()
}

/// Returns the texts of an error and of all its sources.
pub(crate) fn whole_text(error: &Error) -> String {
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |error| (**error).source())
        .map(|error| format!("{error} {error:?}"))
        .collect::<Vec<_>>()
        .join("; ")
}

#[tokio::test]
async fn redis_store_conforms() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    conformance::check(&store).await;
}

#[tokio::test]
async fn checkpoint_keys_are_laid_out_as_documented() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let saved = [
        (shard(0), Checkpoint::TrimHorizon),
        (shard(1), Checkpoint::AtTimestamp(UNIX_EPOCH + Duration::from_millis(1234))),
        (shard(2), after(42)),
        (shard(3), Checkpoint::ShardEnd),
    ];
    store.save(&scope(), &saved).await.unwrap();

    let mut raw = raw(&server).await;
    let mut keys: Vec<String> = raw.keys("*").await.unwrap();
    keys.sort();
    assert_eq!(keys, [CHECKPOINTS, FORMAT]);
    assert_eq!(raw.get::<_, String>(FORMAT).await.unwrap(), "1");
    let mut fields: Vec<(String, String)> = raw.hgetall(CHECKPOINTS).await.unwrap();
    fields.sort();
    let expected = ["TRIM_HORIZON", "AT_TIMESTAMP:1234", "AFTER_SEQUENCE_NUMBER:42", "SHARD_END"];
    let expected: Vec<(String, String)> = (0..)
        .zip(expected)
        .map(|(index, text)| (shard(index).to_string(), text.to_owned()))
        .collect();
    assert_eq!(fields, expected);
}

#[test]
fn save_script_matches_supersedes() {
    let server = RedisServer::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(RedisStore::connect(&server.url())).unwrap();
    let place = "AFTER_SEQUENCE_NUMBER:([1-9][0-9]{0,3}|[1-9][0-9]{55,128})(:[1-9][0-9]{0,2})?";
    let any = prop_oneof![
        1 => Just("TRIM_HORIZON".to_owned()),
        1 => "AT_TIMESTAMP:[1-9][0-9]{0,12}",
        6 => place,
        1 => Just("SHARD_END".to_owned()),
    ];
    let cases = std::cell::Cell::new(0);
    TestRunner::new(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })
        .run(&(any.clone(), any), |(stored, new)| {
            let [stored, new]: [Checkpoint; 2] = [stored, new].map(|text| text.parse().unwrap());
            cases.set(cases.get() + 1);
            let shard = shard(cases.get());
            let kept = runtime.block_on(async {
                store.save(&scope(), &[(shard.clone(), stored.clone())]).await.unwrap();
                store.save(&scope(), &[(shard.clone(), new.clone())]).await.unwrap();
                store.load(&scope()).await.unwrap().remove(&shard)
            });
            let expected = if new.supersedes(&stored) { new } else { stored };
            prop_assert_eq!(kept, Some(expected));
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn saving_a_thousand_shards_is_one_command() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let many: Vec<_> = (0..1000).map(|index| (shard(index), after(index))).collect();
    store.save(&scope(), &many).await.unwrap();
    let mut raw = raw(&server).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut raw).await.unwrap();
    store.save(&scope(), &many).await.unwrap();
    let statistics: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut raw).await.unwrap();
    assert!(statistics.contains("cmdstat_evalsha:calls=1,"), "{statistics}");
    assert!(!statistics.contains("cmdstat_eval:"), "{statistics}");
}

#[tokio::test]
async fn flushed_script_is_sent_again() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    store.save(&scope(), &[(shard(0), after(1))]).await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut raw(&server).await).await.unwrap();
    store.save(&scope(), &[(shard(0), after(2))]).await.unwrap();
    assert_eq!(store.load(&scope()).await.unwrap()[&shard(0)], after(2));
}

#[tokio::test]
async fn store_recovers_when_server_restarts() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    store.save(&scope(), &[(shard(0), after(1))]).await.unwrap();
    for round in 2..5 {
        server.kill();
        for _ in 0..3 {
            let error = store.save(&scope(), &[(shard(0), after(round))]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{}", whole_text(&error));
            assert!(error.is_temporary());
        }
        server.restart();
        let began = tokio::time::Instant::now();
        while let Err(error) = store.save(&scope(), &[(shard(0), after(round))]).await {
            assert!(error.is_temporary(), "{}", whole_text(&error));
            assert!(began.elapsed() < Duration::from_secs(20), "{}", whole_text(&error));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(store.load(&scope()).await.unwrap()[&shard(0)], after(round));
    }
}

#[tokio::test]
async fn foreign_keys_are_reported_and_left_unchanged() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let mut raw = raw(&server).await;
    let both = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::StoreCorrupt, "{}", whole_text(&error));
        assert!(!error.is_temporary());
        error.to_string()
    };
    let new = [(shard(0), after(1)), (shard(1), after(1))];

    raw.set::<_, _, ()>(CHECKPOINTS, "a string").await.unwrap();
    let text = "the Redis key kinestream:{billing:orders}:checkpoints does not hold \
                checkpoints; delete it if it is a leftover, or use another application";
    assert_eq!(both(store.load(&scope()).await.unwrap_err()), text);
    assert_eq!(both(store.save(&scope(), &new).await.unwrap_err()), text);
    assert_eq!(raw.get::<_, String>(CHECKPOINTS).await.unwrap(), "a string");

    raw.del::<_, ()>(CHECKPOINTS).await.unwrap();
    raw.hset::<_, _, _, ()>(CHECKPOINTS, shard(1).as_str(), "yesterday").await.unwrap();
    let text = "the Redis key kinestream:{billing:orders}:checkpoints does not hold \
                a checkpoint in field \"shardId-000000000001\"; correct the field, or set the \
                shard's position with Consumer::set_position";
    assert_eq!(both(store.load(&scope()).await.unwrap_err()), text);
    assert_eq!(both(store.save(&scope(), &new).await.unwrap_err()), text);
    let mut each = store.load_each(&scope()).await.unwrap();
    assert_eq!(both(each.remove(&shard(1)).unwrap().unwrap_err()), text);
    assert_eq!(
        each.remove(&shard(0)).unwrap().unwrap(),
        after(1),
        "expected the other shard to be saved"
    );
    let stored: String = raw.hget(CHECKPOINTS, shard(1).as_str()).await.unwrap();
    assert_eq!(stored, "yesterday", "expected an unchanged field");

    raw.del::<_, ()>(CHECKPOINTS).await.unwrap();
    raw.set::<_, _, ()>(FORMAT, "2").await.unwrap();
    let text = "the Redis key kinestream:{billing:orders}:format has format \"2\", but this \
                version of kinestream supports \"1\"; use the version that wrote it, or another \
                application";
    assert_eq!(both(store.load(&scope()).await.unwrap_err()), text);
    assert_eq!(both(store.save(&scope(), &new).await.unwrap_err()), text);
}

#[tokio::test]
async fn connect_error_names_cause_and_no_secret() {
    let server = RedisServer::start(&["--requirepass", "right"]);
    let port = server.port();
    let address = format!("127.0.0.1:{port}");
    let cases = [
        ("reddis://:hunter2@localhost/".to_owned(), ErrorKind::Configuration, "the Redis URL is invalid; use the form redis://user:password@host:6379/0, rediss://… for TLS, or unix:///path".to_owned()),
        ("127.0.0.1:6379".to_owned(), ErrorKind::Configuration, "the Redis URL is invalid; use the form redis://user:password@host:6379/0, rediss://… for TLS, or unix:///path".to_owned()),
        (format!("redis://:hunter2@{address}/"), ErrorKind::Denied, format!("Redis at {address} refused the user or password: WRONGPASS invalid username-password pair or user is disabled; check both in the URL")),
        (format!("redis://hunter2:hunter2@{address}/"), ErrorKind::Denied, format!("Redis at {address} refused the user or password: WRONGPASS invalid username-password pair or user is disabled; check both in the URL")),
        (format!("redis://{address}/"), ErrorKind::Denied, format!("Redis at {address} refused the user or password: NOAUTH Authentication required; check both in the URL")),
        (format!("redis://:right@{address}/99"), ErrorKind::Configuration, format!("Redis at {address} has no such database: ERR DB index is out of range; check the number at the URL's end")),
        ("redis://:hunter2@127.0.0.1:1/".to_owned(), ErrorKind::StoreUnavailable, "Redis at 127.0.0.1:1 is unreachable: Connection refused (os error 111); check that it runs and accepts connections, with TLS for rediss:// and without for redis://".to_owned()),
    ];
    for (url, kind, text) in cases {
        let error = RedisStore::connect(&url).await.unwrap_err();
        assert_eq!(error.to_string(), text, "{}", whole_text(&error));
        assert_eq!(error.kind(), kind, "{}", whole_text(&error));
        assert!(!whole_text(&error).contains("hunter2"), "{}", whole_text(&error));
    }
    let store = RedisStore::connect(&format!("redis://:right@{address}/3")).await.unwrap();
    let shown = format!("{store:?}");
    assert!(!shown.contains("right") && shown.contains(&address), "{shown}");
    conformance::check(&store).await;
}

#[cfg(not(feature = "redis-tls"))]
#[tokio::test]
async fn tls_url_without_feature_names_the_feature() {
    let error = RedisStore::connect("rediss://:hunter2@localhost/").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a rediss:// URL needs the cargo feature redis-tls of kinestream"
    );
}
