//! A start at a timestamp, or a seek to one, while listings lack shards with records since then.

use std::time::Duration;

use kinestream::testing::{Outcome, WrongListing};
use kinestream::{ErrorKind, OnTrimmed, StartingPosition};
use tokio::time::sleep;

use super::Act;
use super::reader::ActReader;
use crate::truth::Promise;
use crate::world::STREAM_AGE;

impl Act {
    pub(super) async fn start_at_timestamp(&mut self) {
        if self.later_rng.u8(..4) != 0 {
            // A listing by time then shows the shards that were open before the start. Later shards
            // that are closed again hold records, too.
            sleep(STREAM_AGE).await;
        }
        self.put_some(0..6);
        if self.rng.bool() {
            self.reshard();
            self.put_some(0..3);
        }
        sleep(Duration::from_secs(2)).await;
        let since = StartingPosition::AtTimestamp(self.kinesis.now());
        let old = self.puts.len();
        for _ in 0..self.rng.usize(1..4) {
            let pause = self.time(2000..8000);
            sleep(pause).await;
            self.put_each();
            self.reshard();
            self.put_some(0..4);
        }
        sleep(Duration::from_secs(2)).await;
        for _ in 0..self.rng.usize(1..5) {
            self.omit_shards();
        }
        if self.later_rng.bool() {
            let shard = self.later_rng.usize(..self.orders.shards().len());
            let wrong = WrongListing::OtherStart(self.orders.shard(shard).id());
            self.truth.log(format_args!("next listing: {wrong:?}"));
            self.kinesis.next_calls("ListShards", 1, Outcome::Mislisted(wrong));
        }
        let by_seek = !self.rng.bool();
        let mut reader = if by_seek {
            let reader = self.begin(StartingPosition::Latest, OnTrimmed::Fail);
            self.seek(&reader, since).await;
            reader
        } else {
            self.begin(since, OnTrimmed::Fail)
        };
        let new: Vec<usize> = (old..self.puts.len()).collect();
        self.read_all(&mut reader, &new).await;
        // The time of two more listings, which find the stored starts of the shards.
        reader.read_for(2 * self.plan.discovery_interval + Duration::from_secs(5)).await;
        self.check_order(&reader, false);
        self.check_errors(&reader, &[ErrorKind::Unavailable]);
        let is_early = |number: &&usize| **number < old;
        for number in reader.delivered.iter().filter(is_early) {
            let promise = Promise::NotBeforeTheStart;
            self.breaks(promise, format_args!("record {number} precedes the start"));
        }
        reader.close().await;
    }

    /// Seeks, and repeats a seek that fails because its listings lack a shard.
    async fn seek(&self, reader: &ActReader, to: StartingPosition) {
        let mut outcome = reader.seek(to).await;
        for _ in 0..3 {
            if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
                outcome = reader.seek(to).await;
            }
        }
        if let Err(error) = outcome {
            self.breaks(Promise::FewErrors, format_args!("seek: {error}"));
        }
    }

    /// Makes the next listings lack shards, including closed ones.
    fn omit_shards(&mut self) {
        let shards = self.orders.shards();
        let outcome = match self.rng.u8(..6) {
            0 => Outcome::Mislisted(WrongListing::Empty),
            1 => Outcome::Mislisted(WrongListing::Short(self.rng.usize(..shards.len()))),
            2 | 3 => {
                let missing = shards[self.rng.usize(..shards.len())].id();
                Outcome::Mislisted(WrongListing::Without(missing))
            }
            _ => Outcome::Served,
        };
        let times = self.later_rng.usize(1..5);
        self.truth.log(format_args!("next {times} listings: {outcome:?}"));
        self.kinesis.next_calls("ListShards", times, outcome);
    }
}
