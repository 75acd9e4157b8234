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
//! fails. So the first three suspected outages in a row over all shards are failures to retry, and
//! each further one is repeated by JSON.
//!
//! If JSON succeeds where CBOR has failed, that is a contradiction. `Json` is settled after three
//! contradictions in a row. Before the first CBOR answer, one is enough, or two if the foreign
//! answers are 5xx. A contradiction counts only if its CBOR call began after the last counted one:
//! many shards that recover from an outage at once count once. CBOR answers other than 5xx restart
//! both counts, and a failure by JSON restarts that of the contradictions: in an outage that ends,
//! or that affects a part of the calls, CBOR is kept.
//!
//! Until CBOR is checked, one call at a time tries it. The trial belongs to a guard: if the call is
//! dropped, it is returned. The n-th failed trial in a row is followed by 2^(n-1) - 1 calls by JSON,
//! so that a server whose CBOR calls fail or break, or a shard that has no throughput left for a
//! repeated call, is still read.
//!
//! Each consumer checks CBOR for itself: the choice is shared by the shards of one consumer, and by
//! no other consumer of the process.

use std::sync::Arc;

use crate::mutex::Mutex;
use crate::telemetry::FallbackReason;

/// The number of suspected outages in a row that are not repeated by JSON.
const TOLERATED: u32 = 3;

/// The number of contradictions in a row that settle on JSON although the server has answered in
/// CBOR.
const CONTRADICTIONS: u32 = 3;

/// The same number for foreign 5xx answers of a server that has not answered in CBOR.
const EARLY_CONTRADICTIONS: u32 = 2;

/// Bounds the calls by JSON between two trials: 2^10.
const MAX_DOUBLINGS: u32 = 10;

/// The wire format of the `GetRecords` calls.
///
/// Kinesis answers in JSON and in CBOR. CBOR carries payloads as bytes instead of base64 text: a
/// response is about a quarter smaller, and takes a fraction of the CPU time to decode.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use kinestream::{Consumer, WireFormat};
///
/// let consumer = Consumer::builder(client, "orders").wire_format(WireFormat::Json).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WireFormat {
    /// Reads by CBOR if the server supports it, and by JSON otherwise.
    ///
    /// No record is delivered from a CBOR response before the consumer has compared one with the
    /// JSON response to the same call. Each consumer checks for itself. If the responses differ, or
    /// if the server does not support CBOR, the consumer reads by JSON and emits
    /// [`Event::WireFormatFallback`](crate::Event::WireFormatFallback). A client with a
    /// [protocol](aws_sdk_kinesis::config::Builder::protocol) of its own keeps it.
    #[default]
    Auto,
    /// Reads by JSON, or by the protocol of the client.
    Json,
}

/// The state of the choice, without I/O.
#[derive(Debug, Default)]
struct Choice {
    phase: Phase,
    /// True if the server has answered in CBOR.
    has_answered: bool,
    /// The number of suspected outages in a row.
    outages: u32,
    /// The number of contradictions in a row: JSON has succeeded where CBOR had failed.
    contradictions: u32,
    /// The number of CBOR calls that have begun, which is the serial number of the last one.
    begun: u64,
    /// The last CBOR call that had begun when a contradiction was counted.
    contradicted: u64,
    /// The number of failed trials in a row. Trials that were returned do not count.
    failed_trials: u32,
    /// The number of calls by JSON before the next trial.
    wait: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
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
pub(super) enum CborAnswer {
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
pub(super) enum Reaction {
    /// The answer, or the failure, is the result of the call. If the reason is set, the choice was
    /// settled on JSON by it.
    Use(Option<FallbackReason>),
    /// The same call is repeated by JSON, and its result is the result of the call.
    Repeat(RepeatCause),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepeatCause {
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
pub(super) enum Repeated {
    Failed,
    Succeeded(Comparison),
}

/// The comparison of the records of two responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    /// No record is in both responses.
    Inconclusive,
    Equal,
    Different,
}

impl Choice {
    fn new(option: WireFormat) -> Self {
        let phase = match option {
            WireFormat::Auto => Phase::Untried,
            WireFormat::Json => Phase::Json,
        };
        Self { phase, ..Self::default() }
    }

