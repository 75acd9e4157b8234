//! Answers of Kinesis that are well-formed and wrong.

use fastrand::Rng;
use kinestream::StartingPosition;
use kinestream::testing::{Outcome, WrongListing};

use crate::seeds::pick;
use crate::world::World;

/// What says when an answer is wrong. Apart from the world's own generator, so that the stories of
/// worlds without wrong answers stay as they are.
pub(crate) struct Distortions {
    rng: Rng,
    /// What says which members an answer lacks.
    members: Rng,
    /// In percent of the steps.
    chance: u8,
    /// How many iterators may still be denied.
    denials: usize,
}

/// Fewer than what proves that a shard is gone, together with listings that lack it.
const MOST_DENIALS: usize = 2;

impl Distortions {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x00d1_5707_7ed0_a115);
        let chance = pick(&mut rng, &[0, 0, 10, 25]);
        let members = Rng::with_seed(seed ^ 0x0000_ab5e_4700_3e3b);
        Self { rng, members, chance, denials: MOST_DENIALS }
    }

    /// Whether any answer of this world is wrong.
    pub(crate) fn is_possible(&self) -> bool {
        self.chance > 0
    }
}

impl World {
    /// The next answers to some calls lack what they should hold, or deny what there is.
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
            // The end of an open shard, to those who conclude it from absence.
            0 => (read, Outcome::without(next[..1].iter().copied())),
            1 => (read, Outcome::without(next.iter().copied())),
            // The model counts the bytes of records that are left out, which no reader can know of.
            2 if !self.plan.fan_out && !self.plan.large => {
                let all = ["NextShardIterator", "ChildShards", "Records", "MillisBehindLatest"];
                (read, Outcome::without(all))
            }
            2 | 3 => (read, not_found),
            4 => ("GetShardIterator", not_found),
            5 => ("ListShards", Outcome::Mislisted(WrongListing::Without(shard))),
            6 => ("ListShards", Outcome::Mislisted(WrongListing::Empty)),
            // A first listing that is a moment old cannot be told from a true one, and the children
            // that come later are read from their beginning: more than wanted, and nothing less.
            _ if self.plan.start == StartingPosition::Latest => {
                ("ListShards", Outcome::Mislisted(WrongListing::Unreadable))
            }
            _ => ("ListShards", Outcome::Mislisted(WrongListing::Stale(1))),
        };
        let (operation, outcome) = if members.u8(..3) == 0 {
            let mut lacking = vec!["MillisBehindLatest"];
            if members.bool() {
                lacking.extend(next);
            }
            if members.bool() && (self.plan.fan_out || !self.plan.large) {
                lacking.push("Records");
            }
            (read, Outcome::without(lacking))
        } else {
            (operation, outcome)
        };
        let mut times = rng.usize(1..4);
        if operation == "GetShardIterator" {
            times = times.min(*denials);
            *denials -= times;
        }
        self.truth.tell(format_args!("next {times} answers to {operation}: {outcome:?}"));
        let mut faults = self.faults.lock().unwrap();
        faults.extend(std::iter::repeat_n((Some(operation), outcome), times));
    }
}
