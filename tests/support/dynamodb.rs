//! A DynamoDB server on a free port, for one test: dynoxide, which keeps its data in SQLite.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::{Child, Command};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Builder, Credentials, Region};
use kinestream::DynamoDbStore;

use crate::server_process::{new_folder, on_free_port, start};

/// The name of the table of the tests.
pub(crate) const TABLE: &str = "kinestream";

/// A running server. A drop kills the server and removes its folder.
pub(crate) struct DynamoDbServer {
    port: u16,
    folder: PathBuf,
    process: Option<Child>,
}

impl DynamoDbServer {
    /// Starts a server without tables.
    pub(crate) fn start() -> Self {
        on_free_port(|port| {
            let mut server = Self { port, folder: new_folder("dynamodb"), process: None };
            server.launch().then_some(server)
        })
    }

    /// Starts a server with an empty table, and returns a store in it.
    pub(crate) async fn with_table() -> (Self, DynamoDbStore) {
        let server = Self::start();
        let store = server.store();
        store.create_table().await.unwrap();
        (server, store)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn client(&self) -> Client {
        client_of(&self.url())
    }

    pub(crate) fn store(&self) -> DynamoDbStore {
        DynamoDbStore::new(self.client(), TABLE)
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

    /// Starts a killed server again on the same port, with the data that it has written.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "kill the server before restarting it");
        assert!(self.launch(), "expected the server to restart on its port");
    }

    /// Starts the process. Returns true once it is ready, and false if it exits instead.
    fn launch(&mut self) -> bool {
        let mut command = Command::new(program());
        command.args(["serve", "--port", &self.port.to_string(), "--db-path"]);
        command.arg(self.folder.join("data.db"));
        self.process = start(&mut command, "listening on");
        self.process.is_some()
    }
}

/// Returns the path of the server's program.
fn program() -> PathBuf {
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    let home = std::env::var_os("DYNOXIDE");
    let home = home.map_or_else(|| PathBuf::from(target).join("dynoxide"), PathBuf::from);
    let program = home.join("bin/dynoxide");
    assert!(
        program.exists(),
        "dynoxide is not installed in {}; run ./tests/run, which installs it, or set DYNOXIDE",
        home.display()
    );
    program
}

/// Returns the settings of a client of the server at this URL.
pub(crate) fn config_of(url: &str) -> Builder {
    aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(url)
}

/// Returns a client of the server at this URL.
pub(crate) fn client_of(url: &str) -> Client {
    Client::from_conf(config_of(url).build())
}

impl Drop for DynamoDbServer {
    fn drop(&mut self) {
        self.kill();
        let _may_be_gone = std::fs::remove_dir_all(&self.folder);
    }
}
