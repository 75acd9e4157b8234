//! Scopes: the application and the stream that a set of positions belongs to.

use std::fmt;
use std::sync::Arc;

use crate::record::ShardId;

/// The maximum length of an account id or region in an ARN. Account ids have 12 digits, and names
/// of regions have fewer than 20 letters
/// (<https://docs.aws.amazon.com/general/latest/gr/rande.html>).
const LONGEST_PART: usize = 32;

/// The prefix of the shard ids of marks: see [`Scope::mark`].
const MARK: &str = "positions-";

/// Identifies an application and the stream that it reads. A store keeps the positions of each
/// scope separate.
///
/// A stream given by its name is identified by that name. A stream given by its ARN is identified
/// by account, region and name, since streams in other regions and accounts may have the same name.
/// The partition is left out: no two partitions have a region of the same name.
///
/// ```
/// use kinestream::store::Scope;
///
/// let scope = Scope::new("billing", "orders");
/// assert_eq!(scope.to_string(), "billing:orders");
///
/// let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
/// let scope = Scope::new("billing", arn);
/// assert_eq!(scope.stream(), "123456789012:eu-west-1:orders");
/// assert_eq!(scope.stream_name(), "orders");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    application: Arc<str>,
    stream: Arc<str>,
    name: Arc<str>,
}

impl Scope {
    /// Creates the scope of `application` and `stream`, which is the name or the ARN of a stream.
    pub fn new(application: impl Into<Arc<str>>, stream: impl Into<Arc<str>>) -> Self {
        let (application, given) = (application.into(), stream.into());
        match parse_arn(&given) {
            Some(arn) => Self {
                application,
                stream: format!("{}:{}:{}", arn.account, arn.region, arn.name).into(),
                name: arn.name.into(),
            },
            None => Self { application, stream: Arc::clone(&given), name: given },
        }
    }

    /// Returns the application's name.
    pub fn application(&self) -> &str {
        &self.application
    }

    pub(crate) fn application_name(&self) -> &Arc<str> {
        &self.application
    }

    /// Returns the identity of the stream, by which a store keys positions: `account:region:name`
    /// for an ARN, otherwise the name.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Returns the stream's name. Streams of other accounts and regions may have the same name.
    pub fn stream_name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_stream_name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the scope of the same application and the stream's name alone; `None` if this is
    /// that scope.
    pub(crate) fn by_name(&self) -> Option<Self> {
        let named = Self {
            application: Arc::clone(&self.application),
            stream: Arc::clone(&self.name),
            name: Arc::clone(&self.name),
        };
        (named != *self).then_some(named)
    }

    /// Returns the shard id under which the table of the stream's name records a step of the scope
    /// migration to this ARN. No shard of Kinesis has such an id.
    pub(crate) fn mark(&self, done: Mark) -> ShardId {
        let of = self.stream.strip_suffix(&*self.name).unwrap_or_default();
        let of = of.trim_end_matches(':').replace(':', ".");
        let word = match done {
            Mark::Claimed => "claimed",
            Mark::Migrated => "taken-over",
        };
        match format!("{MARK}{word}.{of}").parse() {
            Ok(mark) => mark,
            Err(error) => unreachable!("account and region are valid in a shard id: {error}"),
        }
    }
}

/// A step of the scope migration: the move of positions from the stream's name to its ARN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The consumers of one ARN have claimed the positions.
    Claimed,
    /// The positions were moved.
    Migrated,
}

impl Mark {
    /// Returns true if a shard id is that of a mark and not of a shard of Kinesis.
    pub(crate) fn is_one(shard: &ShardId) -> bool {
        shard.as_str().starts_with(MARK)
    }

    /// Returns true if a shard id is that of a claim, by any ARN.
    pub(crate) fn is_claim(shard: &ShardId) -> bool {
        shard.as_str().strip_prefix(MARK).is_some_and(|rest| rest.starts_with("claimed."))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.application, self.stream)
    }
}

/// The parts of a stream's ARN that identify the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StreamArn<'a> {
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) name: &'a str,
}

/// Parses `arn:partition:kinesis:region:account:stream/name`. The characters of the name are not
/// checked.
pub(crate) fn parse_arn(text: &str) -> Option<StreamArn<'_>> {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next();
    let is_plain = |part: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=LONGEST_PART).contains(&part.len()) && part.bytes().all(allowed)
    };
    next().filter(|word| *word == "arn")?;
    next().filter(is_plain)?;
    next().filter(|service| *service == "kinesis")?;
    let (region, account) = (next().filter(is_plain)?, next().filter(is_plain)?);
    let name = next()?.strip_prefix("stream/")?;
    Some(StreamArn { region, account, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";

    #[test]
    fn streams_with_same_name_have_separate_scopes() {
        let of = |stream: &str| Scope::new("billing", stream);
        let other_region = ARN.replace("eu-west-1", "us-east-1");
        let other_account = ARN.replace('9', "8");
        let scopes = [of("orders"), of(ARN), of(&other_region), of(&other_account)];
        let texts = scopes.each_ref().map(Scope::to_string);
        for (index, text) in texts.iter().enumerate() {
            assert!(!texts[..index].contains(text), "{texts:?}");
            assert_eq!(scopes[index].stream_name(), "orders");
        }
        assert_eq!(of(ARN).by_name(), Some(of("orders")));
        assert_eq!(of("orders").by_name(), None);
    }

    #[test]
    fn text_without_stream_arn_is_used_as_name() {
        for text in [
            "orders",
            "arn:aws:kinesis:eu-west-1:123456789012:orders",
            "arn:aws:kinesis::123456789012:stream/orders",
            "arn:aws:kinesis:eu-west-1::stream/orders",
            "arn:aws:kinesis:eu-west-1:12 34:stream/orders",
            "arn:aws:sqs:eu-west-1:123456789012:stream/orders",
        ] {
            assert_eq!(parse_arn(text), None, "{text}");
            assert_eq!(Scope::new("billing", text).stream(), text);
        }
    }

    #[test]
    fn mark_has_a_valid_shard_id() {
        let longest = "a".repeat(LONGEST_PART);
        let name = "n".repeat(128);
        let scope = Scope::new("b", format!("arn:aws:kinesis:{longest}:{longest}:stream/{name}"));
        let marks = [Mark::Claimed, Mark::Migrated].map(|mark| scope.mark(mark));
        assert_eq!(marks.each_ref().map(Mark::is_claim), [true, false]);
        assert!(marks.iter().all(Mark::is_one));
        let other = Scope::new("b", ARN).mark(Mark::Claimed);
        assert_eq!(other.as_str(), "positions-claimed.123456789012.eu-west-1");
    }
}
