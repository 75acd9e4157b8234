//! A real redis-server on a free port, for one test.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, IntoConnectionInfo, RedisResult};

use crate::free_port::free_port;
use crate::server_process::{new_folder, on_free_port, start};

/// Connects to a server. The client's own time limit of 500 ms is too short for a busy machine.
pub(crate) async fn connect(url: impl IntoConnectionInfo) -> RedisResult<MultiplexedConnection> {
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let client = redis::Client::open(url)?;
    client.get_multiplexed_async_connection_with_config(&patient).await
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A running redis-server. A drop kills the server and removes its folder.
pub(crate) struct RedisServer {
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
    /// The log line that reports readiness.
    ready: &'static str,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server with these options, in addition to those that isolate it from other servers.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::launched(|port, _folder| vec!["--port".to_owned(), port.to_string()], options)
    }

    /// Starts a server. `listens` returns the listen options for a port and the server's folder.
    pub(crate) fn launched(
        mut listens: impl FnMut(u16, &Path) -> Vec<String>,
        options: &[&str],
    ) -> Self {
        let apart = ["--bind", "127.0.0.1", "--save", ""];
        Self::ready_at("Ready to accept connections", |port, folder| {
            let options = apart.iter().chain(options).map(ToString::to_string);
            listens(port, folder).into_iter().chain(options).collect()
        })
    }

    /// Starts a node of a cluster, which holds no slot and knows no other node. Returns its port for
    /// other nodes as well.
    pub(crate) fn cluster_node() -> (Self, String) {
        let mut cluster_port = String::new();
        let listens = |port: u16, _folder: &Path| {
            cluster_port = free_port().to_string();
            ["--port", &port.to_string(), "--cluster-port", &cluster_port]
                .map(str::to_owned)
                .to_vec()
        };
        let node = Self::launched(listens, &["--cluster-enabled", "yes"]);
        (node, cluster_port)
    }

    /// Starts a sentinel with these lines in its configuration.
    pub(crate) fn sentinel(lines: &str) -> Self {
        Self::ready_at("+monitor master", |port, folder| {
            let file = folder.join("sentinel.conf");
            std::fs::write(&file, format!("bind 127.0.0.1\nport {port}\n{lines}")).unwrap();
            vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
        })
    }

    /// Starts a server, and waits for `ready` in its log.
    fn ready_at(ready: &'static str, mut options: impl FnMut(u16, &Path) -> Vec<String>) -> Self {
        on_free_port(|port| {
            let folder = new_folder("redis");
            let options = options(port, &folder);
            let mut server = Self { port, folder, options, ready, process: None };
            server.launch().then_some(server)
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sends this signal to the server's process.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("expected a running server").id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    /// Kills the server without a shutdown.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Removes the data that a killed server has written.
    pub(crate) fn forget(&mut self) {
        assert!(self.process.is_none(), "kill the server before removing its data");
        for written in ["appendonlydir", "dump.rdb"].map(|name| self.folder.join(name)) {
            let _may_be_none = std::fs::remove_dir_all(&written);
            let _may_be_none = std::fs::remove_file(&written);
        }
    }

    /// Removes the folder that the server writes to.
    pub(crate) fn remove_folder(&self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }

    /// Starts a killed server again on the same port, with the data that it has written.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "kill the server before restarting it");
        assert!(self.launch(), "expected the server to restart on its port");
    }

    /// Starts the process. Returns true once it is ready, and false if it exits instead.
    fn launch(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        command.current_dir(&self.folder).args(&self.options);
        self.process = start(&mut command, self.ready);
        self.process.is_some()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _may_be_gone = std::fs::remove_dir_all(&self.folder);
    }
}
