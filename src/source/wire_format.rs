//! The wire format of the `GetRecords` calls of one stream, as its shards choose it together.
//!
//! [`choice`] has the state machine. A call by CBOR is a guard that returns a trial when it is
//! dropped.

mod choice;

use std::sync::Arc;

use crate::mutex::Mutex;
use crate::telemetry::FallbackReason;
use choice::Choice;
pub(super) use choice::{CborAnswer, Comparison, Reaction, RepeatCause, Repeated, ShardFailures};

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

/// The choice of one stream. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct WireChoice(Arc<Mutex<Choice>>);

impl WireChoice {
    pub(super) fn new(option: WireFormat) -> Self {
        Self(Arc::new(Mutex::new(Choice::new(option))))
    }

    /// Begins a call of a shard. Returns `None` if it is made by JSON.
    pub(super) fn begin<'a>(&'a self, shard: &'a mut ShardFailures) -> Option<CborCall<'a>> {
        let (is_trial, serial) = self.0.lock().next(shard)?;
        Some(CborCall { choice: self, shard, is_trial, serial })
    }
}

/// A call by CBOR. If it is dropped before its outcome is known, it returns the trial.
#[derive(Debug)]
pub(super) struct CborCall<'a> {
    choice: &'a WireChoice,
    shard: &'a mut ShardFailures,
    is_trial: bool,
    /// Counts the CBOR calls from 1 on.
    serial: u64,
}

impl CborCall<'_> {
    /// Returns true if the call tries CBOR, which is not checked yet.
    pub(super) fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// Notes the answer, and returns the reaction to it.
    pub(super) fn answered(&mut self, answer: CborAnswer) -> Reaction {
        let reaction = self.choice.0.lock().answered(self.is_trial, self.shard, answer);
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
        let reason = self.choice.0.lock().repeated(call, self.shard, cause, outcome);
        self.is_trial = false;
        reason
    }
}

impl Drop for CborCall<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            self.choice.0.lock().return_trial(true);
        }
    }
}

#[cfg(test)]
mod tests;
