//! Partition keys from a template.

use serde_json::Value;

use super::lines::Line;

/// The longest key, in characters:
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecordsRequestEntry.html>.
const LONGEST_KEY: usize = 256;

/// A template such as `{.customer.id}` or `host-7-{random}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Line,
    Number,
    Random,
    /// A field of a line of JSON, by the names on its path.
    Field(Vec<String>),
}

impl KeyTemplate {
    /// Parses a template. `{{` and `}}` are braces.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            plain += before;
            if brace.starts_with("{{") || brace.starts_with("}}") {
                plain.push_str(&brace[..1]);
                rest = &brace[2..];
                continue;
            }
            let (name, after) = brace
                .strip_prefix('{')
                .and_then(|field| field.split_once('}'))
                .ok_or("a brace has no partner; write {{ or }} for a brace")?;
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(part(name)?);
            rest = after;
        }
        plain += rest;
        parts.push(Part::Text(plain));
        parts.retain(|part| *part != Part::Text(String::new()));
        if parts.is_empty() {
            return Err("a partition key is not empty".to_owned());
        }
        Ok(Self(parts))
    }

    /// Returns the key of a line, or says why the line has none.
    pub(super) fn key(&self, line: &Line) -> Result<String, String> {
        let mut key = String::new();
        let mut json: Option<Value> = None;
        for part in &self.0 {
            match part {
                Part::Text(text) => key += text,
                Part::Line => {
                    key += std::str::from_utf8(&line.data).map_err(|_| "the line is not UTF-8")?;
                }
                Part::Number => key += &line.origin.overall.to_string(),
                Part::Random => key += &format!("{:032x}", fastrand::u128(..)),
                Part::Field(path) => {
                    if json.is_none() {
                        let parsed = serde_json::from_slice(&line.data);
                        json =
                            Some(parsed.map_err(|error| format!("the line is not JSON: {error}"))?);
                    }
                    key += &field(json.as_ref().unwrap_or(&Value::Null), path)?;
                }
            }
        }
        match key.chars().count() {
            0 => Err("the key is empty".to_owned()),
            1..=LONGEST_KEY => Ok(key),
            length => Err(format!("the key has {length} characters; Kinesis allows {LONGEST_KEY}")),
        }
    }
}

fn part(name: &str) -> Result<Part, String> {
    match name {
        "line" => Ok(Part::Line),
        "number" => Ok(Part::Number),
        "random" => Ok(Part::Random),
        _ => match name.strip_prefix('.') {
            Some(path) if !path.is_empty() && path.split('.').all(|name| !name.is_empty()) => {
                Ok(Part::Field(path.split('.').map(str::to_owned).collect()))
            }
            _ => Err(format!(
                "unknown field {{{name}}}; the fields are {{line}}, {{number}}, {{random}}, and \
                 {{.name}} for a field of JSON"
            )),
        },
    }
}

/// Returns the text of a field: of a string its text, of a number its digits.
fn field(json: &Value, path: &[String]) -> Result<String, String> {
    let mut found = Some(json);
    for name in path {
        found = match found {
            Some(Value::Array(items)) => {
                name.parse().ok().and_then(|index: usize| items.get(index))
            }
            Some(value) => value.get(name),
            None => None,
        };
    }
    match found {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(_) => Err(format!("the field .{} is not a string or a number", path.join("."))),
        None => Err(format!("the line has no field .{}", path.join("."))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(template: &str, line: &str) -> Result<String, String> {
        KeyTemplate::parse(template).expect(template).key(&Line::of(7, line))
    }

    #[test]
    fn key_is_made_of_text_and_fields() {
        let json = r#"{"customer":{"id":42,"name":"Jane"},"items":["tea"],"none":null}"#;
        assert_eq!(key("{line}", "plain").unwrap(), "plain");
        assert_eq!(key("host-{number}{{}}", "x").unwrap(), "host-7{}");
        assert_eq!(key("{.customer.name}/{.customer.id}", json).unwrap(), "Jane/42");
        assert_eq!(key("{.items.0}", json).unwrap(), "tea");
        assert_ne!(key("{random}", "x"), key("{random}", "x"));
    }

    #[test]
    fn line_without_a_key_is_refused_with_the_reason() {
        let json = r#"{"customer":{"id":42},"none":null}"#;
        assert_eq!(
            key("{.customer.name}", json).unwrap_err(),
            "the line has no field .customer.name"
        );
        assert_eq!(
            key("{.none}", json).unwrap_err(),
            "the field .none is not a string or a number"
        );
        assert!(key("{.a}", "text").unwrap_err().starts_with("the line is not JSON"));
        assert_eq!(key("{line}", "").unwrap_err(), "the key is empty");
        assert_eq!(
            key("{line}", &"é".repeat(257)).unwrap_err(),
            "the key has 257 characters; Kinesis allows 256"
        );
        assert_eq!(key("{line}", &"é".repeat(256)).unwrap().chars().count(), 256);
    }

    #[test]
    fn wrong_templates_are_refused() {
        for template in ["{", "}", "a{b", "{nope}", "{.}", "{.a..b}", ""] {
            assert!(KeyTemplate::parse(template).is_err(), "expected {template:?} to be refused");
        }
    }

    proptest! {
        #[test]
        fn no_template_panics(template in ".{0,30}", line in ".{0,30}") {
            if let Ok(template) = KeyTemplate::parse(&template) {
                let _key_or_reason = template.key(&Line::of(1, &line));
            }
        }

        #[test]
        fn text_without_braces_is_the_key(text in "[^{}]{1,40}") {
            prop_assert_eq!(key(&text, "x").unwrap(), text);
        }
    }
}
