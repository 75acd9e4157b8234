//! Error answers of a server, by code: their meaning, and their effect on the connection.

use std::fmt;

use redis::RedisError;

use crate::error::ErrorKind;

/// The maximum length of a server's text in a message, in characters.
const LONGEST_TEXT: usize = 300;

/// The text before the arguments of a command in a server's text.
pub(super) const ARGUMENTS: &str = ", with args beginning with";

/// Codes after which another server may answer at the same address, or this one may accept a new
/// connection.
const RECONNECT_CODES: [&str; 9] = [
    "READONLY",
    "MASTERDOWN",
    "LOADING",
    "NOREPLICAS",
    "UNBLOCKED",
    "NOAUTH",
    "MOVED",
    "ASK",
    "CLUSTERDOWN",
];

/// Returns true if the connection that returned this error must be replaced.
pub(super) fn is_over(error: &RedisError) -> bool {
    let elsewhere = |refusal: Refusal| RECONNECT_CODES.contains(&&*refusal.code);
    error.is_io_error()
        || error.is_unrecoverable_error()
        || Refusal::of(error).is_some_and(elsewhere)
}

/// Returns true if the command is disabled, or this user has no permission for it.
pub(super) fn is_command_denied(error: &RedisError) -> bool {
    Refusal::of(error).is_some_and(|refusal| match &*refusal.code {
        "NOPERM" => true,
        "ERR" => refusal.text.starts_with("unknown "),
        _ => false,
    })
}

/// Returns true if a key of the command holds a value of another type.
pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    Refusal::of(error).is_some_and(|refusal| refusal.code == "WRONGTYPE")
}

/// An error answer: the server's code and text.
pub(super) struct Refusal {
    pub(super) code: String,
    text: String,
}

impl Refusal {
    /// Returns the error answer of a server; `None` for an error of the client.
    pub(super) fn of(error: &RedisError) -> Option<Self> {
        let (code, text) = (error.code()?, error.detail().unwrap_or_default());
        // Up to Redis 6.2, the error of a command in a script is part of the script's error: "ERR
        // Error running script (call to f_…): @user_script:1: -READONLY You can't write …".
        let inner = text.contains("running script").then(|| text.split_once(": -")).flatten();
        let (code, text) =
            inner.and_then(|(_, inner)| inner.split_once(' ')).unwrap_or((code, text));
        // A long command on a connection without a valid password.
        let code =
            if text.starts_with("Protocol error: unauthenticated") { "NOAUTH" } else { code };
        Some(Self { code: code.to_owned(), text: shown(text) })
    }

    /// Returns the error kind, a description of the server's state, and an action unless waiting is
    /// sufficient.
    pub(super) fn meaning(&self) -> (ErrorKind, &'static str, &'static str) {
        use ErrorKind::{Configuration, Denied, StoreUnavailable};
        match (&*self.code, &*self.text) {
            ("NOAUTH" | "WRONGPASS", _) => {
                (Denied, "refused the user or password", "check both in the URL")
            }
            ("NOPERM", _) => (
                Denied,
                "denies this user a required permission",
                "permit it with ACL SETUSER: +@read +@write +@scripting +@connection ~kinestream:*",
            ),
            ("ERR", text) if text.contains("can't run this command") => (
                Denied,
                "denies this user a required permission",
                "permit it with ACL SETUSER: +@read +@write +@scripting +@connection ~kinestream:*",
            ),
            ("DENIED", _) => (
                Denied,
                "is in protected mode and accepts connections only from its own host",
                "set a password for its default user, or protected-mode no",
            ),
            ("ERR", text) if text.starts_with("unknown command") => (
                Configuration,
                "does not know a required command",
                "enable EVAL, EVALSHA and SCRIPT, which may be renamed or disabled",
            ),
            ("ERR", text) if text.starts_with("max number of clients") => (
                StoreUnavailable,
                "refuses further connections",
                "raise maxclients, or find the clients that hold connections",
            ),
            ("ERR", text) if text.contains("DB index") || text.starts_with("SELECT") => {
                (Configuration, "has no such database", "check the number at the URL's end")
            }
            ("CROSSSLOT", _) => (
                Configuration,
                "places the keys in several slots",
                "use a cluster that supports hash tags",
            ),
            ("OOM", _) => (
                StoreUnavailable,
                "is out of memory and accepts no writes",
                "raise maxmemory, or delete unused keys",
            ),
            ("MISCONF", _) => (
                StoreUnavailable,
                "accepts no writes because it cannot save to disk",
                "see its log, and check the free space and the permissions of its directory",
            ),
            ("NOREPLICAS", _) => (
                StoreUnavailable,
                "accepts no writes because too few replicas are connected",
                "check its replicas and min-replicas-to-write",
            ),
            ("READONLY", _) => (
                StoreUnavailable,
                "is a replica and accepts no writes",
                "if it remains one, use the URL of its master",
            ),
            ("MASTERDOWN", _) => (
                StoreUnavailable,
                "is a replica without its master",
                "if it remains one, use the URL of its master",
            ),
            ("LOADING", _) => (StoreUnavailable, "is loading its data", ""),
            ("BUSY", _) => (
                StoreUnavailable,
                "is busy with a script or function",
                "if that does not end, stop it with SCRIPT KILL or FUNCTION KILL",
            ),
            ("CLUSTERDOWN", _) => (
                StoreUnavailable,
                "is a node of a cluster that is down or incomplete",
                "check it with CLUSTER INFO",
            ),
            ("MOVED" | "ASK", _) => (
                StoreUnavailable,
                "is a node of a cluster that does not hold these keys",
                "if this persists, connect to the cluster, with the cargo feature redis-cluster",
            ),
            ("TRYAGAIN", _) => {
                (StoreUnavailable, "is a node of a cluster that is moving these keys", "")
            }
            _ => (StoreUnavailable, "answered with an error", "see its log"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.code, self.text)
    }
}

/// Returns the beginning of a server's text, without a command's arguments and a script's name.
pub(super) fn shown(text: &str) -> String {
    let ends = [ARGUMENTS, " script: "].into_iter().filter_map(|word| text.find(word));
    let text = &text[..ends.min().unwrap_or(text.len())];
    let text = text.trim().trim_end_matches(['.', ',']);
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
