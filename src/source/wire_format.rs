//! Chooses the wire format of the `GetRecords` calls of one stream.
//!
//! ```text
//!                 failed, dropped, or nothing to compare
//!              ┌──────────────────────────────────────────┐
//!              ▼                                          │
//!           Untried ─── one call takes the trial ──────► Trial ──► Checked
//!              other calls: JSON                          │  equal    │ all calls: CBOR
//!                                                         ▼           ▼
//!                                                        Json ◄───────┘
//!                                                          all calls: JSON, for good
//! ```
//!
//! | answer to a CBOR call                   | reaction                                          |
//! |-----------------------------------------|---------------------------------------------------|
//! | CBOR, records, during the trial         | repeat by JSON, compare, and use the JSON answer  |
//! | CBOR, records, checked                  | use                                               |
//! | CBOR, no records, or an error           | use; the trial ends without a result              |
//! | CBOR that cannot be decoded             | repeat by JSON, then `Json`                       |
//! | CBOR error that refuses the request     | repeat by JSON, then `Json`                       |
//! | JSON with records, even none            | use, then `Json`                                  |
//! | foreign, before any CBOR answer         | repeat by JSON; `Json` if that succeeds           |
//! | foreign, not 5xx, after a CBOR answer   | repeat by JSON; `Json` if that succeeds           |
//! | foreign 5xx after a CBOR answer         | a failure to retry; see below                     |
//! | none: timeout, lost connection, panic   | a failure to retry                                |
//!
//! A front end answers 5xx in a format of its own, so that such an answer says nothing about the
//! server behind it. A server may nevertheless be replaced by one without CBOR. From the fourth
//! foreign 5xx in a row over all shards, the call is repeated by JSON, and `Json` is settled once
//! JSON has succeeded three times in a row where CBOR had failed. Every CBOR answer, and every
//! failure by JSON, restarts that count: in an outage that ends, or that affects a part of the
//! calls, CBOR is kept.
//!
//! Until CBOR is checked, one call at a time tries it. The trial belongs to a guard: if the call is
//! dropped, it is returned. The n-th trial in a row that brings no result is followed by 2^(n-1) -
//! 1 calls by JSON, so that a server that breaks the connections of CBOR calls, or a shard that has
//! no throughput left for a repeated call, is still read.

use std::sync::Arc;

use crate::mutex::Mutex;
use crate::telemetry::FallbackReason;

/// The number of foreign 5xx answers in a row that prove nothing.
const TOLERATED_FOREIGN: u32 = 3;

