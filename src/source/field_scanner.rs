//! Detects which fields a response contains. The SDK replaces a missing field with a default, such
//! as an empty list of records or a lag of 0.
//!
//! Only the names in the outermost object count, so the text of a record is never taken for a name.

use memchr::memchr2;

const RECORDS: &[u8] = b"Records";
const LAG: &[u8] = b"MillisBehindLatest";

/// The fields that a response contains with a value other than `null`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NamedFields {
    pub(super) records: bool,
    pub(super) lag: bool,
}

/// Scans the field names of a JSON response, in chunks of any length.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "the flags are independent")]
pub(super) struct FieldScanner {
    /// The number of open objects and arrays.
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
    /// True if the next string in the outermost object is a name.
    expects_name: bool,
    /// True if the next value in the outermost object belongs to `name`.
    expects_value: bool,
    /// The last name in the outermost object.
    name: Vec<u8>,
    records: bool,
    lag: bool,
    /// True if the text does not begin with a JSON object.
    is_foreign: bool,
}

impl FieldScanner {
    /// Returns the fields of a complete text.
    pub(super) fn of(text: &[u8]) -> NamedFields {
        let mut members = Self::default();
        members.read(text);
        members.named()
    }

    /// Returns the fields found so far. If the encoding is not JSON, all fields count as present.
    pub(super) fn named(&self) -> NamedFields {
        NamedFields { records: self.records || self.is_foreign, lag: self.lag || self.is_foreign }
    }

    pub(super) fn read(&mut self, mut data: &[u8]) {
        while !self.is_foreign {
            if self.is_in_string {
                data = self.read_string(data);
            }
            let Some((byte, rest)) = data.split_first() else { return };
            self.read_mark(*byte);
            data = rest;
        }
    }

    /// Reads the rest of a string, and returns the data after it.
    fn read_string<'a>(&mut self, mut data: &'a [u8]) -> &'a [u8] {
        let is_name = self.depth == 1 && self.expects_name;
        while let Some((byte, rest)) = data.split_first() {
            if std::mem::take(&mut self.is_escaped) {
                if is_name {
                    self.name.push(*byte);
                }
                data = rest;
                continue;
            }
            let length = memchr2(b'"', b'\\', data).unwrap_or(data.len());
            let (part, rest) = data.split_at(length);
            if is_name {
                self.name.extend_from_slice(part);
            }
            let Some((byte, rest)) = rest.split_first() else { return rest };
            if *byte == b'"' {
                self.is_in_string = false;
                self.expects_name &= !is_name;
                return rest;
            }
            self.is_escaped = true;
            if is_name {
                self.name.push(*byte);
            }
            data = rest;
        }
        data
    }

    /// Reads a byte outside a string.
    fn read_mark(&mut self, byte: u8) {
        if byte.is_ascii_whitespace() {
            return;
        }
        if self.depth == 0 && byte != b'{' {
            self.is_foreign = true;
            return;
        }
        if self.depth == 1 && std::mem::take(&mut self.expects_value) {
            let is_named = byte != b'n';
            match &self.name[..] {
                RECORDS => self.records = is_named,
                LAG => self.lag = is_named,
                _ => {}
            }
        }
        match byte {
            b'"' => {
                self.is_in_string = true;
                if self.depth == 1 && self.expects_name {
                    self.name.clear();
                }
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.expects_name = self.depth == 1;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' if self.depth == 1 => self.expects_name = true,
            b':' if self.depth == 1 => self.expects_value = true,
            _ => {}
        }
    }
}

/// Scans the field names in the payload of one event stream message, in chunks of any length:
/// <https://smithy.io/2.0/aws/amazon-eventstream.html>.
#[derive(Debug)]
pub(super) struct MessageFieldScanner {
    /// The length of the message.
    length: usize,
    /// The number of bytes of the message that were read.
    read: usize,
    /// The length of the headers, as far as it was read.
    headers: usize,
    members: FieldScanner,
}

