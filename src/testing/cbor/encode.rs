//! Encodes responses.

use std::convert::Infallible;

use aws_smithy_types::base64;
use minicbor::data::Tag;
use minicbor::encode::{Encoder, Error};
use serde_json::{Map, Value};

use super::{Answer, CborSupport, Stored};

/// The tag of a time: <https://www.rfc-editor.org/rfc/rfc8949#section-3.4.2>.
const TIME: Tag = Tag::new(1);
/// The members that a `GetRecords` response may lack.
const OPTIONAL: [&str; 2] = ["ChildShards", "NextShardIterator"];
/// The bytes of a record's names, lengths and time, and at most those of a response's members.
const RECORD_OVERHEAD: usize = 96;
const ANSWER_OVERHEAD: usize = 512;

type Encoded = Result<(), Error<Infallible>>;

/// Encodes a response.
pub(super) fn encode(answer: &Answer, support: CborSupport) -> Vec<u8> {
    let records = answer.records.as_deref().unwrap_or_default();
    let sizes = records.iter().map(|record| {
        let data = record.data.len();
        let data = if support == CborSupport::Text { data.div_ceil(3) * 4 } else { data };
        data + record.partition_key.len() + record.number.len() + RECORD_OVERHEAD
    });
    // Room for the whole response, so that it is not copied as it grows.
    let body = Vec::with_capacity(sizes.sum::<usize>() + ANSWER_OVERHEAD);
    let mut encoder = AnswerEncoder { encoder: Encoder::new(body), support };
    match encoder.answer(answer) {
        Ok(()) => encoder.encoder.into_writer(),
        Err(error) => unreachable!("a write to memory never fails: {error}"),
    }
}

struct AnswerEncoder {
    encoder: Encoder<Vec<u8>>,
    support: CborSupport,
}

impl AnswerEncoder {
    fn answer(&mut self, answer: &Answer) -> Encoded {
        let members = &answer.members;
        let has_records = answer.records.is_some();
        let is_text = self.support == CborSupport::Text;
        let absent = OPTIONAL
            .iter()
            .filter(|name| has_records && is_text && !members.contains_key(**name))
            .collect::<Vec<_>>();
        self.begin_map(self.count(members) + absent.len() + usize::from(has_records))?;
        self.members(members)?;
        for name in absent {
            self.encoder.str(name)?.null()?;
        }
        if let Some(records) = &answer.records {
            self.encoder.str("Records")?;
            self.begin_list(records.len())?;
            for record in records {
                self.record(record)?;
            }
            self.end()?;
        }
        self.end()
    }

    fn record(&mut self, record: &Stored) -> Encoded {
        let is_text = self.support == CborSupport::Text;
        self.begin_map(4 + usize::from(is_text))?;
        self.encoder.str("SequenceNumber")?.str(&record.number)?;
        self.encoder.str("ApproximateArrivalTimestamp")?;
        self.time(record.arrival)?;
        self.encoder.str("Data")?;
        if is_text {
            self.encoder.str(&base64::encode(&record.data))?.str("EncryptionType")?.null()?;
        } else {
            self.encoder.bytes(&record.data)?;
        }
        self.encoder.str("PartitionKey")?.str(&record.partition_key)?;
        self.end()
    }

    /// Encodes a time in milliseconds.
    fn time(&mut self, millis: u64) -> Encoded {
        let encoder = &mut self.encoder;
        match self.support {
            CborSupport::Seconds if millis.is_multiple_of(1000) => encoder.u64(millis / 1000)?,
            CborSupport::Seconds => encoder.f64(millis as f64 / 1000.0)?,
            CborSupport::Text => encoder.u64(millis)?,
            _ => encoder.tag(TIME)?.u64(millis)?,
        };
        Ok(())
    }

    /// Encodes the value of a member with this name, or an item of a list, which has no name.
    fn value(&mut self, name: &str, value: &Value) -> Encoded {
        match value {
            Value::Null => self.encoder.null()?.ok(),
            Value::Bool(value) => self.encoder.bool(*value)?.ok(),
            Value::Number(seconds) if name.ends_with("Timestamp") => {
                self.time((seconds.as_f64().unwrap_or_default() * 1000.0).round() as u64)
            }
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => self.encoder.u64(number)?.ok(),
                (_, Some(number)) => self.encoder.i64(number)?.ok(),
                _ => self.encoder.f64(number.as_f64().unwrap_or_default())?.ok(),
            },
            Value::String(text) => self.encoder.str(text)?.ok(),
            Value::Array(items) => {
                self.begin_list(items.len())?;
                for item in items {
                    self.value("", item)?;
                }
                self.end()
            }
            Value::Object(members) => {
                self.begin_map(self.count(members))?;
                self.members(members)?;
                self.end()
            }
        }
    }

    fn members(&mut self, members: &Map<String, Value>) -> Encoded {
        let support = self.support;
        for (name, value) in members.iter().filter(|(_, value)| support.shows(value)) {
            self.encoder.str(name)?;
            self.value(name, value)?;
        }
        Ok(())
    }

    /// Returns the number of members that are encoded.
    fn count(&self, members: &Map<String, Value>) -> usize {
        members.values().filter(|value| self.support.shows(value)).count()
    }

    fn begin_map(&mut self, members: usize) -> Encoded {
        let encoder = &mut self.encoder;
        let has_lengths = self.support.has_lengths();
        if has_lengths { encoder.map(members as u64)?.ok() } else { encoder.begin_map()?.ok() }
    }

    fn begin_list(&mut self, items: usize) -> Encoded {
        let encoder = &mut self.encoder;
        let has_lengths = self.support.has_lengths();
        if has_lengths { encoder.array(items as u64)?.ok() } else { encoder.begin_array()?.ok() }
    }

    fn end(&mut self) -> Encoded {
        if self.support.has_lengths() { Ok(()) } else { self.encoder.end()?.ok() }
    }
}

impl CborSupport {
    /// Returns true if maps and lists have lengths.
    fn has_lengths(self) -> bool {
        matches!(self, Self::Seconds | Self::Text)
    }

    /// Returns true if a member with this value is encoded.
    fn shows(self, value: &Value) -> bool {
        self == Self::Text || !value.is_null()
    }
}
