//! A Redis master and its replica, which may change roles, and the ways to find the master.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use kinestream::RedisStore;
use redis::{AsyncConnectionConfig, FromRedisValue, RedisResult};
use tokio::time::{Instant, sleep};

use super::servers::{Deployment, PROXIES};
use crate::free_port::free_port;
use crate::proxy::Proxy;
use crate::redis_server::{RedisServer, connect};

/// The time limit for server operations that have no limit themselves.
const PATIENCE: Duration = Duration::from_secs(60);

impl Deployment {
    fn is_cluster(self) -> bool {
        self == Self::Cluster
    }
}

pub(super) struct RedisServers {
    by: Deployment,
    both: [RedisServer; 2],
    /// The index of the master in `both`.
    master: usize,
    sentinel: Option<RedisServer>,
}

impl RedisServers {
    pub(super) async fn start(by: Deployment) -> Self {
        let bus = Cell::new(0);
        let start = || {
            let listens = |port: u16, _folder: &Path| {
                let mut options = vec!["--port".to_owned(), port.to_string()];
                if by.is_cluster() {
                    bus.set(free_port());
                    options.extend(["--cluster-port".to_owned(), bus.get().to_string()]);
                }
                options
            };
            // Protected mode would refuse the source address of the proxies.
            let common = ["--appendonly", "yes", "--protected-mode", "no"];
            let common = [&common[..], &["--repl-diskless-sync-delay", "0"]].concat();
            let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
            let more: &[&str] = if by.is_cluster() { &cluster } else { &[] };
            RedisServer::launched(listens, &[&common[..], more].concat())
        };
        let first = start();
        let first_bus = bus.get().to_string();
        let mut servers = Self { by, both: [first, start()], master: 0, sentinel: None };
        if by.is_cluster() {
            servers.make_cluster(&first_bus).await;
        } else {
            servers.demote(1).await;
        }
        servers.wait_for_the_replica().await;
        servers.watch();
        servers
    }

    async fn make_cluster(&self, bus: &str) {
        self.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
        let port = self.master().port().to_string();
        command::<()>(&self.both[1], &["CLUSTER", "MEET", "127.0.0.1", &port, bus]).await;
        self.serves(&self.both[1]).await;
        let id: String = command(self.master(), &["CLUSTER", "MYID"]).await;
        command::<()>(&self.both[1], &["CLUSTER", "REPLICATE", &id]).await;
    }

    fn watch(&mut self) {
        if self.by == Deployment::Sentinel {
            self.sentinel = Some(RedisServer::sentinel(&format!(
                "sentinel monitor orders 127.0.0.1 {} 1\n\
                 sentinel down-after-milliseconds orders 1000\n\
                 sentinel failover-timeout orders 2000\n",
                self.master().port()
            )));
        }
    }

    /// Connects a store through new proxies.
    pub(super) async fn connect(&self) -> (Vec<Proxy>, RedisStore) {
        let is_one = self.by == Deployment::Address;
        let servers = if is_one { std::slice::from_ref(self.master()) } else { &self.both };
        let mut proxies = Vec::new();
        for server in servers.iter().chain(&self.sentinel) {
            proxies.push(Proxy::start(server.port()).await);
        }
        for proxy in &proxies {
            proxy.connect_from(PROXIES);
            for (server, stand_in) in servers.iter().zip(&proxies) {
                proxy.announce(server.port(), stand_in.port());
            }
        }
        let urls: Vec<_> = proxies.iter().map(Proxy::url).collect();
        let store = match self.by {
            Deployment::Address => RedisStore::connect(&urls[0]).await,
            #[cfg(feature = "redis-sentinel")]
            Deployment::Sentinel => {
                RedisStore::connect_sentinel([&*urls[2]], "redis://orders/").await
            }
            #[cfg(feature = "redis-cluster")]
            Deployment::Cluster => {
                RedisStore::connect_cluster(urls.iter().map(String::as_str)).await
            }
            by => unreachable!("{by:?} is no Redis, or needs a feature that is off"),
        };
        (proxies, store.unwrap())
    }

    /// Returns true if the master has connections of workers, and all of them use proxies.
    pub(super) async fn serve_proxies_alone(&self) -> bool {
        let list: String = command(self.master(), &["CLIENT", "LIST", "TYPE", "NORMAL"]).await;
        // Sentinels and this connection are clients too. Only workers call scripts.
        let is_worker = |line: &&str| line.contains(" cmd=evalsha ");
        let from = format!(" addr={PROXIES}:");
        let workers: Vec<_> = list.lines().filter(is_worker).collect();
        !workers.is_empty() && workers.iter().all(|line| line.contains(&from))
    }

