//! A shard that listings lack, either several times or because it has expired.

use std::time::Duration;

use kinestream::testing::{Outcome, Shard, WrongListing};
use kinestream::{ErrorKind, OnTrimmed, ShardOrdering, StartingPosition};

use super::Act;
use crate::seeds::pick;
use crate::truth::Promise;

impl Act {
    pub(super) async fn omit_shard(&mut self) {
        let policy = pick(&mut self.rng, &[OnTrimmed::Fail, OnTrimmed::TrimHorizon]);
        for shard in self.orders.open_shards() {
            (0..6).for_each(|_| self.put_into(&shard));
        }
        let mut reader = self.begin(StartingPosition::TrimHorizon, policy);
        let (time, most) = (self.time(2000..10_000), self.rng.usize(1..4));
        reader.read(time, most).await;
        let read = std::mem::take(&mut reader.delivered);
        reader.close().await;
        let parent = self.reshard();
        self.put_each();
        if self.rng.u8(..3) == 0 {
            self.expire(&parent, policy).await;
        } else {
            self.read_with_omissions(&parent, policy, &read).await;
        }
    }

    /// Checks that every record is delivered as if the listings had been complete.
    async fn read_with_omissions(&mut self, parent: &Shard, policy: OnTrimmed, read: &[usize]) {
        let shards = self.orders.shards();
        let missing = match self.rng.u8(..3) {
            0 => shards[self.rng.usize(..shards.len())].clone(),
            _ => parent.clone(),
        };
        let listings = self.rng.u32(1..9);
        self.truth.log(format_args!("the next {listings} listings lack shard {}", missing.index()));
        let wrong = Outcome::Mislisted(WrongListing::Without(missing.id()));
        self.kinesis.next_calls("ListShards", listings as usize, wrong);
        if self.rng.u8(..3) == 0 {
            // Too few errors to prove that a shard is gone.
            let not_found = Outcome::failed(400, "ResourceNotFoundException", "not found");
            self.kinesis.next_calls("GetShardIterator", self.rng.usize(1..3), not_found);
        }
        if self.later_rng.bool() {
            // Fewer listings than must agree, for a shard that is known.
            let other = parent.id();
            self.truth.log(format_args!("listings show another start of {other}"));
            let wrong = Outcome::Mislisted(WrongListing::OtherStart(other));
            self.kinesis.next_calls("ListShards", self.later_rng.usize(1..3), wrong);
        }
        let mut reader = self.begin(StartingPosition::TrimHorizon, policy);
        let time = (listings + 2) * self.plan.discovery_interval;
        reader.read_for(time + Duration::from_secs(60)).await;
        self.kinesis.on_call(|_call| Outcome::Served);
        let mut due: Vec<usize> = (0..self.puts.len()).collect();
        due.retain(|number| !read.contains(number));
        self.read_all(&mut reader, &due).await;
        self.check_order(&reader, false);
        self.check_errors(&reader, &[ErrorKind::Rejected]);
        if let Some((shard, _)) = reader.gaps.first() {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("a gap is reported for {shard}, which has none"),
            );
        }
        reader.close().await;
    }

    /// Expires the parent. Checks that the loss of its remaining records is reported, and that
    /// `on_trimmed` decides whether its children are read.
    async fn expire(&mut self, parent: &Shard, policy: OnTrimmed) {
        self.truth.log(format_args!("shard {} expires", parent.index()));
        parent.expire();
        let mut reader = self.begin(StartingPosition::TrimHorizon, policy);
        let is_read = policy != OnTrimmed::Fail || self.plan.ordering == ShardOrdering::Unordered;
        let is_child = |shard: usize| self.orders.shard(shard).parents().contains(&parent.id());
        let children: Vec<usize> =
            (0..self.puts.len()).filter(|number| is_child(self.puts[*number].shard)).collect();
        if is_read {
            self.read_all(&mut reader, &children).await;
        }
        reader.read_for(4 * self.plan.discovery_interval + Duration::from_secs(60)).await;
        self.check_errors(&reader, &[ErrorKind::Trimmed]);
        let reports =
            if policy == OnTrimmed::Fail { reader.errors.len() } else { reader.gaps.len() };
        if reports != 1 {
            self.breaks(
                Promise::LossesAreReported,
                format_args!("one loss is reported {reports} times"),
            );
        }
        if !is_read && children.iter().any(|child| reader.delivered.contains(child)) {
            self.breaks(Promise::ParentsFirst, format_args!("a child of a lost shard is read"));
        }
        let due: Vec<usize> =
            children.into_iter().filter(|child| !reader.delivered.contains(child)).collect();
        reader.close().await;
        if policy == OnTrimmed::Fail {
            self.pass_over(&due).await;
        }
    }

    /// Starts a reader with another `on_trimmed`, which continues with the children of a lost
    /// shard.
    async fn pass_over(&mut self, due: &[usize]) {
        let mut reader = self.begin(StartingPosition::TrimHorizon, OnTrimmed::TrimHorizon);
        reader.read_for(4 * self.plan.discovery_interval + Duration::from_secs(60)).await;
        self.read_all(&mut reader, due).await;
        self.check_errors(&reader, &[]);
        if reader.gaps.len() != 1 {
            let gaps = reader.gaps.len();
            self.breaks(
                Promise::LossesAreReported,
                format_args!("one loss is reported as {gaps} gaps"),
            );
        }
        reader.close().await;
    }
}
