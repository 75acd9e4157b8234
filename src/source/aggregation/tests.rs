use proptest::prelude::*;
use prost::Message;

use super::*;

/// A part as producers encode it.
#[derive(Clone, PartialEq, Message)]
struct PackedPart {
    #[prost(uint64, optional, tag = "1")]
    key: Option<u64>,
    #[prost(uint64, optional, tag = "2")]
    hash_key: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "3")]
    data: Option<Vec<u8>>,
}

/// A complete message, as producers encode it.
#[derive(Clone, PartialEq, Message)]
struct PackedMessage {
    #[prost(string, repeated, tag = "1")]
    keys: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    hash_keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    parts: Vec<PackedPart>,
}

/// Adds the magic number and the checksum to a message.
fn sealed(message: &[u8]) -> Vec<u8> {
    [&MAGIC, message, &Md5::digest(message)[..]].concat()
}

/// Parses an aggregate that is in the middle of a buffer. Returns it with the buffer.
fn parse(data: &[u8]) -> Option<(Aggregate, Vec<u8>)> {
    let buffer = [b"before", data, b"after"].concat();
    let range = ByteRange::new(6, 6 + data.len())?;
    Some((Aggregate::of(range, &buffer)?, buffer))
}

/// Returns the kept parts from a position on.
fn parts<'a>(
    aggregate: &'a Aggregate,
    mut at: PartCursor,
    buffer: &'a [u8],
) -> impl Iterator<Item = Part> + 'a {
    std::iter::from_fn(move || {
        let (part, after) = aggregate.part(at, buffer)?;
        at = after;
        Some(part)
    })
}

fn text(range: ByteRange, buffer: &[u8]) -> String {
    String::from_utf8(range.of(buffer).to_vec()).unwrap()
}

fn packed(keys: &[&str], hash_keys: &[&str], parts: &[(u64, Option<u64>, &str)]) -> PackedMessage {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let part = |(key, hash_key, data): &(u64, Option<u64>, &str)| PackedPart {
        key: Some(*key),
        hash_key: *hash_key,
        data: Some(data.as_bytes().to_vec()),
    };
    let parts = parts.iter().map(part).collect();
    PackedMessage { keys: owned(keys), hash_keys: owned(hash_keys), parts }
}

fn any_packed() -> impl Strategy<Value = PackedMessage> {
    let keys = prop::collection::vec("[a-c\u{e9}]{1,3}", 1..4);
    let hash_keys = prop::collection::vec("0|[1-9][0-9]{0,36}", 0..3);
    (keys, hash_keys).prop_flat_map(|(keys, hash_keys)| {
        let part = (
            0..keys.len() as u64,
            prop::option::of(0..hash_keys.len().max(1) as u64),
            prop::collection::vec(any::<u8>(), 0..20),
        );
        prop::collection::vec(part, 1..8).prop_map(move |parts| PackedMessage {
            keys: keys.clone(),
            hash_keys: hash_keys.clone(),
            parts: parts
                .into_iter()
                .map(|(key, hash_key, data)| PackedPart {
                    key: Some(key),
                    hash_key: hash_key.filter(|_| !hash_keys.is_empty()),
                    data: Some(data),
                })
                .collect(),
        })
    })
}

/// Computes the hash key of a part directly from the unencoded message.
fn hash(packed: &PackedMessage, part: &PackedPart) -> u128 {
    let text = |table: &Vec<String>, index: u64| table[usize::try_from(index).unwrap()].clone();
    part.hash_key.map_or_else(
        || u128::from_be_bytes(Md5::digest(text(&packed.keys, part.key.unwrap())).into()),
        |index| text(&packed.hash_keys, index).parse().unwrap(),
    )
}

#[test]
fn shortest_entries_are_parsed() {
    let message = packed(&["a", "a"], &["0"], &[(0, None, "")]);
    let (aggregate, buffer) = parse(&sealed(&message.encode_to_vec())).unwrap();
    let parts: Vec<Part> = parts(&aggregate, aggregate.first(), &buffer).collect();
    let [part] = &parts[..] else { panic!("expected one part, got {parts:?}") };
    assert_eq!((part.number, text(part.key, &buffer), part.data.len()), (0, "a".to_owned(), 0));
    assert!(part.is_last);
}

