//! Runs the worker processes: starts them, answers them, suspends them and ends them.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::board::{Shared, State};
use crate::screen::Screen;
use crate::tally::DeliveredRecord;
use crate::worker::{ACCEPTED, ANSWERED, END, LEAVE, REFUSED};

/// The longest time that a worker may take to leave.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct Workers {
    kinesis_port: u16,
    redis_url: String,
    board: Shared,
    screen: Screen,
    running: BTreeMap<Arc<str>, Running>,
    started: usize,
}

struct Running {
    process: u32,
    commands: mpsc::UnboundedSender<WorkerCommand>,
    task: JoinHandle<()>,
}

#[derive(PartialEq, Eq)]
enum WorkerCommand {
    Leave,
    Kill,
}

impl Workers {
    pub(crate) fn new(kinesis_port: u16, redis_url: String, board: Shared, screen: Screen) -> Self {
        Self { kinesis_port, redis_url, board, screen, running: BTreeMap::new(), started: 0 }
    }

    pub(crate) fn start(&mut self) -> Result<Arc<str>, Box<dyn Error>> {
        self.started += 1;
        let name: Arc<str> = format!("w{}", self.started).into();
        let port = self.kinesis_port.to_string();
        let child = own_process(&["worker", &port, &self.redis_url, &name])?;
        let process = child.id().ok_or("the worker exited at its start")?;
        let (commands, received) = mpsc::unbounded_channel();
        self.board.lock().set(&name, State::Reads);
        let (worker, board) = (Arc::clone(&name), self.board.clone());
        let screen = self.screen.clone();
        let task = tokio::spawn(async move {
            let result = serve_worker(&worker, child, received, &board, &screen).await;
            if let Err(error) = result {
                screen.print_event(&format!("{worker}: {error}"));
            }
        });
        self.running.insert(Arc::clone(&name), Running { process, commands, task });
        Ok(name)
    }

    /// Kills a worker, as in a crash.
    pub(crate) async fn kill(&mut self, worker: &Arc<str>) {
        self.board.lock().set(worker, State::Killed);
        self.end(worker, WorkerCommand::Kill).await;
    }

    /// Has a worker finish its records, release its leases and exit.
    pub(crate) async fn leave(&mut self, worker: &Arc<str>) {
        self.board.lock().set(worker, State::Leaves);
        self.end(worker, WorkerCommand::Leave).await;
        self.board.lock().set(worker, State::Left);
    }

    /// Has all workers leave at the same time.
    pub(crate) async fn leave_all(&mut self) {
        for (worker, running) in &self.running {
            self.board.lock().set(worker, State::Leaves);
            let _may_have_ended = running.commands.send(WorkerCommand::Leave);
        }
        while let Some(worker) = self.running.keys().next().cloned() {
            self.leave(&worker).await;
        }
    }

    async fn end(&mut self, worker: &Arc<str>, command: WorkerCommand) {
        let Some(running) = self.running.remove(worker) else { return };
        let Running { commands, mut task, .. } = running;
        let _may_have_ended = commands.send(command);
        if timeout(PATIENCE, &mut task).await.is_err() {
            self.board.lock().tally.findings.push(format!("{worker} did not exit in {PATIENCE:?}"));
            let _may_have_ended = commands.send(WorkerCommand::Kill);
            let _ended = task.await;
        }
    }

    /// Suspends a worker for `time`, like a suspended machine. If this is dropped early, the worker
    /// resumes.
    pub(crate) async fn pause(
        &self,
        worker: &Arc<str>,
        time: Duration,
    ) -> Result<(), Box<dyn Error>> {
        let Some(running) = self.running.get(worker) else { return Ok(()) };
        let (process, time) = (running.process.to_string(), time.as_secs().to_string());
        let mut pauser = own_process(&["pauser", &process, &time])?;
        self.board.lock().set(worker, State::Paused);
        // Dropping this closes the pauser's standard input.
        let _input = pauser.stdin.take();
        pauser.wait().await?;
        self.board.lock().set(worker, State::Reads);
        Ok(())
    }
}

/// Receives the records of a worker until the worker exits.
async fn serve_worker(
    worker: &Arc<str>,
    mut child: Child,
    mut commands: mpsc::UnboundedReceiver<WorkerCommand>,
    board: &Shared,
    screen: &Screen,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (Some(input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("the process has no pipes".into());
    };
    tokio::spawn({
        let (worker, screen) = (Arc::clone(worker), screen.clone());
        async move {
            let mut lines = BufReader::new(errors).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                screen.print_event(&format!("{worker}: {line}"));
            }
        }
    });
    let mut input = input;
    let mut lines = BufReader::new(output).lines();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(WorkerCommand::Leave) => answer(&mut input, LEAVE).await,
                Some(WorkerCommand::Kill) | None => child.start_kill()?,
            },
            line = lines.next_line() => match line?.as_deref() {
                None => break,
                Some(END) => answer(&mut input, ANSWERED).await,
                Some(line) => {
                    let record = DeliveredRecord::parse(line)
                        .ok_or_else(|| format!("unexpected output {line:?}"))?;
                    let is_accepted = board.lock().tally.accept(worker, &record);
                    answer(&mut input, if is_accepted { ACCEPTED } else { REFUSED }).await;
                }
            },
        }
    }
    let status = child.wait().await?;
    let mut board = board.lock();
    let is_expected =
        matches!(board.state(worker), Some(State::Killed | State::Leaves | State::Left));
    if !is_expected {
        board.set(worker, State::Killed);
        board.tally.findings.push(format!("{worker} exited unexpectedly: {status}"));
    }
    Ok(())
}

/// Sends a message to a worker. Errors are ignored: the end of its output shows that it has exited.
async fn answer(input: &mut tokio::process::ChildStdin, message: &str) {
    let _may_have_ended = input.write_all(format!("{message}\n").as_bytes()).await;
}

/// Starts this program in another role. The process exits when its standard input ends.
pub(crate) fn own_process(arguments: &[&str]) -> Result<Child, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C reaches the whole process group, but only the parent is to handle it.
    #[cfg(unix)]
    command.process_group(0);
    Ok(command.spawn()?)
}
