//! Tests of `RedisStore` over TLS against a real server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kinestream::store::conformance;
use kinestream::{Error, ErrorKind, RedisStore};
use tokio::process::Command;
use tokio::time::timeout;

use crate::certificates;
use crate::redis_server::{RedisServer, connect};

const USER: [&str; 6] = ["--user", "billing", "on", ">hunter2", "~*", "+@all"];

/// Starts a TLS server for `localhost` with a certificate of an untrusted authority. Returns the
/// server, and the path of the authority's certificate.
fn start_tls() -> (RedisServer, PathBuf) {
    let mut authority = PathBuf::new();
    let listens = |port: u16, folder: &Path| {
        certificates::make(folder);
        authority = folder.join("authority.crt");
        let files = "--tls-cert-file server.crt --tls-key-file server.key \
                     --tls-ca-cert-file authority.crt --tls-auth-clients no --port 0 --tls-port";
        files.split(' ').map(str::to_owned).chain([port.to_string()]).collect()
    };
    let server = RedisServer::launched(listens, &USER);
    (server, authority)
}

/// Connects from a process that trusts the server's authority. The test below runs it.
#[tokio::test]
#[ignore = "run by tls_connection_uses_user_password_and_database, which starts the server"]
async fn trusting_process() {
    let url = std::env::var("TEST_REDIS_URL").unwrap();
    let store = RedisStore::connect(&url).await.unwrap();
    conformance::check(&store).await;
    let shown = format!("{store:?}");
    assert!(shown.contains("localhost") && !shown.contains("hunter2"), "{shown}");
    let mut raw = connect(url).await.unwrap();
    let keys: String = redis::cmd("INFO").arg("keyspace").query_async(&mut raw).await.unwrap();
    assert!(keys.contains("db3:") && !keys.contains("db0:"), "{keys}");
}

#[tokio::test]
async fn tls_connection_uses_user_password_and_database() {
    let (server, authority) = start_tls();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["redis_tls::trusting_process", "--exact", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", authority)
        .env("TEST_REDIS_URL", format!("rediss://billing:hunter2@localhost:{}/3", server.port()))
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), ran).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

async fn refused(url: &str) -> Error {
    let connected = timeout(Duration::from_secs(20), RedisStore::connect(url)).await;
    let error = connected.expect("expected an error within 20 s").unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

#[tokio::test]
async fn untrusted_certificate_is_reported_with_remedy() {
    let (server, _authority) = start_tls();
    let address = format!("localhost:{}", server.port());
    let error = refused(&format!("rediss://billing:hunter2@{address}/")).await;
    assert_eq!(
        error.to_string(),
        format!(
            "Redis at {address} has a certificate that this system does not trust for that name; \
             add its authority to the system's certificates, or set SSL_CERT_FILE"
        ),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Configuration);
}

#[tokio::test]
async fn tls_on_one_side_only_is_reported_with_remedy() {
    let (tls, _authority) = start_tls();
    let plain = RedisServer::start(&[]);
    for (scheme, port) in [("redis", tls.port()), ("rediss", plain.port())] {
        let error = refused(&format!("{scheme}://billing:hunter2@localhost:{port}/")).await;
        let begins = format!("Redis at localhost:{port} is unreachable: ");
        let ends = "; check that it runs and accepts connections, with TLS for rediss:// and without \
                    for redis://";
        let text = error.to_string();
        assert!(text.starts_with(&begins) && text.ends_with(ends), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    }
}
