//! The store and the consumer against a real redis-server, which each test starts for itself.
#![cfg(feature = "redis")]

#[path = "../../examples/support/mod.rs"]
mod ferrokinesis_server;
mod redis_consumer;
mod redis_store;
#[path = "../support/mod.rs"]
mod support;