    /// Begins the next call. Returns `None` if it is made by JSON, and otherwise true if it is the
    /// trial of CBOR, and its serial number.
    fn next(&mut self) -> Option<(bool, u64)> {
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

    fn answered(&mut self, is_trial: bool, answer: CborAnswer) -> Reaction {
        use CborAnswer::{
            Broken, Empty, Failed, Foreign, Json, Missing, OtherProtocol, Panicked, Records,
            Refused, Rejected, Throttled, Unreadable,
        };
        match answer {
            Records | Empty | Throttled | Failed { is_server_error: false } => {
                self.has_answered = true;
                (self.outages, self.contradictions) = (0, 0);
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
            Foreign { .. } => return self.suspect_outage(is_trial),
            Missing | Broken | Failed { is_server_error: true } if !is_trial => {
                return self.suspect_outage(is_trial);
            }
            Missing | Broken | Failed { .. } | Panicked => self.fail_trial(is_trial),
            Empty => self.end_trial(is_trial),
            Records | Throttled | Rejected => self.return_trial(is_trial),
            Json => return Reaction::Use(self.settle(FallbackReason::Unsupported)),
            OtherProtocol => self.phase = Phase::Json,
        }
        Reaction::Use(None)
    }

    fn suspect_outage(&mut self, is_trial: bool) -> Reaction {
        self.outages = self.outages.saturating_add(1);
        if self.outages > TOLERATED {
            return Reaction::Repeat(RepeatCause::Outage);
        }
        self.fail_trial(is_trial);
        Reaction::Use(None)
    }

    fn repeated(
        &mut self,
        (is_trial, serial): (bool, u64),
        cause: RepeatCause,
        outcome: Repeated,
    ) -> Option<FallbackReason> {
        match (cause, outcome) {
            (RepeatCause::Refused, _) => return self.settle(FallbackReason::Unsupported),
            (RepeatCause::Unreadable, _) => return self.settle(FallbackReason::Unreadable),
            (RepeatCause::Check, Repeated::Succeeded(Comparison::Different)) => {
                return self.settle(FallbackReason::Different);
            }
            (RepeatCause::Check, Repeated::Succeeded(Comparison::Equal)) => {
                if is_trial {
                    self.phase = Phase::Checked;
                }
            }
            (RepeatCause::Check, _) => self.fail_trial(is_trial),
            (RepeatCause::Foreign | RepeatCause::Outage, Repeated::Succeeded(_)) => {
                if self.contradict(serial, cause) {
                    return self.settle(FallbackReason::Unsupported);
                }
                self.end_trial(is_trial);
            }
            (RepeatCause::Foreign | RepeatCause::Outage, Repeated::Failed) => {
                self.contradictions = 0;
                self.fail_trial(is_trial);
            }
        }
        None
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
    fn return_trial(&mut self, is_trial: bool) {
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
            self.wait = (1 << self.failed_trials.min(MAX_DOUBLINGS)) - 1;
            self.failed_trials = self.failed_trials.saturating_add(1);
        }
    }
}

/// The choice of one stream. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct WireChoice(Arc<Mutex<Choice>>);

impl WireChoice {
    pub(super) fn new(option: WireFormat) -> Self {
        Self(Arc::new(Mutex::new(Choice::new(option))))
    }

    /// Begins a call. Returns `None` if it is made by JSON.
    pub(super) fn begin(&self) -> Option<CborCall> {
        let (is_trial, serial) = self.0.lock().next()?;
        Some(CborCall { choice: self.clone(), is_trial, serial })
    }
}

/// A call by CBOR. If it is dropped before its outcome is known, it returns the trial.
#[derive(Debug)]
pub(super) struct CborCall {
    choice: WireChoice,
    is_trial: bool,
    /// Counts the CBOR calls from 1 on.
    serial: u64,
}

impl CborCall {
    /// Returns true if the call tries CBOR, which is not checked yet.
    pub(super) fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// Notes the answer, and returns the reaction to it.
    pub(super) fn answered(&mut self, answer: CborAnswer) -> Reaction {
        let reaction = self.choice.0.lock().answered(self.is_trial, answer);
        // Another call may take the trial from now on.
        self.is_trial &= matches!(reaction, Reaction::Repeat(_));
        reaction
    }

    /// Notes the outcome of the call that was repeated by JSON. Returns the reason if that has
    /// settled the choice on JSON.
    pub(super) fn repeated(
        mut self,
        cause: RepeatCause,
        outcome: Repeated,
    ) -> Option<FallbackReason> {
        let call = (self.is_trial, self.serial);
        let reason = self.choice.0.lock().repeated(call, cause, outcome);
        self.is_trial = false;
        reason
    }
}

impl Drop for CborCall {
    fn drop(&mut self) {
        if self.is_trial {
            self.choice.0.lock().return_trial(true);
        }
    }
}

#[cfg(test)]
mod tests;
