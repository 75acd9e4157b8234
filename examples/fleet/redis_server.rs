//! A Redis server that ends with the demonstration.
//!
//! A supervisor process runs between the demonstration and the server. A parent that is killed
//! cannot end its children, but its exit closes their standard input. `redis-server` does not watch
//! its standard input, so the supervisor does.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncBufReadExt;
use tokio::process::Child;
use tokio::time::timeout;

use crate::workers::own_process;

const READY: &str = "Ready to accept connections";
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct RedisServer {
    port: u16,
    supervisor: Child,
}

impl RedisServer {
    pub(crate) async fn start() -> Result<Self, Box<dyn Error>> {
        let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        if let Err(error) = version {
            return Err(format!(
                "cannot start redis-server: {error}\nInstall it with `apt-get install \
                 redis-server`, `dnf install redis`, `apk add redis` or `brew install redis`, \
                 or run ./tests/run, which installs it."
            )
            .into());
        }
        // Another process may take the port before the server starts, so try five ports.
        let mut last_line = String::new();
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let process = std::process::id();
            let folder = std::env::temp_dir().join(format!("kinestream-fleet-{process}-{port}"));
            let folder = folder.to_str().ok_or("the temporary folder's path is not UTF-8")?;
            let mut supervisor = own_process(&["redis-supervisor", &port.to_string(), folder])?;
            let log = supervisor.stdout.take().ok_or("the supervisor has no output")?;
            let mut log = tokio::io::BufReader::new(log).lines();
            while let Some(line) = timeout(PATIENCE, log.next_line()).await?? {
                if line.contains(READY) {
                    // Read the log to its end: a full pipe would stop the server.
                    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
                    return Ok(Self { port, supervisor });
                }
                last_line = line;
            }
        }
        Err(format!("redis-server did not start on five free ports; its last output: {last_line}")
            .into())
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) async fn stop(mut self) -> Result<(), Box<dyn Error>> {
        drop(self.supervisor.stdin.take());
        timeout(PATIENCE, self.supervisor.wait()).await??;
        Ok(())
    }
}

/// Runs the supervisor: runs a server until standard input or the server ends, and removes its
/// folder.
pub(crate) fn supervise(port: u16, folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let result = run_server(port, folder);
    std::fs::remove_dir_all(folder)?;
    result
}

fn run_server(port: u16, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut server = Command::new("redis-server")
        .current_dir(folder)
        .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let log = BufReader::new(server.stdout.take().ok_or("the server has no output")?);
    let server = Arc::new(Mutex::new(server));
    std::thread::spawn({
        let server = Arc::clone(&server);
        move || {
            let _until_it_ends = io::copy(&mut io::stdin(), &mut io::sink());
            // The server's log ends when the server is killed.
            let _may_have_ended = server.lock().unwrap_or_else(PoisonError::into_inner).kill();
        }
    });
    for line in log.lines() {
        // Without a reader, the supervisor still runs the server until the end.
        let _may_be_alone = writeln!(io::stdout(), "{}", line?);
    }
    server.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
    Ok(())
}