/// The bytes of the prelude that hold the length of the headers.
const HEADERS_LENGTH: std::ops::Range<usize> = 4..8;
/// The length of the prelude before the headers: the length of the message, the length of the
/// headers, and a checksum, of four bytes each.
const PRELUDE: usize = 12;
/// The length of the checksum after the payload.
const CHECKSUM: usize = 4;

impl MessageFieldScanner {
    /// Creates a scanner that continues after the first four bytes of a message, which are its
    /// length.
    pub(super) fn new(length: usize) -> Self {
        Self { length, read: HEADERS_LENGTH.start, headers: 0, members: FieldScanner::default() }
    }

    pub(super) fn named(&self) -> NamedFields {
        self.members.named()
    }

    pub(super) fn read(&mut self, part: &[u8]) {
        let mut part = part;
        while self.read < PRELUDE {
            let Some((byte, rest)) = part.split_first() else { return };
            if HEADERS_LENGTH.contains(&self.read) {
                self.headers = self.headers << 8 | usize::from(*byte);
            }
            self.read += 1;
            part = rest;
        }
        let from = PRELUDE.saturating_add(self.headers).saturating_sub(self.read);
        let until = self.length.saturating_sub(CHECKSUM).saturating_sub(self.read);
        self.read = self.read.saturating_add(part.len());
        if let Some(payload) = part.get(from..until.min(part.len())) {
            self.members.read(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(records: bool, lag: bool) -> NamedFields {
        NamedFields { records, lag }
    }

    #[test]
    fn only_fields_of_the_outermost_object_count() {
        let cases: [(&str, NamedFields); 9] = [
            ("{}", named(false, false)),
            (r#"{"Records":[],"MillisBehindLatest":0}"#, named(true, true)),
            (" { \"MillisBehindLatest\" : 5 , \"x\" : {\"Records\": 1} }", named(false, true)),
            (r#"{"Records":null,"MillisBehindLatest":null}"#, named(false, false)),
            (r#"{"Records":[{"MillisBehindLatest":1}]}"#, named(true, false)),
            (
                r#"{"Records":[{"PartitionKey":"\",\"MillisBehindLatest\":1,\""}]}"#,
                named(true, false),
            ),
            (r#"{"a":"MillisBehindLatest","b":"\\\"Records\":1"}"#, named(false, false)),
            (r#"{"a":"}","Records":[],"b":"{["}"#, named(true, false)),
            ("\u{a3}cbor", named(true, true)),
        ];
        for (text, expected) in cases {
            assert_eq!(FieldScanner::of(text.as_bytes()), expected, "{text}");
        }
    }

    proptest! {
        /// With chunks of any length and records that hold any text.
        #[test]
        fn fields_are_found_for_any_chunks_and_records(
            keys in prop::collection::vec(
                prop_oneof![".*", r#"[\\"{}\[\],:]*"#, Just("\"MillisBehindLatest\":1".to_owned())],
                0..4,
            ),
            has_records: bool,
            has_lag: bool,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            headers in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut answer = serde_json::Map::new();
            if has_lag {
                answer.insert("MillisBehindLatest".to_owned(), 0.into());
            }
            let records = keys.iter().map(|key| serde_json::json!({ "PartitionKey": key }));
            let name = if has_records { "Records" } else { "Others" };
            answer.insert(name.to_owned(), records.collect());
            let payload = serde_json::to_vec(&answer).unwrap();
            prop_assert_eq!(FieldScanner::of(&payload), named(has_records, has_lag));
            let length = PRELUDE + headers.len() + payload.len() + CHECKSUM;
            let mut rest = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
            rest.extend(b"{\"{\"");
            rest.extend(headers);
            rest.extend(payload);
            rest.extend(b"}{\"\\");
            let mut message = MessageFieldScanner::new(length);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(rest.len())).collect();
            cuts.sort_unstable();
            let mut begin = 0;
            for end in cuts.into_iter().chain([rest.len()]) {
                message.read(&rest[begin..end]);
                begin = end;
            }
            prop_assert_eq!(message.named(), named(has_records, has_lag));
        }
    }
}
