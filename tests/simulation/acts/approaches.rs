//! Readers of enhanced fan-out that restart at positions near records behind long approaches.

use std::time::Duration;

use kinestream::store::Scope;
use kinestream::{Checkpoint, CheckpointStore, OnTrimmed, StartingPosition};
use tokio::time::Instant;

use super::Act;
use super::horizon::{DAY, HOUR, Horizon};
use super::loss_checks::CheckedReader;
use crate::seeds::pick;

const MINUTE: Duration = Duration::from_secs(60);

impl Act {
    pub(super) async fn restart_before_approach(&mut self) {
        self.plan.fan_out = true;
        self.kinesis.delete_stream("orders");
        self.orders = self.kinesis.create_stream("orders", 1);
        self.kinesis.set_trimmed_numbers_accepted(self.rng.bool());
        match self.rng.u8(..3) {
            0 => self.pass_refused_number().await,
            1 => self.leave_out_again().await,
            _ => self.lose_once().await,
        }
    }

    /// Kinesis refuses the sequence number of the position twice. The position is retained, as is a
    /// record before it.
    async fn pass_refused_number(&mut self) {
        let policy = pick(&mut self.rng, &[OnTrimmed::TrimHorizon, OnTrimmed::Fail]);
        let approach = self.set_approach(&[60, 240, 420]);
        let horizon = Horizon::new(self, 60 * HOUR);
        self.put_aged(&horizon, &[50 * 60, 47 * 60, 40 * 60]);
        let horizon = self.read_and_stop(horizon, policy, approach, 2).await;
        self.refuse_placements();
        let (mut checked, _stored) = self.begin_stored(horizon, policy).await;
        (checked.approach, checked.is_refused) = (approach, true);
        self.end_checked(checked).await;
    }

    /// An earlier decision of `OnTrimmed::Latest` has skipped records, the first of which have been
    /// trimmed since then.
    async fn leave_out_again(&mut self) {
        let policy = OnTrimmed::Latest;
        let approach = self.set_approach(&[0, 60, 240]);
        let horizon = Horizon::new(self, 60 * HOUR);
        self.put_aged(&horizon, &[40 * 60, 30 * 60, 10 * 60]);
        let shard = self.orders.shard(0);
        let after = shard.sequence_numbers().first().cloned();
        let until = self.kinesis.now() - HOUR * self.rng.u32(2..9);
        let position = Checkpoint::CaughtUp { after, until };
        let scope = Scope::new("default", "orders");
        self.store.save(&scope, &[(shard.id(), position)]).await.expect("the store does not fail");
        horizon.trim(&shard, 1);
        let (mut checked, _stored) = self.begin_stored(horizon, policy).await;
        checked.decided.insert(0, until);
        checked.approach = approach;
        self.read_checked(&mut checked, 10 * MINUTE, usize::MAX).await;
        self.end_checked(checked).await;
    }

    /// Records are lost when the retention period is lowered. The next retained record follows
    /// after an approach and is about to be trimmed.
    async fn lose_once(&mut self) {
        let policy = OnTrimmed::TrimHorizon;
        let approach = self.set_approach(&[60]);
        let horizon = Horizon::new(self, 48 * HOUR);
        let left = self.rng.u64(11..15);
        self.put_aged(&horizon, &[40 * 60, 30 * 60, 24 * 60 - left]);
        let horizon = self.read_and_stop(horizon, policy, approach, 1).await;
        self.set_approach(&[0]);
        horizon.lower(DAY);
        let (mut checked, _stored) = self.begin_stored(horizon, policy).await;
        let by = Instant::now() + 2 * MINUTE;
        while checked.horizon.gaps(0).is_empty() && Instant::now() < by {
            self.read_checked(&mut checked, Duration::from_millis(100), 1).await;
        }
        checked.approach = self.set_approach(&[60, 120, 180]);
        self.end_checked(checked).await;
    }

    fn set_approach(&mut self, seconds: &[u64]) -> Duration {
        let approach = Duration::from_secs(pick(&mut self.rng, seconds));
        self.truth.log(format_args!("an approach takes {approach:?}"));
        self.kinesis.set_approach(approach);
        approach
    }

    /// Puts records with about these ages, in minutes.
    fn put_aged(&mut self, horizon: &Horizon, ages: &[u64]) {
        let (shard, now) = (self.orders.shard(0), self.kinesis.now());
        for age in ages {
            let arrival = now - Duration::from_secs(age * 60) + self.time(0..60_000);
            horizon.put_at(&shard, arrival);
        }
    }

    /// Reads this number of records with a reader that stops after they are finished.
    async fn read_and_stop(
        &mut self,
        horizon: Horizon,
        policy: OnTrimmed,
        approach: Duration,
        records: usize,
    ) -> Horizon {
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon, policy);
        checked.approach = approach;
        self.read_checked(&mut checked, HOUR, records).await;
        // Polling for the next record finishes the last one.
        self.read_checked(&mut checked, Duration::from_millis(1), 1).await;
        let CheckedReader { reader, horizon, .. } = checked;
        reader.close().await;
        horizon
    }

    async fn end_checked(&mut self, mut checked: CheckedReader) {
        self.read_rest(&mut checked).await;
        checked.reader.close().await;
    }
}
