//! The bugs that a named test of the scripted suite must find. Each test named for a bug must fail.

use std::sync::{Mutex, PoisonError};

use super::{Mistake, ONE, WOVEN, all, all_cores, for_each};

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "records of the trial of CBOR are delivered without a comparison",
        file: "source/wire_format/choice.rs",
        right: "Records if is_trial => return Reaction::Repeat(RepeatCause::Check),",
        wrong: "Records if is_trial => self.phase = Phase::Checked,",
        breaks: &[
            "fetching::wire_format::records_of_every_server_are_unaltered",
            "fetching::wire_format::one_response_per_consumer_is_compared",
        ],
    },
    Mistake {
        what: "a foreign 503 settles on JSON",
        file: "source/wire_format/choice.rs",
        right: "            Foreign { .. } => return self.suspect_outage(is_trial, shard),\n",
        wrong: "            Foreign { .. } => {\n\
                self.has_answered = false;\n\
                return Reaction::Repeat(RepeatCause::Foreign);\n\
                }\n",
        breaks: &[
            "fetching::wire_format_changes::failures_of_the_front_end_now_and_then_keep_cbor",
        ],
    },
    Mistake {
        what: "contradictions between the formats never settle on JSON",
        file: "source/wire_format/choice.rs",
        right: "(true, _) => CONTRADICTIONS,",
        wrong: "(true, _) => u32::MAX,",
        breaks: &["fetching::wire_format_changes::server_that_stops_to_speak_cbor_is_read_by_json"],
    },
    Mistake {
        what: "the failures of a shard in CBOR are never repeated by JSON",
        file: "source/wire_format/choice.rs",
        right: "if shard.outages > TOLERATED {",
        wrong: "if shard.outages == u32::MAX {",
        breaks: &[
            "fetching::wire_format_changes::shard_whose_calls_in_cbor_alone_fail_is_read_by_json",
        ],
    },
    Mistake {
        what: "a subscription is kept however long another call lasts",
        file: "source/fan_out.rs",
        right: "        resting(&mut self.subscription, self.fetch_state.retain_own(batch)).await\n",
        wrong: "        self.fetch_state.retain_own(batch).await\n",
        breaks: &["fetching::fan_out::subscription_ends_while_another_call_lasts"],
    },
    Mistake {
        what: "a polled shard is fetched without a permit",
        file: "source/polling.rs",
        right: "        self.permit().await;\n",
        wrong: "",
        breaks: &["fetching::pacing::prefetch_starts_with_the_second_record_of_a_batch"],
    },
    Mistake {
        what: "the memory of a response is released when it is decoded",
        file: "source/get_records.rs",
        right: "let space = memory.keep(response.memory());",
        wrong: "let space = memory.keep(response.memory() * 0);",
        breaks: &["delivery::kept_records::response_counts_until_its_last_part_is_dropped"],
    },
    Mistake {
        what: "the adapter by key puts a waiting record before the others of its key",
        file: "adapters/key_queue.rs",
        right: "lane.get_mut().push_back(record);",
        wrong: "lane.get_mut().push_front(record);",
        breaks: &["adapters::guarantees::adapters_keep_the_guarantees_in_random_worlds"],
    },
    Mistake {
        what: "the adapter by key runs the records of a key at once",
        file: "adapters/key_queue.rs",
        right: "Key(self.0.hash_one((record.stream(), source)))",
        wrong: "Key(self.0.hash_one((record.number, source)))",
        breaks: &["adapters::guarantees::adapters_keep_the_guarantees_in_random_worlds"],
    },
    Mistake {
        what: "the adapter by key takes all records of a shard for those of one key",
        file: "adapters/key_queue.rs",
        right: "Some(key) => KeySource::PartitionKey(key),",
        wrong: "Some(_) => KeySource::Shard(record.shard_id().as_str()),",
        breaks: &["adapters::throughput::keys_in_random_order_leave_few_slots_free"],
    },
    Mistake {
        what: "the adapter by key lets one record wait",
        file: "adapters/buffer_by_key.rs",
        right: "self.queue.waiting() < self.limit.saturating_mul(MAX_WAITING_PER_SLOT)",
        wrong: "self.queue.waiting() < 1",
        breaks: &["adapters::throughput::keys_in_random_order_leave_few_slots_free"],
    },
    Mistake {
        what: "a poll acknowledges the records in the adapter by key",
        file: "adapters/buffer_by_key.rs",
        right: "let is_deferred = record.as_ref().defer_ack();",
        wrong: "let is_deferred = false;",
        breaks: &[
            "adapters::acknowledgement::with_pull_a_handler_that_runs_holds_the_checkpoint",
            "adapters::guarantees::adapters_keep_the_guarantees_in_random_worlds",
        ],
    },
    Mistake {
        what: "the adapter by key acknowledges a record before it is handled",
        file: "adapters/buffer_by_key.rs",
        right: "let deferred = is_deferred.then(|| record.as_ref().acker());",
        wrong: "let deferred = is_deferred.then(|| record.as_ref().acker());\n\
                record.as_ref().ack();",
        breaks: &[
            "adapters::acknowledgement::records_that_wait_in_a_dropped_adapter_are_delivered_again",
            "adapters::guarantees::adapters_keep_the_guarantees_in_random_worlds",
        ],
    },
    Mistake {
        what: "a poll acknowledges the records in the batch of the adapter",
        file: "adapters/batches.rs",
        right: "if record.as_ref().defer_ack() {",
        wrong: "if false {",
        breaks: &[
            "adapters::acknowledgement::with_pull_the_poll_after_a_batch_acknowledges_it",
            "adapters::guarantees::adapters_keep_the_guarantees_in_random_worlds",
        ],
    },
    Mistake {
        what: "the adapter acknowledges a batch when it is yielded",
        file: "adapters/batches.rs",
        right: "std::mem::swap(&mut self.yielded, &mut self.collected);",
        wrong: "self.collected.drain(..).for_each(|acker| acker.ack());",
        breaks: &["adapters::acknowledgement::with_pull_the_poll_after_a_batch_acknowledges_it"],
    },
    Mistake {
        what: "a batch of the adapter mixes epochs",
        file: "adapters/shard_epochs.rs",
        right: "Entry::Occupied(epoch) => *epoch.get() == record.epoch(),",
        wrong: "Entry::Occupied(_) => true,",
        breaks: &[
            "adapters::acknowledgement::batch_does_not_mix_the_epochs_before_and_after_a_seek",
        ],
    },
    Mistake {
        what: "the adapter that filters drops records without an acknowledgement",
        file: "adapters/ack_filter.rs",
        right: "                    record.as_ref().ack();\n",
        wrong: "",
        breaks: &["adapters::acknowledgement::filtered_records_do_not_hold_the_checkpoint"],
    },
    Mistake {
        what: "the adapter that decodes acknowledges each record",
        file: "adapters/decode.rs",
        right: "Ok(record) => match call_for(&record, || (this.f)(&record)) {",
        wrong: "Ok(record) => match call_for(&record, || (record.ack(), (this.f)(&record)).1) {",
        breaks: &["adapters::guarantees::adapters_keep_the_guarantees_in_random_worlds"],
    },
    Mistake {
        what: "a record whose closure panics is acknowledged by the next poll",
        file: "adapters.rs",
        right: "        self.0.defer_ack();\n",
        wrong: "",
        breaks: &[
            "adapters::acknowledgement::with_pull_a_record_whose_closure_panics_is_not_acknowledged",
        ],
    },
    Mistake {
        what: "an adapter is terminated before it acknowledges its last batch",
        file: "adapters/batches.rs",
        right: "self.is_done && self.error.is_none() && self.collector.yielded.is_empty()",
        wrong: "self.is_done && self.error.is_none()",
        breaks: &[
            "adapters::acknowledgement::with_pull_the_last_batch_of_a_select_loop_is_acknowledged",
        ],
    },
    Mistake {
        what: "a worker without a shard is not ready",
        file: "consumer/health.rs",
        right: "            && self.since_poll.is_some()\n",
        wrong: "            && self.since_poll.is_some()\n            && self.leases_held > 0\n",
        breaks: &["operations::readiness::worker_is_ready_while_another_one_leaves"],
    },
    Mistake {
        what: "a caller that polls on is ready whatever record it holds",
        file: "consumer/health.rs",
        right: "held.max(self.silent_for.unwrap_or_default())",
        wrong: "if self.silent_for.is_some() { held } else { held.min(READY_LIMIT / 2) }",
        breaks: &[
            "operations::readiness::record_that_is_never_acknowledged_makes_a_consumer_unready",
        ],
    },
    Mistake {
        what: "a consumer that fetches nothing is ready",
        file: "consumer/health.rs",
        right: "self.failing_for.is_none_or(|time| time < limit)",
        wrong: "self.failing_for.is_none_or(|_| limit < Duration::MAX)",
        breaks: &[
            "operations::readiness::consumer_is_unready_after_a_minute_without_a_successful_fetch",
            "operations::readiness::consumer_that_has_never_fetched_is_unready_from_the_first_failure",
        ],
    },
    Mistake {
        what: "a consumer that has never fetched is ready for a minute",
        file: "consumer/health.rs",
        right: "self.since_fetch.map_or(Duration::ZERO, |_| READY_LIMIT)",
        wrong: "self.since_fetch.map_or(READY_LIMIT, |_| READY_LIMIT)",
        breaks: &[
            "operations::readiness::consumer_that_has_never_fetched_is_unready_from_the_first_failure",
        ],
    },
    Mistake {
        what: "a consumer whose store pauses delivery is ready",
        file: "consumer/health.rs",
        right: "            && !self.is_delivery_paused\n",
        wrong: "",
        breaks: &[
            "operations::readiness::store_without_leases_that_is_away_beyond_its_limit_makes_a_consumer_unready",
        ],
    },
    Mistake {
        what: "a failed fetch counts while fetched records wait for the caller",
        file: "telemetry/health_state.rs",
        right: "liveness.failing(&liveness.fetch_failures).filter(|_| undelivered.is_none())",
        wrong: "liveness.failing(&liveness.fetch_failures)",
        breaks: &[
            "operations::readiness::consumer_with_fetched_records_is_ready_while_another_shard_fails",
        ],
    },
    Mistake {
        what: "failures of a worker without a shard count forever",
        file: "telemetry/health_state.rs",
        right: "self.since(&failures.last)? < FAILURE_EXPIRY",
        wrong: "self.since(&failures.last)? < Duration::MAX",
        breaks: &[
            "operations::readiness::worker_without_a_shard_forgets_failures_after_ten_minutes",
        ],
    },
    Mistake {
        what: "a failed fetch whose error the caller receives does not count",
        file: "source/fetch_state.rs",
        right: "                    self.telemetry.fetch_failed();\n",
        wrong: "",
        breaks: &[
            "operations::readiness::consumer_that_has_never_fetched_is_unready_from_the_first_failure",
        ],
    },
    Mistake {
        what: "a successful fetch leaves the failed ones before it",
        file: "telemetry/health_state.rs",
        right: "        liveness.fetch_failures.clear();\n        self.call_succeeded();\n",
        wrong: "        self.call_succeeded();\n",
        breaks: &[
            "operations::readiness::consumer_is_unready_after_a_minute_without_a_successful_fetch",
        ],
    },
    Mistake {
        what: "a client of another region than that of the ARN is accepted",
        file: "source/client_region.rs",
        right: "is_aws_in(&host, own).then(|| own.to_owned())",
        wrong: "None.filter(|_: &String| is_aws_in(&host, own))",
        breaks: &[
            "operations::client_regions::client_of_another_region_than_that_of_the_arn_is_refused",
        ],
    },
    Mistake {
        what: "a client with an endpoint outside of AWS is refused by its region",
        file: "source/client_region.rs",
        right: "is_aws && host.split('.').any(|label| label == region)",
        wrong: "is_aws || !host.is_empty() || region.is_empty()",
        breaks: &["operations::client_regions::client_with_an_endpoint_of_its_own_is_accepted"],
    },
    Mistake {
        what: "the status confirms the workers whose heartbeats were not seen, and no others",
        file: "consumer/status.rs",
        right: "if self.operations.undecided(worker).await.is_some() {",
        wrong: "if self.operations.undecided(worker).await.is_none() {",
        breaks: &[
            "operations::unconfirmed_workers::worker_is_confirmed_once_another_heartbeat_of_it_is_seen",
        ],
    },
    Mistake {
        what: "a seek moves the shards of another client",
        file: "consumer/operations.rs",
        right: "self.refuse_other_readers(&edit, \"\").await?;",
        wrong: "",
        breaks: &["operations::other_readers::seek_is_refused_while_another_client_reads"],
    },
    Mistake {
        what: "an edit waits as long as the state of another client is unknown",
        file: "consumer/operations.rs",
        right: "if Instant::now() < patience_ends =>",
        wrong: "if Instant::now() < patience_ends + 100 * lease_duration =>",
        breaks: &[
            "operations::other_readers::edit_counts_a_client_as_alive_after_two_lease_durations_of_doubt",
        ],
    },
    Mistake {
        what: "the load of the shards is not measured",
        file: "fleet/duties.rs",
        right: "let read = self.owned.shards.iter().filter_map(read);",
        wrong: "let read = self.owned.shards.iter().filter_map(read).take(0);",
        breaks: &["fleet::loads::hot_shards_are_shared_and_then_no_lease_moves"],
    },
    Mistake {
        what: "a worker does not state its capacity",
        file: "fleet/exchange.rs",
        right: "size: Some(self.deps.config.size()),",
        wrong: "size: std::num::NonZeroU32::new(100),",
        breaks: &["fleet::loads::larger_worker_receives_more"],
    },
    Mistake {
        what: "a caller that holds up records is not noticed",
        file: "telemetry/shard.rs",
        right: "is_held_up: in_flight.held_by.is_some() || in_flight.undelivered.is_some(),",
        wrong: "is_held_up: in_flight.held_by.is_some(),",
        breaks: &["fleet::loads::worker_that_falls_behind_gives_leases_away_until_it_keeps_up"],
    },
];

