//! The Redis keys of one application and stream.

use crate::store::Scope;

/// The version of the layout of keys and values.
pub(super) const FORMAT: &str = "1";

/// A key, identified by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Format,
    Checkpoints,
    Leases,
    Workers,
    Fleet,
    Steps,
}

impl Key {
    /// The keys in the order of the scripts' arguments.
    pub(super) const ALL: [Self; 6] =
        [Self::Format, Self::Checkpoints, Self::Leases, Self::Workers, Self::Fleet, Self::Steps];

    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Checkpoints => "checkpoints",
            Self::Leases => "leases",
            Self::Workers => "workers",
            Self::Fleet => "fleet",
            Self::Steps => "steps",
        }
    }

    /// Returns the type of the key's value, as the command TYPE returns it.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Format => "string",
            Self::Checkpoints | Self::Leases | Self::Workers | Self::Fleet => "hash",
            Self::Steps => "list",
        }
    }

    /// Returns the expected content of the key, for messages.
    pub(super) fn all(self) -> &'static str {
        match self {
            Self::Format => "a format",
            Self::Checkpoints => "checkpoints",
            Self::Leases => "leases",
            Self::Workers => "workers",
            Self::Fleet => "the numbers of a table",
            Self::Steps => "steps",
        }
    }

    /// Returns the expected content of a field of the key, for messages.
    pub(super) fn one(self) -> &'static str {
        match self {
            Self::Format => "a format",
            Self::Checkpoints => "a checkpoint",
            Self::Leases => "a lease",
            Self::Workers => "a worker",
            Self::Fleet => "a number",
            Self::Steps => "a step",
        }
    }
}

/// The keys of one application and stream, which share a hash tag.
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn of(scope: &Scope) -> Self {
        // Escaped, so that a colon in the application's name differs from the one before the
        // stream's.
        let application = scope.application().replace('%', "%25").replace(':', "%3A");
        Self { prefix: format!("kinestream:{{{application}:{}}}", scope.stream()) }
    }

    pub(super) fn of_part(&self, key: Key) -> String {
        format!("{}:{}", self.prefix, key.name())
    }

    pub(super) fn all(&self) -> [String; 6] {
        Key::ALL.map(|key| self.of_part(key))
    }
}
