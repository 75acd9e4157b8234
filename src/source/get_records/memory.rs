//! Reserves the memory of one response, once its length is known and before it is read.
//!
//! ```text
//!   expected size ──length is known──► size needed ──► read
//!        │                  └── too little is free ──► rejected
//!        └── length is unknown ──► grows while read ──► rejected at its end if it cannot grow
//! ```
//!
//! A rejected response is requested again once memory is free, or with a lower record limit. It
//! does not wait in its connection: responses share an HTTP/2 connection, and an unread response
//! would block the others. The rest of a response of unknown length is read and discarded, since
//! Kinesis counts its bytes and the next call depends on its length.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};

use aws_sdk_kinesis::error::BoxError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::Body;

use super::super::demand::Demand;
use super::super::memory_budget::{Reservation, while_parsed};
use super::super::metered_body::{BodyMeter, meter_body};
use crate::mutex::Mutex;

/// The most bytes of records that one response holds:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
pub(in super::super) const MAX_RESPONSE_BYTES: usize = 10 * 1024 * 1024;

/// The most bytes that are read of a response. The records of [`MAX_RESPONSE_BYTES`] take 14 MiB in
/// base64.
pub(super) const MAX_READ_BYTES: usize = 2 * MAX_RESPONSE_BYTES;

/// The part of the length of a response that its index takes: a quarter. The index has 48 bytes for
/// each record, and a record of 60 bytes or more takes 192 bytes in a response, most of them for the
/// names of its fields and its sequence number.
const INDEX_PART: usize = 4;

/// More memory than any budget has.
const UNAVAILABLE: usize = usize::MAX / 2;

const TOO_LONG: &str = "the response is longer than any response of Kinesis";
const TOO_LITTLE_MEMORY: &str = "too little free memory for the response";

/// Returns the memory that a response of a known length takes: its bytes, among which the payloads
/// are decoded, and the index of its records.
pub(in super::super) const fn while_read(length: usize) -> usize {
    length.saturating_add(length / INDEX_PART)
}

/// The memory of one response. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct ResponseMemory(Arc<Mutex<ResponseSize>>);

#[derive(Debug)]
struct ResponseSize {
    /// The length of the response, as far as it is known.
    length: usize,
    /// The memory that it takes while it is read.
    needed: usize,
    space: Reservation,
    was_rejected: bool,
    /// Set if one record was requested: while the caller waits, the response is read even if too
    /// little memory is free.
    least: Option<Demand>,
}

impl ResponseMemory {
    /// Creates the memory of a response from the memory that was granted. `least` is the demand of
    /// the caller, set if the call cannot request fewer records.
    pub(super) fn new(space: Reservation, least: Option<Demand>) -> Self {
        let (length, needed, was_rejected) = (0, 0, false);
        Self(Arc::new(Mutex::new(ResponseSize { length, needed, space, was_rejected, least })))
    }

    /// Returns the length of the response, or the bytes read so far if its length is unknown.
    /// Returns 0 before a response begins.
    pub(super) fn length(&self) -> usize {
        self.lock().length
    }

    /// Returns the memory that the response takes while it is read.
    pub(super) fn needed(&self) -> usize {
        self.lock().needed
    }

    /// Returns true if a response did not fit into free memory.
    pub(super) fn was_rejected(&self) -> bool {
        self.lock().was_rejected
    }

    /// Returns the reserved memory, resized to the `bytes` that the response holds.
    pub(super) fn keep(self, bytes: usize) -> Reservation {
        let mut response = self.lock();
        response.space.resize_up_to(bytes);
        let empty = response.space.empty();
        std::mem::replace(&mut response.space, empty)
    }

    /// Notes a response whose body is not read yet. Kinesis counts its bytes even if an interceptor
    /// of the caller fails before they are read: as many as a response may hold, if their number is
    /// unknown.
    pub(super) fn begin(&self, body: &SdkBody) {
        self.lock().length = known_length(body).unwrap_or(MAX_RESPONSE_BYTES);
    }

