//! Templates of the output: text with fields in braces.

use super::{Row, escape, hex, short};
use crate::time;

/// A parsed template such as `{seq} {key} {data}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Shard,
    ShardId,
    Sequence,
    SubSequence,
    Key,
    Time,
    Data,
    Hex,
    Base64,
    Size,
}

const FIELDS: [(&str, Field); 10] = [
    ("data", Field::Data),
    ("key", Field::Key),
    ("seq", Field::Sequence),
    ("sub", Field::SubSequence),
    ("shard", Field::Shard),
    ("shard_id", Field::ShardId),
    ("time", Field::Time),
    ("hex", Field::Hex),
    ("base64", Field::Base64),
    ("size", Field::Size),
];

impl Template {
    /// Parses a template. `{{` and `}}` are braces; `\n`, `\t` and `\\` are escapes.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            match (letter, letters.peek()) {
                ('{', Some('{')) | ('}', Some('}')) | ('\\', Some('\\')) => {
                    plain.push(letter);
                    letters.next();
                }
                ('\\', Some('n' | 't')) => {
                    plain.push(if letters.next() == Some('n') { '\n' } else { '\t' });
                }
                ('{', _) => {
                    let mut name = String::new();
                    loop {
                        match letters.next() {
                            Some('}') => break,
                            Some(letter) => name.push(letter),
                            None => return Err(format!("the field {{{name} has no }}")),
                        }
                    }
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Field(field(&name)?));
                }
                ('}', _) => return Err("a } has no {; write }} for a brace".to_owned()),
                _ => plain.push(letter),
            }
        }
        parts.push(Part::Text(plain));
        parts.retain(|part| *part != Part::Text(String::new()));
        Ok(Self(parts))
    }

    pub(super) fn write(&self, row: &Row<'_>, is_escaped: bool, out: &mut Vec<u8>) {
        let put = |bytes: &[u8], out: &mut Vec<u8>| {
            if is_escaped {
                out.extend(escape(bytes).as_bytes());
            } else {
                out.extend_from_slice(bytes);
            }
        };
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(Field::Data) => put(row.payload.bytes(), out),
                Part::Field(Field::Key) => put(row.key.unwrap_or_default().as_bytes(), out),
                Part::Field(field) => out.extend_from_slice(value(*field, row).as_bytes()),
            }
        }
    }
}

fn value(field: Field, row: &Row<'_>) -> String {
    let data = row.payload.bytes();
    match field {
        Field::Shard => short(row.shard).to_owned(),
        Field::ShardId => row.shard.to_owned(),
        Field::Sequence => row.sequence_number.to_owned(),
        Field::SubSequence => row.sub_sequence_number.to_string(),
        Field::Time => row.arrival.map(time::shown).unwrap_or_default(),
        Field::Hex => hex(data),
        Field::Base64 => base64_simd::STANDARD.encode_to_string(data),
        Field::Size => data.len().to_string(),
        // Written as bytes.
        Field::Key | Field::Data => String::new(),
    }
}

fn field(name: &str) -> Result<Field, String> {
    let found = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
    found.ok_or_else(|| {
        let names = FIELDS.map(|(name, _)| format!("{{{name}}}")).join(" ");
        format!("unknown field {{{name}}}; the fields are {names}; write {{{{ for a brace")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn braces_and_escapes_are_text() {
        let parsed = Template::parse(r"{{{key}}}\t\\x").unwrap();
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(parsed.0, [text("{"), Part::Field(Field::Key), text("}\t\\x")]);
    }

    #[test]
    fn unknown_field_is_refused_with_the_known_ones() {
        let error = Template::parse("{sequence}").unwrap_err();
        assert!(
            error.starts_with("unknown field {sequence}; the fields are {data} {key} {seq}"),
            "{error}"
        );
        assert!(Template::parse("a}").is_err());
        assert_eq!(Template::parse("{data").unwrap_err(), "the field {data has no }");
    }

    proptest! {
        #[test]
        fn no_template_panics(text in ".{0,40}") {
            let _parsed_or_refused = Template::parse(&text);
        }

        #[test]
        fn text_without_braces_and_escapes_is_kept(text in "[^{}\\\\]{1,40}") {
            prop_assert_eq!(Template::parse(&text).unwrap().0, [Part::Text(text)]);
        }
    }
}
