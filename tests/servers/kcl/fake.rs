//! A KCL of our own: its workers, with the protocol of versions 1, 2 and 3. No real KCL takes part.

mod leader;
mod processing;
mod shards;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::future::join_all;
use kinestream::testing::Kinesis;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::leader::Leader;
use self::worker::Worker;
use super::ledger::Ledger;
use super::requests::LeaseTable;

/// The time after which a lease that is not renewed has expired.
pub(crate) const FAILOVER: Duration = Duration::from_millis(900);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Workers take leases; no children are named in the row of their parent.
    One,
    /// Workers take leases, as does version 3 during its rollout.
    Two,
    /// A leader assigns leases, and hands them over.
    Three,
}

/// The workers of a KCL application.
pub(crate) struct FakeKcl {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeKcl {
    pub(crate) fn start(
        version: Version,
        workers: usize,
        table: &LeaseTable,
        kinesis: &Kinesis,
        ledger: &Ledger,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let names: Vec<String> =
            (0..workers).map(|_| format!("kcl-{:08x}", fastrand::u32(..))).collect();
        let mut tasks = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let worker = Worker {
                name: name.clone(),
                version,
                is_leader: index == 0,
                table: table.clone(),
                kinesis: kinesis.client(),
                ledger: ledger.clone(),
                held: BTreeMap::new(),
                seen: HashMap::new(),
                stopped: stopped.clone(),
            };
            tasks.push(tokio::spawn(worker.run()));
        }
        if version == Version::Three {
            let leader = Leader { workers: names, table: table.clone(), seen: HashMap::new() };
            tasks.push(tokio::spawn(leader.run(stopped)));
        }
        Self { stop, tasks }
    }

    /// Stops the workers after a last checkpoint. They keep their leases, as a KCL does.
    pub(crate) async fn stop(mut self) {
        self.stop.send(true).unwrap();
        for ended in join_all(std::mem::take(&mut self.tasks)).await {
            ended.unwrap();
        }
    }

    /// Ends the workers at once.
    pub(crate) async fn kill(mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for ended in join_all(std::mem::take(&mut self.tasks)).await {
            let is_panic = ended.is_err_and(|error| error.is_panic());
            assert!(!is_panic, "expected no failure of a KCL worker");
        }
    }

    /// Fails if a worker has failed.
    pub(crate) fn assert_alive(&self) {
        assert!(self.tasks.iter().all(|task| !task.is_finished()), "a KCL worker has failed");
    }
}

impl Drop for FakeKcl {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
