//! Calls `GetRecords`, by CBOR or by JSON, and decodes the response.
//!
//! ```text
//!   JSON ───────────────────────────────────────────────────────────► result
//!   CBOR ──► answer ──► use ────────────────────────────────────────► result
//!                  └──► repeat: wait for the next turn ──► JSON ────► result
//! ```
//!
//! [`wire_format`](super::wire_format) decides on the format, and on the reaction to an answer. The
//! body of a response is read into one buffer, in which the payloads stay.

mod exchange;
mod fingerprints;
mod memory;

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::get_records::{GetRecordsError, GetRecordsOutput};
use aws_smithy_types::body::SdkBody;
use tokio::time::Instant;

use super::demand::Demand;
use super::memory_budget::Reservation;
use super::response::{RecordRange, Response, children_of_sdk, records_of_sdk};
use super::sdk_call::{response, single_attempt};
use super::wire_format::{
    CborAnswer, Comparison, Reaction, RepeatCause, Repeated, ShardFailures, WireChoice,
};
use crate::error::{ClassifiedError, ErrorKind};
use crate::pacing::Pace;
use crate::telemetry::FallbackReason;
use exchange::{Exchange, Fault, Head, Seen, write_request};
use fingerprints::Fingerprints;
use memory::ResponseMemory;

pub(super) use memory::{MAX_RESPONSE_BYTES, while_read};

/// The most records of a response that is compared. Each is fetched twice, and the bytes of both
/// responses count against the throughput of the shard.
const COMPARED_RECORDS: u32 = 10;

/// The call for the records at an iterator.
pub(super) struct RecordsRequest<'a> {
    pub(super) iterator: &'a str,
    /// The most records that the response may hold.
    pub(super) limit: u32,
    /// The memory that was granted for the response.
    pub(super) space: Reservation,
    /// The demand of the caller, set if the call cannot request fewer records.
    pub(super) least: Option<Demand>,
}

/// The outcome of a call.
pub(super) struct RecordsOutcome {
    pub(super) result: Result<RecordsResponse, RecordsFailure>,
    /// Set if the call has settled the format on JSON.
    pub(super) fallback: Option<FallbackReason>,
}

/// A response, and the memory that is reserved for it.
pub(super) struct RecordsResponse {
    pub(super) response: Response,
    /// Covers the buffer and the index of the response.
    pub(super) space: Reservation,
    /// The memory that it took while it was read.
    pub(super) needed: usize,
    /// The record limit of the call, which may be lower than requested.
    pub(super) limit: u32,
}

/// A failed call.
pub(super) struct RecordsFailure {
    pub(super) failure: ClassifiedError,
    /// The length of the body, as far as it is known.
    pub(super) length: usize,
    /// The memory that the response takes while it is read.
    pub(super) needed: usize,
    /// True if the response did not fit into free memory.
    pub(super) was_rejected: bool,
}

/// The target of calls.
pub(super) struct RecordsCaller<'a> {
    pub(super) client: &'a Client,
    pub(super) arn: Option<&'a str>,
    pub(super) wire: &'a WireChoice,
}

/// The result of one request, and what it says about the server.
struct Attempt {
    result: Result<Response, ClassifiedError>,
    seen: Seen,
}

impl RecordsCaller<'_> {
    /// Makes a call of a shard, whose turn has come. If it has to be repeated, waits for the next
    /// turn.
    ///
    /// Cancel safe: a dropped call returns nothing, and another call may try CBOR.
    pub(super) async fn call(
        &self,
        request: RecordsRequest<'_>,
        failures: &mut ShardFailures,
        pace: &mut Pace,
    ) -> RecordsOutcome {
        let RecordsRequest { iterator, mut limit, space, least } = request;
        let memory = ResponseMemory::new(space, least);
        let Some(mut call) = self.wire.begin(failures) else {
            let attempt = self.attempt(iterator, limit, &memory, false).await;
            return outcome(attempt.result, memory, limit, None);
        };
        if call.is_trial() {
            limit = limit.min(COMPARED_RECORDS);
        }
        let attempt = self.attempt(iterator, limit, &memory, true).await;
        let cause = match call.answered(attempt.answer(&memory)) {
            Reaction::Use(fallback) => return outcome(attempt.result, memory, limit, fallback),
            Reaction::Repeat(cause) => cause,
        };
        // The response is dropped before the wait, and only the hashes of its records are kept.
        let (bytes, earlier) = match attempt.result {
            Ok(response) => (response.bytes(), Some(Fingerprints::of(&response))),
            Err(_) => (memory.length().min(MAX_RESPONSE_BYTES), None),
        };
        memory.reuse();
        pace.repeat(bytes).await;
        let Attempt { result, .. } = self.attempt(iterator, limit, &memory, false).await;
        let repeated = match (&result, cause, earlier) {
            (Err(failure), ..)
                if memory.was_rejected() || failure.error.kind() == ErrorKind::Throttled =>
            {
                Repeated::Hindered
            }
            (Err(_), ..) => Repeated::Failed,
            (Ok(later), RepeatCause::Check, Some(earlier)) => {
                Repeated::Succeeded(earlier.compare(later))
            }
            (Ok(_), ..) => Repeated::Succeeded(Comparison::Inconclusive),
        };
        outcome(result, memory, limit, call.repeated(cause, repeated))
    }

    async fn attempt(
        &self,
        iterator: &str,
        limit: u32,
        memory: &ResponseMemory,
        is_cbor: bool,
    ) -> Attempt {
        let request = is_cbor.then(|| write_request(iterator, limit, self.arn));
        let exchange = Exchange::new(request, memory);
        let result = response("GetRecords", self.send(iterator, limit, memory, &exchange)).await;
        Attempt { result, seen: exchange.take_seen() }
    }

    async fn send(
        &self,
        iterator: &str,
        limit: u32,
        memory: &ResponseMemory,
        exchange: &Exchange,
    ) -> Result<Response, SdkError<GetRecordsError, HttpResponse>> {
        let began = Instant::now();
        let call = self
            .client
            .get_records()
            .shard_iterator(iterator)
            // The builder checks both bounds of the option.
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .set_stream_arn(self.arn.map(str::to_owned))
            .customize()
            .config_override(single_attempt())
            .interceptor(exchange.clone());
        let output = call.send().await?;
        let Some((head, body)) = exchange.take_body() else {
            return Ok(of_output(&output, exchange.lacks_records()));
        };
        let refuse = |error| {
            SdkError::response_error(error, HttpResponse::new(head.status, SdkBody::empty()))
        };
        // The SDK's own timeouts end with the head of the response.
        let read = async {
            match self.timeout() {
                Some(timeout) => tokio::time::timeout_at(began + timeout, memory.read(body))
                    .await
                    .map_err(SdkError::timeout_error)?
                    .map_err(refuse),
                None => memory.read(body).await.map_err(refuse),
            }
        };
        let body = read.await?;
        let decoded =
            if head.is_cbor { Response::from_cbor(body) } else { Response::from_json(body) };
        decoded.map_err(|unreadable| {
            exchange.note(Fault::Unreadable);
            refuse(unreadable.into())
        })
    }

    /// Returns the timeout that the client sets for a call or an attempt, which are the same here.
    fn timeout(&self) -> Option<Duration> {
        let timeouts = self.client.config().timeout_config()?;
        let timeouts = [timeouts.operation_timeout(), timeouts.operation_attempt_timeout()];
        timeouts.into_iter().flatten().min()
    }
}

