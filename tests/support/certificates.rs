//! Certificates of an untrusted certificate authority, created with openssl.

use std::path::Path;
use std::process::{Command, Stdio};

/// Creates the authority `authority.crt`, and `server.crt` and `server.key` that it signs for
/// `localhost`. All are valid for one day.
pub(crate) fn make(folder: &Path) {
    let openssl = |arguments: &str| {
        let ran = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| {
                panic!("failed to start openssl: {error}; run ./tests/run, which installs it")
            });
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout authority.key -out authority.crt -days 1 -subj /CN=authority"
    ));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost"));
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost").unwrap();
    openssl(
        "x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial \
         -out server.crt -days 1 -extfile names",
    );
}
