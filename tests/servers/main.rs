//! Tests of stores and of the consumer against a real redis-server, a real PostgreSQL and a DynamoDB
//! server. Each test starts its servers.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "redis")]

mod alike;
#[path = "../support/black_hole.rs"]
mod black_hole;
#[cfg(feature = "testing")]
mod blocked_runtime;
#[cfg(feature = "redis-tls")]
#[path = "../support/certificates.rs"]
mod certificates;
#[cfg(all(feature = "dynamodb", feature = "testing"))]
mod dynamodb_costs;
#[cfg(all(feature = "dynamodb", feature = "testing"))]
mod dynamodb_faults;
#[cfg(all(feature = "dynamodb", feature = "testing"))]
mod dynamodb_fences;
#[cfg(feature = "dynamodb")]
mod dynamodb_kcl_layout;
#[cfg(feature = "dynamodb")]
mod dynamodb_leases_alike;
#[cfg(feature = "dynamodb")]
#[path = "../support/dynamodb_link.rs"]
mod dynamodb_link;
#[cfg(feature = "dynamodb")]
#[path = "../support/dynamodb.rs"]
mod dynamodb_server;
#[cfg(all(feature = "dynamodb", feature = "testing"))]
mod dynamodb_store;
#[cfg(all(feature = "dynamodb", feature = "testing"))]
mod dynamodb_workers;
#[path = "../../examples/support/mod.rs"]
mod ferrokinesis_server;
mod fleet;
#[path = "../support/free_port.rs"]
mod free_port;
#[cfg(all(feature = "dynamodb", feature = "testing"))]
mod kcl;
#[path = "../support/lease_access.rs"]
mod lease_access;
#[path = "../support/listening.rs"]
mod listening;
#[cfg(feature = "testing")]
mod nemesis;
#[cfg(feature = "testing")]
#[path = "../../examples/postgres_store.rs"]
#[allow(dead_code)] // The example itself is not run here.
mod postgres;
#[cfg(feature = "testing")]
mod postgres_leases;
#[cfg(feature = "testing")]
#[path = "../support/postgres.rs"]
mod postgres_server;
#[path = "../support/proxy.rs"]
mod proxy;
#[cfg(feature = "testing")]
mod reading;
#[cfg(feature = "redis-cluster")]
mod redis_cluster;
mod redis_connection;
mod redis_consumer;
#[cfg(all(feature = "testing", any(feature = "redis-cluster", feature = "redis-sentinel")))]
mod redis_failover;
mod redis_fields;
mod redis_leases;
#[cfg(feature = "testing")]
mod redis_passwords;
mod redis_refusals;
mod redis_runtimes;
#[cfg(feature = "testing")]
mod redis_scope;
#[cfg(feature = "redis-sentinel")]
mod redis_sentinel;
#[path = "../support/redis.rs"]
mod redis_server;
mod redis_store;
#[cfg(feature = "testing")]
mod redis_takeover;
#[cfg(feature = "redis-tls")]
mod redis_tls;
#[cfg(feature = "testing")]
#[path = "../support/seeds.rs"]
#[allow(dead_code)] // These tests use real time, not `on_a_paused_clock`.
mod seeds;
#[path = "../support/server_process.rs"]
mod server_process;
#[path = "../support/slowness.rs"]
mod slowness;
