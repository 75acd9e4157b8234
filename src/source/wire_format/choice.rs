//! Chooses the wire format of the `GetRecords` calls of one stream.
//!
//! ```text
//!                returned, failed, or nothing to compare
//!              ┌──────────────────────────────────────────┐
//!              ▼                                          │
//!           Untried ─── one call takes the trial ──────► Trial ──► Checked
//!              other calls: JSON                          │  equal    │ all calls: CBOR
//!                                                         ▼           ▼
//!                                                        Json ◄───────┘
//!                                                          all calls: JSON, for good
//! ```
//!
//! | answer to a CBOR call                 | trial                        | checked              |
//! |---------------------------------------|------------------------------|----------------------|
//! | CBOR, records                         | repeat by JSON and compare   | use                  |
//! | CBOR, no records                      | use; another trial           | use                  |
//! | CBOR, throttled                       | use; another trial           | use                  |
//! | CBOR, other error, not 5xx            | use; failed trial            | use                  |
//! | CBOR, 5xx                             | use; failed trial            | suspected outage     |
//! | CBOR, body not received               | use; failed trial            | suspected outage     |
//! | none: timeout, lost connection        | use; failed trial            | suspected outage     |
//! | foreign 5xx, CBOR has been answered   | suspected outage             | suspected outage     |
//! | foreign 5xx before any CBOR answer    | repeat by JSON, and count    | —                    |
//! | foreign, not 5xx                      | repeat by JSON, and count    | the same             |
//! | CBOR that cannot be decoded           | repeat by JSON, then `Json`  | the same             |
//! | CBOR error that refuses the request   | repeat by JSON, then `Json`  | the same             |
//! | JSON with records, even none          | use, then `Json`             | the same             |
//! | too little memory for the answer      | use; another trial           | use                  |
//! | panic of an interceptor               | use; failed trial            | use                  |
//!
//! A front end answers 5xx in a format of its own, so that such an answer says nothing about the
//! server behind it. A server may nevertheless be replaced by one without CBOR, or with a CBOR that
//! fails, for all shards or for one. So the first three suspected outages in a row of a shard are
//! failures to retry, and each further one is repeated by JSON.
//!
//! If JSON succeeds where CBOR has failed, that is a contradiction. `Json` is settled after three
//! contradictions in a row over all shards. Before the first CBOR answer, one is enough, or two if
//! the foreign answers are 5xx. A contradiction counts only if its CBOR call began after the last
//! counted one: many shards that recover from an outage at once count once. A complete CBOR answer
//! other than 5xx restarts the contradictions and, unless it asks for fewer calls, the failures of
//! its shard. A failure by JSON restarts the contradictions, unless it was throttled or did not fit
//! into memory: in an outage that ends, or that affects a part of the calls, CBOR is kept.
//!
//! A shard whose CBOR calls alone fail is read by JSON: the n-th contradiction in a row of one shard
//! is followed by 2^(n-1) - 1 calls by JSON, at most 2^10 - 1. Three of them settle on `Json` for
//! all shards if no other shard calls between them.
//!
//! Until CBOR is checked, one call at a time tries it. The trial belongs to a guard: if the call is
//! dropped, it is returned. The n-th failed trial in a row is followed by 2^(n-1) - 1 calls by JSON,
//! so that a server whose CBOR calls fail or break, or a shard that has no throughput left for a
//! repeated call, is still read.
//!
//! Records that arrived at a whole second do not show whether CBOR carries the milliseconds. If a
//! trial compares only such records, another one follows, at most [`COARSE_TRIALS`] in all.
//!
//! Each consumer checks CBOR for itself: the choice is shared by the shards of one consumer, and by
//! no other consumer of the process.

use super::WireFormat;
use crate::telemetry::FallbackReason;

/// The number of suspected outages in a row that are not repeated by JSON.
const TOLERATED: u32 = 3;

/// The number of contradictions in a row that settle on JSON although the server has answered in
/// CBOR.
const CONTRADICTIONS: u32 = 3;

/// The same number for foreign 5xx answers of a server that has not answered in CBOR.
const EARLY_CONTRADICTIONS: u32 = 2;

/// The number of trials that check CBOR if they compare only records that arrived at a whole second.
pub(super) const COARSE_TRIALS: u32 = 3;

/// Bounds the calls by JSON after failures in a row: 2^10 - 1.
const MAX_DOUBLINGS: u32 = 10;

/// The state of the choice, without I/O.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) phase: Phase,
    /// True if the server has answered in CBOR.
    has_answered: bool,
    /// The number of contradictions in a row: JSON has succeeded where CBOR had failed.
    pub(super) contradictions: u32,
    /// The number of CBOR calls that have begun, which is the serial number of the last one.
    begun: u64,
    /// The last CBOR call that had begun when a contradiction was counted.
    contradicted: u64,
    /// The number of failed trials in a row. Trials that were returned do not count.
    pub(super) failed_trials: u32,
    /// The number of calls by JSON before the next trial.
    wait: u32,
    /// The number of trials that compared only records that arrived at a whole second.
    coarse_trials: u32,
}

