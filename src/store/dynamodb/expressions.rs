//! The expressions of one request on one item, and the values in them.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;

/// The attributes of an item.
pub(super) type Item = HashMap<String, AttributeValue>;

/// The text that stands for a stored value of another type than a string. No text of the crate
/// contains a zero byte.
const NOT_TEXT: &str = "\0not a string";

/// Returns the value of a text.
pub(super) fn text(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

/// Returns the value of a number.
pub(super) fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// Returns the text of a value, or a text that cannot be read.
pub(super) fn read_text(value: &AttributeValue) -> Arc<str> {
    value.as_s().map_or(NOT_TEXT, String::as_str).into()
}

/// Returns the text of an attribute, if the item has it.
pub(super) fn text_of(item: &Item, attribute: &str) -> Option<Arc<str>> {
    item.get(attribute).map(read_text)
}

/// Returns the number of a value; `None` if it is not a whole number of 64 bits.
pub(super) fn read_number(value: &AttributeValue) -> Option<u64> {
    value.as_n().ok()?.parse().ok()
}

/// The conditions and updates of one item. The names and values are placeholders, since many names
/// are reserved words of DynamoDB.
#[derive(Debug, Clone, Default)]
pub(super) struct Expressions {
    names: Names,
    values: Item,
    conditions: Vec<String>,
    sets: Vec<String>,
    removes: Vec<String>,
}

/// The names behind placeholders.
type Names = HashMap<String, String>;

impl Expressions {
    fn name(&mut self, attribute: &str) -> String {
        let placeholder = format!("#{}", self.names.len());
        self.names.insert(placeholder.clone(), attribute.to_owned());
        placeholder
    }

    fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    /// Requires that an attribute has this value; `None` if it must not exist.
    pub(super) fn require(mut self, attribute: &str, value: Option<AttributeValue>) -> Self {
        let name = self.name(attribute);
        let condition = match value {
            Some(value) => format!("{name} = {}", self.value(value)),
            None => format!("attribute_not_exists({name})"),
        };
        self.conditions.push(condition);
        self
    }

    /// Sets an attribute; `None` removes it.
    pub(super) fn set(mut self, attribute: &str, value: Option<AttributeValue>) -> Self {
        let name = self.name(attribute);
        match value {
            Some(value) => {
                let value = self.value(value);
                self.sets.push(format!("{name} = {value}"));
            }
            None => self.removes.push(name),
        }
        self
    }

    /// Returns the condition; `None` if there is none.
    pub(super) fn condition(&self) -> Option<String> {
        (!self.conditions.is_empty()).then(|| self.conditions.join(" AND "))
    }

    /// Returns the update; `None` if nothing is set or removed.
    pub(super) fn update(&self) -> Option<String> {
        let part = |word: &str, parts: &[String]| {
            (!parts.is_empty()).then(|| format!("{word} {}", parts.join(", ")))
        };
        let parts: Vec<String> = [part("SET", &self.sets), part("REMOVE", &self.removes)]
            .into_iter()
            .flatten()
            .collect();
        (!parts.is_empty()).then(|| parts.join(" "))
    }

    /// Returns the names; `None` if there is none.
    pub(super) fn names(&self) -> Option<HashMap<String, String>> {
        (!self.names.is_empty()).then(|| self.names.clone())
    }

    /// Returns the values; `None` if there is none.
    pub(super) fn values(&self) -> Option<Item> {
        (!self.values.is_empty()).then(|| self.values.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_name_each_attribute_and_value_once() {
        let expressions = Expressions::default()
            .require("text", Some(text("old")))
            .require("fence", None)
            .set("text", Some(text("new")))
            .set("saver", None);
        assert_eq!(
            expressions.condition().as_deref(),
            Some("#0 = :0 AND attribute_not_exists(#1)")
        );
        assert_eq!(expressions.update().as_deref(), Some("SET #2 = :1 REMOVE #3"));
        assert_eq!(expressions.names().map(|names| names.len()), Some(4));
        assert_eq!(expressions.values().map(|values| values.len()), Some(2));
        let none = Expressions::default();
        assert_eq!(
            (none.condition(), none.update(), none.names(), none.values()),
            Default::default()
        );
    }

    #[test]
    fn values_of_other_types_are_no_texts_and_no_numbers() {
        assert_eq!(&*read_text(&text("a")), "a");
        assert_eq!(&*read_text(&number(7)), NOT_TEXT);
        assert_eq!(read_number(&number(u64::MAX)), Some(u64::MAX));
        for refused in [text("7"), AttributeValue::N("1.5".into()), AttributeValue::N("-1".into())]
        {
            assert_eq!(read_number(&refused), None, "{refused:?}");
        }
    }
}