proptest! {
    #[test]
    fn aggregate_yields_its_parts_within_the_range(
        packed in any_packed(),
        border in any::<u128>(),
        above in any::<bool>(),
        skipped in prop::option::of(0..9_u64),
    ) {
        let range = if above {
            HashRange { first: border, last: u128::MAX }
        } else {
            HashRange { first: 0, last: border }
        };
        let (mut aggregate, buffer) = parse(&sealed(&packed.encode_to_vec())).unwrap();
        let mut at = aggregate.first();
        while let (Some((part, after)), Some(skipped)) = (aggregate.part(at, &buffer), skipped)
            && part.number <= skipped
        {
            at = after;
        }
        let dropped = aggregate.retain(&range, at, &buffer);
        prop_assert_eq!(aggregate.len() + dropped, packed.parts.len());
        let inside = |(number, part): &(usize, &PackedPart)| {
            range.contains(hash(&packed, part)) && skipped.is_none_or(|skipped| *number as u64 > skipped)
        };
        let expected: Vec<_> = packed.parts.iter().enumerate().filter(inside).collect();
        let mut kept = parts(&aggregate, at, &buffer);
        for (left, (number, stored)) in expected.iter().enumerate() {
            let part = kept.next().unwrap();
            let key = &packed.keys[usize::try_from(stored.key.unwrap()).unwrap()];
            prop_assert_eq!((part.number, &text(part.key, &buffer)), (*number as u64, key));
            prop_assert_eq!(Some(part.data.of(&buffer)), stored.data.as_deref());
            prop_assert_eq!(part.is_last, left + 1 == expected.len());
        }
        prop_assert!(kept.next().is_none());
    }

    /// Untrusted bytes with a valid checksum.
    #[test]
    fn entries_are_at_most_as_many_as_the_message_has_room_for(
        packed in any_packed(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        end in any::<prop::sample::Index>(),
    ) {
        let mut message = packed.encode_to_vec();
        for (index, byte) in &changes {
            let index = index.index(message.len());
            message[index] = *byte;
        }
        if changes.len() > 2 {
            message.truncate(end.index(message.len()));
        }
        if let Some((aggregate, buffer)) = parse(&sealed(&message)) {
            let tables = aggregate.keys.capacity() + aggregate.hash_keys.capacity();
            prop_assert!((tables + aggregate.len()) * SHORTEST_ENTRY <= message.len());
            let parts = parts(&aggregate, aggregate.first(), &buffer);
            prop_assert_eq!(parts.count(), aggregate.len());
        }
    }

    #[test]
    fn random_bytes_are_not_an_aggregate(data in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(parse(&data).is_none());
        let _parsed = parse(&sealed(&data));
    }
}

#[test]
fn invalid_aggregate_is_a_plain_record() {
    let good = packed(&["key"], &["7"], &[(0, Some(0), "data")]);
    let message = good.encode_to_vec();
    assert!(parse(&sealed(&message)).is_some());
    let with = |change: fn(&mut PackedMessage)| {
        let mut packed = good.clone();
        change(&mut packed);
        sealed(&packed.encode_to_vec())
    };
    let mut other_sum = sealed(&message);
    *other_sum.last_mut().unwrap() ^= 1;
    let mut other_magic = sealed(&message);
    other_magic[3] ^= 1;
    let cases: [(&str, Vec<u8>); 15] = [
        ("empty data", Vec::new()),
        ("only the magic number", MAGIC.to_vec()),
        ("an empty message", sealed(&[])),
        ("a wrong checksum", other_sum),
        ("a wrong magic number", other_magic),
        ("a truncated message", sealed(&message[..message.len() - 1])),
        ("no part", with(|packed| packed.parts.clear())),
        ("a key index past the end", with(|packed| packed.parts[0].key = Some(1))),
        ("a key index of 2^64 - 1", with(|packed| packed.parts[0].key = Some(u64::MAX))),
        ("no key index", with(|packed| packed.parts[0].key = None)),
        ("a hash key index past the end", with(|packed| packed.parts[0].hash_key = Some(1))),
        ("no payload", with(|packed| packed.parts[0].data = None)),
        ("a hash key with a sign", with(|packed| packed.hash_keys[0] = "+7".into())),
        (
            "a hash key of more than 128 bits",
            with(|packed| packed.hash_keys[0] = "340282366920938463463374607431768211456".into()),
        ),
        ("a partition key that is not UTF-8", sealed(&[&[0x0A, 1, 0xFF][..], &message].concat())),
    ];
    for (what, data) in cases {
        assert!(parse(&data).is_none(), "{what}");
    }
}

#[test]
fn unknown_fields_are_skipped() {
    let message = packed(&["key"], &[], &[(0, None, "data")]).encode_to_vec();
    // A varint, a 64-bit value, a length-delimited value and a 32-bit value.
    let unknown = [&[0x20, 0x96, 0x01][..], &[0x29], &[0; 8], &[0x32, 2, 1, 2], &[0x3D], &[0; 4]];
    let data = sealed(&[&unknown.concat()[..], &message].concat());
    let (aggregate, buffer) = parse(&data).unwrap();
    assert_eq!(parts(&aggregate, aggregate.first(), &buffer).count(), 1);
    // A group, which no producer writes.
    assert!(parse(&sealed(&[&[0x23, 0x24][..], &message].concat())).is_none());
}

#[test]
fn hostile_messages_are_rejected() {
    // 500,000 empty parts, 500,000 empty keys, and a part that consists of nested groups.
    let none = [0x1A, 0].repeat(500_000);
    let keys = [&[0x0A, 0].repeat(500_000)[..], &[0x1A, 4, 0x08, 0, 0x1A, 0]].concat();
    let mut nested = vec![0x08, 0, 0x1A, 0];
    nested.extend([0x23].repeat(100_000));
    let mut deep = vec![0x0A, 1, b'k', 0x1A];
    prost::encode_length_delimiter(nested.len(), &mut deep).unwrap();
    deep.extend(nested);
    for message in [none, keys, deep] {
        assert!(parse(&sealed(&message)).is_none());
    }
    // A length of 2^64 - 1.
    let endless = [&[0x1A][..], &[0xFF; 9], &[0x01]].concat();
    assert!(parse(&sealed(&endless)).is_none());
}
