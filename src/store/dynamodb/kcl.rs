//! Positions in the lease table of a Kinesis Client Library (KCL).
//!
//! With [`kcl_table`](super::DynamoDbStore::kcl_table), each position is an attribute of the row that
//! a KCL of version 1, 2 or 3 keeps for its shard. Workers, leases and steps stay in the store's own
//! table, so the KCL's table never has a row of another kind.
//!
//! # The rows
//!
//! A row has the position as a KCL reads it, see [`place`], the owner, and attributes of this crate:
//!
//! | attribute | content |
//! |---|---|
//! | `kinestreamPosition` | the exact position, and the position of the KCL at which it counts |
//! | `kinestreamEpoch` | the epoch of the lease that may save: the fence |
//! | `kinestreamOwner` | the worker that claimed the row; a KCL that takes the row leaves it |
//! | `kinestreamScope` | the application and the stream, since a row does not name its stream |
//!
//! Invariant: a lease that a reader sees has, or had, a row. A step that adds a lease writes the row in
//! the same transaction, or leaves it pending in the bucket, which every reader settles first.
//!
//! A KCL deletes the row of a finished shard. What a lease without a row means, see [`gone`].
//!
//! # A KCL at the same time
//!
//! One of them reads at a time. A fleet starts once no KCL has renewed a row for a lease duration, see
//! [`holders`]. A KCL that is started later finds rows that are not renewed, and takes
//! them. Each side then reads from the last position that either has saved, and every write of one
//! ends the lease of the other by the counter. No write moves a position back, since each is made
//! only if the row is as it was read. So an overlap costs repeats and no record.
//!
//! # The end of a shard
//!
//! A KCL does not add the child of a shard that is finished. So the end that this crate saves is
//! shown to a KCL once the children are in the lease table, see [`show_ends`](Partition::show_ends).
//! Until then a KCL reads the shard from its last position to its end, and adds the children.

mod ends;
#[cfg(test)]
mod fixtures;
mod gone;
mod holders;
mod place;
mod reads;
mod row;
mod saves;
mod writes;

use std::collections::HashMap;
use std::sync::Arc;

pub(super) use ends::ended_by;
pub(super) use gone::{Gone, fill_gone};
use holders::Held;
pub(super) use saves::is_end;
pub(super) use writes::RowChange;

use super::requests::Partition;
use crate::error::{Error, ErrorKind};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::store::{Mark, Scope};

/// The beginning of the text of a position that cannot be read. The reason follows.
pub(super) const UNREADABLE: &str = "\0unreadable: ";

/// A lease table of a KCL.
#[derive(Debug)]
pub(super) struct KclTable {
    name: Arc<str>,
    /// By the whole scope: streams of two accounts may have rows of the same name.
    scopes: Mutex<HashMap<Scope, Known>>,
}

/// Knowledge of the rows of one stream.
#[derive(Debug, Default)]
struct Known {
    /// The stream as the KCL names it, in a table of several streams; `None` before the first read.
    #[allow(clippy::option_option, reason = "an unknown table differs from one of one stream")]
    stream: Option<Option<String>>,
    /// The rows that a KCL holds.
    held: HashMap<ShardId, Held>,
}

impl KclTable {
    pub(super) fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), scopes: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// The rows of one stream in the table of a KCL.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kcl<'a> {
    table: &'a KclTable,
    scope: &'a Scope,
}

impl<'a> Kcl<'a> {
    pub(super) fn new(table: &'a KclTable, scope: &'a Scope) -> Self {
        Self { table, scope }
    }

    /// Returns the name of the table.
    pub(super) fn name(self) -> Arc<str> {
        Arc::clone(&self.table.name)
    }

    /// Returns the name by which rows are marked. A stream that is given by its ARN has the rows of
    /// its name.
    fn mark(self) -> String {
        let escaped = |text: &str| text.replace('%', "%25").replace(':', "%3A");
        format!("{}:{}", escaped(self.scope.application()), self.scope.stream_name())
    }

    /// Returns the account of a stream that is given by its ARN.
    fn account(self) -> Option<&'a str> {
        self.scope.by_name()?;
        self.scope.stream().split(':').next()
    }

    fn with<T>(self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(self.table.scopes.lock().entry(self.scope.clone()).or_default())
    }

    fn error(self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, format!("KCL table {}: {what}", self.table.name))
    }
}

impl<'a> Partition<'a> {
    /// Returns the KCL's rows that have the position of a shard; `None` if it is an item of the
    /// store's own table, as are the marks of a migration.
    pub(super) fn kcl_of(&self, shard: &ShardId) -> Option<Kcl<'a>> {
        self.kcl.filter(|_| !Mark::is_one(shard))
    }

    /// Returns the requests to the table of a KCL.
    pub(super) fn beside(&self, kcl: Kcl<'a>) -> Partition<'a> {
        Partition { table: kcl.table.name(), kcl: None, ..self.clone() }
    }
}
