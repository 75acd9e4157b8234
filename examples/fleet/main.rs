//! Shows a fleet of workers live: the owner and the lag of each shard, while workers join, are
//! killed, are suspended and leave.
//!
//!     cargo run --example fleet -- [--seconds 75] [--workers 3] [--shards 12]
//!
//! Requires only `redis-server`: the example starts its own Redis, and Kinesis in this process.
//! Each worker is a process. Ctrl-C stops the example early. Exits with 1 if a record was lost, or
//! if two workers owned one shard at the same time.

mod arguments;
mod board;
mod pause;
mod redis_server;
mod screen;
mod story;
mod summary;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod tally;
mod worker;
mod workers;
mod writer;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use kinestream::{Consumer, RedisStore};
use tokio::signal::ctrl_c;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use arguments::{Options, Role};
use board::Shared;
use redis_server::RedisServer;
use screen::Screen;
use story::Story;
use workers::Workers;
use writer::Writer;

/// The interval at which the leases are read.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(100);
/// The time after the last write after which an unread record counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// The exit code of failures other than those that the example checks for.
const COULD_NOT_RUN: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn Error>> {
    match Role::from_arguments(std::env::args().skip(1))? {
        Role::Help => println!("{}", arguments::USAGE),
        Role::Worker { kinesis_port, redis_url, name } => {
            worker::work(kinesis_port, &redis_url, &name).await?;
        }
        Role::Pauser { process, time } => pause::pause(process, time)?,
        Role::RedisSupervisor { port, folder } => redis_server::supervise(port, &folder)?,
        Role::Story(options) => return demonstrate(options).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn demonstrate(options: Options) -> Result<ExitCode, Box<dyn Error>> {
    let redis = RedisServer::start().await?;
    let (client, port) = support::start_kinesis().await?;
    support::create_stream(&client, worker::STREAM, i32::try_from(options.shards)?).await?;
    println!("Kinesis on port {port}, {} shards; redis-cli -u {}", options.shards, redis.url());

    let board = Shared::new();
    let screen = Screen::new(board.clone());
    let mut workers = Workers::new(port, redis.url(), board.clone(), screen.clone());
    // This consumer only reads the positions.
    let observer = worker::consumer(&client, RedisStore::connect(&redis.url()).await?, "observer")?;
    let observing = tokio::spawn(observe_leases(observer, board.clone()));
    let writing = Writer::start(client.clone(), board.clone());
    let showing = tokio::spawn(screen.clone().show());

    let mut interrupts = listen();
    let story = Story { client: &client, board: &board, screen: &screen, workers: &mut workers };
    let result = tokio::select! {
        result = story.run(options) => result,
        _interrupted = interrupts.recv() => {
            screen.print_event(
                "Ctrl-C: reading the remaining records; press again to stop at once",
            );
            Ok(())
        }
    };
    let written = writing.stop().await;
    let all_is_read = async {
        while board.lock().tally.unread() > 0 {
            sleep(OBSERVE_INTERVAL).await;
        }
    };
    let is_interrupted = tokio::select! {
        _read_or_lost = timeout(PATIENCE, all_is_read) => false,
        _interrupted = interrupts.recv() => true,
    };
    workers.leave_all().await;
    screen.print_event("the workers have left");
    showing.abort();
    observing.abort();
    screen.finish();
    redis.stop().await?;
    result?;
    written?;
    let is_success = summary::print(&board.lock(), is_interrupted)?;
    Ok(if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Receives every Ctrl-C, including those that arrive while no task waits.
fn listen() -> mpsc::UnboundedReceiver<()> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move { while ctrl_c().await.is_ok() && sender.send(()).is_ok() {} });
    receiver
}

/// Reads the leases at regular intervals.
async fn observe_leases(observer: Consumer, board: Shared) {
    loop {
        // Errors of the store are ignored here: the workers report them.
        if let Ok(status) = observer.status().await {
            board.lock().update_leases(status.shards);
        }
        sleep(OBSERVE_INTERVAL).await;
    }
}