/// The number of times in a row that JSON must succeed where CBOR has failed with a foreign 5xx.
const CONTRADICTIONS: u32 = 3;

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
    /// Reads by CBOR if the server speaks it, and by JSON otherwise.
    ///
    /// No record is delivered from a CBOR response before the consumer has compared one with the
    /// JSON response to the same call. If they differ, or if the server does not speak CBOR, the
    /// consumer reads by JSON and emits
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
    is_heard: bool,
    /// The number of foreign 5xx answers in a row.
    foreign: u32,
    /// The number of times in a row that JSON has succeeded after too many foreign 5xx answers.
    contradictions: u32,
    /// The number of trials in a row without a result.
    fruitless: u32,
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
    /// No answer, or one that was not read.
    Missing,
    /// The call was not sent in CBOR, since the client has a protocol of its own.
    OtherProtocol,
    /// A CBOR response that holds records, or lacks the member.
    Records,
    /// A CBOR response that holds no records.
    Empty,
    /// A CBOR error, or a CBOR response that could not be received.
    Failed,
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
    Foreign,
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

    /// Returns the format of the next call: `None` for JSON, and otherwise true if the call is the
    /// trial of CBOR.
    fn next(&mut self) -> Option<bool> {
        match self.phase {
            Phase::Checked => Some(false),
            Phase::Untried if self.wait == 0 => {
                self.phase = Phase::Trial;
                Some(true)
            }
            Phase::Untried => {
                self.wait -= 1;
                None
            }
            Phase::Trial | Phase::Json => None,
        }
    }

    fn answered(&mut self, is_trial: bool, answer: CborAnswer) -> Reaction {
        use CborAnswer::{
            Empty, Failed, Foreign, Json, Missing, OtherProtocol, Records, Refused, Unreadable,
        };
        if matches!(answer, Records | Empty | Failed | Refused | Unreadable) {
            self.is_heard = true;
            (self.foreign, self.contradictions) = (0, 0);
        }
        match answer {
            Records if is_trial => return Reaction::Repeat(RepeatCause::Check),
            Refused => return Reaction::Repeat(RepeatCause::Refused),
            Unreadable => return Reaction::Repeat(RepeatCause::Unreadable),
            Foreign { is_server_error } if !(self.is_heard && is_server_error) => {
                return Reaction::Repeat(RepeatCause::Foreign);
            }
            Foreign { .. } => {
                self.foreign = self.foreign.saturating_add(1);
                if self.foreign > TOLERATED_FOREIGN {
                    return Reaction::Repeat(RepeatCause::Outage);
                }
                self.fail_trial(is_trial);
            }
            Missing => self.fail_trial(is_trial),
            Records | Empty | Failed => self.give_back(is_trial),
            Json => return Reaction::Use(self.settle(FallbackReason::NotSpoken)),
            OtherProtocol => self.phase = Phase::Json,
        }
        Reaction::Use(None)
    }

    fn repeated(
        &mut self,
        is_trial: bool,
        cause: RepeatCause,
        outcome: Repeated,
    ) -> Option<FallbackReason> {
        match (cause, outcome) {
            (RepeatCause::Refused, _) | (RepeatCause::Foreign, Repeated::Succeeded(_)) => {
                return self.settle(FallbackReason::NotSpoken);
            }
            (RepeatCause::Unreadable, _) => return self.settle(FallbackReason::Unreadable),
            (RepeatCause::Check, Repeated::Succeeded(Comparison::Different)) => {
                return self.settle(FallbackReason::Different);
            }
            (RepeatCause::Check, Repeated::Succeeded(Comparison::Equal)) => {
                if is_trial {
                    self.phase = Phase::Checked;
                }
            }
            (RepeatCause::Outage, Repeated::Succeeded(_)) => {
                self.contradictions += 1;
                if self.contradictions >= CONTRADICTIONS {
                    return self.settle(FallbackReason::NotSpoken);
                }
                self.give_back(is_trial);
            }
            (RepeatCause::Outage, Repeated::Failed) => {
                self.contradictions = 0;
                self.fail_trial(is_trial);
            }
            (RepeatCause::Foreign | RepeatCause::Check, _) => self.fail_trial(is_trial),
        }
        None
    }

    /// Settles on JSON. Returns the reason, unless another call has settled the choice before.
    fn settle(&mut self, reason: FallbackReason) -> Option<FallbackReason> {
        let is_first = self.phase != Phase::Json;
        self.phase = Phase::Json;
        is_first.then_some(reason)
    }

    fn give_back(&mut self, is_trial: bool) {
        if is_trial && self.phase == Phase::Trial {
            self.phase = Phase::Untried;
        }
    }

    fn fail_trial(&mut self, is_trial: bool) {
        self.give_back(is_trial);
        if is_trial {
            self.wait = (1 << self.fruitless.min(MAX_DOUBLINGS)) - 1;
            self.fruitless = self.fruitless.saturating_add(1);
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
        let is_trial = self.0.lock().next()?;
        Some(CborCall { choice: self.clone(), is_trial })
    }
}

/// A call by CBOR. If it is dropped before its outcome is known, it gives the trial back.
#[derive(Debug)]
pub(super) struct CborCall {
    choice: WireChoice,
    is_trial: bool,
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
        let reason = self.choice.0.lock().repeated(self.is_trial, cause, outcome);
        self.is_trial = false;
        reason
    }
}

impl Drop for CborCall {
    fn drop(&mut self) {
        if self.is_trial {
            self.choice.0.lock().give_back(true);
        }
    }
}

#[cfg(test)]
mod tests;
