//! Fuzzes the parser of aggregated records. Each input gets a valid checksum, which any sender can
//! add.
//!
//!     cargo install cargo-fuzz
//!     cargo fuzz run --sanitizer none aggregate -- -max_total_time=60
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| kinestream::fuzz_aggregate(message));