#[test]
#[ignore = "builds the crate with all bugs, which takes minutes"]
fn test_named_for_each_bug_fails() {
    find(|suite| suite != "servers", all_cores());
}

#[test]
#[ignore = "runs tests with real servers for each bug, which takes ten minutes"]
fn server_test_named_for_each_bug_fails() {
    // Their time limits are for a machine that does nothing else.
    find(|suite| suite == "servers", 1);
}

/// Runs the tests that are named for each bug, with the bug and without it, on this number of cores.
fn find(is_of: impl Fn(&str) -> bool, cores: usize) {
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let only = std::env::var("MISTAKE").unwrap_or_default();
    let is_wanted = |bug: &Mistake| bug.names_tests() && bug.what.contains(&only);
    let bugs: Vec<_> =
        all().enumerate().filter(|(_, (suite, bug))| is_of(suite) && is_wanted(bug)).collect();
    let missed = Mutex::new(Vec::new());
    for_each(&bugs, cores, |(number, (suite, bug))| {
        assert!(!WOVEN.alone.contains(number), "expected a bug in a function body: {}", bug.what);
        for test in bug.breaks {
            let binary = &WOVEN.binaries[*suite];
            assert!(WOVEN.copy.passes(binary, test, None), "expected {test} to pass without a bug");
            let is_found = !WOVEN.copy.passes(binary, test, Some(*number));
            println!("{}: {} by {test}", bug.what, if is_found { "found" } else { "not found" });
            if !is_found {
                missed.lock().unwrap_or_else(PoisonError::into_inner).push((bug.what, test));
            }
        }
    });
    let missed = missed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(missed.is_empty(), "expected each bug to be found by each of its tests: {missed:#?}");
}
