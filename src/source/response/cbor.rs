//! Decodes the CBOR bodies of Kinesis (`application/x-amz-cbor-1.1`): maps by the member names of
//! the JSON protocol, payloads as byte strings, times as integers of milliseconds.
//!
//! Clients of Kinesis accept all forms of CBOR, and other servers write all of them, so this decoder
//! does too: maps, lists and strings with a length or without, in pieces, any tags, null for an
//! absent member, base64 text for a payload. Unknown members are skipped, and the last of repeated
//! members counts. A body that is cut short anywhere is refused.

mod head;
mod plain;
mod walk;

use super::{ErrorBody, NamedChild, RecordRange, Response, Unreadable, assembly};
use crate::record::{ByteRange, EncryptionType};
use walk::{Payload, Read, Walk};

/// The names of all members that are read.
const MEMBERS: [&[u8]; 15] = [
    b"Records",
    b"NextShardIterator",
    b"MillisBehindLatest",
    b"ChildShards",
    b"Data",
    b"PartitionKey",
    b"SequenceNumber",
    b"ApproximateArrivalTimestamp",
    b"EncryptionType",
    b"ShardId",
    b"ParentShards",
    b"__type",
    b"code",
    b"message",
    b"Message",
];

/// The members of a record.
#[derive(Clone, Copy)]
enum Member {
    Data,
    PartitionKey,
    SequenceNumber,
    Arrival,
    EncryptionType,
    Unknown,
}

impl Member {
    /// Parses a name in the form in which Kinesis writes it. A comparison with a text of known length
    /// takes a few instructions.
    #[inline]
    fn plain(rest: &[u8]) -> Option<(Self, &[u8])> {
        let after = |name: &[u8]| rest.strip_prefix(name);
        let (member, rest) = match rest.first()? {
            0x64 => (Self::Data, after(b"\x64Data")),
            0x6c => (Self::PartitionKey, after(b"\x6cPartitionKey")),
            0x6e => match after(b"\x6eSequenceNumber") {
                None => (Self::EncryptionType, after(b"\x6eEncryptionType")),
                rest => (Self::SequenceNumber, rest),
            },
            0x78 => (Self::Arrival, after(b"\x78\x1bApproximateArrivalTimestamp")),
            _ => return None,
        };
        Some((member, rest?))
    }

    /// Reads the name of a member in any form.
    #[cold]
    fn other(walk: &mut Walk<'_>) -> Read<Self> {
        Ok(match walk.name()? {
            b"Data" => Self::Data,
            b"PartitionKey" => Self::PartitionKey,
            b"SequenceNumber" => Self::SequenceNumber,
            b"ApproximateArrivalTimestamp" => Self::Arrival,
            b"EncryptionType" => Self::EncryptionType,
            _ => Self::Unknown,
        })
    }
}

/// The records of a body.
#[derive(Default)]
struct Index {
    records: Vec<RecordRange>,
    /// The indices of the records with a payload in base64, which is decoded at the end.
    encoded: Vec<usize>,
}

/// Decodes the body of a successful `GetRecords` call.
pub(super) fn decode(body: Vec<u8>) -> Result<Response, Unreadable> {
    let length = body.len();
    let ((mut response, index), tail) =
        Walk::over(&body, |walk, name, (response, index): &mut (Response, Option<Index>)| {
            match name {
                b"Records" => *index = records(walk, length)?,
                b"NextShardIterator" => response.next_shard_iterator = walk.string()?,
                b"MillisBehindLatest" => response.millis_behind_latest = walk.integer()?,
                b"ChildShards" => response.child_shards = children(walk)?,
                _ => walk.skip()?,
            }
            Ok(())
        })?;

    response.buffer = assembly::join(body, &tail);
    if let Some(Index { mut records, encoded }) = index {
        for number in encoded {
            if let Some(record) = records.get_mut(number) {
                assembly::decode_payload(&mut response.buffer, &mut record.data)?;
            }
        }
        response.records = Some(records);
    }
    Ok(response)
}

