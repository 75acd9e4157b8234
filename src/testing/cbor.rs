//! Requests and responses in CBOR, as Kinesis has them.
//!
//! The members have the same names as in JSON. Payloads are byte strings. Times are tag 1 with an
//! integer of milliseconds, not of seconds as in RFC 8949.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use super::answer::{Answer, EncodedAnswer, error_response};
use super::contents::Stored;

pub(super) use decode::decode;

pub(super) const CBOR: &str = "application/x-amz-cbor-1.1";

/// The response of moto to a request in CBOR.
const HTML: &str = "<!doctype html>\n<html lang=en>\n<title>500 Internal Server Error</title>\n\
                    <h1>Internal Server Error</h1>\n";

/// The response of a [`Kinesis`](super::Kinesis) to a call in CBOR.
///
/// Calls in JSON are always served in JSON. An [`Outcome::Failed`](super::Outcome::Failed) is an
/// error in CBOR, but in JSON if the server does not support CBOR ([`None`](Self::None),
/// [`Rejected`](Self::Rejected)).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::testing::{CborSupport, Kinesis};
///
/// let kinesis = Kinesis::new();
/// // A server without CBOR, such as moto.
/// kinesis.set_cbor(CborSupport::None);
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CborSupport {
    /// The response is in CBOR as from Amazon: maps and lists without lengths, payloads as byte
    /// strings, times as tag 1 with an integer of milliseconds, and absent members left out.
    #[default]
    Amazon,
    /// The response is status 500 with a page of HTML, as from moto. The call is not carried out.
    None,
    /// The response is an error in JSON: status 400 with `UnknownOperationException` and status 415
    /// with `SerializationException` by turns, beginning with 400. The call is not carried out.
    Rejected,
    /// The response is an error in CBOR: status 500 with `InternalFailure`. The call is not carried
    /// out.
    Failing,
    /// The response has times in seconds without a tag, as integers or doubles, and maps and lists
    /// with lengths, as from ferrokinesis.
    Seconds,
    /// The response has payloads as base64 text, absent members as null, times as integers of
    /// milliseconds without a tag, and maps and lists with lengths, as from kinesis-local.
    Text,
    /// The response has one wrong member in one record: its payload, arrival time, partition key or
    /// sequence number. The same records are always altered in the same way.
    Altered,
    /// The response has at most this many bytes: a longer one is cut, with a `Content-Length` that
    /// agrees. Kinesalite cuts responses beyond 16 KiB.
    CutShort(usize),
}

impl CborSupport {
    /// Returns the response of a server that carries out no call in CBOR. `is_odd` selects between the
    /// responses of [`Rejected`](Self::Rejected).
    pub(super) fn refusal(self, is_odd: bool) -> Option<EncodedAnswer> {
        match (self, is_odd) {
            (Self::None, _) => Some(EncodedAnswer {
                status: 500,
                body: HTML.into(),
                content_type: "text/html; charset=utf-8",
            }),
            (Self::Rejected, false) => {
                Some(error_response(400, "UnknownOperationException", "no CBOR").into_json())
            }
            (Self::Rejected, true) => {
                Some(error_response(415, "SerializationException", "no CBOR").into_json())
            }
            (Self::Failing, _) => {
                Some(self.encode(error_response(500, "InternalFailure", "no CBOR")))
            }
            _ => None,
        }
    }

    /// Encodes the response to a call in CBOR.
    pub(super) fn encode(self, mut answer: Answer) -> EncodedAnswer {
        if matches!(self, Self::None | Self::Rejected) {
            // A server without CBOR has its errors in JSON.
            return answer.into_json();
        }
        if self == Self::Altered {
            alter(answer.records.as_deref_mut().unwrap_or_default());
        }
        let body = encode::encode(&answer, self).into();
        EncodedAnswer { status: answer.status, body, content_type: CBOR }
    }

    /// Cuts a response that is too long, and returns true if it did.
    pub(super) fn cut(self, answer: &mut EncodedAnswer) -> bool {
        let Self::CutShort(length) = self else { return false };
        let is_cut = answer.content_type == CBOR && answer.body.len() > length;
        if is_cut {
            answer.body.truncate(length);
        }
        is_cut
    }
}

/// Returns true if a request or a response with this `Content-Type` is in CBOR.
pub(super) fn is_cbor(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(CBOR)
}

/// Alters one member of the middle record. The digits of its sequence number select the member, so
/// that a retry of the call receives the same response.
fn alter(records: &mut [Stored]) {
    let middle = records.len() / 2;
    let Some(record) = records.get_mut(middle) else { return };
    match record.number.bytes().map(usize::from).sum::<usize>() % 4 {
        0 => {
            let mut data = record.data.to_vec();
            match data.last_mut() {
                Some(last) => *last ^= 1,
                None => data.push(0),
            }
            record.data = data.into();
        }
        1 => record.arrival += 1000,
        2 => record.partition_key.push('~'),
        _ => {
            let last = record.number.pop();
            record.number.push(if last == Some('0') { '1' } else { '0' });
        }
    }
}
