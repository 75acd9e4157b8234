//! Responses of Kinesis that are well-formed and wrong.

use fastrand::Rng;
use kinestream::StartingPosition;
use kinestream::testing::{Outcome, WrongListing};

use crate::seeds::pick;
use crate::world::World;

/// Chooses the wrong responses. The generators are separate from the main generator, so that the
/// scenarios without wrong responses stay the same.
pub(crate) struct Distortions {
    rng: Rng,
    /// Chooses the members that a response lacks.
    members: Rng,
    /// In percent of the steps.
    chance: u8,
    /// The number of `GetShardIterator` calls that may still be denied.
    denials: usize,
}

/// The number of denials that, together with listings that lack the shard, does not yet prove that
/// the shard is gone.
const MAX_DENIALS: usize = 2;

impl Distortions {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x00d1_5707_7ed0_a115);
        let chance = pick(&mut rng, &[0, 0, 10, 25]);
        let members = Rng::with_seed(seed ^ 0x0000_ab5e_4700_3e3b);
        Self { rng, members, chance, denials: MAX_DENIALS }
    }

    /// Returns true if any response in this scenario may be wrong.
    pub(crate) fn is_possible(&self) -> bool {
        self.chance > 0
    }
}

impl World {
    /// Makes the next responses of an operation lack required members, or deny that a shard exists.
    pub(crate) fn distort(&mut self) {
        let Distortions { rng, members, chance, denials } = &mut self.distortions;
        if rng.u8(..100) >= *chance {
            return;
        }
        let read = self.plan.read_call();
        let next = if self.plan.fan_out {
            &["ContinuationSequenceNumber", "ChildShards"]
        } else {
            &["NextShardIterator", "ChildShards"]
        };
        let not_found = Outcome::failed(400, "ResourceNotFoundException", "not found");
        let shard = self.orders.shard(rng.usize(..self.orders.shards().len())).id();
        let (operation, outcome) = match rng.u8(..8) {
            // Looks like the end of an open shard to a reader that relies on the absence of the
            // member.
            0 => (read, Outcome::without(next[..1].iter().copied())),
            1 => (read, Outcome::without(next.iter().copied())),
            // The model counts the bytes of omitted records against the limit, which no reader can
            // know.
            2 if !self.plan.fan_out && !self.plan.large => {
                let all = ["NextShardIterator", "ChildShards", "Records", "MillisBehindLatest"];
                (read, Outcome::without(all))
            }
            2 | 3 => (read, not_found),
            4 => ("GetShardIterator", not_found),
            5 => ("ListShards", Outcome::Mislisted(WrongListing::Without(shard))),
            6 => ("ListShards", Outcome::Mislisted(WrongListing::Empty)),
            // A reader cannot distinguish an outdated first listing from a current one. It then
            // reads later children from their beginning, which delivers more than requested and
            // loses nothing.
            _ if self.plan.start == StartingPosition::Latest => {
                ("ListShards", Outcome::Mislisted(WrongListing::Unreadable))
            }
            _ => ("ListShards", Outcome::Mislisted(WrongListing::Stale(1))),
        };
        let (operation, outcome) = if members.u8(..3) == 0 {
            let mut missing = vec!["MillisBehindLatest"];
            if members.bool() {
                missing.extend(next);
            }
            if members.bool() && (self.plan.fan_out || !self.plan.large) {
                missing.push("Records");
            }
            (read, Outcome::without(missing))
        } else {
            (operation, outcome)
        };
        let mut times = rng.usize(1..4);
        if operation == "GetShardIterator" {
            times = times.min(*denials);
            *denials -= times;
        }
        self.truth.log(format_args!("next {times} responses of {operation}: {outcome:?}"));
        let mut faults = self.faults.lock().unwrap();
        faults.extend(std::iter::repeat_n((Some(operation), outcome), times));
    }
}
