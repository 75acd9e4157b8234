//! Comparison of an output with a file. `UPDATE_SNAPSHOTS=1 cargo test -p kinestream-cli` writes the
//! files again.

use std::path::Path;

/// Asserts that `shown` equals the text of `src/snapshots/NAME`.
pub(crate) fn assert_snapshot(name: &str, expected: &str, shown: &str) {
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/snapshots").join(name);
        std::fs::write(&path, shown).expect("expected a writable snapshot");
        return;
    }
    assert!(
        shown == expected,
        "expected src/snapshots/{name}:\n{expected}\nfound:\n{shown}\nif the change is intended, \
         run the tests with UPDATE_SNAPSHOTS=1"
    );
}
