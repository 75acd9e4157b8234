//! A lease row of a KCL, and its changes. Every change is a new row, made from the row that was seen.
//!
//! A row is written only if it still is as it was seen, and only in the attributes that differ, so
//! that all others stay as they are. Each change raises the counter: a KCL worker that holds the row
//! then no longer renews it or saves to it.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::AttributeValue;

use super::super::expressions::{Expressions, Item};
use super::place::{Meaning, Place, WHOLE};
use crate::record::ShardId;

pub(super) const LEASE_KEY: &str = "leaseKey";
const COUNTER: &str = "leaseCounter";
const CHECKPOINT: &str = "checkpoint";
const SUB_SEQUENCE_NUMBER: &str = "checkpointSubSequenceNumber";
const OWNER: &str = "leaseOwner";
const CHECKPOINT_OWNER: &str = "checkpointOwner";
const SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
const PARENTS: &str = "parentShardId";
const CHILDREN: &str = "childShardIds";
const STREAM_NAME: &str = "streamName";
const SHARD_ID: &str = "shardId";
const ENTITY_TYPE: &str = "entityType";
/// The checkpoint of a KCL application that checkpoints in two phases.
const PENDING: [&str; 3] =
    ["pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState"];
const EPOCH: &str = "kinestreamEpoch";
const CLAIMED_BY: &str = "kinestreamOwner";
const SCOPE: &str = "kinestreamScope";
const NOTE: &str = "kinestreamPosition";

/// The entity type of a lease, in the tables of the KCL 3.5 and later. A row without one is a lease.
const LEASE: &str = "LEASE";

/// A lease row, as far as this crate reads and writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Rises with each change of the owner or of the position.
    pub(super) counter: u64,
    /// The position, as a KCL reads it.
    pub(super) place: Place,
    /// The exact position, and the place at which it counts; see [`Place::note`].
    pub(super) note: Option<String>,
    /// The epoch of the lease that may save to the row.
    pub(super) epoch: Option<u64>,
    /// The owner; in a handoff of the KCL 3, the next owner.
    pub(super) owner: Option<String>,
    /// In a handoff of the KCL 3, the present owner.
    pub(super) checkpoint_owner: Option<String>,
    /// The worker of this crate that claimed the row last. The owner differs if a KCL has taken the
    /// row since.
    pub(super) claimed_by: Option<String>,
    /// The application and the stream that claimed the row.
    pub(super) scope: Option<String>,
    /// The changes of the owner since the last save. A KCL cannot read a row without this number.
    pub(super) switches: Option<u64>,
    /// The parents of the shard.
    pub(super) parents: BTreeSet<String>,
    /// The children of the shard, once it has ended.
    pub(super) children: BTreeSet<String>,
    /// The stream and the shard, in a table of several streams.
    pub(super) names: Option<(String, String)>,
    /// True if the row has a pending checkpoint.
    pub(super) is_pending: bool,
}

/// The position in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowPosition {
    /// No position: the reader chooses it.
    None,
    /// A text that this crate has written, or the meaning of a position of the KCL.
    Text(String),
    /// The shard begins at the time at which it is claimed.
    Latest,
    /// It cannot be read, for this reason.
    Unreadable(String),
}

impl Row {
    /// Returns a new row of a shard with this position. It has no owner.
    pub(super) fn new(scope: &str, position: &str, parents: BTreeSet<String>) -> Self {
        let place = Place::trim_horizon().at(position);
        Self {
            counter: 0,
            note: Some(place.note(position)),
            place,
            epoch: None,
            owner: None,
            checkpoint_owner: None,
            claimed_by: None,
            scope: Some(scope.to_owned()),
            switches: Some(0),
            parents,
            children: BTreeSet::new(),
            names: None,
            is_pending: false,
        }
    }

    /// Returns the worker that reads the shard.
    pub(super) fn holder(&self) -> Option<&str> {
        self.checkpoint_owner.as_deref().or(self.owner.as_deref())
    }

    /// Returns the KCL worker that holds the row; `None` if no worker holds it, or one of this crate.
    pub(super) fn foreign_holder(&self) -> Option<&str> {
        let is_own = self.checkpoint_owner.is_none() && self.owner == self.claimed_by;
        self.holder().filter(|_| !is_own)
    }

    /// Returns the position.
    pub(super) fn position(&self) -> RowPosition {
        match self.note.as_deref().and_then(|note| self.place.position_of(note)) {
            Some("") => return RowPosition::None,
            Some(position) => return RowPosition::Text(position.to_owned()),
            None => {}
        }
        match self.place.meaning() {
            Meaning::Position(position) => RowPosition::Text(position),
            Meaning::Latest => RowPosition::Latest,
            Meaning::Unreadable(why) => RowPosition::Unreadable(why),
        }
    }

