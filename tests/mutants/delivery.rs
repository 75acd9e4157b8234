//! The bugs of delivery, saves, positions and losses that a named test of the scripted suite must
//! find.

use super::Mistake;

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "a child counts as lost although a listing shows its parent as open",
        file: "discovery/changes.rs",
        right: "                && !is_from_before(listed, lease)\n",
        wrong: "                && (listed.begins || !listed.begins || !is_from_before(listed, lease))\n",
        breaks: &["discovery::lost_shards::child_of_a_shard_that_is_listed_as_open_is_not_lost"],
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
        what: "records that a run has not delivered stay in flight",
        file: "shard/delivery.rs",
        right: "            self.batch.context().ack_sink.take_back(self.left, self.left_bytes);\n",
        wrong: "",
        breaks: &[
            "store::store_outages::records_left_in_a_run_are_delivered_after_its_lease_is_restored",
        ],
    },
    Mistake {
        what: "a closed stream delivers the rest of its run",
        file: "shard/delivery.rs",
        right: "        if is_closed() {\n            self.clear();\n        }\n",
        wrong: "        let _ = is_closed;\n",
        breaks: &["delivery::checkpoints::closed_stream_yields_no_record_of_the_run_in_delivery"],
    },
    Mistake {
        what: "a flush that is requested during a save is answered by that save",
        file: "store/writer/task.rs",
        right: "late.push(request?)",
        wrong: "self.waiting_flushes.push(request?)",
        breaks: &[
            "delivery::checkpoints::close_during_a_save_waits_for_the_save_of_later_acknowledgements",
        ],
    },
    Mistake {
        what: "nothing is saved when the last handle of a writer is dropped",
        file: "store/writer/task.rs",
        right: "        let _panicked = contain(save_final(&self.shared)).await;\n",
        wrong: "",
        breaks: &[
            "delivery::checkpoints::record_acknowledged_between_two_saves_is_saved_when_the_consumer_is_dropped",
        ],
    },
    Mistake {
        what: "a shard that another worker has finished is dropped without an event",
        file: "fleet/owned_shards.rs",
        right: "settled.finished.push((shard.clone(), epoch));",
        wrong: "",
        breaks: &["store::shard_ends::end_that_another_process_stores_is_reported_once"],
    },
    Mistake {
        what: "the end of a shard is reported again by the acknowledgements that follow",
        file: "fleet/duties.rs",
        right: "            self.deps.writer.untrack(&shard_id, epoch);\n",
        wrong: "            let _ = epoch;\n",
        breaks: &["store::shard_ends::end_that_another_process_stores_is_reported_once"],
    },
    Mistake {
        what: "a shard whose end is stored is held on",
        file: "fleet/worker.rs",
        right: "holding.is_end_saved = true;",
        wrong: "holding.is_end_saved = false;",
        breaks: &["store::shard_ends::shard_whose_end_is_stored_is_no_longer_held"],
    },
    Mistake {
        what: "a shard without a record is read on from the time at which it was caught up",
        file: "source/position.rs",
        right: "Self::CaughtUp { after: None, until } => until.checked_sub(MAX_CLOCK_SKEW),",
        wrong: "Self::CaughtUp { after: None, until } => until.checked_sub(MAX_CLOCK_SKEW * 0),",
        breaks: &[
            "delivery::checkpoints::restart_of_an_empty_shard_reads_the_record_of_a_host_whose_clock_is_behind",
        ],
    },
    Mistake {
        what: "an event without records ends a reported loss",
        file: "source/retention.rs",
        right: "(retention.added, retention.approached) = (None, None);",
        wrong: "(retention.added, retention.read_until, retention.approached) = (None, None, None);",
        breaks: &["losses::after_loss::loss_near_the_trim_horizon_is_reported_once"],
    },
    Mistake {
        what: "a refused save does not end the lease",
        file: "store/writer/save.rs",
        right: "            refused.lease_over.close();\n",
        wrong: "            let _ = refused;\n",
        breaks: &[
            "store::store_outages::refused_save_ends_delivery_while_the_worker_waits_for_the_store",
        ],
    },
    Mistake {
        what: "the bytes of undelivered records stay in flight",
        file: "checkpoint/watermark.rs",
        right: "state.in_flight.remove(records, bytes);",
        wrong: "state.in_flight.remove(records, bytes * 0);",
        breaks: &[
            "store::store_outages::bytes_in_flight_are_those_of_delivered_records_after_a_lease_is_restored",
        ],
    },
    Mistake {
        what: "the bytes of delivered records are free when their run ends",
        file: "shard/delivery.rs",
        right: "            self.left_bytes -= record.size();\n",
        wrong: "",
        breaks: &[
            "store::store_outages::bytes_in_flight_are_those_of_delivered_records_after_a_lease_is_restored",
        ],
    },
    Mistake {
        what: "a worker reads on while a lease that its store has lost is to be restored",
        file: "fleet/exchange.rs",
        right: "if self.pending.iter().any(restores) {",
        wrong: "if self.pending.iter().any(restores) && self.pending.is_empty() {",
        breaks: &["fleet::data_loss::no_record_is_delivered_until_a_lost_lease_is_restored"],
    },
    Mistake {
        what: "an end is proved after a response that lacked records",
        file: "source/unproven_end.rs",
        right: "doubt.open_end && end.is_empty && repeats",
        wrong: "end.is_empty && repeats",
        breaks: &[
            "fetching::false_ends::response_after_one_that_lacks_records_does_not_end_a_shard",
        ],
    },
    Mistake {
        what: "the age of a position does not count the clocks of hosts",
        file: "source/retention.rs",
        right: "let age = age + MAX_CLOCK_SKEW;",
        wrong: "let age = age + Duration::ZERO;",
        breaks: &[
            "losses::quiet_shards::position_within_five_minutes_of_the_retention_period_is_reported",
        ],
    },
];
