//! The description of a stream as text and as JSON.

use std::time::SystemTime;

use aws_sdk_kinesis::types::{Consumer, EncryptionType, StreamDescriptionSummary};
use serde::{Serialize, Serializer};

use super::tree::{Node, tree};
use crate::failure::Outcome;
use crate::output::{Paint, escape};
use crate::quantity::{bytes, count};
use crate::streams::{mode_shown, retention_shown, status_shown, word};
use crate::table::Table;
use crate::time;

/// A stream. The names of the fields are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Description {
    name: String,
    arn: String,
    /// The word of the API, in lower case.
    status: String,
    mode: Option<String>,
    retention_hours: Option<u64>,
    /// The largest record with its key; `None` if the server does not report it.
    max_record_bytes: Option<u64>,
    /// True with a key of KMS.
    is_encrypted: bool,
    kms_key_id: Option<String>,
    #[serde(serialize_with = "time::serialize")]
    created: Option<SystemTime>,
    open_shards: u64,
    shards: Vec<Node>,
    /// The failure of the call: its permission, or the operation on a local server, may be missing.
    #[serde(serialize_with = "known_consumers")]
    consumers: Outcome<Vec<Registered>>,
}

/// Writes the consumers, or null if they are unknown.
fn known_consumers<S: Serializer>(
    consumers: &Outcome<Vec<Registered>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    consumers.as_ref().ok().serialize(serializer)
}

/// A registered consumer of enhanced fan-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Registered {
    name: String,
    arn: String,
    status: String,
    #[serde(serialize_with = "time::serialize")]
    created: Option<SystemTime>,
}

impl Registered {
    fn of(consumer: &Consumer) -> Self {
        Self {
            name: consumer.consumer_name.clone(),
            arn: consumer.consumer_arn.clone(),
            status: word(consumer.consumer_status.as_str()),
            created: SystemTime::try_from(consumer.consumer_creation_timestamp).ok(),
        }
    }
}

impl Description {
    pub(super) fn new(
        summary: StreamDescriptionSummary,
        shards: Vec<Node>,
        consumers: Outcome<Vec<Consumer>>,
    ) -> Self {
        let mode = summary.stream_mode_details.map(|details| word(details.stream_mode.as_str()));
        let kib = summary.max_record_size_in_kib.and_then(|kib| u64::try_from(kib).ok());
        Self {
            name: summary.stream_name,
            arn: summary.stream_arn,
            status: word(summary.stream_status.as_str()),
            mode,
            retention_hours: u64::try_from(summary.retention_period_hours).ok(),
            max_record_bytes: kib.map(|kib| kib * 1024),
            is_encrypted: summary.encryption_type == Some(EncryptionType::Kms),
            kms_key_id: summary.key_id,
            created: SystemTime::try_from(summary.stream_creation_timestamp).ok(),
            open_shards: shards.iter().filter(|shard| shard.is_open()).count() as u64,
            shards,
            consumers: consumers.map(|consumers| consumers.iter().map(Registered::of).collect()),
        }
    }

    /// Returns the reason for which the consumers are unknown; `None` if they are known.
    pub(super) fn unknown_consumers(&self) -> Option<String> {
        let failure = self.consumers.as_ref().err()?;
        Some(format!("registered consumers: unknown ({})", escape(failure.message().as_bytes())))
    }

    /// Returns the description for people.
    pub(super) fn shown(&self, paint: Paint) -> String {
        let known = |consumers: &Vec<_>| consumers_shown(consumers, paint);
        let unknown = || self.unknown_consumers().unwrap_or_default() + "\n";
        let consumers = self.consumers.as_ref().map_or_else(|_| unknown(), known);
        format!("{}\n{}\n{consumers}", self.heading(paint), tree(&self.shards, paint))
    }

    fn heading(&self, paint: Paint) -> String {
        let encryption = match (self.is_encrypted, &self.kms_key_id) {
            (true, Some(key)) => format!("KMS, {}", escape(key.as_bytes())),
            (true, None) => "KMS".to_owned(),
            (false, _) => "none".to_owned(),
        };
        let shards = count(self.shards.len() as u64);
        let retention = self.retention_hours.map_or_else(|| "-".to_owned(), retention_shown);
        let mut lines = vec![
            ("stream", paint.name(&escape(self.name.as_bytes()))),
            ("arn", escape(self.arn.as_bytes())),
            ("status", status_shown(&self.status, paint)),
            ("mode", mode_shown(self.mode.as_deref())),
            ("shards", format!("{} open of {shards}", count(self.open_shards))),
            ("retention", retention),
            ("encryption", encryption),
            ("created", self.created.map_or_else(|| "-".to_owned(), time::short)),
        ];
        if let Some(limit) = self.max_record_bytes {
            lines.push(("max record", bytes(limit)));
        }
        let line = |(name, value)| format!("{} {value}\n", paint.heading(&format!("{name:10}")));
        lines.into_iter().map(line).collect()
    }
}

