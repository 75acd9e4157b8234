//! Fuzzes the decoder of `GetRecords` responses in CBOR.
//!
//!     cargo install cargo-fuzz
//!     cargo fuzz run --sanitizer none cbor -- -max_total_time=60
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| kinestream::fuzz_cbor(body));
