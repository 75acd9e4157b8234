//! A reader at the tip of shards that stay idle while their last records are trimmed. It must
//! report no loss and make few calls.

use std::time::Duration;

use kinestream::StartingPosition;
use kinestream::testing::{Outcome, Shard};
use tokio::time::Instant;

use super::horizon::{HOUR, Horizon, TIP_AFTER};
use super::loss_checks::CheckedReader;
use super::overtaken_reader::draw_approach;
use super::{Act, POLICIES};
use crate::seeds::pick;
use crate::truth::Promise;

/// The minimum age at which a subscription is renewed; it may be up to 30 s older. That makes 13.8
/// an hour, compared with 12 for the maximum lifetime of 300 s that the service allows. At the tip
/// nothing else replaces a subscription: each event advances the time up to which nothing was lost.
const RENEWED_AFTER: Duration = Duration::from_secs(260);

/// The renewal that may be due at the start of the idle period, depending on when the subscription
/// started.
const FIRST_RENEWAL: u32 = 1;

/// The maximum number of iterators in an hour near the end of the retention period: one every 10 s
/// for a position, and the first one after 1 s.
const ITERATORS_NEAR_HORIZON: u32 = 360;

/// The maximum number of iterators in an hour elsewhere. Each response brings an iterator, and one
/// that has waited for 270 s is replaced: 13.3 an hour.
const ITERATORS_ELSEWHERE: u32 = 20;

impl Act {
    pub(super) async fn keep_idle(&mut self) {
        // Long poll intervals keep the number of calls in hours of polling low.
        let intervals = [5, 15, 60].map(Duration::from_secs);
        self.plan.interval = pick(&mut self.rng, &intervals);
        self.plan.discovery_interval = Duration::from_secs(600);
        let policy = pick(&mut self.rng, &POLICIES);
        let period = HOUR * pick(&mut self.rng, &[24, 24, 25, 48]);
        // The last records are trimmed when the period ends, or they are older and are trimmed when
        // it is lowered.
        let is_lowered = self.rng.u8(..3) == 0;
        let longer = if is_lowered { 2 * HOUR } else { Duration::ZERO };
        let horizon = Horizon::new(self, period + longer);
        let approach = draw_approach(self.plan.fan_out, &mut self.rng);
        self.kinesis.set_approach(approach);
        for shard in self.orders.open_shards() {
            self.put_around_horizon(&horizon, &shard, period, is_lowered);
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon, policy);
        checked.approach = approach;
        self.reach_tip(&mut checked).await;
        if self.rng.u8(..3) == 0 {
            let denied = Outcome::failed(400, "AccessDeniedException", "no");
            self.refuse("DescribeStreamSummary", denied);
        }
        if is_lowered {
            checked.horizon.lower(period);
        }
        let hours = self.rng.u32(2..5);
        self.truth.log(format_args!("the shards are idle for {hours} hours"));
        let since = Instant::now();
        self.read_checked(&mut checked, hours * HOUR, usize::MAX).await;
        for shard in self.orders.open_shards() {
            if let Some(gap) = checked.horizon.gaps(shard.index()).first() {
                self.breaks(
                    Promise::LossesAreReported,
                    format_args!("a loss is reported although no record is lost: {gap:?}"),
                );
            }
            let subscriptions = (hours * HOUR).as_secs().div_ceil(RENEWED_AFTER.as_secs());
            let most = u32::try_from(subscriptions).expect("the count is small") + FIRST_RENEWAL;
            self.check_calls("SubscribeToShard", &shard, since, most);
            self.check_calls("GetShardIterator", &shard, since, hours * ITERATORS_ELSEWHERE);
        }
        if !self.truth.is_broken() {
            self.read_rest(&mut checked).await;
        }
        checked.reader.close().await;
    }

    /// Puts records, the last of which is trimmed within an hour, or is up to an hour older than
    /// the period to which the current one is lowered.
    fn put_around_horizon(
        &mut self,
        horizon: &Horizon,
        shard: &Shard,
        period: Duration,
        is_lowered: bool,
    ) {
        let end = self.kinesis.now() - period;
        // The reader reaches the tip before these records are trimmed.
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

    /// Reads everything, and continues until the reader knows that it is at the tip.
    async fn reach_tip(&mut self, checked: &mut CheckedReader) {
        let since = Instant::now();
        let by = self.deadline();
        while !checked.due().is_empty() && Instant::now() < by {
            self.read_checked(checked, Duration::from_secs(5), usize::MAX).await;
        }
        let due = checked.due();
        if !due.is_empty() {
            self.breaks(Promise::NothingIsLost, format_args!("records {due:?} are not delivered"));
        }
        self.read_checked(checked, TIP_AFTER, usize::MAX).await;
        for shard in self.orders.open_shards() {
            self.check_calls("GetShardIterator", &shard, since, ITERATORS_NEAR_HORIZON);
        }
    }

    fn check_calls(&self, operation: &str, shard: &Shard, since: Instant, most: u32) {
        let calls = self.kinesis.calls().into_iter();
        let calls = calls.filter(|call| {
            call.at >= since && call.operation == operation && call.shard_id == Some(shard.id())
        });
        let count = u32::try_from(calls.count()).expect("the count is small");
        self.truth.log(format_args!("shard {}: {count} calls of {operation}", shard.index()));
        if count > most {
            let promise = Promise::Progress;
            self.breaks(
                promise,
                format_args!("{count} calls of {operation}, expected at most {most}"),
            );
        }
    }
}