/// The failures in a row of the CBOR calls of one shard.
#[derive(Debug, Default)]
pub(in super::super) struct ShardFailures {
    /// The number of suspected outages.
    outages: u32,
    /// The number of contradictions.
    contradictions: u32,
    /// The number of calls by JSON before the next call in CBOR.
    wait: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// CBOR is not checked, and no call tries it.
    #[default]
    Untried,
    /// CBOR is not checked, and one call tries it.
    Trial,
    /// A CBOR response was equal to the JSON response to the same call.
    Checked,
    /// Settled on JSON.
    Json,
}

/// The answer to a call that was sent in CBOR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum CborAnswer {
    /// No answer, or one that is not in CBOR and was not received completely.
    Missing,
    /// A CBOR answer that was not received completely.
    Broken,
    /// An answer that did not fit into free memory.
    Rejected,
    /// An interceptor of the client has panicked.
    Panicked,
    /// The call was not sent in CBOR, since the client has a protocol of its own.
    OtherProtocol,
    /// A CBOR response that holds records, or lacks the member.
    Records,
    /// A CBOR response that holds no records.
    Empty,
    /// A CBOR error that asks for fewer calls.
    Throttled,
    /// Any other CBOR error.
    Failed { is_server_error: bool },
    /// A CBOR error that refuses the encoding of the request.
    Refused,
    /// CBOR that cannot be decoded.
    Unreadable,
    /// A complete JSON response.
    Json,
    /// Any other answer.
    Foreign { is_server_error: bool },
}

/// The reaction to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Reaction {
    /// The answer, or the failure, is the result of the call. If the reason is set, the choice was
    /// settled on JSON by it.
    Use(Option<FallbackReason>),
    /// The same call is repeated by JSON, and its result is the result of the call.
    Repeat(RepeatCause),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum RepeatCause {
    /// A foreign answer that no outage explains.
    Foreign,
    /// A failure that an outage may explain.
    Outage,
    Refused,
    Unreadable,
    /// The records are compared.
    Check,
}

/// The outcome of a call that was repeated by JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Repeated {
    Failed,
    /// The call was throttled, or its response did not fit into free memory.
    Hindered,
    Succeeded(Comparison),
}

/// The comparison of the records of two responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Comparison {
    /// No record is in both responses.
    Inconclusive,
    /// The records are equal, and all of them arrived at a whole second.
    EqualSeconds,
    Equal,
    Different,
}

impl Choice {
    pub(super) fn new(option: WireFormat) -> Self {
        let phase = match option {
            WireFormat::Auto => Phase::Untried,
            WireFormat::Json => Phase::Json,
        };
        Self { phase, ..Self::default() }
    }

    /// Begins the next call of a shard. Returns `None` if it is made by JSON, and otherwise true if
    /// it is the trial of CBOR, and its serial number.
    pub(super) fn next(&mut self, shard: &mut ShardFailures) -> Option<(bool, u64)> {
        if shard.wait > 0 {
            shard.wait -= 1;
            return None;
        }
        let is_trial = match self.phase {
            Phase::Checked => false,
            Phase::Untried if self.wait == 0 => {
                self.phase = Phase::Trial;
                true
            }
            Phase::Untried => {
                self.wait -= 1;
                return None;
            }
            Phase::Trial | Phase::Json => return None,
        };
        self.begun += 1;
        Some((is_trial, self.begun))
    }

    pub(super) fn answered(
        &mut self,
        is_trial: bool,
        shard: &mut ShardFailures,
        answer: CborAnswer,
    ) -> Reaction {
        use CborAnswer::{
            Broken, Empty, Failed, Foreign, Json, Missing, OtherProtocol, Panicked, Records,
            Refused, Rejected, Throttled, Unreadable,
        };
        match answer {
            Records | Empty | Throttled | Failed { is_server_error: false } => {
                self.has_answered = true;
                self.contradictions = 0;
                if answer != Throttled {
                    *shard = ShardFailures::default();
                }
            }
            Failed { is_server_error: true } | Broken | Refused | Unreadable => {
                self.has_answered = true;
            }
            Missing | Rejected | Panicked | OtherProtocol | Json | Foreign { .. } => {}
        }
        match answer {
            Records if is_trial => return Reaction::Repeat(RepeatCause::Check),
            Refused => return Reaction::Repeat(RepeatCause::Refused),
            Unreadable => return Reaction::Repeat(RepeatCause::Unreadable),
            Foreign { is_server_error: false } => return Reaction::Repeat(RepeatCause::Foreign),
            Foreign { .. } if !self.has_answered => return Reaction::Repeat(RepeatCause::Outage),
            Foreign { .. } => return self.suspect_outage(is_trial, shard),
            Missing | Broken | Failed { is_server_error: true } if !is_trial => {
                return self.suspect_outage(is_trial, shard);
            }
            Missing | Broken | Failed { .. } | Panicked => self.fail_trial(is_trial),
            Empty => self.end_trial(is_trial),
            Records | Throttled | Rejected => self.return_trial(is_trial),
            Json => return Reaction::Use(self.settle(FallbackReason::Unsupported)),
            OtherProtocol => self.phase = Phase::Json,
        }
        Reaction::Use(None)
    }

