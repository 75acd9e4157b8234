//! A shard that some listings lack while calls do not find it. That does not prove its absence.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinestream::StartingPosition;
use kinestream::testing::{Interruption, Outcome, Shard, WrongListing};
use tokio::time::{Instant, sleep};

use super::horizon::{DAY, Horizon};
use super::loss_checks::CheckedReader;
use super::{Act, POLICIES};
use crate::seeds::pick;

/// The time for which a shard is not found before listings are requested.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// A little less than the time after which a shard that is not found is reported.
const REPORTED_AFTER: Duration = Duration::from_secs(55);

/// Counts the calls that hid the shard. Clones share the counters.
#[derive(Debug, Clone, Default)]
struct Hidden(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The number of calls that did not find the shard.
    refused: AtomicUsize,
    /// The number of listings that lacked it.
    omissions: AtomicUsize,
}

impl Hidden {
    fn refused(&self) -> usize {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn omissions(&self) -> usize {
        self.0.omissions.load(Ordering::Relaxed)
    }
}

impl Act {
    pub(super) async fn omit_from_some_listings(&mut self) {
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
        let mut checked = CheckedReader::new(reader, horizon.clone(), policy);
        self.read_checked(&mut checked, Duration::from_secs(20), 1).await;
        let parent = self.reshard();
        for shard in self.orders.open_shards() {
            horizon.put_at(&shard, self.kinesis.now());
        }
        let listings = self.rng.usize(1..3);
        let hidden = if is_read {
            // An open subscription still finds its shard, so it is reset.
            parent.interrupt(&Interruption::Resets);
            self.hide(&parent, listings, GONE_AFTER, REPORTED_AFTER)
        } else {
            checked.reader.close().await;
            let time = self.time(0..60_000);
            sleep(time).await;
            let hidden = self.hide(&parent, listings, Duration::ZERO, Duration::MAX);
            (checked, _) = self.begin_stored(horizon, policy).await;
            hidden
        };
        let time = GONE_AFTER + REPORTED_AFTER;
        self.read_checked(&mut checked, time, usize::MAX).await;
        // A call under way may have read the shard to its end, so that no later call requests it.
        let (refused, omissions) = (hidden.refused(), hidden.omissions());
        assert!(
            omissions > 0 || is_read && refused == 0,
            "expected a listing without {}, which was refused {refused} times",
            parent.id()
        );
        self.kinesis.on_call(|_call| Outcome::Served);
        self.read_rest(&mut checked).await;
        checked.reader.close().await;
    }

    /// Hides the shard from calls until listings are requested, some of which lack it. Listings are
    /// complete before `since`, and all responses are correct after `until`; both count from the
    /// first call that does not find the shard.
    fn hide(&self, shard: &Shard, listings: usize, since: Duration, until: Duration) -> Hidden {
        let hidden = Hidden::default();
        let count = hidden.clone();
        let (shard, mut first, mut omissions) = (shard.id(), None::<Instant>, 0);
        let mut is_found = false;
        self.truth
            .log(format_args!("{shard} is not found, and the next {listings} listings lack it"));
        self.kinesis.on_call(move |call| {
            let elapsed = first.map_or(Duration::ZERO, |first| first.elapsed());
            is_found |= elapsed > until;
            if call.operation == "ListShards" && elapsed >= since && !is_found {
                omissions += 1;
                is_found |= omissions > listings;
                if !is_found {
                    count.0.omissions.fetch_add(1, Ordering::Relaxed);
                    return Outcome::Mislisted(WrongListing::Without(shard.clone()));
                }
            } else if !is_found && call.shard_id.as_ref() == Some(&shard) {
                first.get_or_insert_with(Instant::now);
                count.0.refused.fetch_add(1, Ordering::Relaxed);
                return Outcome::failed(400, "ResourceNotFoundException", "not found");
            }
            Outcome::Served
        });
        hidden
    }
}
