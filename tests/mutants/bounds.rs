//! The bugs of bounded reads that a named test of the scripted suite must find.

use super::Mistake;

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "a worker with named shards looks for them only if it is the first worker",
        file: "fleet/duties.rs",
        right: "                || self.deps.config.rules.is_partial()\n",
        wrong: "",
        breaks: &["bounds::only_shards::named_shards_of_a_later_worker_are_read"],
    },
    Mistake {
        what: "a worker whose stream has ended keeps its shards",
        file: "fleet/worker.rs",
        right: "                self.release_reached();\n",
        wrong: "",
        breaks: &[
            "bounds::jobs::shards_of_an_ended_stream_are_read_on_by_a_worker_without_an_ending",
        ],
    },
    Mistake {
        what: "a shard ends at the ending position while it lags",
        file: "source/polling.rs",
        right: "if is_caught_up {\n            self.fetch_state.note_tip(asked);",
        wrong: "if is_caught_up || lag.is_some() {\n            self.fetch_state.note_tip(asked);",
        breaks: &["bounds::endings::lagging_shard_does_not_end_although_the_time_is_over"],
    },
    Mistake {
        what: "the end of the shard is stored at the ending position",
        file: "shard/reader.rs",
        right: "self.telemetry.reached();",
        wrong: "self.telemetry.reached();\n self.watermark.end();",
        breaks: &[
            "bounds::endings::shard_ends_at_the_first_record_that_arrived_later_and_continues_after_it",
        ],
    },
    Mistake {
        what: "a closed shard ends at its tip, so that its children are not read",
        file: "source/ending.rs",
        right: "if presence.is_listed && !presence.has_ended {",
        wrong: "if presence.is_listed {",
        breaks: &["bounds::closed_shards::closed_shard_whose_end_comes_late_is_read_to_its_end"],
    },
    Mistake {
        what: "the stream ends although a child waits for its parent's acknowledgements",
        file: "fleet/exhaustion.rs",
        right: "Some(StreamEnd::Shard) => has_waiting_child(shard),",
        wrong: "Some(StreamEnd::Shard) => has_waiting_child(shard) && table.leases.is_empty(),",
        breaks: &[
            "bounds::closed_shards::child_that_waits_for_an_acknowledgement_keeps_the_stream_open",
        ],
    },
    Mistake {
        what: "the child of a shard that has reached the ending position is read",
        file: "discovery/read_rules.rs",
        right: "!self.selects(parent) || is_over(parent)",
        wrong: "!self.selects(parent) || is_over(parent) || table.leases[parent].owner.is_some()",
        breaks: &["bounds::closed_shards::child_of_a_reached_shard_is_not_read"],
    },
    Mistake {
        what: "a record after the ending position is delivered",
        file: "source/batch.rs",
        right: "let end = first + kept;",
        wrong: "let end = (first + kept + 1).min(records.len());",
        breaks: &[
            "bounds::endings::shard_ends_at_the_first_record_that_arrived_later_and_continues_after_it",
        ],
    },
    Mistake {
        what: "clocks of hosts are trusted at the ending position",
        file: "source/ending.rs",
        right: "Self::At(time) => is_later(now, *time),",
        wrong: "Self::At(time) => now > *time,",
        breaks: &[
            "bounds::endings::quiet_shard_ends_when_it_has_caught_up_after_the_ending_and_makes_no_further_call",
        ],
    },
    Mistake {
        what: "the stream ends without a listing",
        file: "fleet/exhaustion.rs",
        right: "Some(AppliedListing { began, listed }) if *began >= since => {",
        wrong: "Some(AppliedListing { began, listed }) if *began <= since => {",
        breaks: &["bounds::endings::stream_ends_only_after_a_listing_that_shows_nothing_else"],
    },
    Mistake {
        what: "a listing from before a reshard confirms that nothing is left to read",
        file: "fleet/exhaustion.rs",
        right: "                    || age >= OUTDATED_FOR\n",
        wrong: "                    || age < Duration::MAX\n",
        breaks: &[
            "bounds::outdated_listings::outdated_listing_does_not_end_a_job_before_the_children_of_a_closed_shard",
            "bounds::outdated_listings::outdated_first_listings_do_not_end_a_job_whose_shard_is_set_to_its_end",
        ],
    },
    Mistake {
        what: "a server that hides the children of a shard keeps the stream open",
        file: "fleet/exhaustion.rs",
        right: "age >= OUTDATED_FOR",
        wrong: "age >= OUTDATED_FOR * 1000",
        breaks: &[
            "bounds::outdated_listings::listings_that_never_show_the_children_are_believed_and_few",
            "bounds::outdated_listings::open_shard_that_the_caller_has_set_to_its_end_does_not_keep_a_job_open",
        ],
    },
    Mistake {
        what: "outdated listings are repeated every second",
        file: "fleet/exhaustion.rs",
        right: "(!is_believed).then_some(*began + age)",
        wrong: "(!is_believed).then_some(*began + age - age)",
        breaks: &[
            "bounds::outdated_listings::listings_that_never_show_the_children_are_believed_and_few",
        ],
    },
    Mistake {
        what: "a shard that is read to its end counts as open until it is acknowledged",
        file: "fleet/exhaustion.rs",
        right: "is_read || lease.is_finished()",
        wrong: "is_read && lease.is_finished() || lease.is_finished()",
        breaks: &[
            "bounds::outdated_listings::outdated_listing_does_not_end_a_job_while_the_parent_is_unacknowledged",
        ],
    },
    Mistake {
        what: "the next response alone shows that a shard at its tip is open",
        file: "source/ending.rs",
        right: "self.responses >= OPEN_RESPONSES ||",
        wrong: "self.responses >= OPEN_RESPONSES - 1 ||",
        breaks: &[
            "bounds::outdated_listings::outdated_listing_does_not_end_a_closed_shard_at_its_tip",
        ],
    },
    Mistake {
        what: "a reader that polls rarely waits for responses of one placement",
        file: "source/ending.rs",
        right: " || self.since.elapsed() >= LISTING_SETTLES",
        wrong: " || self.since.elapsed() >= LISTING_SETTLES * 1000",
        breaks: &["bounds::outdated_listings::reader_that_polls_rarely_ends_by_a_listing_alone"],
    },
    Mistake {
        what: "a worker takes shards that it does not name",
        file: "fleet/balance.rs",
        right: "view.leases.retain(|shard, lease| selects(shard) && holder(lease).is_some());",
        wrong: "view.leases.retain(|_, lease| holder(lease).is_some());",
        breaks: &["bounds::only_shards::workers_with_disjoint_sets_read_their_own_shards"],
    },
    Mistake {
        what: "a worker accepts shards until its stream has ended",
        file: "fleet/duties.rs",
        right: "self.accepts_nothing()\n            || self.deps",
        wrong: "self.deps",
        breaks: &["bounds::jobs::children_are_read_after_a_worker_without_a_shard_has_ended"],
    },
    Mistake {
        what: "a response at the tip is passed over if the listing fails",
        file: "source/polling.rs",
        right: "self.fetch_state.end_at_tip().await? {\n            self.iterator = None;\n",
        wrong: "self.fetch_state.end_at_tip().await? {\n",
        breaks: &["bounds::endings::record_of_a_discarded_response_at_the_tip_is_fetched_again"],
    },
    Mistake {
        what: "a job leaves shards to a worker that was killed before its start",
        file: "fleet/exhaustion.rs",
        right: "(is_later || self.member_for >= 2 * holder.lease_duration)",
        wrong: "(is_later || self.member_for >= Duration::ZERO)",
        breaks: &["bounds::jobs::job_that_is_started_again_after_a_kill_reads_the_rest"],
    },
    Mistake {
        what: "the workers of a job wait for each other's lease durations",
        file: "fleet/exhaustion.rs",
        right: "me.joined < holder.joined",
        wrong: "me.joined < holder.joined && false",
        breaks: &["bounds::jobs::workers_of_a_job_do_not_wait_for_their_lease_durations"],
    },
];
