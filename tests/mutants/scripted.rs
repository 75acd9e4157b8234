//! The bugs that a named test of the scripted suite must find. Each test named for a bug must fail.

use std::sync::PoisonError;

use super::{Mistake, ONE, WOVEN, all};

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
        what: "a batch moves forward by the length of a run instead of its delivered records",
        file: "shard/delivery.rs",
        right: "        let (batch, guard) = (self.batch.clone(), Arc::clone(lease_handle.guard()));\n",
        wrong: "        let (batch, guard) = (self.batch.clone(), Arc::clone(lease_handle.guard()));\n\
                self.batch.advance(left);\n\
                self.first = Some(next + left as u64);\n",
        breaks: &[
            "store::store_outages::records_left_in_a_run_are_delivered_after_its_lease_is_restored",
        ],
    },
    Mistake {
        what: "the end of a shard that the store has confirmed and lost is not restored",
        file: "fleet/worker.rs",
        right: "holding.is_end_saved = true;",
        wrong: "holding.is_end_saved = false;",
        breaks: &[
            "store::shard_ends::end_of_a_shard_that_the_store_has_confirmed_and_lost_is_restored",
        ],
    },
    Mistake {
        what: "the memory of a response is released when it is decoded",
        file: "source/get_records.rs",
        right: "let space = memory.keep(response.memory());",
        wrong: "let space = memory.keep(response.memory() * 0);",
        breaks: &["delivery::kept_records::response_counts_until_its_last_part_is_dropped"],
    },
];

#[test]
#[ignore = "builds the crate with all bugs, which takes minutes"]
fn scripted_test_named_for_each_bug_fails() {
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let only = std::env::var("MISTAKE").unwrap_or_default();
    let is_wanted = |mistake: &Mistake| mistake.what.contains(&only);
    let bugs = all().enumerate().filter(|(_, (suite, bug))| *suite == "scripted" && is_wanted(bug));
    let mut missed = Vec::new();
    for (number, (suite, bug)) in bugs {
        assert!(!WOVEN.alone.contains(&number), "expected a bug in a function body: {}", bug.what);
        for test in bug.breaks {
            let binary = &WOVEN.binaries[suite];
            assert!(WOVEN.copy.passes(binary, test, None), "expected {test} to pass without a bug");
            let is_found = !WOVEN.copy.passes(binary, test, Some(number));
            println!("{}: {} by {test}", bug.what, if is_found { "found" } else { "not found" });
            if !is_found {
                missed.push((bug.what, test));
            }
        }
    }
    assert!(missed.is_empty(), "expected each bug to be found by each of its tests: {missed:#?}");
}
