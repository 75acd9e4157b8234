//! The events of the demonstration, with the time until the fleet is balanced after each.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;
use kinestream::ShardId;
use tokio::time::{Instant, sleep, sleep_until};

use crate::arguments::Options;
use crate::board::{Board, Shared, short};
use crate::screen::Screen;
use crate::support;
use crate::worker::{LEASE, STREAM};
use crate::workers::Workers;

/// The longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than a lease, and long enough to be visible.
const PAUSE: Duration = Duration::from_secs(5);
/// The number of events. Each has an equal share of the time.
const CHAPTERS: u32 = 7;

pub(crate) struct Story<'a> {
    pub(crate) client: &'a Client,
    pub(crate) board: &'a Shared,
    pub(crate) screen: &'a Screen,
    pub(crate) workers: &'a mut Workers,
}

type Outcome = Result<(), Box<dyn Error>>;

impl Story<'_> {
    pub(crate) async fn run(mut self, options: Options) -> Outcome {
        let chapter = Duration::from_secs(options.seconds.into()) / CHAPTERS;
        for number in 0..CHAPTERS {
            let end = Instant::now() + chapter;
            match number {
                0 | 3 => self.join(1).await?,
                1 => self.join(options.workers - 1).await?,
                2 => self.kill().await,
                4 => self.pause().await?,
                5 => self.leave().await,
                _ => self.split().await?,
            }
            sleep_until(end).await;
        }
        Ok(())
    }

    async fn join(&mut self, count: u32) -> Outcome {
        let names = (0..count).map(|_| self.workers.start()).collect::<Result<Vec<_>, _>>()?;
        let what = format!("{} {}", names.join(", "), if count == 1 { "joins" } else { "join" });
        self.screen.print_event(&what);
        self.until_even(&what, Instant::now()).await;
        Ok(())
    }

    async fn kill(&mut self) {
        let Some(worker) = self.reading().get(1).cloned() else { return };
        let held = self.board.lock().held_by(&worker);
        let began = Instant::now();
        self.workers.kill(&worker).await;
        let what = format!("{worker} is killed");
        self.screen.print_event(&format!("{what} by SIGKILL with {}", list(&held)));
        self.until_read_again(&what, began, &held).await;
        self.until_even(&what, began).await;
    }

    /// Suspends the oldest worker, which is the one that lists the stream.
    async fn pause(&mut self) -> Outcome {
        let Some(worker) = self.reading().first().cloned() else { return Ok(()) };
        let held = self.board.lock().held_by(&worker);
        let refused = self.board.lock().tally.refused;
        let began = Instant::now();
        let what = format!("{worker} is suspended");
        self.screen.print_event(&format!(
            "{what} by SIGSTOP for {PAUSE:?} with {}; leases last {LEASE:?}",
            list(&held)
        ));
        let watched = Watch { board: self.board, screen: self.screen };
        let (paused, ()) = tokio::join!(
            self.workers.pause(&worker, PAUSE),
            watched.until_read_again(&what, began, &held)
        );
        paused?;
        let what = format!("{worker} resumes");
        self.screen.print_event(&what);
        self.until_even(&what, Instant::now()).await;
        let refused = self.board.lock().tally.refused - refused;
        self.screen.detail(&format!("{refused} records refused: their leases had moved"));
        Ok(())
    }

    async fn leave(&mut self) {
        let Some(worker) = self.reading().last().cloned() else { return };
        let held = self.board.lock().held_by(&worker);
        let repeated = self.board.lock().tally.repeated;
        let began = Instant::now();
        let what = format!("{worker} leaves");
        self.screen.print_event(&format!("{what} with {}", list(&held)));
        self.workers.leave(&worker).await;
        self.until_read_again(&what, began, &held).await;
        self.until_even(&what, began).await;
        let repeated = self.board.lock().tally.repeated - repeated;
        self.screen.detail(&format!("{repeated} records redelivered to other workers"));
    }

    async fn split(&mut self) -> Outcome {
        let Some(parent) = self.board.lock().leases.keys().next().cloned() else { return Ok(()) };
        let began = Instant::now();
        let what = format!("shard {} is split", short(parent.as_str()));
        self.screen.print_event(&what);
        support::split_first_shard(self.client, STREAM).await?;
        let are_read = |board: &Board| board.children_read(&parent) == 2;
        self.watch().until(&what, "both halves are read", began, are_read).await;
        self.until_even(&what, began).await;
        Ok(())
    }

    fn reading(&self) -> Vec<Arc<str>> {
        self.board.lock().reading()
    }

    fn watch(&self) -> Watch<'_> {
        Watch { board: self.board, screen: self.screen }
    }

    async fn until_even(&self, what: &str, began: Instant) {
        self.watch().until(what, "the shares are even", began, Board::is_even).await;
    }

    async fn until_read_again(&self, what: &str, began: Instant, held: &BTreeMap<ShardId, u64>) {
        self.watch().until_read_again(what, began, held).await;
    }
}

/// Waits for conditions and measures the time.
#[derive(Clone, Copy)]
struct Watch<'a> {
    board: &'a Shared,
    screen: &'a Screen,
}

impl Watch<'_> {
    async fn until_read_again(self, what: &str, began: Instant, held: &BTreeMap<ShardId, u64>) {
        let are_read = |board: &Board| board.are_read_since(held);
        self.until(what, "its shards are read again", began, are_read).await;
    }

    async fn until(self, what: &str, then: &str, began: Instant, is_so: impl Fn(&Board) -> bool) {
        while !is_so(&self.board.lock()) {
            if began.elapsed() > PATIENCE {
                let finding = format!("{what}: timed out after {PATIENCE:?} waiting until {then}");
                self.screen.print_event(&finding);
                self.board.lock().tally.findings.push(finding);
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let time = began.elapsed();
        let shares = self.board.lock().shares();
        self.screen.detail(&format!("{then} after {:.1} s: {shares}", time.as_secs_f64()));
        self.board.lock().times.push((format!("{what}: {then}"), time));
    }
}

fn list(held: &BTreeMap<ShardId, u64>) -> String {
    match held.len() {
        0 => "no shard".to_owned(),
        1 => "1 shard".to_owned(),
        count => format!("{count} shards"),
    }
}
