//! What the tests share.

// Each test binary uses a part of it.
#![allow(dead_code)]

#[cfg(feature = "redis")]
pub(crate) mod redis;