    /// Returns the port to which proxies redirect new connections, if the master has one address.
    pub(super) fn redirected_to(&self) -> Option<u16> {
        (self.by == Deployment::Address).then(|| self.master().port())
    }

    pub(super) fn master(&self) -> &RedisServer {
        &self.both[self.master]
    }

    /// Sends a command to the master.
    pub(super) async fn command(&self, words: &[&str]) {
        command::<()>(self.master(), words).await;
    }

    /// Runs an endless script from another client, and kills it after this time.
    pub(super) async fn keep_busy(&self, time: Duration) {
        // The older name of busy-reply-threshold, which Redis 6.2 accepts too.
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
        looping.await.unwrap().expect_err("expected the script to be killed");
    }

    /// Suspends the master for this time, or until the sentinel has chosen another one.
    pub(super) async fn suspend(&mut self, time: Duration) {
        let suspended = self.master;
        self.master().signal("-STOP");
        self.sleep_or_follow_sentinel(time).await;
        self.both[suspended].signal("-CONT");
        self.settle(suspended).await;
    }

    /// Kills the master, and restarts it after this time, or once the sentinel has chosen another
    /// one.
    pub(super) async fn restart(&mut self, time: Duration) {
        let killed = self.master;
        self.both[killed].kill();
        self.sleep_or_follow_sentinel(time).await;
        self.both[killed].restart();
        self.settle(killed).await;
    }

    async fn sleep_or_follow_sentinel(&mut self, time: Duration) {
        if self.sentinel.is_some() {
            self.follow_the_sentinel().await;
        } else {
            sleep(time).await;
        }
    }

    /// Restores normal operation after a fault of `server`: one master that serves, and a replica.
    async fn settle(&self, server: usize) {
        if server != self.master {
            self.demote_the_other().await;
        }
        self.serves(self.master()).await;
        self.wait_for_the_replica().await;
    }

    /// Waits until the sentinel names the other server as the master.
    async fn follow_the_sentinel(&mut self) {
        let sentinel = self.sentinel.as_ref().unwrap();
        let other = 1 - self.master;
        let port = self.both[other].port().to_string();
        let began = Instant::now();
        loop {
            let question = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "orders"];
            let (_host, named): (String, String) = command(sentinel, &question).await;
            if named == port {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "expected the sentinel to name the other server");
            sleep(Duration::from_millis(20)).await;
        }
        self.master = other;
    }

    /// Makes the replica a master. The old master may keep its role until it is demoted.
    pub(super) async fn promote(&mut self) {
        if let Some(sentinel) = &self.sentinel {
            command::<()>(sentinel, &["SENTINEL", "FAILOVER", "orders"]).await;
            return self.follow_the_sentinel().await;
        }
        self.master = 1 - self.master;
        if self.by.is_cluster() {
            self.command(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
            self.information(self.master, "role:master").await;
            self.serves(self.master()).await;
        } else {
            self.command(&["REPLICAOF", "NO", "ONE"]).await;
        }
    }

    /// Makes the other server a replica. In a cluster, waits until it becomes one by itself.
    pub(super) async fn demote_the_other(&self) {
        if self.by.is_cluster() {
            self.information(1 - self.master, "role:slave").await;
        } else {
            self.demote(1 - self.master).await;
        }
    }

    async fn demote(&self, other: usize) {
        let port = self.master().port().to_string();
        command::<()>(&self.both[other], &["REPLICAOF", "127.0.0.1", &port]).await;
    }

    /// Waits until a node reports that its cluster is complete.
    async fn serves(&self, node: &RedisServer) {
        let began = Instant::now();
        while self.by.is_cluster() {
            let text: String = command(node, &["CLUSTER", "INFO"]).await;
            if text.contains("cluster_state:ok") {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{text}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the replica is synchronized with the master.
    pub(super) async fn wait_for_the_replica(&self) {
        self.information(1 - self.master, "role:slave").await;
        self.information(1 - self.master, "master_link_status:up").await;
    }

    /// Waits until the replication section of a server's INFO contains `line`.
    async fn information(&self, server: usize, line: &str) {
        let began = Instant::now();
        loop {
            let text: String = command(&self.both[server], &["INFO", "replication"]).await;
            if text.contains(line) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{text}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Sends a command to a server, and retries errors, such as those of a server that loads its data.
async fn command<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let began = Instant::now();
    loop {
        match query(server, words).await {
            Ok(answer) => return answer,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{words:?}: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn query<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> RedisResult<T> {
    let mut raw = connect(server.url()).await?;
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut raw).await
}
