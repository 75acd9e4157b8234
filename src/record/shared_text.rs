use std::ops::Deref;
use std::sync::Arc;

/// A short text that belongs to one record, or is shared by several.
#[derive(Clone)]
pub(crate) enum SharedText {
    Own(String),
    Shared(Arc<str>),
}

impl Deref for SharedText {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<String> for SharedText {
    #[inline]
    fn from(text: String) -> Self {
        Self::Own(text)
    }
}
