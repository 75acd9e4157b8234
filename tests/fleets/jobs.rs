//! A separate scenario: the fleet is a job that reads up to an ending position, under the faults of
//! all fleets, and outdated listings besides.
//!
//! After the faults, all of its streams end. Once the leases of dead workers have expired, a worker
//! that sees no failure ends, and then every record up to the ending is read. The next job delivers
//! nothing, and a worker without an ending position reads the rest.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use kinestream::EndingPosition;
use kinestream::testing::{Outcome, WrongListing};
use tokio::time::Instant;

use crate::panics::Panics;
use crate::seeds::{SeedResult, on_a_paused_clock};
use crate::truth::Promise;
use crate::world::{BEGINNING, World};

/// Mixed with the seed for this scenario.
const JOBS: u64 = 0x4a_4f_42_53;

/// One in this many seeds plays the scenario.
const SEEDS_PER_JOB: u8 = 4;

/// The maximum difference of two clocks, for which a quiet shard waits after the ending.
const SKEW: Duration = Duration::from_secs(300);

/// The time for which listings may be outdated before they are believed, and the time of a new
/// subscription and its events.
const CONFIRMATION: Duration = Duration::from_secs(64 + 30);

/// Longer than any lease.
const LEASES_OVER: Duration = Duration::from_secs(60);

/// The ending position of a fleet.
pub(crate) struct Job {
    ending: EndingPosition,
    rng: Rng,
}

/// Runs the scenario of a seed. The result of other seeds is empty.
pub(crate) fn simulate(seed: u64) -> SeedResult {
    let mut rng = Rng::with_seed(seed ^ JOBS);
    if rng.u8(..SEEDS_PER_JOB) > 0 {
        return SeedResult { trace: Vec::new(), broken: None, records: 0, calls: 0 };
    }
    let panics = Panics::new(&mut rng);
    panics.around(|| {
        on_a_paused_clock(async {
            let mut world = World::new(seed ^ JOBS, panics.clone(), rng.fork());
            world.begin_job(rng);
            world.run().await;
            world.seed_result()
        })
    })
}

impl World {
    fn begin_job(&mut self, mut rng: Rng) {
        let offset = Duration::from_millis(rng.u64(..400_000));
        let ending = match rng.u8(..4) {
            0 => EndingPosition::Latest,
            _ => EndingPosition::AtTimestamp(UNIX_EPOCH + BEGINNING + offset),
        };
        let responses = rng.usize(..3);
        self.truth.log(format_args!(
            "a job up to {ending:?}; {responses} responses before the end of a closed shard"
        ));
        self.kinesis.set_responses_before_end(responses);
        self.scene.ending = ending;
        self.job = Some(Job { ending, rng });
    }

    /// Makes the next listings of a job show the stream as it was when it had fewer shards.
    pub(crate) fn outdate_listings(&mut self) {
        let shards = self.orders.shards().len();
        let Some(Job { rng, .. }) = &mut self.job else { return };
        if rng.u8(..4) > 0 {
            return;
        }
        let (count, times) = (rng.usize(self.scene.shards..=shards), rng.usize(1..4));
        self.truth.log(format_args!("next {times} listings show {count} shards"));
        let outcome = Outcome::Mislisted(WrongListing::Stale(count));
        let mut faults = self.faults.lock().unwrap();
        faults.extend(std::iter::repeat_n((Some("ListShards"), outcome), times));
    }

    /// Checks that the job ends and is complete.
    pub(crate) async fn check_job(&mut self) {
        let Some(Job { ending, .. }) = self.job else { return };
        self.heal_fleet().await;
        self.outdate_listings();
        self.change_stream().await;
        self.end_streams(ending, "after the faults").await;
        // Shards that were held by dead workers are left to the next start.
        self.close_all().await;
        let shards = self.truth.lock().shards.iter().map(|shard| shard.records.len()).collect();
        let existing: Vec<usize> = shards;
        self.join();
        self.outdate_listings();
        self.change_stream().await;
        self.end_streams(ending, "without a failure").await;
        self.check_complete(ending, &existing);
        self.close_all().await;
        if matches!(ending, EndingPosition::AtTimestamp(_)) {
            let before = self.deliveries();
            self.join();
            self.end_streams(ending, "of a complete job").await;
            let again = self.deliveries() - before;
            if again > 0 {
                self.truth.breaks(
                    Promise::FewRepeats,
                    format_args!("a complete job delivers {again} records"),
                );
            }
            self.close_all().await;
        }
        self.job = None;
        self.scene.ending = EndingPosition::Never;
        self.join();
        self.read_everything().await;
        self.end().await;
    }

    /// Lets time pass until the streams of all workers have ended.
    async fn end_streams(&mut self, ending: EndingPosition, which: &str) {
        let now = self.kinesis.now();
        let left = match ending {
            EndingPosition::AtTimestamp(end) => {
                (end + SKEW).duration_since(now).unwrap_or_default()
            }
            _ => Duration::ZERO,
        };
        let (began, patience) = (Instant::now(), left + CONFIRMATION + self.patience());
        while !self.truth.is_broken() && self.workers.iter().any(|worker| !worker.has_ended) {
            if began.elapsed() > patience {
                let open = self.workers.iter().filter(|worker| !worker.has_ended);
                let open: Vec<&String> = open.map(|worker| &worker.name).collect();
                let table = self.table().await;
                self.breaks_progress(format_args!(
                    "the streams {which} of {open:?} do not end; the table: {table:?}"
                ));
            }
            self.pass(Duration::from_secs(1)).await;
        }
    }

    /// Puts records and reshards the stream while a job runs.
    async fn change_stream(&mut self) {
        for _ in 0..self.rng.usize(..3) {
            self.put();
            let time = self.time(5000);
            self.pass(time).await;
            self.reshard();
            self.outdate_listings();
            self.put();
            let time = self.time(5000);
            self.pass(time).await;
        }
    }

    /// Closes all workers, and lets the leases of dead ones expire.
    async fn close_all(&mut self) {
        std::mem::take(&mut self.workers).into_iter().for_each(crate::worker::Worker::close);
        self.pass(LEASES_OVER).await;
    }

    /// Checks that each record up to the ending is finished. Each shard had `existing` records at the
    /// first poll of the last worker.
    fn check_complete(&self, ending: EndingPosition, existing: &[usize]) {
        let facts = self.truth.lock();
        let is_due = |shard: usize, place: usize| match ending {
            EndingPosition::AtTimestamp(end) => facts.shards[shard].arrivals[place] <= end,
            _ => existing.get(shard).is_some_and(|existing| place < *existing),
        };
        let mut missing = Vec::new();
        for (shard, of_shard) in facts.shards.iter().enumerate() {
            let records = of_shard.records.iter().enumerate();
            let unfinished = records.filter(|(place, done)| !**done && is_due(shard, *place));
            missing.extend(unfinished.map(|(place, _)| (shard, place)));
        }
        drop(facts);
        if !missing.is_empty() {
            self.truth.breaks(
                Promise::NothingIsLost,
                format_args!("the job up to {ending:?} ends without records {missing:?}"),
            );
        }
    }

    /// Returns the number of deliveries so far.
    fn deliveries(&self) -> usize {
        self.truth.lock().deliveries.values().map(|delivered| delivered.finished.len()).sum()
    }
}

/// Returns true if a record of this arrival time follows the ending position of its worker.
pub(crate) fn is_late(ending: EndingPosition, arrival: Option<SystemTime>) -> bool {
    matches!((ending, arrival), (EndingPosition::AtTimestamp(end), Some(at)) if at > end)
}
