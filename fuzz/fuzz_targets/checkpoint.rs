//! Fuzzes the parsers of checkpoints, sequence numbers and shard IDs: the texts of the hash that
//! Redis stores.
//!
//!     cargo install cargo-fuzz
//!     cargo fuzz run --sanitizer none checkpoint -- -max_total_time=60
#![no_main]

use kinestream::{Checkpoint, SequenceNumber, ShardId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(checkpoint) = text.parse::<Checkpoint>() {
        let written = checkpoint.to_string();
        assert_eq!(written.parse::<Checkpoint>().ok(), Some(checkpoint.clone()), "{text:?}");
        assert!(!checkpoint.supersedes(&checkpoint), "{text:?}");
        assert!(written.len() <= 180, "the text form of {text:?} is too long");
    }
    if let Ok(number) = text.parse::<SequenceNumber>() {
        assert_eq!(number.as_str(), text);
    }
    if let Ok(shard) = text.parse::<ShardId>() {
        assert_eq!(shard.as_str(), text);
    }
});
