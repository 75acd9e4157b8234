//! Guides: one page for each thing that a reader of Kinesis meets sooner or later.

#[doc = include_str!("guide/operations.md")]
pub mod operations {}
