//! A reader at the tip of shards that stay quiet while their last records leave retention: it reports no loss,
//! and makes few calls.

use std::time::Duration;

use kinestream::StartingPosition;
use kinestream::testing::{Outcome, Shard};
use tokio::time::Instant;

use super::horizon::{HOUR, Horizon, TIP_AFTER};
use super::losses::Judged;
use super::overtaken::draw_approach;
use super::{Act, POLICIES};
use crate::seeds::pick;
use crate::truth::Promise;

/// A subscription is renewed when it is that old, or up to 30 s older: 13.8 an hour, where the service's
/// longest life of 300 s makes 12. At the tip nothing else replaces one: each event moves the time up to which
/// nothing was lost.
const RENEWED_AFTER: Duration = Duration::from_secs(260);

/// The renewal that falls due at the beginning of the quiet time, whenever the subscription began.
const FIRST_RENEWAL: u32 = 1;

/// Each position near the end of the retention period has an iterator each 10 s, and the first of them after
/// 1 s.
const ITERATORS_NEAR_HORIZON: u32 = 360;

/// Each answer brings an iterator, and one that has waited for 270 s is replaced: 13.3 an hour.
const ITERATORS_ELSEWHERE: u32 = 20;

impl Act {
    pub(super) async fn stay_idle(&mut self) {
        // Hours of polling take few calls.
        let intervals = [5, 15, 60].map(Duration::from_secs);
        self.plan.interval = pick(&mut self.rng, &intervals);
        self.plan.discovery_interval = Duration::from_secs(600);
        let policy = pick(&mut self.rng, &POLICIES);
        let period = HOUR * pick(&mut self.rng, &[24, 24, 25, 48]);
        // The last records leave when the period ends, or are older and leave when it is lowered.
        let is_lowered = self.rng.u8(..3) == 0;
        let longer = if is_lowered { 2 * HOUR } else { Duration::ZERO };
        let horizon = Horizon::new(self, period + longer);
        let approach = draw_approach(self.plan.fan_out, &mut self.rng);
        self.kinesis.set_approach(approach);
        for shard in self.orders.open_shards() {
            self.put_around_horizon(&horizon, &shard, period, is_lowered);
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut judged = Judged::new(reader, horizon, policy);
        judged.approach = approach;
        self.reach_tip(&mut judged).await;
        if self.rng.u8(..3) == 0 {
            let denied = Outcome::failed(400, "AccessDeniedException", "no");
            self.refuse("DescribeStreamSummary", denied);
        }
        if is_lowered {
            judged.horizon.lower(period);
        }
        let hours = self.rng.u32(2..5);
        self.truth.tell(format_args!("the shards are quiet for {hours} hours"));
        let since = Instant::now();
        self.read_judged(&mut judged, hours * HOUR, usize::MAX).await;
        for shard in self.orders.open_shards() {
            if let Some(gap) = judged.horizon.gaps(shard.index()).first() {
                self.breaks(Promise::LossesAreReported, format_args!("no record is lost: {gap:?}"));
            }
            let subscriptions = (hours * HOUR).as_secs().div_ceil(RENEWED_AFTER.as_secs());
            let most = u32::try_from(subscriptions).expect("a few") + FIRST_RENEWAL;
            self.check_calls("SubscribeToShard", &shard, since, most);
            self.check_calls("GetShardIterator", &shard, since, hours * ITERATORS_ELSEWHERE);
        }
        if !self.truth.is_broken() {
            self.read_rest(&mut judged).await;
        }
        judged.reader.close().await;
    }

    /// Puts records of which the last leaves retention within an hour, or is up to an hour older than the
    /// period to which the present one is lowered.
    fn put_around_horizon(
        &mut self,
        horizon: &Horizon,
        shard: &Shard,
        period: Duration,
        is_lowered: bool,
    ) {
        let end = self.kinesis.now() - period;
        // The reader has reached the tip before they leave.
        let last = if is_lowered {
            end - self.time(0..3_600_000)
        } else {
            end + self.time(1_200_000..3_600_000)
        };
        let mut before = self.time(0..300_000);
        for _ in 0..self.rng.usize(0..6) {
            horizon.put_at(shard, last - before);
            before = before.mul_f64(self.rng.f64());
        }
        horizon.put_at(shard, last);
    }

    /// Reads everything, and on until the reader knows that it is at the tip.
    async fn reach_tip(&mut self, judged: &mut Judged) {
        let since = Instant::now();
        let by = self.deadline();
        while !judged.due().is_empty() && Instant::now() < by {
            self.read_judged(judged, Duration::from_secs(5), usize::MAX).await;
        }
        let due = judged.due();
        if !due.is_empty() {
            self.breaks(Promise::NothingIsLost, format_args!("{due:?} are not delivered"));
        }
        self.read_judged(judged, TIP_AFTER, usize::MAX).await;
        for shard in self.orders.open_shards() {
            self.check_calls("GetShardIterator", &shard, since, ITERATORS_NEAR_HORIZON);
        }
    }

    fn check_calls(&self, operation: &str, shard: &Shard, since: Instant, most: u32) {
        let calls = self.kinesis.calls().into_iter();
        let calls = calls.filter(|call| {
            call.at >= since && call.operation == operation && call.shard_id == Some(shard.id())
        });
        let count = u32::try_from(calls.count()).expect("a few");
        self.truth.tell(format_args!("shard {}: {count} of {operation}", shard.index()));
        if count > most {
            let promise = Promise::Progress;
            self.breaks(promise, format_args!("{count} calls of {operation}, {most} are enough"));
        }
    }
}
