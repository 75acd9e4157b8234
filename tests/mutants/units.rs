//! The bugs that a named unit test must find: those that a simulation shows once in thousands of
//! seeds.

use super::Mistake;

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "KCL: rows of another stream of the table are read",
        file: "store/dynamodb/kcl/reads.rs",
        right: "if self.with(|known| known.stream.clone()).is_some_and(|known| known != stream) {",
        wrong: "if self.with(|known| known.stream.is_none()) && stream.is_some() {",
        breaks: &["store::dynamodb::kcl::reads::tests::row_of_another_stream_is_not_read"],
    },
    Mistake {
        what: "a dead worker whose lease ends during a call counts as alive for an operator",
        file: "store/lease/view.rs",
        right: "(!self.has_expired(worker)).then_some(left)",
        wrong: "(!self.has_expired(worker) && !left.is_zero()).then_some(left)",
        breaks: &[
            "store::lease::tests::observing::worker_whose_lease_ends_during_a_call_stays_undecided_until_the_next_one",
        ],
    },
    Mistake {
        what: "KCL: a row that is yet to be written counts as lost",
        file: "store/dynamodb/kcl/gone.rs",
        right: "leases.filter(|shard| !bucket.is_pending_for(shard))",
        wrong: "leases.filter(|_shard| bucket.number < u8::MAX)",
        breaks: &[
            "store::dynamodb::kcl::gone::tests::row_that_is_yet_to_be_written_is_not_missing",
        ],
    },
    Mistake {
        what: "a renewal does not update the lease deadline that a run has cached",
        file: "shard/lease_handle.rs",
        right: "if known.is_none_or(|known| known.renewals != renewals) {",
        wrong: "if known.is_none_or(|known| !self.validity.now().is_before(known.until)) {",
        breaks: &[
            "shard::lease_handle::tests::sleep_after_the_wall_clock_was_set_back_ends_the_lease",
        ],
    },
    Mistake {
        what: "a worker that makes no calls counts as one that reaches Kinesis",
        file: "fleet/reachability.rs",
        right: "if self.is_out || !calls.succeeded_within(limit) || interruption >= limit {",
        wrong: "if self.is_out || self.is_doubtful(calls) || interruption >= limit {",
        breaks: &["fleet::reachability::tests::worker_without_calls_takes_over_only_after_a_trial"],
    },
    Mistake {
        what: "a worker may take over leases after an interruption between two checks",
        file: "fleet/reachability.rs",
        right: " || interruption >= limit {",
        wrong: " || interruption >= limit * 1000 {",
        breaks: &[
            "fleet::reachability::tests::leases_may_move_here_only_after_a_trial_without_interruption",
        ],
    },
    Mistake {
        what: "changes that move no lease mark the table as balanced",
        file: "fleet/exchange.rs",
        right: "changes.iter().any(moves)\n",
        wrong: "changes.iter().any(moves) || true\n",
        breaks: &["fleet::exchange::tests::only_moves_show_that_a_table_is_balanced"],
    },
    Mistake {
        what: "a worker is removed in whatever table the store has",
        file: "store/lease/access.rs",
        right: "let depends_on_all = removes || is_applying",
        wrong: "let depends_on_all = removes && begins || is_applying",
        breaks: &[
            "store::lease::tests::conflicts::lease_that_is_assigned_to_a_worker_before_its_removal_becomes_free",
        ],
    },
    Mistake {
        what: "a worker is removed although it has renewed since",
        file: "store/lease/access.rs",
        right: ".then_some(Step { version, silent, entries });",
        wrong: ".then_some(Step { version, silent: Vec::new(), entries });",
        breaks: &["store::lease::tests::conflicts::worker_that_renews_before_its_removal_stays"],
    },
    Mistake {
        what: "a change does not depend on the entries that decide its effect",
        file: "store/lease/access.rs",
        right: "view.require(&mut entries, read);",
        wrong: "view.require(&mut entries, read.take(0));",
        breaks: &[
            "store::lease::tests::conflicts::lease_is_assigned_to_no_worker_that_has_just_left",
        ],
    },
    Mistake {
        what: "the first worker after an outage removes the others if an answer is lost",
        file: "store/lease/access.rs",
        right: "is_mine && !view.expired().is_empty() && (was_away || view.has_expired(me));",
        wrong: "is_mine && !view.expired().is_empty() && view.has_expired(me);",
        breaks: &[
            "store::lease::tests::conflicts::outage_spares_other_workers_although_an_answer_is_lost",
        ],
    },
    Mistake {
        what: "a worker is not given a change that has no version",
        file: "store/lease/access.rs",
        right: "request.known != Some(version) || view.has_news;",
        wrong: "request.known != Some(version);",
        breaks: &[
            "store::lease::tests::conflicts::worker_is_given_a_text_that_was_damaged_without_a_step",
        ],
    },
    Mistake {
        what: "a stream registers the waker of its caller directly",
        file: "wakers/caller.rs",
        right: "let is_known = self",
        wrong: "if !waker.data().is_null() {\n return waker.clone();\n }\n let is_known = self",
        breaks: &[
            "wakers::caller::tests::registered_waker_holds_no_reference_to_the_caller",
            "wakers::caller::tests::panicking_wake_is_attempted_at_most_three_times",
        ],
    },
    Mistake {
        what: "a position that was passed moves the checkpoint back from later records",
        file: "checkpoint/watermark/state.rs",
        right: "if number < self.prefix {",
        wrong: "if number == u64::MAX {",
        breaks: &[
            "checkpoint::watermark::tests::passed_position_is_dropped_if_later_records_are_acknowledged_with_those_before_it",
        ],
    },
    Mistake {
        what: "the adapter by key runs one handler more than its limit",
        file: "adapters/buffer_by_key.rs",
        right: "self.running.len() < self.limit\n",
        wrong: "self.running.len() <= self.limit\n",
        breaks: &["adapters::buffer_by_key::tests::every_schedule_keeps_order_limits_and_wakes"],
    },
    Mistake {
        what: "a panicking handler of the adapter by key keeps its key",
        file: "adapters/buffer_by_key.rs",
        right: "        self.queue.finish(key);\n        match outcome {",
        wrong: "        if outcome.is_ok() {\n self.queue.finish(key);\n }\n        match outcome {",
        breaks: &["adapters::buffer_by_key::tests::every_schedule_keeps_order_limits_and_wakes"],
    },
    Mistake {
        what: "errors of the stream starve the handlers of the adapter by key",
        file: "adapters/buffer_by_key.rs",
        right: "if std::mem::take(this.has_failed)\n",
        wrong: "if std::mem::take(this.has_failed) && false\n",
        breaks: &["adapters::buffer_by_key::tests::errors_without_end_do_not_starve_a_handler"],
    },
    Mistake {
        what: "a key of the adapter by key that has just had its turn is the next one",
        file: "adapters/key_queue.rs",
        right: "self.ready.push_back((key, record))",
        wrong: "self.ready.push_front((key, record))",
        breaks: &[
            "adapters::key_queue::tests::records_start_in_order_one_per_key_and_keys_take_turns",
        ],
    },
    Mistake {
        what: "an error of the stream overtakes the records of the batch before it",
        file: "adapters/batches.rs",
        right: "let Some(batch) = collector.take() else {",
        wrong: "let Some(batch) = collector.take().filter(|_| false) else {",
        breaks: &["adapters::batches::tests::every_schedule_yields_the_batches_of_the_model"],
    },
    Mistake {
        what: "a batch waits for twice its time",
        file: "adapters/batches.rs",
        right: "checked_add(self.max_age)",
        wrong: "checked_add(self.max_age.saturating_mul(2))",
        breaks: &["adapters::batches::tests::every_schedule_yields_the_batches_of_the_model"],
    },
    Mistake {
        what: "a batch that is due waits for a poll of the stream",
        file: "adapters/batches.rs",
        right: "        if collector.is_due() {\n            return Poll::Ready(collector.take().map(Ok));\n        }\n        for _ in",
        wrong: "        for _ in",
        breaks: &[
            "adapters::batches::tests::batch_that_is_due_is_yielded_without_a_poll_of_the_stream",
        ],
    },
    Mistake {
        what: "a worker that reads slowly states a low load",
        file: "fleet/load_meter.rs",
        right: "let kib = per_second(self.base.bytes, reading.bytes, covered) / KIB;",
        wrong: "let kib = per_second(self.base.bytes, reading.bytes, renewal.as_secs_f64()) / KIB;",
        breaks: &["fleet::load_meter::tests::load_is_what_arrives_however_fast_it_is_read"],
    },
    Mistake {
        what: "a worker is strained by what Kinesis is slow at",
        file: "fleet/load_meter.rs",
        right: "let is_behind = is_held_up && is_taken",
        wrong: "let is_behind = (is_held_up || true) && is_taken",
        breaks: &[
            "fleet::load_meter::tests::strain_rises_only_while_the_caller_holds_up_and_goes_down_after_an_hour",
        ],
    },
    Mistake {
        what: "the load is stated at each renewal",
        file: "fleet/load_meter.rs",
        right: "|| difference > IDLE + stated.total().max(load.total()) / part",
        wrong: "|| difference > 0",
        breaks: &["fleet::load_meter::tests::load_is_stated_once_it_differs_by_a_tenth"],
    },
    Mistake {
        what: "noise of the load is stated",
        file: "fleet/load_meter.rs",
        right: "(self.load(|rate| rate.long), STATED_PART)",
        wrong: "(recent, STATED_PART)",
        breaks: &[
            "fleet::load_meter::tests::noise_states_nothing_and_a_large_change_is_stated_at_once",
        ],
    },
    Mistake {
        what: "a worker is strained while its store is away",
        file: "fleet/load_meter.rs",
        right: "if is_taken > 0.0 || !is_held_up {",
        wrong: "if is_taken >= 0.0 || !is_held_up {",
        breaks: &[
            "fleet::load_meter::tests::strain_rises_only_while_the_caller_holds_up_and_goes_down_after_an_hour",
        ],
    },
    Mistake {
        what: "strain does not make a worker smaller",
        file: "fleet/weights.rs",
        right: "(0..worker.strain()).fold(stated,",
        wrong: "(0..worker.strain() / 100).fold(stated,",
        breaks: &["fleet::balance::simulation::slow_worker_gives_leases_away_until_it_keeps_up"],
    },
    Mistake {
        what: "leases move by load while other leases move",
        file: "fleet/moves.rs",
        right: "let rested = self.moved + self.renewal * 3 / 2;",
        wrong: "let rested = self.moved.min(self.stated);",
        breaks: &["fleet::moves::tests::leases_rest_after_a_move_and_after_a_statement"],
    },
    Mistake {
        what: "a large worker receives as much as a small one",
        file: "fleet/weights.rs",
        right: "if self.are_even { ONE } else { size(worker) }",
        wrong: "if self.are_even { ONE } else { ONE.max(size(worker) / 100) }",
        breaks: &[
            "fleet::balance::simulation::worker_of_twice_the_capacity_receives_twice_the_load",
        ],
    },
    Mistake {
        what: "a transfer makes the lighter worker the heavier one",
        file: "fleet/balance/evening.rs",
        right: "&& light.relative(got + weight) <= self.mean",
        wrong: "",
        breaks: &["fleet::balance::tests::load_moves_to_each_light_worker_up_to_the_mean"],
    },
    Mistake {
        what: "leases move by load while a worker of an earlier version takes part",
        file: "fleet/weights.rs",
        right: "if taking().any(|worker| worker.size.is_none()) {",
        wrong: "if taking().all(|worker| worker.size.is_none()) {",
        breaks: &["fleet::weights::tests::weights_are_even_beside_a_worker_of_an_earlier_version"],
    },
];
