use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Error, ErrorKind};

/// The maximum length by the API.
const MAX_LENGTH: usize = 128;

/// The name of a shard, such as `shardId-000000000000`. Cheap to clone.
///
/// ```
/// use kinestream::ShardId;
///
/// let shard: ShardId = "shardId-000000000000".parse()?;
/// assert_eq!(shard.as_str(), "shardId-000000000000");
/// assert!("no spaces".parse::<ShardId>().is_err());
/// # Ok::<(), kinestream::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(Arc<str>);

impl ShardId {
    /// Returns the name as Kinesis writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name without a copy.
    #[cfg(feature = "metrics")]
    pub(crate) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for ShardId {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] if the name does not match the API's pattern: 1 to 128 letters,
    /// digits, `_`, `.` and `-`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(Error::new(
                ErrorKind::Configuration,
                format!(
                    "invalid shard ID {text:?}; expected 1 to 128 letters, digits, '_', '.' or '-', \
                     such as shardId-000000000000"
                ),
            ))
        }
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ShardId({})", self.0)
    }
}
