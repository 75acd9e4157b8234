//! Classification of Redis errors, with the action to take.

use redis::RedisError;

use super::keys::{FORMAT, Key, Keys};
use super::refusal::{ARGUMENTS, Refusal, shown};
use crate::error::{Error, ErrorKind};
use crate::record::ShardId;

pub(super) fn unsupported_format(keys: &Keys, format: &str) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "the Redis key {} has format {format:?}, but this version of kinestream supports {FORMAT:?}; \
         use the version that wrote it, or another application",
            keys.of_part(Key::Format)
        ),
    )
}

pub(super) fn corrupt_value(keys: &Keys, key: Key, field: &str) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "the Redis key {} does not hold {} in field {field:?}; correct the field, or set the \
         shard's position with Consumer::set_position",
            keys.of_part(key),
            key.one()
        ),
    )
}

/// Parses the shard id of a field. Fields with other names are ignored.
pub(super) fn shard_of(keys: &Keys, key: Key, field: &[u8]) -> Option<ShardId> {
    let field = String::from_utf8_lossy(field);
    let shard = field.parse().ok();
    if shard.is_none() {
        let key = keys.of_part(key);
        tracing::warn!(key, field = %field, "field ignored: its name is not a shard id");
    }
    shard
}

pub(super) fn wrong_key_type(keys: &Keys, key: Key) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "the Redis key {} does not hold {}; delete it if it is a leftover, or use another \
         application",
            keys.of_part(key),
            key.all()
        ),
    )
}

/// Classifies an error of a script.
pub(super) fn classify_script_error(error: RedisError, address: &str, keys: &Keys) -> Error {
    match error.code() {
        Some("KINESTREAMFORMAT") => unsupported_format(keys, error.detail().unwrap_or_default()),
        _ => classify(error, address, &keys.of_part(Key::Checkpoints)),
    }
}

/// Classifies a Redis error: its kind says whether a retry can succeed, its message what to do.
pub(super) fn classify(error: RedisError, address: &str, key: &str) -> Error {
    let refusal = Refusal::of(&error);
    let (kind, message) = match &refusal {
        Some(refusal) => classify_server_error(refusal, address, key),
        None => classify_client_error(&error, address, key),
    };
    // The source is left out if it shows arguments, which may contain a password.
    if error.detail().is_some_and(|detail| detail.contains(ARGUMENTS)) {
        return Error::new(kind, message);
    }
    Error::new(kind, message).with_source(error)
}

/// Classifies a server's refusal.
fn classify_server_error(refusal: &Refusal, address: &str, key: &str) -> (ErrorKind, String) {
    if refusal.code == "WRONGTYPE" {
        let message = format!(
            "the Redis key {key} does not hold checkpoints; delete it if it is a leftover, or use \
             another application"
        );
        return (ErrorKind::StoreCorrupt, message);
    }
    let (kind, problem, remedy) = refusal.meaning();
    let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
    (kind, format!("Redis at {address} {problem}: {refusal}{remedy}"))
}

/// Classifies an error of the client that is not an answer of the server.
fn classify_client_error(error: &RedisError, address: &str, key: &str) -> (ErrorKind, String) {
    use redis::ErrorKind as Kind;
    match error.kind() {
        Kind::AuthenticationFailed => (
            ErrorKind::Denied,
            format!("Redis at {address} refused the user or password; check both in the URL"),
        ),
        Kind::Parse | Kind::UnexpectedReturnType => (
            ErrorKind::StoreCorrupt,
            format!("the Redis key {key} does not hold text; use another application"),
        ),
        Kind::InvalidClientConfig => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} cannot be used with this URL: {}",
                shown(&error.to_string())
            ),
        ),
        Kind::Io if error.to_string().contains("certificate") => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} has a certificate that this system does not trust for that \
                 name; add its authority to the system's certificates, or set SSL_CERT_FILE"
            ),
        ),
        // Connection refused, reset, slow, or failing over: all are temporary.
        _ => (
            ErrorKind::StoreUnavailable,
            format!(
                "Redis at {address} is unreachable: {}; check that it runs and accepts \
                 connections, with TLS for rediss:// and without for redis://",
                shown(&error.to_string())
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use redis::{RedisError, make_extension_error};

    use super::super::refusal::is_over;
    use super::*;

    fn server_error(code: &str, text: &str) -> RedisError {
        make_extension_error(code.to_owned(), Some(text.to_owned()))
    }

    #[test]
    fn temporary_refusal_keeps_code_and_text() {
        let codes = "MOVED ASK CLUSTERDOWN LOADING BUSY MASTERDOWN TRYAGAIN READONLY OOM MISCONF \
                     NOREPLICAS ERR NOSCRIPT";
        for code in codes.split(' ') {
            let error = classify(server_error(code, "the text."), "host:6379", "a key");
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
            assert!(error.is_temporary());
            let said = format!(": {code} the text");
            assert!(error.to_string().contains(&said), "{error}");
        }
    }

    #[test]
    fn refusal_inside_script_error_is_classified() {
        let text = "Error running script (call to f_6d): @user_script:212: @user_script: 212: \
                    -READONLY You can't write against a read only replica.";
        let error = server_error("ERR", text);
        assert!(is_over(&error));
        let shown = classify(error, "host:6379", "a key").to_string();
        let expected = "Redis at host:6379 is a replica and accepts no writes: READONLY You can't \
                        write against a read only replica; if it remains one, use the URL of its \
                        master";
        assert_eq!(shown, expected);
    }

    #[test]
    fn unknown_command_error_omits_arguments() {
        let text = "unknown command 'AUTH', with args beginning with: 'me' 'hunter2' ";
        let error = classify(server_error("ERR", text), "host:6379", "a key");
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("unknown command 'AUTH';"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    #[test]
    fn long_text_is_truncated() {
        let error = classify(server_error("ERR", &"é".repeat(1000)), "host:6379", "a key");
        assert!(error.to_string().chars().count() < 400, "{error}");
    }
}