    /// Returns the row with this epoch and owner. `None` frees it.
    pub(super) fn claimed(&self, scope: &str, epoch: Option<u64>, owner: Option<&str>) -> Self {
        let is_switch = owner.is_some() && self.holder().is_some_and(|it| Some(it) != owner);
        Self {
            counter: self.counter + 1,
            epoch,
            owner: owner.map(Into::into),
            checkpoint_owner: None,
            claimed_by: owner.map(Into::into),
            scope: Some(scope.to_owned()),
            switches: Some(self.switches.unwrap_or(0) + u64::from(is_switch)),
            ..self.clone()
        }
    }

    /// Returns the row at this position; empty for none. The end of the shard becomes visible to a
    /// KCL by [`ended`](Self::ended).
    pub(super) fn saved(&self, position: &str) -> Self {
        let place = self.place.at(position);
        Self {
            counter: self.counter + 1,
            note: Some(place.note(position)),
            place,
            switches: Some(0),
            is_pending: false,
            ..self.clone()
        }
    }

    /// Returns the row with the worker of this crate that claimed it as its owner.
    pub(super) fn reclaimed(self) -> Self {
        if self.claimed_by.is_none() {
            return self;
        }
        Self { owner: self.claimed_by.clone(), checkpoint_owner: None, ..self }
    }

    /// Returns the row with the end of the shard, as a KCL reads it, if this crate has saved the end.
    /// All children must have rows: a KCL never adds the child of a finished shard.
    pub(super) fn ended(&self, children: &BTreeSet<String>) -> Option<Self> {
        let place = Place::shard_end();
        let end = place.checkpoint.clone();
        let note = Some(place.note(&end));
        let is_due = !self.place.is_end() && self.position() == RowPosition::Text(end);
        is_due.then(|| Self {
            counter: self.counter + 1,
            note,
            place,
            switches: Some(0),
            children: self.children.union(children).cloned().collect(),
            is_pending: false,
            ..self.clone()
        })
    }

    /// Returns the counter of an unreadable row, or 0.
    pub(super) fn counter_of(item: &Item) -> u64 {
        number(item, COUNTER).ok().flatten().unwrap_or(0)
    }

    /// Parses the attributes of a lease.
    ///
    /// # Errors
    ///
    /// Returns what is missing or wrong.
    fn parse(item: &Item) -> Result<Self, String> {
        let place = Place {
            checkpoint: text(item, CHECKPOINT)?.ok_or_else(|| absent(CHECKPOINT))?,
            sub_sequence_number: number(item, SUB_SEQUENCE_NUMBER)?,
        };
        Ok(Self {
            counter: number(item, COUNTER)?.ok_or_else(|| absent(COUNTER))?,
            place,
            note: text(item, NOTE)?,
            epoch: number(item, EPOCH)?,
            owner: text(item, OWNER)?,
            checkpoint_owner: text(item, CHECKPOINT_OWNER)?,
            claimed_by: text(item, CLAIMED_BY)?,
            scope: text(item, SCOPE)?,
            switches: number(item, SWITCHES)?,
            parents: texts(item, PARENTS)?,
            children: texts(item, CHILDREN)?,
            names: text(item, STREAM_NAME)?.zip(text(item, SHARD_ID)?),
            is_pending: PENDING.iter().any(|name| item.contains_key(*name)),
        })
    }

