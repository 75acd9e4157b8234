//! Responses before and after they are encoded.

use aws_smithy_types::base64;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::contents::Stored;

/// The member of a record that is its arrival time.
const ARRIVAL: &str = "ApproximateArrivalTimestamp";

pub(super) const JSON: &str = "application/x-amz-json-1.1";

/// A response before it is encoded.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) members: Map<String, Value>,
    /// The member `Records` of a `GetRecords` response, whose payloads are text only in JSON.
    pub(super) records: Option<Vec<Stored>>,
}

impl Answer {
    pub(super) fn of(status: u16, members: Value) -> Self {
        let members = match members {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        Self { status, members, records: None }
    }

    /// Removes these members. The arrival times of records are removed in JSON only.
    pub(super) fn without(mut self, fields: &[String]) -> Self {
        let is_kept = |field: &str| !fields.iter().any(|removed| removed == field);
        self.members.retain(|field, _| is_kept(field));
        self.records = self.records.filter(|_| is_kept("Records"));
        if !is_kept(ARRIVAL)
            && let Some(records) = self.records.take()
        {
            let records = records.into_iter().map(|record| match record_json(record) {
                Value::Object(mut members) => {
                    members.remove(ARRIVAL);
                    Value::Object(members)
                }
                other => other,
            });
            self.members.insert("Records".to_owned(), records.collect());
        }
        self
    }

    pub(super) fn into_json(self) -> EncodedAnswer {
        let mut members = self.members;
        if let Some(records) = self.records {
            let records = records.into_iter().map(record_json).collect();
            members.insert("Records".to_owned(), records);
        }
        EncodedAnswer {
            status: self.status,
            body: Value::Object(members).to_string().into(),
            content_type: JSON,
        }
    }
}

/// A response as it is sent.
#[derive(Debug)]
pub(super) struct EncodedAnswer {
    pub(super) status: u16,
    pub(super) body: Bytes,
    pub(super) content_type: &'static str,
}

pub(super) fn error_response(status: u16, code: &str, message: &str) -> Answer {
    Answer::of(status, json!({ "__type": code, "message": message }))
}

/// Returns a record as JSON, with its texts moved.
pub(super) fn record_json(record: Stored) -> Value {
    let data = base64::encode(&record.data);
    let members = [
        ("SequenceNumber", Value::String(record.number)),
        (ARRIVAL, json!(record.arrival as f64 / 1000.0)),
        ("Data", Value::String(data)),
        ("PartitionKey", Value::String(record.partition_key)),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
