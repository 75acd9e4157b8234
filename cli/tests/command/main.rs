//! The built command against emulators of Kinesis: ferrokinesis in this process and kinesis-local,
//! with stores in a real Redis and in dynoxide, in pipes and in a pseudo-terminal.
// Tests and their helpers report failures by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod applications;
#[path = "../../../tests/support/certificates.rs"]
mod certificates;
mod dynamodb;
#[path = "../../../tests/support/dynamodb.rs"]
mod dynamodb_server;
#[path = "../../../examples/support/mod.rs"]
mod ferrokinesis_server;
#[path = "../../../tests/support/free_port.rs"]
mod free_port;
#[path = "../../../tests/emulators/kinesis_local.rs"]
mod kinesis_local;
mod profiles;
mod put;
#[path = "../../../tests/support/redis.rs"]
mod redis_server;
mod reports;
mod run;
#[path = "../../../tests/support/server_process.rs"]
mod server_process;
mod stores;
mod streams;
mod tail;
#[cfg(unix)]
mod terminal;
