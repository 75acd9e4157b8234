//! Faults of calls, of subscriptions and of the store.

use kinestream::testing::{Interruption, Outcome};
use tokio::time::sleep;

use crate::store::Condition;
use crate::world::World;

impl World {
    pub(crate) fn fail_calls(&mut self) {
        let mut operation = if self.plan.fan_out {
            [
                None,
                None,
                Some("ListShards"),
                Some("RegisterStreamConsumer"),
                Some("SubscribeToShard"),
            ]
        } else {
            [None, None, Some("ListShards"), Some("GetShardIterator"), Some("GetRecords")]
        }[self.rng.usize(..5)];
        if self.plan.fan_out && self.rng.bool() {
            return self.interrupt();
        }
        let outcome = match self.rng.u8(..13) {
            0 | 1 => Outcome::throttled(),
            2 => Outcome::failed(500, "InternalFailureException", ""),
            3 => Outcome::failed(400, "ExpiredIteratorException", "expired"),
            4 => Outcome::Refused,
            5 => Outcome::Lost,
            6 => Outcome::Cut,
            7 => Outcome::Garbled { status: 503, body: "<html>".into() },
            8 => Outcome::Hangs,
            9 => Outcome::Delayed(self.time(40_000)),
            10 => {
                operation = Some(self.plan.read_call());
                Outcome::failed(400, "AccessDeniedException", "no")
            }
            11 => {
                self.truth.log(format_args!("all iterators expire"));
                return self.kinesis.expire_iterators();
            }
            _ => {
                let open = self.orders.open_shards();
                let (shard, time) = (self.rng.usize(..open.len()), self.time(10_000));
                self.truth.log(format_args!("shard {} is occupied", open[shard].index()));
                return open[shard].occupy(time);
            }
        };
        let times = self.rng.usize(1..5);
        self.truth.log(format_args!("next {times} calls of {operation:?}: {outcome:?}"));
        let mut faults = self.faults.lock().unwrap();
        faults.extend(std::iter::repeat_n((operation, outcome), times));
    }

    /// Interrupts the subscriptions of a shard.
    fn interrupt(&mut self) {
        let interruption = match self.rng.u8(..6) {
            0 => Interruption::Ends,
            1 => Interruption::Resets,
            2 => Interruption::Stalls,
            3 => Interruption::fails("InternalFailureException", "ours"),
            4 => Interruption::fails("KMSThrottlingException", "slow down"),
            _ => Interruption::fails("ResourceInUseException", "taken over"),
        };
        let shard = self.rng.usize(..self.orders.shards().len());
        self.truth.log(format_args!("subscriptions of shard {shard}: {interruption:?}"));
        self.orders.shard(shard).interrupt(&interruption);
    }

    pub(crate) async fn fail_store(&mut self) {
        let condition = match self.rng.u8(..8) {
            // An outage during which the caller does not poll.
            7 => {
                self.truth.log(format_args!("the store is down for some time"));
                self.store.set_condition(Condition::Down);
                sleep(self.time(40_000)).await;
                self.store.set_condition(Condition::Healthy);
                return sleep(self.time(40_000)).await;
            }
            0 => Condition::Slow(self.time(3000)),
            1 => Condition::Down,
            2 => Condition::Forgetful,
            3 => Condition::Hangs,
            _ => Condition::Healthy,
        };
        self.truth.log(format_args!("the store is {condition:?}"));
        self.store.set_condition(condition);
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self) {
        self.truth.log(format_args!("all faults are over"));
        self.faults.lock().unwrap().clear();
        self.panics.disarm();
        self.store.set_condition(Condition::Healthy);
    }
}
