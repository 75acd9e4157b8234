//! Guides to delivery, fleets, operations and other topics, one page each.

#[doc = include_str!("guide/delivery.md")]
pub mod delivery {}

#[doc = include_str!("guide/fan_out.md")]
pub mod fan_out {}

#[doc = include_str!("guide/fleets.md")]
pub mod fleets {}

#[doc = include_str!("guide/migrating.md")]
pub mod migrating {}

#[doc = include_str!("guide/operations.md")]
pub mod operations {}

#[doc = include_str!("guide/pace.md")]
pub mod pacing {}

#[doc = include_str!("guide/probes.md")]
pub mod probes {}

#[doc = include_str!("guide/resharding.md")]
pub mod resharding {}

#[cfg(feature = "testing")]
#[doc = include_str!("guide/testing.md")]
pub mod testing {}