fn consumers_shown(consumers: &[Registered], paint: Paint) -> String {
    let mut table = Table::new(&["REGISTERED CONSUMER", "STATUS", "CREATED"]);
    for consumer in consumers {
        table.push(vec![
            paint.name(&escape(consumer.name.as_bytes())),
            status_shown(&consumer.status, paint),
            consumer.created.map_or_else(|| "-".to_owned(), time::short),
        ]);
    }
    if table.is_empty() { "no registered consumers\n".to_owned() } else { table.shown(paint) }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::primitives::DateTime;
    use aws_sdk_kinesis::types::{
        ConsumerStatus, EnhancedMetrics, HashKeyRange, SequenceNumberRange, Shard, StreamMode,
        StreamModeDetails, StreamStatus,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::Failure;
    use crate::output::json_line;

    fn summary() -> StreamDescriptionSummary {
        let mode =
            StreamModeDetails::builder().stream_mode(StreamMode::Provisioned).build().unwrap();
        StreamDescriptionSummary::builder()
            .stream_name("orders")
            .stream_arn("arn:aws:kinesis:eu-west-1:123456789012:stream/orders")
            .stream_status(StreamStatus::Updating)
            .stream_mode_details(mode)
            .retention_period_hours(168)
            .stream_creation_timestamp(DateTime::from_secs(1_767_225_600))
            .enhanced_monitoring(EnhancedMetrics::builder().build())
            .open_shard_count(2)
            .max_record_size_in_kib(2048)
            .build()
            .unwrap()
    }

    fn consumer() -> Consumer {
        Consumer::builder()
            .consumer_name("billing")
            .consumer_arn("arn")
            .consumer_status(ConsumerStatus::Active)
            .consumer_creation_timestamp(DateTime::from_secs(1_767_225_600))
            .build()
            .unwrap()
    }

    /// A split shard and the shard of its lower half.
    fn shards() -> Vec<Node> {
        let shard = |number: u8, last: u128, end: Option<&str>| {
            let keys =
                HashKeyRange::builder().starting_hash_key("0").ending_hash_key(last.to_string());
            let numbers =
                SequenceNumberRange::builder().starting_sequence_number(format!("4{number}"));
            Shard::builder()
                .shard_id(format!("shardId-{number:012}"))
                .set_parent_shard_id((number > 0).then(|| "shardId-000000000000".to_owned()))
                .hash_key_range(keys.build().unwrap())
                .sequence_number_range(
                    numbers.set_ending_sequence_number(end.map(str::to_owned)).build().unwrap(),
                )
                .build()
                .unwrap()
        };
        [shard(0, u128::MAX, Some("409")), shard(1, u128::MAX / 2, None)]
            .iter()
            .map(Node::of)
            .collect()
    }

    #[test]
    fn heading_names_what_is_known() {
        assert_eq!(
            Description::new(summary(), Vec::new(), Ok(Vec::new())).heading(Paint::plain()),
            "stream     orders\n\
             arn        arn:aws:kinesis:eu-west-1:123456789012:stream/orders\n\
             status     updating\n\
             mode       provisioned\n\
             shards     0 open of 0\n\
             retention  7 d\n\
             encryption none\n\
             created    2026-01-01 00:00:00\n\
             max record 2.0 MiB\n"
        );
    }

    #[test]
    fn consumers_are_listed_below_the_shards() {
        let shown =
            |consumers| Description::new(summary(), shards(), consumers).shown(Paint::plain());
        assert!(shown(Ok(vec![consumer()])).ends_with(
            "\n\nREGISTERED CONSUMER  STATUS  CREATED\n\
             billing              active  2026-01-01 00:00:00\n"
        ));
        assert!(shown(Ok(Vec::new())).ends_with("\n\nno registered consumers\n"));
        assert!(
            shown(Err(Failure::new("access denied")))
                .ends_with("\n\nregistered consumers: unknown (access denied)\n")
        );
    }

    #[test]
    fn description_is_an_object_of_json() {
        let json = |consumers| {
            let description = Description::new(summary(), shards(), consumers);
            serde_json::from_str::<Value>(&json_line(&description).unwrap()).unwrap()
        };
        assert_eq!(
            json(Ok(vec![consumer()])),
            json!({
                "name": "orders",
                "arn": "arn:aws:kinesis:eu-west-1:123456789012:stream/orders",
                "status": "updating",
                "mode": "provisioned",
                "retention_hours": 168,
                "max_record_bytes": 2_097_152,
                "is_encrypted": false,
                "kms_key_id": null,
                "created": "2026-01-01T00:00:00.000Z",
                "open_shards": 1,
                "shards": [
                    {
                        "shard_id": "shardId-000000000000",
                        "is_open": false,
                        "parents": [],
                        "first_hash_key": "0",
                        "last_hash_key": u128::MAX.to_string(),
                        "first_sequence_number": "40",
                        "last_sequence_number": "409",
                    },
                    {
                        "shard_id": "shardId-000000000001",
                        "is_open": true,
                        "parents": ["shardId-000000000000"],
                        "first_hash_key": "0",
                        "last_hash_key": (u128::MAX / 2).to_string(),
                        "first_sequence_number": "41",
                        "last_sequence_number": null,
                    },
                ],
                "consumers": [{
                    "name": "billing",
                    "arn": "arn",
                    "status": "active",
                    "created": "2026-01-01T00:00:00.000Z",
                }],
            })
        );
        assert_eq!(json(Err(Failure::new("access denied")))["consumers"], Value::Null);
    }
}
