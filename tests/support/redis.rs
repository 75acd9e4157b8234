//! A real redis-server on a free port, for one test.

// Each program uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::free_port::free_port;

/// A folder for each server of this process.
static FOLDERS: AtomicUsize = AtomicUsize::new(0);

/// A server that is ended, and whose folder is removed, when it is dropped.
pub(crate) struct RedisServer {
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
    /// What it says in its log when it is ready.
    ready: &'static str,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server with these options beside those that keep it apart from others.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::launched(|port, _folder| vec!["--port".to_owned(), port.to_string()], options)
    }

    /// Starts a server that listens as these options of a port and the server's folder say.
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

    /// Starts a sentinel that watches as these lines of its configuration say.
    pub(crate) fn sentinel(lines: &str) -> Self {
        Self::ready_at("+monitor master", |port, folder| {
            let file = folder.join("sentinel.conf");
            std::fs::write(&file, format!("bind 127.0.0.1\nport {port}\n{lines}")).unwrap();
            vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
        })
    }

    /// Starts a server that says this in its log when it is ready.
    fn ready_at(ready: &'static str, mut options: impl FnMut(u16, &Path) -> Vec<String>) -> Self {
        // Another process may take a port between our letting go of it and the server's start:
        // then the server ends at once, and another port is tried.
        for _ in 0..5 {
            let port = free_port();
            let (process, number) = (std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
            let folder = std::env::temp_dir().join(format!("kinestream-redis-{process}-{number}"));
            std::fs::create_dir_all(&folder).unwrap();
            let options = options(port, &folder);
            let mut server = Self { port, folder, options, ready, process: None };
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server did not start on five free ports in turn");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sends this signal to the server's process.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("the server runs").id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    /// Ends the server as a crash does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Loses what a server that was killed had written.
    pub(crate) fn forget(&mut self) {
        assert!(self.process.is_none(), "the server is killed first");
        for written in ["appendonlydir", "dump.rdb"].map(|name| self.folder.join(name)) {
            let _may_be_none = std::fs::remove_dir_all(&written);
            let _may_be_none = std::fs::remove_file(&written);
        }
    }

    /// Takes away the folder that the server writes to.
    pub(crate) fn remove_folder(&self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }

    /// Starts a server that was killed, on the same port, with what it had written.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "the server is killed first");
        assert!(self.launch(), "the server starts again on its port");
    }

    /// Whether the server is ready; `false` where it has ended instead.
    fn launch(&mut self) -> bool {
        let process = Command::new("redis-server")
            .current_dir(&self.folder)
            .args(&self.options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = match process {
            Ok(process) => process,
            Err(error) => panic!(
                "redis-server cannot be started ({error}); run ./tests/run, which installs it"
            ),
        };
        // Its own word is taken: whoever answers on the port may be another one's server.
        let log = BufReader::new(process.stdout.take().unwrap());
        let (tell, told) = mpsc::channel();
        let ready = self.ready;
        // To its end: a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains(ready) {
                    let _nobody_waits = tell.send(());
                }
            }
        });
        self.process = Some(process);
        let ready = told.recv_timeout(Duration::from_secs(30));
        assert!(ready != Err(RecvTimeoutError::Timeout), "redis-server was not ready in 30 s");
        if ready.is_err() {
            self.kill();
        }
        ready.is_ok()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _may_be_gone = std::fs::remove_dir_all(&self.folder);
    }
}
