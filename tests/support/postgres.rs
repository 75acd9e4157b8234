//! A real PostgreSQL server on a free port, for one test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::server_process::{new_folder, on_free_port, start};

/// A running server. A drop stops it and removes its folder.
pub(crate) struct PostgresServer {
    port: u16,
    folder: PathBuf,
    programs: PathBuf,
    process: Option<Child>,
}

impl PostgresServer {
    /// Creates a database cluster, and starts a server.
    pub(crate) fn start() -> Self {
        let folder = new_folder("postgres");
        not_root::give(&folder);
        let mut server = Self { port: 0, folder, programs: programs(), process: None };
        let data = server.data();
        let created = server
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"])
            .args(["--no-sync", "--pgdata", &data])
            .output()
            .unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        // Proxies connect from other addresses of this host.
        let access = "host all all 127.0.0.0/8 trust\n";
        std::fs::write(server.folder.join("data/pg_hba.conf"), access).unwrap();
        on_free_port(|port| {
            server.port = port;
            server.launch().then_some(())
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        url(self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server like a crash: its processes exit at once, and the next start recovers.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL would leave the processes of connections behind, which exit a moment later.
            signal("-QUIT", &[process.id()]);
            process.wait().unwrap();
        }
    }

    /// Starts a killed server again on the same port, with the data that it has written.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "kill the server before restarting it");
        assert!(self.launch(), "expected the server to restart on its port");
    }

    /// Sends this signal to the server and to the processes of its connections.
    pub(crate) fn signal_all(&self, name: &str) {
        let server = self.process.as_ref().expect("expected a running server").id();
        // A suspended server starts no further processes.
        signal(name, &[server]);
        let children = Command::new("pgrep").args(["-P", &server.to_string()]).output().unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let children: Vec<u32> = children.lines().map(|line| line.parse().unwrap()).collect();
        signal(name, &children);
    }

    fn data(&self) -> String {
        self.folder.join("data").to_str().unwrap().to_owned()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(&self.folder).stdin(Stdio::null());
        not_root::run(&mut command, &self.folder);
        command
    }

    /// Starts the process. Returns true once it is ready, and false if it exits instead.
    fn launch(&mut self) -> bool {
        let (port, folder) = (self.port.to_string(), self.folder.to_str().unwrap().to_owned());
        let mut command = self.command("postgres");
        command
            .args(["-D", &self.data(), "-p", &port, "-k", &folder, "-h", "127.0.0.1"])
            // A crash of the server loses nothing, unlike one of the machine.
            .args(["-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "lc_messages=C"]);
        self.process = start(&mut command, "database system is ready to accept connections");
        self.process.is_some()
    }
}

/// PostgreSQL refuses to run as root, so the user `nobody` runs it then.
#[cfg(unix)]
mod not_root {
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::Command;

    const NOBODY: u32 = 65_534;

    /// Gives a new folder to `nobody` if this process runs as root, whose folder it is then.
    pub(super) fn give(folder: &Path) {
        if std::fs::metadata(folder).unwrap().uid() == 0 {
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// Makes a command run as the owner of a folder.
    pub(super) fn run(command: &mut Command, folder: &Path) {
        let owner = std::fs::metadata(folder).unwrap();
        if owner.uid() == NOBODY {
            command.uid(owner.uid()).gid(owner.gid());
        }
    }
}

#[cfg(not(unix))]
mod not_root {
    use std::path::Path;
    use std::process::Command;

    pub(super) fn give(_folder: &Path) {}
    pub(super) fn run(_command: &mut Command, _folder: &Path) {}
}

/// Returns the URL of a server, or of a proxy for it, on this port.
pub(crate) fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// Sends a signal to those of the processes that have not ended meanwhile.
fn signal(name: &str, processes: &[u32]) {
    let processes = processes.iter().map(ToString::to_string);
    let _some_may_have_ended =
        Command::new("kill").arg(name).args(processes).stderr(Stdio::null()).status().unwrap();
}

/// Returns the folder of `initdb` and `postgres`, which Debian does not put into the path.
fn programs() -> PathBuf {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = debian.map(|version| version.path().join("bin")).collect();
    debian.sort();
    let has_programs = |folder: &PathBuf| folder.join("initdb").is_file();
    let found = std::env::split_paths(&in_path).chain(debian.into_iter().rev()).find(has_programs);
    found.expect("expected PostgreSQL to be installed; run ./tests/run, which installs it")
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
        let _may_be_gone = std::fs::remove_dir_all(Path::new(&self.folder));
    }
}
