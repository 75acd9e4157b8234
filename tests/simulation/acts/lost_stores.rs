//! A store that loses everything, the leases, the positions, or all changes since a copy of it,
//! while a reader runs or between two readers.

use std::collections::BTreeSet;
use std::time::Duration;

use kinestream::store::Scope;
use kinestream::store::lease::{Change, HeartbeatRequest, LeaseTable};
use kinestream::testing::Shard;
use kinestream::{CheckpointStore, MemoryStore, OnTrimmed, ShardId, StartingPosition};
use tokio::time::Instant;

use super::reader::ActReader;
use super::{Act, POLICIES};
use crate::lease_access::LeaseAccess;
use crate::seeds::pick;
use crate::truth::Promise;

/// The time within which a running reader detects that its store has lost data and restores what it
/// knows: two renewals of its lease.
const RESTORED_WITHIN: Duration = Duration::from_secs(8);

const MAX_SHARDS: usize = 10;

/// The remaining data of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remaining {
    Nothing,
    Positions,
    Leases,
    /// A copy of the store.
    Copy(usize),
}

/// A copy of the store, and the records that are finished in it.
struct Copied {
    store: MemoryStore,
    finished: BTreeSet<usize>,
    /// The value of [`StoreLossRun::acquisitions`] at the time of the copy.
    acquisitions: usize,
}

/// The current reader, and the results of all readers.
struct StoreLossRun {
    reader: ActReader,
    policy: OnTrimmed,
    /// The number of checked records of this reader.
    seen: usize,
    delivered: BTreeSet<usize>,
    /// The records that must not be delivered again, because the store or this reader knows that
    /// they are finished.
    finished: BTreeSet<usize>,
    /// The shards with leases that were lost to a copy. Each of them restarts once, at its position
    /// in the copy.
    lost: BTreeSet<usize>,
    /// The records that are finished in this copy.
    kept: BTreeSet<usize>,
    copies: Vec<Copied>,
    /// The number of times that the leases were acquired: by each reader at its start, and after
    /// their loss.
    acquisitions: usize,
}

impl Act {
    pub(super) async fn lose_store(&mut self) {
        let policy = pick(&mut self.rng, &POLICIES);
        // With these intervals no listing shows the starts of shards between a loss and the next
        // change of the stream.
        self.plan.discovery_interval = Duration::from_secs(pick(&mut self.rng, &[30, 60, 300]));
        self.put_some(1..8);
        let mut run = StoreLossRun {
            reader: self.begin(StartingPosition::TrimHorizon, policy),
            policy,
            seen: 0,
            delivered: BTreeSet::new(),
            finished: BTreeSet::new(),
            lost: BTreeSet::new(),
            kept: BTreeSet::new(),
            copies: Vec::new(),
            acquisitions: 0,
        };
        self.read_and_note(&mut run, RESTORED_WITHIN).await;
        for _ in 0..self.rng.usize(3..10) {
            match self.rng.u8(..8) {
                0 | 1 => self.put_some(1..6),
                2 => self.reshard_if_few(),
                3 => self.copy_store(&mut run).await,
                4 | 5 => {
                    let left = self.choose_remaining(&run.copies);
                    self.forget_while_running(&mut run, left).await;
                }
                6 => run = self.restart_reader(run).await,
                _ => {
                    let time = self.time(1..20_000);
                    self.read_and_note(&mut run, time).await;
                }
            }
            if self.truth.is_broken() {
                return;
            }
        }
        self.read_rest_of_run(&mut run).await;
        self.check_run(&run);
        if self.rng.u8(..3) != 0 && !self.truth.is_broken() {
            self.replace_after_loss(run).await;
        } else {
            run.reader.close().await;
        }
    }

    fn reshard_if_few(&mut self) {
        if self.orders.shards().len() + 2 <= MAX_SHARDS {
            self.reshard();
        }
    }

    fn choose_remaining(&mut self, copies: &[Copied]) -> Remaining {
        match self.rng.usize(..4) {
            0 => Remaining::Positions,
            1 => Remaining::Leases,
            2 if !copies.is_empty() => Remaining::Copy(self.rng.usize(..copies.len())),
            _ => Remaining::Nothing,
        }
    }

    /// Makes the store lose data while the reader runs, which must restore what it knows.
    async fn forget_while_running(&mut self, run: &mut StoreLossRun, left: Remaining) {
        self.forget(&run.copies, left).await;
        if let Remaining::Copy(copy) = left {
            let Copied { finished, acquisitions, .. } = &run.copies[copy];
            if *acquisitions == run.acquisitions {
                // The table holds the leases of the reader itself, which it does not correct.
                run.finished.clone_from(finished);
            } else {
                // The reader loses its leases. After it has acquired them again, it reads from the
                // positions of the copy.
                run.kept.clone_from(finished);
                run.lost = self.orders.shards().iter().map(Shard::index).collect();
                run.acquisitions += 1;
            }
        }
        self.read_and_note(run, RESTORED_WITHIN).await;
    }

    /// Restarts the reader, which knows only what the store holds.
    async fn restart_reader(&mut self, mut run: StoreLossRun) -> StoreLossRun {
        self.settle(&mut run).await;
        self.check_run(&run);
        self.truth.log(format_args!("the reader stops"));
        run.reader.close().await;
        if self.rng.u8(..3) != 0 {
            let left = self.choose_remaining(&run.copies);
            self.forget(&run.copies, left).await;
            match left {
                Remaining::Nothing | Remaining::Leases => run.finished.clear(),
                Remaining::Positions => {}
                Remaining::Copy(copy) => run.finished.clone_from(&run.copies[copy].finished),
            }
        }
        self.put_some(0..3);
        run.acquisitions += 1;
        (run.reader, run.seen) = (self.begin(StartingPosition::TrimHorizon, run.policy), 0);
        self.read_and_note(&mut run, RESTORED_WITHIN).await;
        run
    }

