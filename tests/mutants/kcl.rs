//! The bugs of the positions in a KCL's lease table that a named test of the servers must find.

use super::Mistake;

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "KCL: reading begins while a KCL renews its leases",
        file: "store/dynamodb/exchange.rs",
        right: "            self.admit(lease_duration).await?;\n",
        wrong: "            let _ = lease_duration;\n",
        breaks: &["kcl::moves::reading_begins_once_a_kcl_has_stopped_to_renew"],
    },
    Mistake {
        what: "KCL: the end of a shard is shown before its children are named",
        file: "store/dynamodb/kcl/place.rs",
        right: "Ok(Checkpoint::ShardEnd) | Err(_) => {",
        wrong: "Ok(Checkpoint::ShardEnd) => Self::shard_end(),\nErr(_) => {",
        breaks: &["kcl::rows::kcl_reads_the_children_of_a_shard_that_this_crate_has_ended"],
    },
    Mistake {
        what: "KCL: the end of a shard is never shown",
        file: "store/dynamodb/kcl/ends.rs",
        right: "if !of_shard.iter().all(|child| has_row(&rows, child)) {",
        wrong: "if has_row(&rows, &shard) {",
        breaks: &["kcl::rows::kcl_reads_the_children_of_a_shard_that_this_crate_has_ended"],
    },
    Mistake {
        what: "KCL: a listed shard whose row was deleted is read again",
        file: "discovery/changes.rs",
        right: "let left_behind = if self.forgets_finished_shards {",
        wrong: "let left_behind = if self.forgets_finished_shards && false {",
        breaks: &["kcl::rows::finished_shards_without_rows_are_not_read_again"],
    },
    Mistake {
        what: "KCL: a lease without a row is unread",
        file: "store/dynamodb/kcl/reads.rs",
        right: "let is_finished = ancestors.contains(shard);",
        wrong: "let is_finished = ancestors.contains(shard) && false;",
        breaks: &["kcl::rows::finished_shards_without_rows_are_not_read_again"],
    },
    Mistake {
        what: "KCL: a note counts after a KCL has moved the position",
        file: "store/dynamodb/kcl/row.rs",
        right: "match self.note.as_deref().and_then(|note| self.place.position_of(note)) {",
        wrong: "match self.note.as_deref().and_then(|note| note.split(\" @ \").next()) {",
        breaks: &["kcl::moves::orderly_moves_repeat_no_record"],
    },
    Mistake {
        what: "KCL: user records of an acknowledged record are left to a KCL",
        file: "store/dynamodb/kcl/place.rs",
        right: "Some(sub_sequence_number.min(WHOLE))",
        wrong: "Some(sub_sequence_number.min(WHOLE) % WHOLE)",
        breaks: &["kcl::moves::orderly_moves_repeat_no_record"],
    },
    Mistake {
        what: "KCL: a plain record at its own position is delivered again",
        file: "source/batch.rs",
        right: "if contents.deaggregate && contents.aggregate(next).is_none() {",
        wrong: "if contents.records.is_empty() {",
        breaks: &["kcl::moves::orderly_moves_repeat_no_record"],
    },
    Mistake {
        what: "KCL: a released lease keeps its owner in the row",
        file: "store/dynamodb/positions.rs",
        right: "partition.kcl.is_some() && owner(stored) != owner(new)",
        wrong: "partition.kcl.is_some() && owner(stored).is_none() && owner(new).is_some()",
        breaks: &["kcl::rows::kcl_reads_the_children_of_a_shard_that_this_crate_has_ended"],
    },
    Mistake {
        what: "KCL: a save leaves the row to the KCL that has taken it",
        file: "store/dynamodb/kcl/saves.rs",
        right: "before.saved(&save.text).reclaimed(),",
        wrong: "before.saved(&save.text),",
        breaks: &["kcl::moves::kcl_that_is_started_by_mistake_costs_no_record"],
    },
    Mistake {
        what: "KCL: a save does not end the lease of a KCL",
        file: "store/dynamodb/kcl/row.rs",
        right: "        let place = self.place.at(position);\n        Self {\n            counter: self.counter + 1,",
        wrong: "        let place = self.place.at(position);\n        Self {\n            counter: self.counter,",
        breaks: &["kcl::moves::kcl_that_is_started_by_mistake_costs_no_record"],
    },
    Mistake {
        what: "KCL: the rows of another application are claimed",
        file: "store/dynamodb/kcl/reads.rs",
        right: "row.scope.as_ref().filter(|scope| **scope != self.mark())",
        wrong: "row.scope.as_ref().filter(|scope| scope.is_empty())",
        breaks: &["kcl::rows::rows_of_another_application_are_refused"],
    },
    Mistake {
        what: "KCL: rows of another stream of the table are read",
        file: "store/dynamodb/kcl/reads.rs",
        right: "if self.with(|known| known.stream.clone()).is_some_and(|known| known != stream) {",
        wrong: "if self.with(|known| known.stream.is_none()) && stream.is_some() {",
        breaks: &["kcl::rows::rows_of_other_kinds_and_streams_stay_as_they_are"],
    },
];