    /// Forgets the response, and keeps its memory for the response to a repeated call.
    pub(super) fn reuse(&self) {
        let mut response = self.lock();
        (response.length, response.needed, response.was_rejected) = (0, 0, false);
    }

    /// Takes the memory of a body that the SDK reads, or counts its bytes while they are read if
    /// their number is unknown.
    pub(super) fn measure_parsed(&self, body: &mut SdkBody) -> Result<(), BoxError> {
        if let Some(length) = known_length(body) {
            return self.lock().fit(length, while_parsed(length));
        }
        meter_body(body, &self.0);
        Ok(())
    }

    /// Reads a body into one buffer.
    ///
    /// # Errors
    ///
    /// Fails if there is too little memory, and if the body has another length than it states.
    pub(super) async fn read(&self, mut body: SdkBody) -> Result<Vec<u8>, BoxError> {
        let Some(length) = known_length(&body) else {
            self.lock().length = 0;
            meter_body(&mut body, &self.0);
            let mut buffer = Vec::new();
            while let Some(data) = next_data(&mut body).await? {
                buffer.extend_from_slice(&data);
            }
            buffer.shrink_to_fit();
            return Ok(buffer);
        };
        if length > MAX_READ_BYTES {
            return Err(self.lock().refuse(length));
        }
        let mut buffer = {
            let mut response = self.lock();
            response.fit(length, while_read(length))?;
            response.space.buffer(length)
        };
        while let Some(data) = next_data(&mut body).await? {
            if data.len() > length - buffer.len() {
                return Err("the response is longer than its Content-Length".into());
            }
            buffer.extend_from_slice(&data);
        }
        if buffer.len() < length {
            return Err("the response is shorter than its Content-Length".into());
        }
        Ok(buffer)
    }

    fn lock(&self) -> MutexGuard<'_, ResponseSize> {
        self.0.lock()
    }
}

impl ResponseSize {
    /// Takes the memory of a response of this length. Fails if too little is free.
    fn fit(&mut self, length: usize, bytes: usize) -> Result<(), BoxError> {
        (self.length, self.needed) = (length, bytes);
        if bytes <= self.space.taken() || self.space.resize(bytes) {
            return Ok(());
        }
        if self.least.as_ref().is_some_and(Demand::is_urgent) {
            self.space.resize_up_to(bytes);
            return Ok(());
        }
        self.was_rejected = true;
        Err(TOO_LITTLE_MEMORY.into())
    }

    /// Refuses a response that is longer than any response of Kinesis. Some servers return as many
    /// records as requested, so the call is retried with a lower limit, if it has any.
    fn refuse(&mut self, length: usize) -> BoxError {
        (self.length, self.needed) = (length, UNAVAILABLE);
        self.was_rejected = self.least.is_none();
        TOO_LONG.into()
    }
}

/// Counts a response of unknown length. Its buffer grows, and takes up to twice the bytes that it
/// holds, so such a response takes twice its length while it is read.
impl BodyMeter for ResponseSize {
    fn read(&mut self, data: &[u8]) -> usize {
        let length = self.length.saturating_add(data.len());
        let needed = while_parsed(length);
        if self.was_rejected {
            (self.length, self.needed) = (length, needed);
            return 0;
        }
        if self.fit(length, needed).is_ok() { data.len() } else { 0 }
    }

    fn error(&mut self, is_read: bool) -> Option<BoxError> {
        if self.length > MAX_READ_BYTES {
            return Some(self.refuse(self.length));
        }
        (is_read && self.was_rejected).then(|| TOO_LITTLE_MEMORY.into())
    }
}

fn known_length(body: &SdkBody) -> Option<usize> {
    body.content_length().map(|length| usize::try_from(length).unwrap_or(usize::MAX))
}

/// Returns the next bytes of a body, or `None` at its end.
async fn next_data(body: &mut SdkBody) -> Result<Option<Bytes>, BoxError> {
    while let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
