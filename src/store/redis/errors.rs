//! What went wrong with Redis, and what to do about it.

use redis::{RedisError, ServerErrorKind};

use super::keys::{FORMAT, Key, Keys};
use crate::error::{Error, ErrorKind};

pub(super) fn other_format(keys: &Keys, format: &str) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} says format {format:?}, but this version of kinestream knows {FORMAT:?}; \
         use the version that wrote it, or another application",
        keys.of_part(Key::Format)
    ))
}

pub(super) fn garbled(keys: &Keys, key: Key, field: &str) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} holds something that is not {} in field {field:?}; delete the field if \
         it is a leftover, or use another application",
        keys.of_part(key),
        key.one()
    ))
}

fn other_type(keys: &Keys, key: Key) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} holds something else than {}; delete it if it is a leftover, or use \
         another application",
        keys.of_part(key),
        key.all()
    ))
}

/// What an error of a script means, which says by the numbers of its keys what it has met.
pub(super) fn of_script(error: RedisError, address: &str, keys: &Keys) -> Error {
    let detail = error.detail().unwrap_or_default();
    let (number, field) = detail.split_once(' ').unwrap_or((detail, ""));
    match (error.code(), Key::numbered(number)) {
        (Some("KINESTREAMFORMAT"), _) => other_format(keys, detail),
        (Some("KINESTREAMTYPE"), Some(key)) => other_type(keys, key),
        (Some("KINESTREAMVALUE"), Some(key)) => garbled(keys, key, field),
        _ => sort(error, address, &keys.of_part(Key::Checkpoints)),
    }
}

/// What an error of Redis means for a store: whether waiting cures it, and what to do.
pub(super) fn sort(error: RedisError, address: &str, key: &str) -> Error {
    use redis::ErrorKind as Kind;
    let code = error.code().unwrap_or_default().to_owned();
    let detail = error.detail().unwrap_or_default().to_owned();
    let (kind, message) = match error.kind() {
        Kind::AuthenticationFailed => (ErrorKind::Denied, denied(address)),
        Kind::Server(ServerErrorKind::NoPerm) => (
            ErrorKind::Denied,
            format!("Redis at {address} does not let this user do what is needed: {detail}"),
        ),
        _ if matches!(&*code, "NOAUTH" | "WRONGPASS") => (ErrorKind::Denied, denied(address)),
        Kind::Server(
            ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot,
        ) => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} is a node of a cluster that does not hold these keys; name \
                 the one that does{}",
                error.redirect_node().map_or_else(String::new, |(node, _slot)| format!(", {node}"))
            ),
        ),
        _ if code == "WRONGTYPE" => (
            ErrorKind::StoreCorrupt,
            format!(
                "the Redis key {key} holds something else than checkpoints; delete it if it is a \
                 leftover, or use another application"
            ),
        ),
        Kind::Parse | Kind::UnexpectedReturnType => (
            ErrorKind::StoreCorrupt,
            format!(
                "the Redis key {key} holds something that is not text; use another application"
            ),
        ),
        Kind::InvalidClientConfig => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} cannot be used as the URL says; check the database's number"
            ),
        ),
        _ if detail.contains("DB index") || detail.contains("database") => (
            ErrorKind::Configuration,
            format!("Redis at {address} has no such database; check the number at the URL's end"),
        ),
        Kind::Server(ServerErrorKind::ClusterDown) => (
            ErrorKind::StoreUnavailable,
            format!(
                "Redis at {address} is a node of a cluster that is down or not complete; check it \
                 with CLUSTER INFO"
            ),
        ),
        Kind::Io if error.to_string().contains("certificate") => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} has a certificate that this system does not trust for that \
                 name; add its authority to the system's certificates, or name it in SSL_CERT_FILE"
            ),
        ),
        // Loading, failing over, out of memory, busy, refused, reset, slow: all pass.
        _ => (
            ErrorKind::StoreUnavailable,
            format!(
                "Redis at {address} is out of reach; check that it runs and takes connections, \
                 with TLS for rediss:// and without for redis://"
            ),
        ),
    };
    Error::new(kind, message).with_source(error)
}

fn denied(address: &str) -> String {
    format!("Redis at {address} refused the user or password; check both in the URL")
}
