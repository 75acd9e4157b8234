//! Moves of an application between a KCL and this crate.
//!
//! The KCL is one of our own, [`fake`], which sends the requests that a KCL sends. No real KCL takes
//! part.

mod answers;
mod deleted;
mod edits;
mod fake;
mod leaving;
mod ledger;
mod moves;
mod requests;
mod rows;
mod watch;
mod world;

pub(crate) use requests::LeaseTable;
pub(crate) use watch::Watch;