impl Attempt {
    /// Returns what the answer to a call in CBOR says about the server.
    fn answer(&self, memory: &ResponseMemory) -> CborAnswer {
        if self.seen.is_foreign_protocol == Some(true) {
            return CborAnswer::OtherProtocol;
        }
        let failure = self.result.as_ref().err();
        // It is reported, so that the call is not repeated at once.
        if failure.is_some_and(|failure| failure.error.kind() == ErrorKind::Panicked) {
            return CborAnswer::Panicked;
        }
        if failure.is_some() && memory.was_rejected() {
            return CborAnswer::Rejected;
        }
        let Some(Head { status, is_cbor }) = self.seen.head else { return CborAnswer::Missing };
        let is_server_error = status.is_server_error();
        match &self.result {
            Ok(response) => match (&response.records, is_cbor) {
                (Some(_), false) => CborAnswer::Json,
                (None, false) => CborAnswer::Foreign { is_server_error: false },
                (Some(records), true) if records.is_empty() => CborAnswer::Empty,
                (_, true) => CborAnswer::Records,
            },
            // A body that was not read to its end says nothing.
            Err(_) if !is_cbor && status.is_success() && self.seen.fault.is_none() => {
                CborAnswer::Missing
            }
            Err(_) if !is_cbor => CborAnswer::Foreign { is_server_error },
            Err(failure) => match self.seen.fault {
                Some(Fault::Refused) => CborAnswer::Refused,
                Some(Fault::Unreadable) => CborAnswer::Unreadable,
                None if !self.seen.has_error => CborAnswer::Broken,
                None if !is_server_error && failure.error.kind() == ErrorKind::Throttled => {
                    CborAnswer::Throttled
                }
                None => CborAnswer::Failed { is_server_error },
            },
        }
    }
}

fn outcome(
    result: Result<Response, ClassifiedError>,
    memory: ResponseMemory,
    limit: u32,
    fallback: Option<FallbackReason>,
) -> RecordsOutcome {
    let (length, needed) = (memory.length(), memory.needed());
    let was_rejected = memory.was_rejected();
    let result = match result {
        Ok(response) => {
            let space = memory.keep(response.memory());
            Ok(RecordsResponse { response, space, needed, limit })
        }
        Err(failure) => Err(RecordsFailure { failure, length, needed, was_rejected }),
    };
    RecordsOutcome { result, fallback }
}

/// Returns the response that the SDK has decoded, for a client with a protocol of its own.
fn of_output(output: &GetRecordsOutput, lacks_records: bool) -> Response {
    let (buffer, records) = records_of_sdk(&output.records);
    Response {
        buffer,
        records: (!lacks_records).then_some(records),
        child_shards: children_of_sdk(output.child_shards()),
        next_shard_iterator: output.next_shard_iterator.clone(),
        millis_behind_latest: output.millis_behind_latest,
    }
}

impl Response {
    /// Returns the bytes of the records, as Kinesis counts them.
    pub(super) fn bytes(&self) -> usize {
        self.records.iter().flatten().map(RecordRange::size).sum()
    }

    /// Returns the bytes that the response occupies.
    fn memory(&self) -> usize {
        let records = self.records.as_ref().map_or(0, Vec::capacity);
        self.buffer.capacity() + records * size_of::<RecordRange>()
    }
}

#[cfg(test)]
mod tests;
