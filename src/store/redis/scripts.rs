//! The scripts that run in the server, each of pieces that several share.

use redis::Script;

/// One script of these files of Lua, in this order.
macro_rules! script {
    ($($file:literal),+) => {
        Script::new(concat!($(include_str!($file), "\n"),+))
    };
}

/// Each is one step, which no other call divides.
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
