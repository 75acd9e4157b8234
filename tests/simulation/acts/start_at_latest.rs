//! A start at `Latest` while the first listings fail and records arrive.

use std::time::Duration;

use kinestream::testing::{Outcome, WrongListing};
use kinestream::{ErrorKind, OnTrimmed, StartingPosition};
use tokio::time::sleep;

use super::Act;
use crate::truth::Promise;

impl Act {
    pub(super) async fn start_at_latest(&mut self) {
        self.put_some(0..6);
        if self.rng.bool() {
            self.reshard();
            self.put_some(0..3);
        }
        let old = self.puts.len();
        // A start at `Latest` is accurate to one second.
        sleep(Duration::from_secs(2)).await;
        for _ in 0..self.rng.usize(1..8) {
            self.fail_listings();
        }
        let mut reader = self.begin(StartingPosition::Latest, OnTrimmed::Fail);
        for _ in 0..self.rng.usize(2..12) {
            let time = self.time(1..10_000);
            reader.read_for(time).await;
            if self.rng.u8(..6) == 0 {
                self.reshard();
            }
            self.put_some(0..4);
        }
        self.kinesis.on_call(|_call| Outcome::Served);
        self.truth.log(format_args!("listings are correct from now on"));
        self.put_each();
        let new: Vec<usize> = (old..self.puts.len()).collect();
        self.read_all(&mut reader, &new).await;
        self.check_order(&reader, false);
        self.check_errors(&reader, &[ErrorKind::Unavailable, ErrorKind::Rejected]);
        for number in reader.delivered.iter().filter(|number| **number < old) {
            let promise = Promise::NotBeforeTheStart;
            self.breaks(promise, format_args!("record {number} precedes the start"));
        }
        reader.close().await;
    }

    fn fail_listings(&mut self) {
        let outcome = match self.rng.u8(..7) {
            0 => Outcome::failed(400, "LimitExceededException", "Rate exceeded"),
            1 => Outcome::failed(500, "InternalFailureException", ""),
            2 => Outcome::Refused,
            3 => Outcome::Lost,
            4 => Outcome::Mislisted(WrongListing::Empty),
            5 => Outcome::Mislisted(WrongListing::Unreadable),
            _ => Outcome::Hangs,
        };
        let times = self.rng.usize(1..4);
        self.truth.log(format_args!("next {times} listings: {outcome:?}"));
        self.kinesis.next_calls("ListShards", times, outcome);
    }
}
