//! The reads of a consumer that tries CBOR.

use std::collections::BTreeSet;

use kinestream::ShardId;
use kinestream::testing::Call;

/// Returns the calls of a consumer without those whose response it discards after it has read it:
/// the records of a trial of CBOR, which are fetched again by JSON.
///
/// Until one trial is confirmed, each CBOR response that holds records is a trial. The JSON response
/// to the next call of the shard confirms it if it holds records.
pub(crate) fn used(calls: &[Call]) -> Vec<&Call> {
    let (mut is_checked, mut tried) = (false, BTreeSet::<&ShardId>::new());
    let mut used = Vec::with_capacity(calls.len());
    for call in calls {
        let holds_records = call.status == Some(200) && call.records > 0;
        match &call.shard_id {
            Some(shard) if call.operation == "GetRecords" && !is_checked => {
                let was_tried = tried.remove(shard);
                if call.is_cbor && holds_records {
                    tried.insert(shard);
                    continue;
                }
                is_checked = was_tried && !call.is_cbor && holds_records;
            }
            _ => {}
        }
        used.push(call);
    }
    used
}