    fn suspect_outage(&mut self, is_trial: bool, shard: &mut ShardFailures) -> Reaction {
        shard.outages = shard.outages.saturating_add(1);
        if shard.outages > TOLERATED {
            return Reaction::Repeat(RepeatCause::Outage);
        }
        self.fail_trial(is_trial);
        Reaction::Use(None)
    }

    pub(super) fn repeated(
        &mut self,
        (is_trial, serial): (bool, u64),
        shard: &mut ShardFailures,
        cause: RepeatCause,
        outcome: Repeated,
    ) -> Option<FallbackReason> {
        match (cause, outcome) {
            (RepeatCause::Refused, _) => return self.settle(FallbackReason::Unsupported),
            (RepeatCause::Unreadable, _) => return self.settle(FallbackReason::Unreadable),
            (RepeatCause::Check, Repeated::Succeeded(Comparison::Different)) => {
                return self.settle(FallbackReason::Different);
            }
            (RepeatCause::Check, Repeated::Succeeded(Comparison::EqualSeconds)) => {
                self.coarse_trials += 1;
                if self.coarse_trials < COARSE_TRIALS {
                    self.end_trial(is_trial);
                } else {
                    self.check(is_trial);
                }
            }
            (RepeatCause::Check, Repeated::Succeeded(Comparison::Equal)) => self.check(is_trial),
            (RepeatCause::Check, _) | (_, Repeated::Hindered) => self.fail_trial(is_trial),
            (RepeatCause::Foreign | RepeatCause::Outage, Repeated::Succeeded(_)) => {
                shard.contradictions = shard.contradictions.saturating_add(1);
                shard.wait = calls_by_json(shard.contradictions);
                if self.contradict(serial, cause) {
                    return self.settle(FallbackReason::Unsupported);
                }
                self.end_trial(is_trial);
            }
            (RepeatCause::Foreign | RepeatCause::Outage, Repeated::Failed) => {
                (self.contradictions, shard.contradictions) = (0, 0);
                self.fail_trial(is_trial);
            }
        }
        None
    }

    fn check(&mut self, is_trial: bool) {
        if is_trial {
            self.phase = Phase::Checked;
        }
    }

    /// Counts a contradiction, unless its CBOR call began before the last one was counted. Returns
    /// true if that settles on JSON.
    fn contradict(&mut self, serial: u64, cause: RepeatCause) -> bool {
        if serial <= self.contradicted {
            return false;
        }
        self.contradicted = self.begun;
        self.contradictions = self.contradictions.saturating_add(1);
        self.contradictions
            >= match (self.has_answered, cause) {
                (true, _) => CONTRADICTIONS,
                (false, RepeatCause::Outage) => EARLY_CONTRADICTIONS,
                (false, _) => 1,
            }
    }

    /// Settles on JSON. Returns the reason, unless another call has settled the choice before.
    fn settle(&mut self, reason: FallbackReason) -> Option<FallbackReason> {
        let is_first = self.phase != Phase::Json;
        self.phase = Phase::Json;
        is_first.then_some(reason)
    }

    /// Lets another call try CBOR, as if this one had not.
    pub(super) fn return_trial(&mut self, is_trial: bool) {
        if is_trial && self.phase == Phase::Trial {
            self.phase = Phase::Untried;
        }
    }

    /// Ends a trial that was answered but compared nothing.
    fn end_trial(&mut self, is_trial: bool) {
        self.return_trial(is_trial);
        if is_trial {
            (self.failed_trials, self.wait) = (0, 0);
        }
    }

    fn fail_trial(&mut self, is_trial: bool) {
        self.return_trial(is_trial);
        if is_trial {
            self.failed_trials = self.failed_trials.saturating_add(1);
            self.wait = calls_by_json(self.failed_trials);
        }
    }
}

/// Returns the number of calls by JSON that follow the last of `failures` failures in a row.
fn calls_by_json(failures: u32) -> u32 {
    (1 << failures.saturating_sub(1).min(MAX_DOUBLINGS)) - 1
}
