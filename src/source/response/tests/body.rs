//! Encodes a response in the forms that a decoder must accept, chosen at random.

use proptest::prelude::*;

use super::{EncryptionType, NamedChild, OwnedRecord, OwnedResponse};

/// The source of the choices. After the last byte, the plainest form is chosen.
#[derive(Debug, Clone)]
pub(super) struct Choices {
    bytes: std::vec::IntoIter<u8>,
    /// True if null may replace an absent member, and follow an element of a list.
    pub(super) has_nulls: bool,
}

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.bytes.next().unwrap_or_default()) % bound
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }
}

/// A value before it is encoded.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Null,
    Integer(i64),
    Text(String),
    Payload(Vec<u8>),
    Millis(i64),
    List(Vec<Node>),
    Map(Vec<(&'static str, Node)>),
}

pub(super) fn choices(has_nulls: bool) -> impl Strategy<Value = Choices> {
    prop::collection::vec(any::<u8>(), 0..400)
        .prop_map(move |bytes| Choices { bytes: bytes.into_iter(), has_nulls })
}

fn record() -> impl Strategy<Value = OwnedRecord> {
    let key = prop::option::of("[a-z\"\\\\/\u{e9}\u{1f600}\n\u{1}]{0,12}");
    // In steps of 1/8 s, which a double of seconds states exactly.
    let arrival = prop::option::of((800_000_000..30_000_000_000_i64).prop_map(|time| time * 125));
    let data = prop::collection::vec(any::<u8>(), 0..60);
    (data, key, "[0-9]{0,56}", arrival, any::<bool>()).prop_map(
        |(data, partition_key, sequence_number, arrival_millis, is_kms)| OwnedRecord {
            data,
            partition_key,
            sequence_number,
            arrival_millis,
            encryption_type: if is_kms { EncryptionType::Kms } else { EncryptionType::None },
        },
    )
}

pub(super) fn response() -> impl Strategy<Value = OwnedResponse> {
    let child = ("shardId-[0-9]{1,3}", prop::collection::vec("shardId-[0-9]{1,3}", 0..3))
        .prop_map(|(id, parents)| NamedChild { id, parents });
    let records = prop::option::of(prop::collection::vec(record(), 0..6));
    let iterator = prop::option::of("[A-Z+/]{0,300}");
    let behind = prop::option::of(any::<i64>());
    (records, iterator, behind, prop::collection::vec(child, 0..3)).prop_map(
        |(records, next_shard_iterator, millis_behind_latest, child_shards)| OwnedResponse {
            records,
            next_shard_iterator,
            millis_behind_latest,
            child_shards,
        },
    )
}

/// Adds to a map what a decoder must not notice, and changes its order.
fn map(mut members: Vec<(&'static str, Option<Node>)>, choices: &mut Choices) -> Node {
    if choices.one_in(4) {
        let unknown = [
            Node::Null,
            Node::Integer(-1),
            Node::Text("\u{e9}\\".into()),
            Node::Payload(vec![0; 9]),
            Node::List(vec![Node::List(vec![]), Node::Map(vec![("Data", Node::Integer(1))])]),
        ];
        let unknown = unknown[choices.below(5)].clone();
        members.push((["", "Unknown", "Dat", "RecordsRecords"][choices.below(4)], Some(unknown)));
    }
    let first = choices.below(members.len());
    members.rotate_left(first);
    let mut map = Vec::new();
    for (name, value) in members {
        // The last of repeated members counts.
        if choices.one_in(16)
            && let Some(value) = &value
        {
            let other = match value {
                Node::Text(_) => Node::Text("other\n".into()),
                Node::Payload(_) => Node::Payload(b"other".to_vec()),
                Node::Millis(_) => Node::Millis(1_000_000_000_000),
                other => other.clone(),
            };
            map.push((name, other));
        }
        match value {
            Some(value) => map.push((name, value)),
            None if choices.has_nulls && choices.one_in(2) => map.push((name, Node::Null)),
            None => {}
        }
    }
    Node::Map(map)
}

fn list(elements: impl IntoIterator<Item = Node>, choices: &mut Choices) -> Node {
    let mut list = Vec::new();
    for element in elements {
        list.push(element);
        if choices.has_nulls && choices.one_in(8) {
            list.push(Node::Null);
        }
    }
    Node::List(list)
}

fn text(text: &str) -> Node {
    Node::Text(text.to_owned())
}

pub(super) fn node(response: &OwnedResponse, choices: &mut Choices) -> Node {
    let mut record = |record: &OwnedRecord| {
        let encryption_type = match record.encryption_type {
            EncryptionType::Kms => Some(text("KMS")),
            EncryptionType::None => {
                if choices.one_in(2) {
                    Some(text("NONE"))
                } else {
                    None
                }
            }
        };
        let is_empty = record.data.is_empty() && choices.has_nulls && choices.one_in(2);
        let members = vec![
            ("Data", (!is_empty).then(|| Node::Payload(record.data.clone()))),
            ("PartitionKey", record.partition_key.as_deref().map(text)),
            ("SequenceNumber", Some(text(&record.sequence_number))),
            ("ApproximateArrivalTimestamp", record.arrival_millis.map(Node::Millis)),
            ("EncryptionType", encryption_type),
        ];
        map(members, choices)
    };
    let records: Option<Vec<_>> =
        response.records.as_ref().map(|records| records.iter().map(&mut record).collect());
    let child = |child: &NamedChild| {
        let parents = child.parents.iter().map(|id| Node::Text(id.clone())).collect();
        Node::Map(vec![
            ("ShardId", Node::Text(child.id.clone())),
            ("ParentShards", Node::List(parents)),
            ("HashKeyRange", Node::Map(vec![("StartingHashKey", Node::Text("0".into()))])),
        ])
    };
    let children = response.child_shards.iter().map(child);
    let members = vec![
        ("Records", records.map(|records| list(records, choices))),
        ("NextShardIterator", response.next_shard_iterator.as_deref().map(text)),
        ("MillisBehindLatest", response.millis_behind_latest.map(Node::Integer)),
        ("ChildShards", (children.len() > 0).then(|| list(children, choices))),
    ];
    map(members, choices)
}

/// Encodes a value in CBOR.
pub(super) fn cbor(node: &Node, choices: &mut Choices, body: &mut Vec<u8>) {
    while choices.one_in(8) {
        head(6, [1, 24, 70_000, 1 << 40][choices.below(4)], choices, body);
    }
    match node {
        Node::Null => body.push([0xf6, 0xf7][choices.below(2)]),
        Node::Integer(number) if *number < 0 => {
            head(1, (-1 - number).unsigned_abs(), choices, body);
        }
        Node::Integer(number) => head(0, number.unsigned_abs(), choices, body),
        Node::Text(text) => string(3, text.as_bytes(), choices, body),
        Node::Payload(data) if choices.one_in(4) => {
            string(3, aws_smithy_types::base64::encode(data).as_bytes(), choices, body);
        }
        Node::Payload(data) => string(2, data, choices, body),
        Node::Millis(millis) => match choices.below(4) {
            1 if millis % 1000 == 0 => head(0, millis.unsigned_abs() / 1000, choices, body),
            2 => {
                body.push(0xfb);
                body.extend(seconds(*millis).to_be_bytes());
            }
            _ => head(0, millis.unsigned_abs(), choices, body),
        },
        Node::List(list) => {
            let has_length = start(4, list.len(), choices, body);
            for element in list {
                cbor(element, choices, body);
            }
            body.extend((!has_length).then_some(0xff));
        }
        Node::Map(map) => {
            let has_length = start(5, map.len(), choices, body);
            for (name, value) in map {
                string(3, name.as_bytes(), choices, body);
                cbor(value, choices, body);
            }
            body.extend((!has_length).then_some(0xff));
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "exact, see `record`")]
fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

fn start(major: u8, length: usize, choices: &mut Choices, body: &mut Vec<u8>) -> bool {
    let has_length = choices.below(2) == 0;
    if has_length {
        head(major, length as u64, choices, body);
    } else {
        body.push(major << 5 | 31);
    }
    has_length
}

/// Writes a head with the shortest argument, or a longer one.
fn head(major: u8, argument: u64, choices: &mut Choices, body: &mut Vec<u8>) {
    let shortest = match argument {
        0..24 => 0,
        24..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 3,
        _ => 4,
    };
    let form = if choices.one_in(8) { shortest + choices.below(5 - shortest) } else { shortest };
    let bytes = argument.to_be_bytes();
    match form {
        0 => body.push(major << 5 | bytes[7]),
        form => {
            body.push(major << 5 | [24, 25, 26, 27][form - 1]);
            body.extend_from_slice(&bytes[[7, 6, 4, 0][form - 1]..]);
        }
    }
}

fn string(major: u8, value: &[u8], choices: &mut Choices, body: &mut Vec<u8>) {
    if !choices.one_in(8) {
        head(major, value.len() as u64, choices, body);
        body.extend_from_slice(value);
        return;
    }
    body.push(major << 5 | 31);
    for piece in value.chunks(1 + choices.below(20)) {
        head(major, piece.len() as u64, choices, body);
        body.extend_from_slice(piece);
    }
    body.push(0xff);
}

/// Encodes a value in JSON.
pub(super) fn json(node: &Node, choices: &mut Choices, body: &mut String) {
    space(choices, body);
    match node {
        Node::Null => body.push_str("null"),
        Node::Integer(number) => body.push_str(&number.to_string()),
        Node::Text(text) => quoted(text, choices, body),
        Node::Payload(data) => quoted(&aws_smithy_types::base64::encode(data), choices, body),
        Node::Millis(millis) => match choices.below(3) {
            1 => body.extend(format!("{:E}", seconds(*millis)).chars()),
            2 if millis % 1000 == 0 => body.push_str(&(millis / 1000).to_string()),
            _ => body.extend(format!("{}.{:03}", millis / 1000, millis % 1000).chars()),
        },
        Node::List(list) => {
            body.push('[');
            for (number, element) in list.iter().enumerate() {
                body.push_str(if number == 0 { "" } else { "," });
                json(element, choices, body);
            }
            body.push(']');
        }
        Node::Map(map) => {
            body.push('{');
            for (number, (name, value)) in map.iter().enumerate() {
                body.push_str(if number == 0 { "" } else { "," });
                space(choices, body);
                quoted(name, choices, body);
                space(choices, body);
                body.push(':');
                json(value, choices, body);
            }
            body.push('}');
        }
    }
    space(choices, body);
}

fn space(choices: &mut Choices, body: &mut String) {
    if choices.one_in(8) {
        body.push_str([" ", "\n\t", "\r"][choices.below(3)]);
    }
}

fn quoted(text: &str, choices: &mut Choices, body: &mut String) {
    body.push('"');
    let has_escapes = choices.one_in(4);
    for letter in text.chars() {
        match letter {
            '"' | '\\' => body.extend(['\\', letter]),
            '/' if has_escapes => body.push_str("\\/"),
            _ if letter < ' ' || (has_escapes && choices.one_in(4)) => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    body.extend(format!("\\u{unit:04x}").chars());
                }
            }
            _ => body.push(letter),
        }
    }
    body.push('"');
}
