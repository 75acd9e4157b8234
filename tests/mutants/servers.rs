//! Mistakes that the nemesis of `RedisStore` must find.

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
        what: "a replica keeps its connection",
        file: "store/redis/refusal.rs",
        right: "\n    \"READONLY\",\n",
        wrong: "\n    \"READWRITE\",\n",
        breaks: &["reads_on"],
    },
    Mistake {
        what: "a connection attempt has no limit",
        file: "store/redis/connection.rs",
        right: ".connect(CONNECT_TIMEOUT)",
        wrong: ".connect(100 * CONNECT_TIMEOUT)",
        breaks: &["reads_on"],
    },
    Mistake {
        what: "a renewal does not see that a key is lost",
        file: "store/redis/exchange.lua",
        right: "  notice_loss()\n",
        wrong: "",
        breaks: &["notices_loss"],
    },
];
