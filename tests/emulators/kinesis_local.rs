//! The npm emulator kinesis-local, as a separate process on a free port.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use tokio::process::{Child, Command};

use crate::ferrokinesis_server::client_of;
use crate::free_port::free_port;

/// A running server. A drop kills it.
pub(crate) struct KinesisLocal {
    port: u16,
    _process: Child,
}

impl KinesisLocal {
    pub(crate) async fn start() -> Self {
        let home = std::env::var_os("KINESIS_LOCAL").map_or_else(
            || {
                let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
                PathBuf::from(target).join("kinesis-local/node_modules/kinesis-local")
            },
            PathBuf::from,
        );
        assert!(
            home.join("main.js").exists(),
            "kinesis-local is not installed in {}; run ./tests/run, which installs it",
            home.display()
        );
        // Another process may take the port before the server binds it. The server then exits at
        // once, and the next port is tried.
        for _ in 0..5 {
            let (plain, tls) = (free_port(), free_port());
            let mut process = Command::new("node")
                .arg("main.js")
                .current_dir(&home)
                .env("KINESIS_MOCK_PLAIN_PORT", plain.to_string())
                .env("KINESIS_MOCK_TLS_PORT", tls.to_string())
                .env("SHARD_LIMIT", "500")
                .env("LOG_LEVEL", "ERROR")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("failed to start node");
            if Self::answers(plain, &mut process).await {
                return Self { port: plain, _process: process };
            }
        }
        panic!("kinesis-local failed to start on five free ports in turn");
    }

    async fn answers(port: u16, process: &mut Child) -> bool {
        let client = client_of(port);
        for _ in 0..600 {
            if client.list_streams().send().await.is_ok() {
                return true;
            }
            if process.try_wait().expect("expected the status of a child process").is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("kinesis-local did not respond within a minute");
    }

    // Only some of the including programs start a client of their own.
    #[allow(dead_code)]
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn client(&self) -> Client {
        client_of(self.port)
    }
}
