//! Fuzzes the decoder of `GetRecords` responses in JSON.
//!
//!     cargo install cargo-fuzz
//!     cargo fuzz run --sanitizer none json -- -max_total_time=60
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| kinestream::fuzz_json(body));