/// Decodes the body of a failed call.
pub(super) fn decode_error(body: &[u8]) -> Result<ErrorBody, Unreadable> {
    let ((kind, error), _) =
        Walk::over(body, |walk, name, (kind, error): &mut (Option<String>, ErrorBody)| {
            match name {
                b"__type" => *kind = walk.string()?,
                b"code" => error.code = walk.string()?,
                b"message" | b"Message" => {
                    error.message = walk.string()?.or(error.message.take());
                }
                _ => walk.skip()?,
            }
            Ok(())
        })?;
    let code = kind.or(error.code);
    Ok(ErrorBody { code: code.map(|code| without_namespace(&code).to_owned()), ..error })
}

/// Returns `X` of `namespace#X:address`. Servers write any part of that form.
fn without_namespace(code: &str) -> &str {
    let code = code.rsplit_once('#').map_or(code, |(_, code)| code);
    code.split_once(':').map_or(code, |(code, _)| code)
}

fn records(walk: &mut Walk<'_>, length: usize) -> Read<Option<Index>> {
    let Index { mut records, mut encoded } = Index::default();
    let is_list = walk.list(|walk, follow| {
        if let Some(follow) = follow.filter(|_| records.capacity() == 0) {
            // The number may be false, so this takes at most the memory that the rest of the body has.
            let most = walk.left() / size_of::<RecordRange>();
            records.reserve_exact(usize::try_from(follow).unwrap_or(most).min(most) + 1);
        }
        if let Some((record, is_base64)) = record(walk)? {
            if is_base64 {
                encoded.push(records.len());
            }
            if records.capacity() == 0 {
                records.reserve_exact(assembly::expected_count(&record, length));
            }
            records.push(record);
            walk.check(assembly::check_count(records.len(), length))?;
        }
        Ok(())
    })?;
    Ok(is_list.then_some(Index { records, encoded }))
}

/// Reads a record, and whether its payload is base64. Returns `None` for null.
#[inline]
fn record(walk: &mut Walk<'_>) -> Read<Option<(RecordRange, bool)>> {
    let mut payload = Payload { range: ByteRange::EMPTY, is_base64: false };
    let mut partition_key = ByteRange::ABSENT;
    let (mut sequence_number, mut has_number) = (ByteRange::EMPTY, false);
    let mut arrival_millis = None;
    let mut encryption_type = EncryptionType::None;
    let is_map = walk.map_by(Member::plain, Member::other, |walk, member| {
        match member {
            Member::Data => payload = walk.payload()?,
            Member::PartitionKey => partition_key = walk.text()?,
            Member::SequenceNumber => (sequence_number, has_number) = walk.sequence_number()?,
            Member::Arrival => arrival_millis = walk.time()?,
            Member::EncryptionType => {
                let is_kms = walk.is_text(b"KMS")?;
                encryption_type = if is_kms { EncryptionType::Kms } else { EncryptionType::None };
            }
            Member::Unknown => walk.skip()?,
        }
        Ok(())
    })?;
    let data = payload.range;
    let record = RecordRange {
        data,
        partition_key,
        sequence_number,
        has_number,
        arrival_millis,
        encryption_type,
    };
    Ok(is_map.then_some((record, payload.is_base64)))
}

fn children(walk: &mut Walk<'_>) -> Read<Vec<NamedChild>> {
    let mut children = Vec::new();
    walk.list(|walk, _| {
        children.extend(child(walk)?);
        walk.check(assembly::check_relatives(children.len()))
    })?;
    Ok(children)
}

fn child(walk: &mut Walk<'_>) -> Read<Option<NamedChild>> {
    let mut child = NamedChild { id: String::new(), parents: Vec::new() };
    let is_map = walk.map(|walk, name| {
        match name {
            b"ShardId" => child.id = walk.string()?.unwrap_or_default(),
            b"ParentShards" => {
                child.parents.clear();
                walk.list(|walk, _| {
                    child.parents.extend(walk.string()?);
                    walk.check(assembly::check_relatives(child.parents.len()))
                })?;
            }
            _ => walk.skip()?,
        }
        Ok(())
    })?;
    Ok(is_map.then_some(child))
}
