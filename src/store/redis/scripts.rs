//! The Lua scripts that run on the server, each with its arguments and its reply.
//!
//! A script reads every key of a step or a save before it writes one of them, since Redis does not
//! roll back the writes of a script that fails later. In arguments and replies, a text that exists begins with
//! `=`, and an absent one is empty.
//!
//! An entry is given by its kind and its field: `F` is a number of the table, `W` a worker, `L` a
//! lease and `P` a position. The line of a worker holds its expiry as the fourth word, which is its
//! mark; the text of its entry has no such word.
//!
//! | script | arguments | reply |
//! |---|---|---|
//! | `exchange` | the known version and the version of the step, each empty if there is none; the number of silent workers, and for each its name and mark; the number of entries, and for each its kind, field, expected and new text; for each worker to renew its name, entry and lease duration in milliseconds | 1 if the step was made; 1 if all entries are returned; the time in microseconds; the expired workers, each with its mark; the numbers of the table; the entries, each as kind, field and text |
//! | `save` | for each position its shard, epoch (empty for any), expected and new text | for each position 1 if it is saved, the text of the lease, and the stored text |

use redis::Script;

/// Joins these Lua files into one script, in this order.
macro_rules! script {
    ($($file:literal),+) => {
        Script::new(concat!($(include_str!($file), "\n"),+))
    };
}

/// The scripts. Each runs as one atomic step.
pub(super) struct Scripts {
    pub(super) save: Script,
    pub(super) exchange: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            save: script!("common.lua", "save.lua"),
            exchange: script!("common.lua", "exchange.lua"),
        }
    }
}
