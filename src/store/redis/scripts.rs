//! The Lua scripts that run on the server, each assembled from shared parts.

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
    pub(super) save_fenced: Script,
    pub(super) exchange: Script,
    pub(super) edit: Script,
    pub(super) table: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            save: script!("common.lua", "places.lua", "save.lua"),
            save_fenced: script!("common.lua", "places.lua", "ledger.lua", "save_fenced.lua"),
            exchange: script!("common.lua", "places.lua", "ledger.lua", "exchange.lua"),
            edit: script!("common.lua", "places.lua", "ledger.lua", "edit.lua"),
            table: script!("common.lua", "places.lua", "ledger.lua", "table.lua"),
        }
    }
}
