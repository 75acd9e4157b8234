//! A polled reader near the retention horizon, with records so large that a response holds only
//! one: each new iterator returns the last record again, and no other.

use kinestream::{OnTrimmed, StartingPosition};

use super::Act;
use super::horizon::{DAY, Horizon};
use super::loss_checks::CheckedReader;
use crate::seeds::pick;

/// The size of a record. A response holds up to 10 MiB of records.
const LENGTH: usize = 6 << 20;

impl Act {
    pub(super) async fn read_large(&mut self) {
        self.plan.fan_out = false;
        (self.plan.limit, self.plan.max_in_flight_bytes) = (10_000, 64 << 20);
        let policies = [OnTrimmed::TrimHorizon, OnTrimmed::TrimHorizon, OnTrimmed::Fail];
        let policy = pick(&mut self.rng, &policies);
        self.kinesis.set_trimmed_numbers_accepted(self.rng.bool());
        let horizon = Horizon::new(self, DAY);
        let shard = self.orders.shard(0);
        let mut arrival = self.kinesis.now() - DAY + self.time(20_000..60_000);
        for _ in 0..self.rng.usize(4..9) {
            horizon.put_long_at(&shard, arrival, LENGTH);
            arrival += self.time(10_000..60_000);
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon, policy);
        for _ in 0..self.rng.usize(2..5) {
            let time = self.time(1..20_000);
            self.read_checked(&mut checked, time, usize::MAX).await;
            let time = self.time(11_000..120_000);
            self.truth.log(format_args!("shard 0 is occupied for {time:?}"));
            shard.occupy(time);
            self.read_checked(&mut checked, time, usize::MAX).await;
            if self.truth.is_broken() {
                return;
            }
        }
        self.read_rest(&mut checked).await;
        checked.reader.close().await;
    }
}
