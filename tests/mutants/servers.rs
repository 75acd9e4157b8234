//! The bugs that the nemesis of `RedisStore` must find.

use super::Mistake;

pub(crate) const MISTAKES: &[Mistake] = &[
    Mistake {
        what: "a dropped call keeps its connection",
        file: "store/redis/connection.rs",
        right: "number, is_over: true }",
        wrong: "number, is_over: false }",
        breaks: &["reads_on"],
    },
    Mistake {
        what: "an attempt to connect has no time limit",
        file: "store/redis/connection.rs",
        right: "let limit = CONNECT_TIMEOUT;",
        wrong: "let limit = Duration::from_secs(3600);",
        breaks: &["reads_on"],
    },
    Mistake {
        what: "a refusal by a replica keeps the connection",
        file: "store/redis/refusal.rs",
        right: "RECONNECT_CODES.contains(&&*refusal.code);",
        wrong: "refusal.code != \"READONLY\" && RECONNECT_CODES.contains(&&*refusal.code);",
        breaks: &["reads_on"],
    },
    Mistake {
        what: "no call detects a lost key",
        file: "store/redis/exchange.lua",
        right: "if fleet.generation and has_lost_key() then",
        wrong: "if false then",
        breaks: &["notices_loss"],
    },
];
