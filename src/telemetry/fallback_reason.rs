use std::fmt;

/// The reason for which a consumer reads by JSON instead of CBOR.
///
/// ```
/// use kinestream::{Event, FallbackReason};
///
/// fn is_bug(event: &Event) -> bool {
///     matches!(event, Event::WireFormatFallback { reason: FallbackReason::Different, .. })
/// }
/// # assert!(!is_bug(&Event::WireFormatFallback { reason: FallbackReason::Unsupported }));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FallbackReason {
    /// The server does not support CBOR: it has refused CBOR calls, failed them, or answered them in
    /// another format, and served JSON calls. Normal for servers other than Kinesis, such as
    /// emulators.
    Unsupported,
    /// A CBOR response could not be decoded.
    Unreadable,
    /// A CBOR response held other records or members than the JSON response to the same call. No record of it
    /// was delivered.
    Different,
}

impl FallbackReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Unreadable => "unreadable",
            Self::Different => "different",
        }
    }
}

impl fmt::Display for FallbackReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
