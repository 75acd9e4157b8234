//! The bugs of `DynamoDbStore` that a named test of the servers must find.

use super::Mistake;

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "DynamoDB: a step leaves the fence of an earlier epoch",
        file: "store/dynamodb/steps.rs",
        right: "if positions::is_moved(partition, stored.as_deref(), change.text.as_deref()) {",
        wrong: "if false {",
        breaks: &[
            "dynamodb_fences::save_in_an_earlier_epoch_is_refused_after_a_step_of_any_size",
            "dynamodb_fences::saves_follow_the_epochs_that_were_shown",
        ],
    },
    Mistake {
        what: "DynamoDB: a reader uses a bucket with pending writes",
        file: "store/dynamodb/reads.rs",
        right: "self.raw_buckets(&due).await?.into_iter().partition(Bucket::is_pending);",
        wrong: "self.raw_buckets(&due).await?.into_iter().partition(|_| false);",
        breaks: &[
            "dynamodb_fences::saves_follow_the_epochs_that_were_shown",
            "dynamodb_leases_alike::dynamodb_store_with_pending_positions_answers_like_the_memory_store",
        ],
    },
    Mistake {
        what: "DynamoDB: a reader of the whole table uses pending writes",
        file: "store/dynamodb/reads.rs",
        right: "if pending.is_empty() && front.pending.is_empty() {",
        wrong: "if front.pending.is_empty() {",
        breaks: &["dynamodb_fences::crash_before_the_fence_leaves_it_to_the_next_reader"],
    },
    Mistake {
        what: "DynamoDB: a reader uses the head with pending entries of workers",
        file: "store/dynamodb/reads.rs",
        right: "if pending.is_empty() && front.pending.is_empty() {",
        wrong: "if pending.is_empty() {",
        breaks: &[
            "dynamodb_workers::crash_before_all_workers_are_written_leaves_them_to_the_next_reader",
            "dynamodb_leases_alike::dynamodb_store_with_pending_positions_answers_like_the_memory_store",
        ],
    },
    Mistake {
        what: "DynamoDB: a heartbeat that arrives late brings its mark back",
        file: "store/dynamodb/exchange.rs",
        right: "                .require(MARK, front.mark_value(&renewal.worker))\n",
        wrong: "",
        breaks: &["dynamodb_workers::heartbeat_that_arrives_late_does_not_bring_back_its_mark"],
    },
    Mistake {
        what: "an edit requires all dead workers to be silent in one step",
        file: "store/lease/access.rs",
        right: "let is_last = silent.len() <= MAX_REMOVED;",
        wrong: "let is_last = true;",
        breaks: &["dynamodb_workers::large_dead_fleet_is_cleared_and_moved"],
    },
    Mistake {
        what: "DynamoDB: the reasons of a cancelled transaction have no messages",
        file: "store/dynamodb/requests.rs",
        right: "message: reason.message().unwrap_or_default()",
        wrong: "message: \"\"",
        breaks: &["dynamodb_faults::cancelled_transaction_says_why"],
    },
    Mistake {
        what: "DynamoDB: keys that are never processed are requested without end",
        file: "store/dynamodb/requests.rs",
        right: "failed = if keys.len() < count { 0 } else { failed + 1 };",
        wrong: "failed = if keys.is_empty() { failed } else { 0 };",
        breaks: &["dynamodb_faults::keys_that_are_never_processed_count_as_throttled"],
    },
    Mistake {
        what: "DynamoDB: a save does not settle its pending fence",
        file: "store/dynamodb/saves.rs",
        right: "self.settle(pending.into_values().collect()).await?;",
        wrong: "drop(pending);",
        breaks: &["dynamodb_fences::save_meets_a_pending_move"],
    },
    Mistake {
        what: "DynamoDB: a missing fence is not restored",
        file: "store/dynamodb/saves.rs",
        right: "self.restore_fences(bucket, shards).await?;",
        wrong: "let _ = (bucket, shards);",
        breaks: &["dynamodb_fences::missing_fence_is_restored_from_the_lease"],
    },
    Mistake {
        what: "DynamoDB: a repeated save does not recognize the first attempt",
        file: "store/dynamodb/saves.rs",
        right: "if row.saver.as_ref() == Some(saver) { Saved::Done }",
        wrong: "if row.text.as_ref() == Some(saver) { Saved::Done }",
        breaks: &["dynamodb_faults::write_with_a_lost_answer_is_made_once"],
    },
    Mistake {
        what: "DynamoDB: a step is not bound to the version of the head",
        file: "store/dynamodb/front.rs",
        right: "Expressions::default().require(VERSION, version)",
        wrong: "Expressions::default().require(\"absent\", version.filter(|_| false))",
        breaks: &["dynamodb_store::dynamodb_store_conforms_as_lease_store"],
    },
    Mistake {
        what: "DynamoDB: a repeated transaction has another token",
        file: "store/dynamodb/requests.rs",
        right: ".client_request_token(&token)",
        wrong: ".client_request_token(format!(\"{:032x}\", fastrand::u128(..)))",
        breaks: &["dynamodb_faults::write_with_a_lost_answer_is_made_once"],
    },
    Mistake {
        what: "DynamoDB: unprocessed keys are dropped",
        file: "store/dynamodb/requests.rs",
        right: "keys = rest.flat_map(|rest| rest.keys).collect();",
        wrong: "keys = rest.flat_map(|_| Vec::new()).collect();",
        breaks: &["dynamodb_faults::partial_answers_are_completed"],
    },
    Mistake {
        what: "DynamoDB: only the first page of a query is read",
        file: "store/dynamodb/requests.rs",
        right: "start = page.last_evaluated_key;",
        wrong: "start = page.last_evaluated_key.filter(|_| false);",
        breaks: &["dynamodb_faults::partial_answers_are_completed"],
    },
    Mistake {
        what: "DynamoDB: a conflict of transactions is not retried",
        file: "store/dynamodb/errors.rs",
        right: "        | \"TransactionConflict\"\n",
        wrong: "",
        breaks: &["dynamodb_faults::cancelled_transaction_is_retried"],
    },
    Mistake {
        what: "DynamoDB: a call has no time limit",
        file: "store/dynamodb/requests.rs",
        right: "match timeout(ATTEMPT_TIMEOUT, attempt()).await {",
        wrong: "match timeout(ATTEMPT_TIMEOUT * 2, attempt()).await {",
        breaks: &["dynamodb_faults::connection_without_an_answer_is_given_up"],
    },
];
