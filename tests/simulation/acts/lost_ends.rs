//! Closed shards with last records that are trimmed before a reader reaches the end of the shard.

use std::time::Duration;

use kinestream::testing::Shard;
use kinestream::{OnTrimmed, StartingPosition};
use tokio::time::{Instant, sleep};

use super::Act;
use super::horizon::{DAY, HOUR, Horizon};
use super::loss_checks::CheckedReader;
use crate::seeds::pick;
use crate::truth::Promise;

/// The time after a placement during which a loss is not detected: 10 s, plus the time of an event.
const UNCHECKED_FOR: Duration = Duration::from_secs(10 + 6);

impl Act {
    pub(super) async fn lose_ends(&mut self) {
        // With `OnTrimmed::Fail`, the children of a shard with a lost end wait for it.
        let policy = OnTrimmed::TrimHorizon;
        self.kinesis.set_trimmed_numbers_accepted(self.rng.bool());
        self.kinesis.set_event_records(1);
        self.plan.limit = self.rng.u32(1..3);
        self.plan.prefetch = self.rng.usize(..2);
        let period = HOUR * pick(&mut self.rng, &[30, 48]);
        let horizon = Horizon::new(self, period);
        let shards = self.orders.open_shards();
        for shard in &shards {
            let mut arrival = self.kinesis.now() - DAY - self.time(300_000..2_400_000);
            for _ in 0..self.rng.usize(15..60) {
                horizon.put_at(shard, arrival);
                arrival += self.time(0..2_000);
            }
        }
        let reader = self.begin(StartingPosition::TrimHorizon, policy);
        let mut checked = CheckedReader::new(reader, horizon, policy);
        let (by, most) = (Instant::now() + self.time(5_000..60_000), self.rng.usize(5..60));
        for _ in 0..most {
            self.read_checked(&mut checked, Duration::from_secs(5), 1).await;
            let time = self.time(1..1_000);
            sleep(time).await;
            if Instant::now() > by {
                break;
            }
        }
        let closed: Vec<Shard> = shards.into_iter().filter(|_| self.rng.u8(..4) != 0).collect();
        for shard in &closed {
            self.truth.log(format_args!("shard {} is closed", shard.index()));
            shard.split();
        }
        checked.horizon.lower(DAY);
        let lowered_at = Instant::now();
        self.read_rest(&mut checked).await;
        for shard in closed {
            if self.is_checked(&shard, lowered_at) {
                self.check_end(&mut checked, &shard).await;
            }
        }
        checked.reader.close().await;
    }

    /// Returns true if the last read of the shard before this time was more than [`UNCHECKED_FOR`]
    /// earlier.
    fn is_checked(&self, shard: &Shard, time: Instant) -> bool {
        let calls = self.kinesis.calls();
        let last = calls.iter().rfind(|call| {
            call.operation == self.plan.read_call()
                && call.shard_id == Some(shard.id())
                && call.at <= time
        });
        last.is_some_and(|call| call.at + UNCHECKED_FOR < time)
    }

    /// Checks that the loss of the trimmed records behind the last delivered one is reported before
    /// the end of the shard.
    async fn check_end(&self, checked: &mut CheckedReader, shard: &Shard) {
        let (index, arrived) = (shard.index(), checked.horizon.arrivals(shard.index()).len());
        let Some(next) = checked.next.get(&index).copied().filter(|next| *next < arrived) else {
            return;
        };
        let is_reported = |checked: &CheckedReader| {
            let gaps = checked.horizon.gaps(index);
            gaps.iter().any(|gap| gap.passed == Some(next))
        };
        let by = self.deadline();
        while !is_reported(checked) && Instant::now() < by {
            self.read_checked(checked, Duration::from_secs(5), usize::MAX).await;
        }
        if !is_reported(checked) {
            self.breaks(
                Promise::LossesAreReported,
                format_args!(
                    "shard {index} ends after {next} of {arrived} records without a report"
                ),
            );
        }
    }
}
