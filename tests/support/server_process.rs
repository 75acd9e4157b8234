//! The process of a server that one test uses.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::free_port::free_port;

/// Numbers the folders of the servers of this process.
static FOLDERS: AtomicUsize = AtomicUsize::new(0);

/// Creates a folder for the data of a server.
pub(crate) fn new_folder(server: &str) -> PathBuf {
    let (process, number) = (std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(format!("kinestream-{server}-{process}-{number}"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Starts a server on a free port. `start` returns `None` if the server has exited at once.
///
/// Another process may take the port before the server binds it. The server then exits, and the next
/// port is tried.
pub(crate) fn on_free_port<S>(mut start: impl FnMut(u16) -> Option<S>) -> S {
    let server = (0..5).find_map(|_| start(free_port()));
    server.expect("expected the server to start on one of five free ports")
}

/// Starts the process of a server. Returns it once a line of its output contains `ready`, and `None`
/// if it exits instead.
///
/// Readiness is read from the server's own output, because a server of another process may answer on
/// the port.
pub(crate) fn start(command: &mut Command, ready: &'static str) -> Option<Child> {
    let program = command.get_program().to_owned();
    let process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = process.unwrap_or_else(|error| {
        panic!("failed to start {}: {error}; run ./tests/run, which installs it", program.display())
    });
    let outputs: [Box<dyn Read + Send>; 2] =
        [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
    let (notify, started) = mpsc::channel();
    for output in outputs {
        let notify = notify.clone();
        // Reads until the server exits: a full pipe would block the server.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.contains(ready) {
                    let _receiver_is_gone = notify.send(());
                }
            }
        });
    }
    drop(notify);
    let is_ready = started.recv_timeout(Duration::from_secs(30));
    if is_ready.is_ok() {
        return Some(process);
    }
    let _may_have_exited = process.kill();
    process.wait().unwrap();
    let has_exited = is_ready == Err(RecvTimeoutError::Disconnected);
    assert!(has_exited, "{} was not ready in 30 s", program.display());
    None
}
