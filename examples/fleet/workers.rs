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
use crate::tally::Told;
use crate::worker::{ANSWERED, END, LEAVE, REFUSED, TAKEN};

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
    orders: mpsc::UnboundedSender<Order>,
    attending: JoinHandle<()>,
}

#[derive(PartialEq, Eq)]
enum Order {
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
        let (orders, ordered) = mpsc::unbounded_channel();
        self.board.lock().set(&name, State::Reads);
        let (worker, board) = (Arc::clone(&name), self.board.clone());
        let screen = self.screen.clone();
        let attending = tokio::spawn(async move {
            let said = attend(&worker, child, ordered, &board, &screen).await;
            if let Err(error) = said {
                screen.say(&format!("{worker}: {error}"));
            }
        });
        self.running.insert(Arc::clone(&name), Running { process, orders, attending });
        Ok(name)
    }

    /// Kills a worker, as in a crash.
    pub(crate) async fn kill(&mut self, worker: &Arc<str>) {
        self.board.lock().set(worker, State::Killed);
        self.end(worker, Order::Kill).await;
    }

    /// Has a worker finish its records, release its leases and exit.
    pub(crate) async fn leave(&mut self, worker: &Arc<str>) {
        self.board.lock().set(worker, State::Leaves);
        self.end(worker, Order::Leave).await;
        self.board.lock().set(worker, State::Left);
    }

    /// Has all workers leave at the same time.
    pub(crate) async fn leave_all(&mut self) {
        for (worker, running) in &self.running {
            self.board.lock().set(worker, State::Leaves);
            let _may_have_ended = running.orders.send(Order::Leave);
        }
        while let Some(worker) = self.running.keys().next().cloned() {
            self.leave(&worker).await;
        }
    }

    async fn end(&mut self, worker: &Arc<str>, order: Order) {
        let Some(running) = self.running.remove(worker) else { return };
        let Running { orders, mut attending, .. } = running;
        let _may_have_ended = orders.send(order);
        if timeout(PATIENCE, &mut attending).await.is_err() {
            self.board.lock().tally.findings.push(format!("{worker} did not exit in {PATIENCE:?}"));
            let _may_have_ended = orders.send(Order::Kill);
            let _ended = attending.await;
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
async fn attend(
    worker: &Arc<str>,
    mut child: Child,
    mut orders: mpsc::UnboundedReceiver<Order>,
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
                screen.say(&format!("{worker}: {line}"));
            }
        }
    });
    let mut input = input;
    let mut lines = BufReader::new(output).lines();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Leave) => answer(&mut input, LEAVE).await,
                Some(Order::Kill) | None => child.start_kill()?,
            },
            line = lines.next_line() => match line?.as_deref() {
                None => break,
                Some(END) => answer(&mut input, ANSWERED).await,
                Some(line) => {
                    let told = Told::parse(line).ok_or_else(|| format!("unexpected output {line:?}"))?;
                    let is_taken = board.lock().tally.take(worker, &told);
                    answer(&mut input, if is_taken { TAKEN } else { REFUSED }).await;
                }
            },
        }
    }
    let status = child.wait().await?;
    let mut board = board.lock();
    let is_asked = matches!(board.state(worker), Some(State::Killed | State::Leaves | State::Left));
    if !is_asked {
        board.set(worker, State::Killed);
        board.tally.findings.push(format!("{worker} exited unexpectedly: {status}"));
    }
    Ok(())
}

/// Sends a message to a worker. Errors are ignored: the end of its output shows that it has exited.
async fn answer(input: &mut tokio::process::ChildStdin, word: &str) {
    let _may_have_ended = input.write_all(format!("{word}\n").as_bytes()).await;
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
