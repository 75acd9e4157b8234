//! What went wrong with Redis, and what to do about it.

use redis::RedisError;

use super::keys::{FORMAT, Key, Keys};
use super::refusal::{ARGUMENTS, Refusal, shown};
use crate::error::{Error, ErrorKind};
use crate::record::ShardId;

pub(super) fn other_format(keys: &Keys, format: &str) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} says format {format:?}, but this version of kinestream knows {FORMAT:?}; \
         use the version that wrote it, or another application",
        keys.of_part(Key::Format)
    ))
}

pub(super) fn corrupt_value(keys: &Keys, key: Key, field: &str) -> Error {
    Error::store_corrupt(format!(
        "the Redis key {} holds something that is not {} in field {field:?}; correct the field, or \
         set the shard's position with Consumer::set_position",
        keys.of_part(key),
        key.one()
    ))
}

/// The shard that a field is of. Other fields are left alone.
pub(super) fn shard_of(keys: &Keys, key: Key, field: &[u8]) -> Option<ShardId> {
    let field = String::from_utf8_lossy(field);
    let shard = field.parse().ok();
    if shard.is_none() {
        let key = keys.of_part(key);
        tracing::warn!(key, field = %field, "field ignored: its name is not that of a shard");
    }
    shard
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
        (Some("KINESTREAMVALUE"), Some(key)) => corrupt_value(keys, key, field),
        _ => sort(error, address, &keys.of_part(Key::Checkpoints)),
    }
}

/// What an error of Redis means for a store: whether waiting cures it, and what to do.
pub(super) fn sort(error: RedisError, address: &str, key: &str) -> Error {
    let refusal = Refusal::of(&error);
    let (kind, message) = match &refusal {
        Some(refusal) => of_server(refusal, address, key),
        None => of_client(&error, address, key),
    };
    // Arguments may hold a password, and the error shows them.
    if error.detail().is_some_and(|detail| detail.contains(ARGUMENTS)) {
        return Error::new(kind, message);
    }
    Error::new(kind, message).with_source(error)
}

/// Classifies a server's refusal.
fn of_server(refusal: &Refusal, address: &str, key: &str) -> (ErrorKind, String) {
    if refusal.code == "WRONGTYPE" {
        let message = format!(
            "the Redis key {key} holds something else than checkpoints; delete it if it is a \
             leftover, or use another application"
        );
        return (ErrorKind::StoreCorrupt, message);
    }
    let (kind, problem, cure) = refusal.meaning();
    let cure = if cure.is_empty() { String::new() } else { format!("; {cure}") };
    (kind, format!("Redis at {address} {problem}: {refusal}{cure}"))
}

/// Classifies an error that the client found without an answer of the server.
fn of_client(error: &RedisError, address: &str, key: &str) -> (ErrorKind, String) {
    use redis::ErrorKind as Kind;
    match error.kind() {
        Kind::AuthenticationFailed => (
            ErrorKind::Denied,
            format!("Redis at {address} refused the user or password; check both in the URL"),
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
        Kind::Io if error.to_string().contains("certificate") => (
            ErrorKind::Configuration,
            format!(
                "Redis at {address} has a certificate that this system does not trust for that \
                 name; add its authority to the system's certificates, or name it in SSL_CERT_FILE"
            ),
        ),
        // Refused, reset, slow, failing over: all pass.
        _ => (
            ErrorKind::StoreUnavailable,
            format!(
                "Redis at {address} is out of reach: {}; check that it runs and takes \
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
            let error = sort(server_error(code, "the text."), "host:6379", "a key");
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
        let shown = sort(error, "host:6379", "a key").to_string();
        let expected = "Redis at host:6379 is a replica and takes no writes: READONLY You can't \
                        write against a read only replica; if it stays one, name its master in the \
                        URL";
        assert_eq!(shown, expected);
    }

    #[test]
    fn unknown_command_error_omits_arguments() {
        let text = "unknown command 'AUTH', with args beginning with: 'me' 'hunter2' ";
        let error = sort(server_error("ERR", text), "host:6379", "a key");
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("unknown command 'AUTH';"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    #[test]
    fn long_text_is_truncated() {
        let error = sort(server_error("ERR", &"é".repeat(1000)), "host:6379", "a key");
        assert!(error.to_string().chars().count() < 400, "{error}");
    }
}