    /// Returns the attributes, in an order that stays the same. A pending checkpoint is not among
    /// them.
    fn attributes(&self) -> [(&'static str, Option<AttributeValue>); 14] {
        let text = |text: &Option<String>| text.clone().map(AttributeValue::S);
        let number = |number: u64| AttributeValue::N(number.to_string());
        // DynamoDB has no empty sets.
        let set = |set: &BTreeSet<String>| {
            (!set.is_empty()).then(|| AttributeValue::Ss(set.iter().cloned().collect()))
        };
        let (stream, shard) = self.names.clone().unzip();
        [
            (COUNTER, Some(number(self.counter))),
            (CHECKPOINT, Some(AttributeValue::S(self.place.checkpoint.clone()))),
            (SUB_SEQUENCE_NUMBER, self.place.sub_sequence_number.map(number)),
            (NOTE, text(&self.note)),
            (EPOCH, self.epoch.map(number)),
            (OWNER, text(&self.owner)),
            (CHECKPOINT_OWNER, text(&self.checkpoint_owner)),
            (CLAIMED_BY, text(&self.claimed_by)),
            (SCOPE, text(&self.scope)),
            (SWITCHES, self.switches.map(number)),
            (PARENTS, set(&self.parents)),
            (CHILDREN, set(&self.children)),
            (STREAM_NAME, text(&stream)),
            (SHARD_ID, text(&shard)),
        ]
    }
}

/// An item of a KCL's table.
#[derive(Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all items are leases")]
pub(super) enum TableItem {
    /// The lease of a shard, or why it cannot be read.
    Lease {
        /// The stream as the KCL names it, `account:name:creation time`, in a table of several
        /// streams.
        stream: Option<String>,
        shard: ShardId,
        row: Result<Row, String>,
    },
    /// An item of another kind: the KCL 3.5 keeps its workers and its leader in the same table.
    Other,
    /// An item without a key that names a shard. It is left as it is.
    Unknown(String),
}

impl TableItem {
    pub(super) fn parse(item: &Item) -> Self {
        match text(item, ENTITY_TYPE) {
            Ok(None) => {}
            Ok(Some(kind)) if kind == LEASE => {}
            _ => return Self::Other,
        }
        let Ok(Some(key)) = text(item, LEASE_KEY) else {
            return Self::Unknown("an item without a leaseKey".to_owned());
        };
        let (stream, shard) = match key.rsplit_once(':') {
            None => (None, &*key),
            Some((stream, shard)) => (Some(stream), shard),
        };
        match shard.parse() {
            Ok(shard) if stream.is_none_or(|stream| stream_name(stream).is_some()) => {
                Self::Lease { stream: stream.map(Into::into), shard, row: Row::parse(item) }
            }
            _ => Self::Unknown(key),
        }
    }
}

/// Returns the name of a stream that a KCL names `account:name:creation time`; `None` if the text
/// has another form.
pub(super) fn stream_name(identifier: &str) -> Option<&str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    let mut parts = identifier.split(':');
    match [parts.next()?, parts.next()?, parts.next()?] {
        [account, name, created] if is_number(account) && is_number(created) => {
            (parts.next().is_none() && !name.is_empty()).then_some(name)
        }
        _ => None,
    }
}

/// Returns the write that turns the item that was `seen` into `after`, if it still is as it was
/// seen. `None` means that there is no item. The deletion of a row has no update.
pub(super) fn write(seen: Option<&Item>, after: Option<&Row>) -> Expressions {
    let mut write = Expressions::default();
    let Some(item) = seen else {
        write = write.require(LEASE_KEY, None);
        let attributes = after.into_iter().flat_map(Row::attributes);
        let present = attributes.filter(|(_, value)| value.is_some());
        return present.fold(write, |write, (name, value)| write.set(name, value));
    };
    for name in COMPARED {
        write = write.require(name, item.get(name).cloned());
    }
    let Some(after) = after else { return write };
    for (name, value) in after.attributes() {
        if !is_same(item.get(name), value.as_ref()) {
            write = write.set(name, value);
        }
    }
    let pending = PENDING.into_iter().filter(|name| !after.is_pending && item.contains_key(*name));
    pending.fold(write, |write, name| write.set(name, None))
}

/// The attributes by which a row is compared with the one that was seen. The counter changes with
/// every other one, except that the KCL 3 begins a handoff without raising it, and that some other
/// clients set it back.
const COMPARED: [&str; 6] =
    [COUNTER, CHECKPOINT, SUB_SEQUENCE_NUMBER, EPOCH, OWNER, CHECKPOINT_OWNER];

/// Returns true if two attributes are equal. The members of a set have no order.
fn is_same(one: Option<&AttributeValue>, two: Option<&AttributeValue>) -> bool {
    match (one, two) {
        (Some(AttributeValue::Ss(one)), Some(AttributeValue::Ss(two))) => {
            one.iter().collect::<BTreeSet<_>>() == two.iter().collect()
        }
        _ => one == two,
    }
}

fn absent(name: &str) -> String {
    format!("it has no {name}")
}

fn wrong_type(name: &str) -> String {
    format!("its {name} has a type that a KCL does not write")
}

/// Returns a text; `None` if it is absent or null.
fn text(item: &Item, name: &str) -> Result<Option<String>, String> {
    match item.get(name) {
        None | Some(AttributeValue::Null(_)) => Ok(None),
        Some(AttributeValue::S(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong_type(name)),
    }
}

fn number(item: &Item, name: &str) -> Result<Option<u64>, String> {
    match item.get(name) {
        None | Some(AttributeValue::Null(_)) => Ok(None),
        Some(AttributeValue::N(number)) => match number.parse() {
            Ok(parsed) if parsed <= WHOLE => Ok(Some(parsed)),
            _ => Err(format!("its {name} is {number}, which is out of range")),
        },
        Some(_) => Err(wrong_type(name)),
    }
}

fn texts(item: &Item, name: &str) -> Result<BTreeSet<String>, String> {
    match item.get(name) {
        None | Some(AttributeValue::Null(_)) => Ok(BTreeSet::new()),
        Some(AttributeValue::Ss(texts)) => Ok(texts.iter().cloned().collect()),
        Some(_) => Err(wrong_type(name)),
    }
}

#[cfg(test)]
mod tests;
