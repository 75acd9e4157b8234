//! A Redis master and its replica, which may change roles.

use std::time::Duration;

use redis::{AsyncConnectionConfig, RedisResult, Value};
use tokio::time::{Instant, sleep};

use crate::redis_server::RedisServer;

pub(super) struct Servers {
    both: [RedisServer; 2],
    /// Which of them is the master.
    master: usize,
}

impl Servers {
    pub(super) async fn start() -> Self {
        let options = ["--appendonly", "yes", "--repl-diskless-sync-delay", "0"];
        let both = [RedisServer::start(&options), RedisServer::start(&options)];
        let servers = Self { both, master: 0 };
        servers.demote(1).await;
        servers.wait_for_the_replica().await;
        servers
    }

    pub(super) fn master(&self) -> &RedisServer {
        &self.both[self.master]
    }

    pub(super) fn master_mut(&mut self) -> &mut RedisServer {
        &mut self.both[self.master]
    }

    /// Sends a command to the master.
    pub(super) async fn command(&self, words: &[&str]) {
        command(self.master(), words).await;
    }

    /// Loops in a script of another client, which is killed after this time.
    pub(super) async fn keep_busy(&self, time: Duration) {
        // The name of busy-reply-threshold that 6.2 knows as well.
        self.command(&["CONFIG", "SET", "lua-time-limit", "50"]).await;
        let client = redis::Client::open(self.master().url()).unwrap();
        let unlimited = AsyncConnectionConfig::new().set_response_timeout(None);
        let raw = client.get_multiplexed_async_connection_with_config(&unlimited);
        let mut raw = raw.await.unwrap();
        let looping = tokio::spawn(async move {
            let script = ["while true do end", "0"];
            redis::cmd("EVAL").arg(&script).exec_async(&mut raw).await
        });
        sleep(time).await;
        self.command(&["SCRIPT", "KILL"]).await;
        looping.await.unwrap().expect_err("the script was killed");
    }

    /// Makes the replica a master. The old one remains one until it is demoted.
    pub(super) async fn promote(&mut self) {
        self.master = 1 - self.master;
        self.command(&["REPLICAOF", "NO", "ONE"]).await;
    }

    /// Makes the server that is not the master a replica.
    pub(super) async fn demote_the_other(&self) {
        self.demote(1 - self.master).await;
    }

    async fn demote(&self, other: usize) {
        let port = self.master().port().to_string();
        command(&self.both[other], &["REPLICAOF", "127.0.0.1", &port]).await;
    }

    /// Waits until the replica has all that the master has.
    pub(super) async fn wait_for_the_replica(&self) {
        let began = Instant::now();
        loop {
            let replica = &self.both[1 - self.master];
            let text = command(replica, &["INFO", "replication"]).await;
            if text.contains("role:slave") && text.contains("master_link_status:up") {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{text}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Sends a command to a server until it answers without an error, as one that loads its data does not.
async fn command(server: &RedisServer, words: &[&str]) -> String {
    let began = Instant::now();
    loop {
        match ask(server, words).await {
            Ok(Value::BulkString(text)) => return String::from_utf8(text).unwrap(),
            Ok(_short) => return String::new(),
            Err(error) => assert!(began.elapsed() < Duration::from_secs(60), "{words:?}: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(server: &RedisServer, words: &[&str]) -> RedisResult<Value> {
    let client = redis::Client::open(server.url())?;
    let mut raw = client.get_multiplexed_async_connection().await?;
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut raw).await
}
