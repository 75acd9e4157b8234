//! Wrong responses to `ListShards`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::WrongListing;
use super::answer::Answer;
use super::contents::{id_of, index_of};
use super::operations::token;

impl WrongListing {
    /// Turns a correct response into this wrong one. `now` is in milliseconds since 1970.
    pub(super) fn alter(&self, mut answer: Answer, stream: &str, now: u64) -> Answer {
        let shards = answer.members.get_mut("Shards").and_then(Value::as_array_mut);
        let Some(shards) = shards else { return answer };
        match self {
            Self::Empty => shards.clear(),
            Self::Without(missing) => shards.retain(|shard| shard["ShardId"] != missing.as_str()),
            Self::Short(count) => shards.truncate(*count),
            Self::Stale(count) => make_stale(shards, *count),
            Self::Unreadable => {
                if let Some(shard) = shards.first_mut() {
                    shard["ShardId"] = json!("no shard");
                }
            }
            Self::Loops => {
                let first = json!(token(stream, 0, 0, now));
                answer.members.insert("NextToken".to_owned(), first);
            }
            Self::OneParent => {
                for shard in shards.iter_mut().filter_map(Value::as_object_mut) {
                    shard.remove("AdjacentParentShardId");
                }
            }
            Self::WithoutEnds => {
                for shard in shards.iter_mut() {
                    shard["SequenceNumberRange"]["EndingSequenceNumber"].take();
                }
            }
            Self::OtherStart(of) => {
                for shard in shards.iter_mut().filter(|shard| shard["ShardId"] == of.as_str()) {
                    let start = &mut shard["SequenceNumberRange"]["StartingSequenceNumber"];
                    // Greater than the number of each record of the shard.
                    *start = json!(format!("{}0", start.as_str().unwrap_or("1")));
                }
            }
        }
        answer
    }
}

/// Reduces a listing to the first `count` shards of a stream, as it was before the others existed.
fn make_stale(shards: &mut Vec<Value>, count: usize) {
    let known: BTreeSet<String> = (0..count).map(id_of).collect();
    let is_known = |id: &Value| id.as_str().is_some_and(|id| known.contains(id));
    let parents = |shard: &Value| {
        [&shard["ParentShardId"], &shard["AdjacentParentShardId"]]
            .into_iter()
            .filter_map(|parent| index_of(parent.as_str()?))
            .collect::<Vec<_>>()
    };
    let still: BTreeSet<usize> =
        shards.iter().filter(|shard| is_known(&shard["ShardId"])).flat_map(parents).collect();
    shards.retain(|shard| is_known(&shard["ShardId"]));
    for shard in shards {
        let index = shard["ShardId"].as_str().and_then(index_of);
        if index.is_some_and(|index| !still.contains(&index)) {
            shard["SequenceNumberRange"]["EndingSequenceNumber"].take();
        }
    }
}