    /// Reduces the store to this data.
    async fn forget(&self, copies: &[Copied], left: Remaining) {
        self.truth.log(format_args!("the store loses data; left: {left:?}"));
        let scope = Scope::new("default", "orders");
        let emptied = MemoryStore::at(self.kinesis.now());
        match left {
            Remaining::Nothing => {}
            Remaining::Positions => {
                let stored = self.store.load(&scope).await.expect("the memory store never fails");
                let stored: Vec<_> = stored.into_iter().collect();
                emptied.save(&scope, &stored).await.expect("the memory store never fails");
            }
            Remaining::Leases => {
                let table = self.store.table(&scope).await.expect("the memory store never fails");
                emptied
                    .heartbeat(&scope, &restored(&table))
                    .await
                    .expect("the memory store never fails");
            }
            Remaining::Copy(copy) => return self.store.replace_with_copy_of(&copies[copy].store),
        }
        self.store.replace_with_copy_of(&emptied);
    }

    /// Copies the store when all delivered records are finished in it.
    async fn copy_store(&mut self, run: &mut StoreLossRun) {
        self.settle(run).await;
        let finished = run.finished.clone();
        self.truth
            .log(format_args!("the store is copied: {} records are finished", finished.len()));
        let (copy, acquisitions) = (self.store.replica(), run.acquisitions);
        run.copies.push(Copied { store: copy, finished, acquisitions });
    }

    /// Reads until no further record is delivered and all delivered ones are saved.
    async fn settle(&self, run: &mut StoreLossRun) {
        loop {
            let before = run.seen;
            let time = self.plan.checkpoint_interval + Duration::from_secs(5);
            self.read_and_note(run, time).await;
            if run.seen == before || self.truth.is_broken() {
                break;
            }
        }
        // No shard restarts at its position in the copy later.
        run.lost.clear();
    }

    async fn read_and_note(&self, run: &mut StoreLossRun, time: Duration) {
        run.reader.read_for(time).await;
        for number in &run.reader.delivered[run.seen..] {
            run.delivered.insert(*number);
            let shard = self.puts[*number].shard;
            let is_back = run.finished.contains(number) && !run.kept.contains(number);
            if is_back && run.lost.remove(&shard) {
                let is_of_shard = |number: &usize| self.puts[*number].shard == shard;
                run.finished.retain(|it| !is_of_shard(it));
                run.finished.extend(run.kept.iter().copied().filter(is_of_shard));
            }
            if !run.finished.insert(*number) {
                let promise = Promise::FewRepeats;
                self.breaks(
                    promise,
                    format_args!("record {number} is finished, but delivered again"),
                );
            }
        }
        run.seen = run.reader.delivered.len();
    }

    /// Reads until every record is delivered.
    async fn read_rest_of_run(&self, run: &mut StoreLossRun) {
        let by = self.deadline();
        while run.delivered.len() < self.puts.len()
            && Instant::now() < by
            && !self.truth.is_broken()
        {
            self.read_and_note(run, Duration::from_secs(5)).await;
        }
        let all = 0..self.puts.len();
        let missing: Vec<usize> = all.filter(|it| !run.delivered.contains(it)).collect();
        if !missing.is_empty() {
            self.breaks(
                Promise::NothingIsLost,
                format_args!("records {missing:?} are not delivered"),
            );
        }
    }

    fn check_run(&self, run: &StoreLossRun) {
        self.check_order(&run.reader, true);
        self.check_errors(&run.reader, &[]);
        if let Some((shard, _)) = run.reader.gaps.first() {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("a gap is reported for {shard}, which has none"),
            );
        }
    }

    /// Recreates the stream before a listing shows the shards of the restored leases.
    async fn replace_after_loss(&mut self, mut run: StoreLossRun) {
        // In this time the store gets every shard, and the ends of the closed shards.
        let listed = self.plan.discovery_interval + Duration::from_secs(20);
        self.read_and_note(&mut run, listed).await;
        let known: BTreeSet<ShardId> = self.orders.shards().iter().map(Shard::id).collect();
        let left =
            pick(&mut self.rng, &[Remaining::Nothing, Remaining::Positions, Remaining::Leases]);
        self.forget_while_running(&mut run, left).await;
        self.check_run(&run);
        let StoreLossRun { mut reader, policy, .. } = run;
        if self.truth.is_broken() {
            return;
        }
        let is_down = self.rng.bool();
        if is_down {
            reader.close().await;
            self.replace_stream().await;
            reader = self.begin(StartingPosition::TrimHorizon, policy);
        } else {
            self.replace_stream().await;
        }
        self.read_new(&mut reader).await;
        self.check_new(&reader, policy, &known, is_down);
        reader.close().await;
    }
}

/// Returns a request that restores the leases of a table without their positions.
fn restored(table: &LeaseTable) -> HeartbeatRequest {
    let revived = table.workers.iter().map(|(worker, member)| Change::ReviveWorker {
        worker: worker.clone(),
        member: member.clone(),
    });
    let leases = table.leases.iter().filter(|(_, lease)| lease.parents.is_some());
    let restored = leases.map(|(shard, lease)| {
        let member = lease.owner.as_ref().and_then(|owner| table.workers.get(owner));
        let mut lease = lease.clone();
        lease.checkpoint = None;
        Change::Restore {
            shard: shard.clone(),
            incarnation: member.map_or(0, |member| member.incarnation),
            lease,
        }
    });
    let changes = revived.chain(restored).collect();
    let mut request = HeartbeatRequest::new("the server itself", 1, Duration::from_secs(2));
    (request.capacity, request.leaving, request.changes) = (0, true, changes);
    request
}
