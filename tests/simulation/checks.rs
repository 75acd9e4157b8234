//! Checks from outside the crate, between the steps and at the end of each reader.

use crate::left_running::left_running;
use crate::neighbour::Neighbour;
use crate::reader::Reader;
use crate::reads::used;
use crate::truth::{Fact, Promise, index_of};
use crate::world::World;

/// The bytes that each shard may hold in addition to the budget.
pub(crate) const RESERVE: usize = 64 << 10;

/// The maximum size in bytes of the records of one pushed event.
const EVENT: usize = 10 << 20;

impl World {
    /// Checks that each record that had the time to be saved is saved.
    pub(crate) async fn check_saved(&self, due: Vec<usize>) {
        let positions = self.store.positions().await;
        let mut facts = self.truth.lock();
        for (shard, due) in due.into_iter().enumerate() {
            let position = positions.iter().find(|(id, _)| index_of(id) == shard);
            let passed = position.and_then(|(_, checkpoint)| facts.passed(shard, checkpoint));
            let known = &facts.shards[shard];
            let passed = passed.or(known.base).or(known.start).unwrap_or(0);
            if passed < due {
                facts.breaks(
                    Promise::FewRepeats,
                    format_args!(
                        "shard {shard} is finished up to record {due}, and stored up to {passed}"
                    ),
                );
            }
        }
    }

    /// Checks that no call and no task is left, and that no call limit was exceeded.
    pub(crate) fn check_rest(&self) {
        if let Some(left) = left_running(&self.kinesis) {
            self.truth.breaks(Promise::NothingLeftRunning, format_args!("{left}"));
        }
        for violation in self.kinesis.violations() {
            self.truth.breaks(Promise::CallLimits, format_args!("{violation}"));
        }
    }

    /// Adds the calls since the last time to the trace.
    pub(crate) fn trace_calls(&mut self) {
        let calls = self.kinesis.calls_from(self.traced_calls);
        self.traced_calls += calls.len();
        let mut facts = self.truth.lock();
        for call in calls {
            let shard = call.shard_id.as_ref().map(index_of);
            let shard = shard.map_or_else(String::new, |shard| format!(" of shard {shard}"));
            let status =
                call.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
            let ended = call.shard_id.as_ref().is_some_and(|id| facts.shards[index_of(id)].ended);
            if call.operation == self.plan.read_call() && ended {
                facts
                    .breaks(Promise::EndsAreKept, format_args!("a read{shard}, which is finished"));
            }
            facts.log_at(
                call.at,
                format_args!(
                    "call: {}{}{shard}: {status}, {} records",
                    call.operation,
                    if call.is_cbor { " by CBOR" } else { "" },
                    call.records
                ),
            );
        }
    }

    /// Checks that the records that were fetched and not delivered fit into the budget.
    pub(crate) fn check_memory(&self, reader: &Reader) {
        if !self.plan.large && !self.plan.has_neighbour {
            return;
        }
        let mut facts = self.truth.lock();
        let calls = self.kinesis.calls_from(reader.first_call);
        let calls = used(&calls);
        let mut buffered = reader.neighbour.as_ref().map_or(0, Neighbour::buffered);
        for (shard, known) in facts.shards.iter().enumerate() {
            let (mut first, mut fetched) = (None, None);
            for call in &calls {
                let of_shard = call.shard_id.as_ref().map(index_of) == Some(shard);
                if !of_shard || call.operation != self.plan.read_call() || call.status != Some(200)
                {
                    continue;
                }
                if let Some(last) = &call.last {
                    let end = facts.place(last, 0).1 + 1;
                    first.get_or_insert(end - call.records);
                    // A response of unknown length that exceeds the budget is read to its end
                    // before it is discarded. Only the next call shows that it was kept, by
                    // starting behind it.
                    let may_be_discarded = self.plan.chunked && !self.plan.fan_out;
                    fetched = Some(if may_be_discarded { end - call.records } else { end });
                }
            }
            let (Some(first), Some(fetched)) = (first, fetched) else { continue };
            let taken = reader.next.get(&shard).copied();
            let taken = taken.or(known.base).or(known.start).unwrap_or(first);
            let sizes = || known.records[taken.min(fetched)..fetched].iter().map(Fact::size);
            // In addition to the budget, each shard holds its reserve, or the records of one fetch
            // of minimum size. A pushed event cannot be made smaller.
            let largest = sizes().max().unwrap_or(0);
            let least = match self.plan.event_records {
                _ if !self.plan.fan_out => largest,
                Some(records) => records * largest,
                None => EVENT,
            };
            buffered += sizes().sum::<usize>().saturating_sub(least.max(RESERVE));
        }
        let allowed = self.plan.max_buffered_bytes;
        if buffered > allowed {
            facts.breaks(
                Promise::MemoryBudget,
                format_args!(
                    "{buffered} bytes of the budget are buffered, expected at most {allowed}"
                ),
            );
        }
    }
}
