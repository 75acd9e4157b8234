//! A shard that some listings lack and that is not found meanwhile: that proves no absence.

use std::time::Duration;

use kinestream::StartingPosition;
use kinestream::testing::{Outcome, Shard, WrongListing};
use tokio::time::{Instant, sleep};

use super::horizon::{DAY, Horizon};
use super::losses::Judged;
use super::{Act, POLICIES};
use crate::seeds::pick;

/// How long a shard that is read is not found before listings are asked.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// Shortly before a shard that is not found is reported.
const REPORTED_AFTER: Duration = Duration::from_secs(55);

impl Act {
    pub(super) async fn lack_for_some_listings(&mut self) {
        let policy = pick(&mut self.rng, &POLICIES);
        self.plan.discovery_interval =
            pick(&mut self.rng, &[1, 5, 30, 30]) * Duration::from_secs(1);
        let horizon = Horizon::new(self, DAY);
        for shard in self.orders.open_shards() {
            for _ in 0..self.rng.usize(3..8) {
                horizon.put_at(&shard, self.kinesis.now());
            }
        }
        let is_read = self.rng.bool();
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut judged = Judged::new(reader, horizon.clone(), policy);
        self.read_judged(&mut judged, Duration::from_secs(20), 1).await;
        let parent = self.reshard();
        for shard in self.orders.open_shards() {
            horizon.put_at(&shard, self.kinesis.now());
        }
        let listings = self.rng.usize(1..3);
        if is_read {
            self.hide(&parent, listings, GONE_AFTER, REPORTED_AFTER);
        } else {
            judged.reader.close().await;
            let time = self.time(0..60_000);
            sleep(time).await;
            let next = horizon.passed_by(&self.stored().await);
            self.hide(&parent, listings, Duration::ZERO, Duration::MAX);
            let reader = self.begin(StartingPosition::TrimHorizon, policy);
            judged = Judged::new(reader, horizon, policy);
            judged.next = next;
        }
        let time = GONE_AFTER + REPORTED_AFTER;
        self.read_judged(&mut judged, time, usize::MAX).await;
        self.kinesis.on_call(|_call| Outcome::Served);
        self.read_rest(&mut judged).await;
        judged.reader.close().await;
    }

    /// The shard is not found until listings are asked, and some of them lack it. Before `since`, listings are
    /// complete; after `until`, everything is.
    fn hide(&self, shard: &Shard, listings: usize, since: Duration, until: Duration) {
        let (shard, began, mut lacking) = (shard.id(), Instant::now(), 0);
        let mut is_found = false;
        self.truth.tell(format_args!("{shard} is not found, and {listings} listings lack it"));
        self.kinesis.on_call(move |call| {
            is_found |= began.elapsed() > until;
            if call.operation == "ListShards" && began.elapsed() >= since && !is_found {
                lacking += 1;
                is_found |= lacking > listings;
                if !is_found {
                    return Outcome::Mislisted(WrongListing::Without(shard.clone()));
                }
            } else if !is_found && call.shard_id.as_ref() == Some(&shard) {
                return Outcome::failed(400, "ResourceNotFoundException", "not found");
            }
            Outcome::Served
        });
    }
}
