//! A DynamoDB server on a free port, for one test: dynoxide, which keeps its data in SQLite.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Builder, Credentials, Region};
use kinestream::DynamoDbStore;

use crate::free_port::free_port;

/// The name of the table of the tests.
pub(crate) const TABLE: &str = "kinestream";

/// Numbers the folders of the servers of this process.
static FOLDERS: AtomicUsize = AtomicUsize::new(0);

/// A running server. A drop kills the server and removes its folder.
pub(crate) struct DynamoDbServer {
    port: u16,
    folder: PathBuf,
    process: Option<Child>,
}

impl DynamoDbServer {
    /// Starts a server without tables.
    pub(crate) fn start() -> Self {
        // Another process may take the port before the server binds it. The server then exits at
        // once, and the next port is tried.
        for _ in 0..5 {
            let port = free_port();
            let (process, number) = (std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
            let folder =
                std::env::temp_dir().join(format!("kinestream-dynamodb-{process}-{number}"));
            std::fs::create_dir_all(&folder).unwrap();
            let mut server = Self { port, folder, process: None };
            if server.launch() {
                return server;
            }
        }
        panic!("dynoxide failed to start on five free ports in turn");
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
        let program = program();
        let process = Command::new(&program)
            .args(["serve", "--port", &self.port.to_string(), "--db-path"])
            .arg(self.folder.join("data.db"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = match process {
            Ok(process) => process,
            Err(error) => panic!("failed to start {}: {error}", program.display()),
        };
        // Readiness is read from the server's own output, because a server of another process may
        // answer on the port.
        let (notify, started) = mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        for output in outputs {
            let notify = notify.clone();
            // Reads until the server exits: a full pipe would block the server.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if line.contains("listening on") {
                        let _receiver_is_gone = notify.send(());
                    }
                }
            });
        }
        drop(notify);
        self.process = Some(process);
        let ready = started.recv_timeout(Duration::from_secs(30));
        assert!(ready != Err(RecvTimeoutError::Timeout), "dynoxide was not ready in 30 s");
        if ready.is_err() {
            self.kill();
        }
        ready.is_ok()
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
