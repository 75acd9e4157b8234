//! A server's refusals, by code: their meaning, and their effect on the connection.

use std::fmt;

use redis::RedisError;

use crate::error::ErrorKind;

/// The most characters of a server's text that are shown.
const LONGEST_TEXT: usize = 300;

/// Precedes the arguments of a command in a server's text.
pub(super) const ARGUMENTS: &str = ", with args beginning with";

/// Codes after which another server may answer at the same address, or this one may accept a new
/// connection.
const ELSEWHERE: [&str; 9] = [
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

/// Whether the connection that returned this error must be replaced.
pub(super) fn is_over(error: &RedisError) -> bool {
    let elsewhere = |refusal: Refusal| ELSEWHERE.contains(&&*refusal.code);
    error.is_io_error()
        || error.is_unrecoverable_error()
        || Refusal::of(error).is_some_and(elsewhere)
}

/// Whether the command is disabled, or this user has no permission for it.
pub(super) fn is_withheld(error: &RedisError) -> bool {
    Refusal::of(error).is_some_and(|refusal| match &*refusal.code {
        "NOPERM" => true,
        "ERR" => refusal.text.starts_with("unknown "),
        _ => false,
    })
}

/// A server's own code and text.
pub(super) struct Refusal {
    pub(super) code: String,
    text: String,
}

impl Refusal {
    /// `None` where no server said it.
    pub(super) fn of(error: &RedisError) -> Option<Self> {
        let (code, text) = (error.code()?, error.detail().unwrap_or_default());
        // Up to Redis 6.2 the error of a command in a script is a part of the script's own:
        // "ERR Error running script (call to f_…): @user_script:1: -READONLY You can't write …".
        let inner = text.contains("running script").then(|| text.split_once(": -")).flatten();
        let (code, text) =
            inner.and_then(|(_, inner)| inner.split_once(' ')).unwrap_or((code, text));
        Some(Self { code: code.to_owned(), text: shown(text) })
    }

    /// Returns the error kind of a refusal, the state of the server in words, and a cure where waiting may
    /// not suffice.
    pub(super) fn meaning(&self) -> (ErrorKind, &'static str, &'static str) {
        use ErrorKind::{Configuration, Denied, StoreUnavailable};
        match (&*self.code, &*self.text) {
            ("NOAUTH" | "WRONGPASS", _) => {
                (Denied, "refused the user or password", "check both in the URL")
            }
            ("NOPERM", _) => (
                Denied,
                "does not let this user do what is needed",
                "permit it with ACL SETUSER: +@read +@write +@scripting +@connection ~kinestream:*",
            ),
            ("ERR", text) if text.contains("can't run this command") => (
                Denied,
                "does not let this user do what is needed",
                "permit it with ACL SETUSER: +@read +@write +@scripting +@connection ~kinestream:*",
            ),
            ("DENIED", _) => (
                Denied,
                "is in protected mode and takes connections from its own host only",
                "set a password for its default user, or protected-mode no",
            ),
            ("ERR", text) if text.starts_with("unknown command") => (
                Configuration,
                "does not know a command that is needed",
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
                "says that the keys are in several slots",
                "use a cluster that supports hash tags",
            ),
            ("OOM", _) => (
                StoreUnavailable,
                "is out of memory and takes no writes",
                "raise maxmemory, or delete what is not needed",
            ),
            ("MISCONF", _) => (
                StoreUnavailable,
                "takes no writes because it cannot save to disk",
                "see its log, and check the space and the rights of its folder",
            ),
            ("NOREPLICAS", _) => (
                StoreUnavailable,
                "takes no writes because too few replicas are connected",
                "check its replicas and min-replicas-to-write",
            ),
            ("READONLY", _) => (
                StoreUnavailable,
                "is a replica and takes no writes",
                "if it stays one, name its master in the URL",
            ),
            ("MASTERDOWN", _) => (
                StoreUnavailable,
                "is a replica without its master",
                "if it stays one, name its master in the URL",
            ),
            ("LOADING", _) => (StoreUnavailable, "is loading its data", ""),
            ("BUSY", _) => (
                StoreUnavailable,
                "is busy with a script or function",
                "if that does not end, stop it with SCRIPT KILL or FUNCTION KILL",
            ),
            ("CLUSTERDOWN", _) => (
                StoreUnavailable,
                "is a node of a cluster that is down or not complete",
                "check it with CLUSTER INFO",
            ),
            ("MOVED" | "ASK", _) => (
                StoreUnavailable,
                "is a node of a cluster that does not hold these keys",
                "if it stays so, connect to the cluster, with the cargo feature redis-cluster",
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

/// The beginning of a server's text, without the arguments of the command and the script's name.
pub(super) fn shown(text: &str) -> String {
    let ends = [ARGUMENTS, " script: "].into_iter().filter_map(|word| text.find(word));
    let text = &text[..ends.min().unwrap_or(text.len())];
    let text = text.trim().trim_end_matches(['.', ',']);
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
