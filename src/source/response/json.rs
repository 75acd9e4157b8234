//! Decodes the JSON bodies of Kinesis (`application/x-amz-json-1.1`). Payloads are base64, which is
//! decoded in place. Times are numbers of seconds.
//!
//! A null member is absent, unknown members are skipped, and the last of repeated members counts.

mod value;

use std::fmt;

use serde_core::Deserialize;
use serde_core::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;

use super::{NamedChild, RecordRange, Response, Unreadable, assembly};
use crate::record::{ByteRange, EncryptionType, SequenceNumber};
use value::{Base64Text, Context, Element, Millis, Text, Value};

/// Decodes the body of a successful `GetRecords` call.
pub(super) fn decode(body: Vec<u8>) -> Result<Response, Unreadable> {
    let mut context = Context::new(&body)?;
    let mut parser = serde_json::Deserializer::from_slice(&body);
    let response = Response::read(&mut context, &mut parser);
    let response = response.and_then(|response| parser.end().map(|()| response));
    let mut response = match response {
        Ok(response) => response,
        Err(error) => return Err(context.refusal.unwrap_or_else(|| unreadable(&error))),
    };
    let tail = context.tail;

    response.buffer = assembly::join(body, &tail);
    for record in response.records.iter_mut().flatten() {
        assembly::decode_payload(&mut response.buffer, &mut record.data)?;
    }
    Ok(response)
}

fn unreadable(error: &serde_json::Error) -> Unreadable {
    Unreadable(match error.classify() {
        Category::Eof => "the body is cut short",
        Category::Data => "a member has the wrong type",
        Category::Syntax | Category::Io => "the body is not JSON",
    })
}

/// The members that are read.
enum Member {
    Records,
    NextShardIterator,
    MillisBehindLatest,
    ChildShards,
    Data,
    PartitionKey,
    SequenceNumber,
    ApproximateArrivalTimestamp,
    EncryptionType,
    ShardId,
    ParentShards,
    Unknown,
}

impl<'a> Deserialize<'a> for Member {
    #[inline]
    fn deserialize<D: Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Member;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a member")
            }

            #[inline]
            fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Member, E> {
                Ok(match name {
                    b"Records" => Member::Records,
                    b"NextShardIterator" => Member::NextShardIterator,
                    b"MillisBehindLatest" => Member::MillisBehindLatest,
                    b"ChildShards" => Member::ChildShards,
                    b"Data" => Member::Data,
                    b"PartitionKey" => Member::PartitionKey,
                    b"SequenceNumber" => Member::SequenceNumber,
                    b"ApproximateArrivalTimestamp" => Member::ApproximateArrivalTimestamp,
                    b"EncryptionType" => Member::EncryptionType,
                    b"ShardId" => Member::ShardId,
                    b"ParentShards" => Member::ParentShards,
                    _ => Member::Unknown,
                })
            }
        }

        // Not as a text, for which the parser would check the UTF-8 of every name.
        from.deserialize_bytes(Name)
    }
}

impl<'a> Value<'a> for Response {
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ResponseMembers(context))
    }
}

struct ResponseMembers<'c, 'a>(&'c mut Context<'a>);

impl<'a> Visitor<'a> for ResponseMembers<'_, 'a> {
    type Value = Response;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a response")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Response, M::Error> {
        let (context, mut response) = (self.0, Response::default());
        while let Some(member) = map.next_key()? {
            match member {
                Member::Records => response.records = context.member(&mut map)?,
                Member::NextShardIterator => {
                    response.next_shard_iterator = context.member(&mut map)?;
                }
                Member::MillisBehindLatest => {
                    response.millis_behind_latest = context.member(&mut map)?;
                }
                Member::ChildShards => {
                    response.child_shards = context.member(&mut map)?.unwrap_or_default();
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(response)
    }
}

impl<'a> Value<'a> for RecordRange {
    #[inline]
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        from.deserialize_map(RecordMembers(context))
    }
}

impl Element<'_> for RecordRange {
    #[inline]
    fn check_count(count: usize, length: usize) -> Result<(), Unreadable> {
        assembly::check_count(count, length)
    }

    #[inline]
    fn expected_count(&self, length: usize) -> usize {
        assembly::expected_count(self, length)
    }
}

struct RecordMembers<'c, 'a>(&'c mut Context<'a>);

impl<'a> Visitor<'a> for RecordMembers<'_, 'a> {
    type Value = RecordRange;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a record")
    }

    #[inline]
    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<RecordRange, M::Error> {
        let context = self.0;
        let mut record = RecordRange {
            data: ByteRange::EMPTY,
            partition_key: ByteRange::ABSENT,
            sequence_number: ByteRange::EMPTY,
            has_number: false,
            arrival_millis: None,
            encryption_type: EncryptionType::None,
        };
        while let Some(member) = map.next_key()? {
            match member {
                Member::Data => {
                    let data: Option<Base64Text> = context.member(&mut map)?;
                    record.data = data.map_or(ByteRange::EMPTY, |data| data.0);
                }
                Member::PartitionKey => {
                    let key: Option<Text> = context.member(&mut map)?;
                    record.partition_key = key.map_or(ByteRange::ABSENT, |key| key.0);
                }
                Member::SequenceNumber => {
                    let number: Option<Text> = context.member(&mut map)?;
                    record.sequence_number = number.map_or(ByteRange::EMPTY, |number| number.0);
                    record.has_number = SequenceNumber::is_one(context.get(record.sequence_number));
                }
                Member::ApproximateArrivalTimestamp => {
                    let time: Option<Millis> = context.member(&mut map)?;
                    record.arrival_millis = time.map(|time| time.0);
                }
                Member::EncryptionType => {
                    let text: Option<Text> = context.member(&mut map)?;
                    let is_kms = text.is_some_and(|text| context.get(text.0) == b"KMS");
                    record.encryption_type =
                        if is_kms { EncryptionType::Kms } else { EncryptionType::None };
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(record)
    }
}

impl<'a> Value<'a> for NamedChild {
    fn read<D: Deserializer<'a>>(context: &mut Context<'a>, from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ChildMembers(context))
    }
}

impl Element<'_> for NamedChild {
    fn check_count(count: usize, _: usize) -> Result<(), Unreadable> {
        assembly::check_relatives(count)
    }

    fn expected_count(&self, _: usize) -> usize {
        2
    }
}

/// A parent.
impl Element<'_> for String {
    fn check_count(count: usize, _: usize) -> Result<(), Unreadable> {
        assembly::check_relatives(count)
    }

    fn expected_count(&self, _: usize) -> usize {
        2
    }
}

struct ChildMembers<'c, 'a>(&'c mut Context<'a>);

impl<'a> Visitor<'a> for ChildMembers<'_, 'a> {
    type Value = NamedChild;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a child shard")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<NamedChild, M::Error> {
        let (context, mut child) = (self.0, NamedChild { id: String::new(), parents: Vec::new() });
        while let Some(member) = map.next_key()? {
            match member {
                Member::ShardId => child.id = context.member(&mut map)?.unwrap_or_default(),
                Member::ParentShards => {
                    child.parents = context.member(&mut map)?.unwrap_or_default();
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(child)
    }
}
