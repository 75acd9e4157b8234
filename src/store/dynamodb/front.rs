//! The head and the heartbeats: what a worker reads with each exchange.
//!
//! A step that changes more entries of workers than fit in a transaction notes them in the head, as
//! `pending`. Every reader of the head settles them before it uses the head, see
//! [`front`](super::requests::Partition::front).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::expressions::{Expressions, Item, number, read_number, read_text, text, text_of};
use super::layout::{FORMAT, HEAD, Kind, TEXT, sort_key};
use crate::error::{Error, ErrorKind, Result};
use crate::store::lease::LastHeartbeat;

/// The number of last versions of which the log has the changes.
pub(super) const REMEMBERED_VERSIONS: usize = 64;

const VERSION: &str = "version";
const VERSIONS: &str = "versions";
const FORMAT_ATTRIBUTE: &str = "format";
const PENDING: &str = "pending";
const WORKER: &str = "worker";

/// The attribute with the name of the KCL's table, if that has the positions.
const KCL: &str = "kcl";

/// The attribute with the mark of the last heartbeat.
pub(super) const MARK: &str = "mark";

/// The head and the heartbeats.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Front {
    /// 0 before the first step.
    pub(super) version: u64,
    /// The last versions, in rising order. The present one is the last.
    versions: Vec<u64>,
    /// The text of the head.
    pub(super) head: Option<Arc<str>>,
    pub(super) workers: BTreeMap<Arc<str>, Heartbeat>,
    /// The entries of workers that are yet to be written; `None` for a deletion.
    pub(super) pending: BTreeMap<Arc<str>, Option<Arc<str>>>,
    /// The table of a KCL that has the positions, if any.
    pub(super) kcl: Option<Arc<str>>,
}

/// The entry of a worker and its last heartbeat.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Heartbeat {
    pub(super) text: Arc<str>,
    /// The stored mark; `None` if no heartbeat was noted.
    pub(super) mark: Option<AttributeValue>,
}

impl Heartbeat {
    /// Returns the mark, or an empty text for none.
    fn mark(&self) -> Arc<str> {
        self.mark.as_ref().map(read_text).unwrap_or_default()
    }
}

impl Front {
    /// Reads the items of the head and of heartbeats among these items.
    pub(super) fn read(table: &str, partition: &str, items: &[Item]) -> Result<Self> {
        let mut front = Self::default();
        for item in items {
            match Kind::of(sort_key(item)) {
                Kind::Head => front.read_head(item).map_err(|why| {
                    let message = format!(
                        "DynamoDB table {table}, item {HEAD} of {partition}: {why}; correct the \
                         item, or use another application"
                    );
                    Error::new(ErrorKind::StoreCorrupt, message)
                })?,
                Kind::Heartbeat(worker) => {
                    // An item without a text is no entry.
                    let Some(text) = text_of(item, TEXT) else { continue };
                    let mark = item.get(MARK).cloned();
                    front.workers.insert(worker.into(), Heartbeat { text, mark });
                }
                _ => {}
            }
        }
        Ok(front)
    }

    fn read_head(&mut self, item: &Item) -> Result<(), String> {
        let format = item.get(FORMAT_ATTRIBUTE).and_then(read_number);
        if format != Some(FORMAT) {
            let found = format.map_or_else(|| "no format".to_owned(), |it| format!("format {it}"));
            return Err(format!("it has {found}, but this version supports format {FORMAT}"));
        }
        let version = item.get(VERSION).and_then(read_number);
        self.version = version.ok_or("its version is not a number")?;
        let versions = item.get(VERSIONS).and_then(|value| value.as_l().ok());
        self.versions = versions.into_iter().flatten().filter_map(read_number).collect();
        self.head = text_of(item, TEXT);
        self.kcl = text_of(item, KCL);
        let pending = item.get(PENDING).and_then(|value| value.as_l().ok());
        let pending = pending.into_iter().flatten().filter_map(|entry| entry.as_m().ok());
        let pending = pending.filter_map(|entry| Some((text_of(entry, WORKER)?, entry)));
        self.pending = pending.map(|(worker, entry)| (worker, text_of(entry, TEXT))).collect();
        Ok(())
    }

    /// Returns the last heartbeats of all workers.
    pub(super) fn heartbeats(&self) -> Vec<LastHeartbeat> {
        let heartbeats = self.workers.iter();
        heartbeats
            .map(|(worker, last)| LastHeartbeat::new(Arc::clone(worker), last.mark()))
            .collect()
    }

    /// Returns the mark of a worker's last heartbeat; an empty one if none was noted.
    pub(super) fn mark(&self, worker: &str) -> Arc<str> {
        self.workers.get(worker).map(Heartbeat::mark).unwrap_or_default()
    }

    /// Returns the stored mark of a worker's last heartbeat.
    pub(super) fn mark_value(&self, worker: &str) -> Option<AttributeValue> {
        self.workers.get(worker)?.mark.clone()
    }

    /// Returns the versions after a known one; `None` if the log does not reach back to it.
    pub(super) fn versions_after(&self, known: u64) -> Option<&[u64]> {
        if known == self.version {
            return Some(&[]);
        }
        let index = self.versions.iter().position(|version| *version == known)?;
        Some(&self.versions[index + 1..])
    }

    /// Moves to the next version. Returns the version that the log forgets for it, if any.
    pub(super) fn next_version(&mut self, now: Duration) -> Option<u64> {
        let micros = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        self.version = micros.max(self.version.saturating_add(1));
        self.versions.push(self.version);
        (self.versions.len() > REMEMBERED_VERSIONS).then(|| self.versions.remove(0))
    }

    /// Returns the condition that the head has this version.
    pub(super) fn condition(&self) -> Expressions {
        let version = (self.version > 0).then(|| number(self.version));
        Expressions::default().require(VERSION, version)
    }

    /// Returns the update that writes this head, if the stored one has the version of `before`.
    pub(super) fn update(&self, before: &Self) -> Expressions {
        let versions = self.versions.iter().map(|version| number(*version)).collect();
        before
            .condition()
            .set(FORMAT_ATTRIBUTE, Some(number(FORMAT)))
            .set(VERSION, Some(number(self.version)))
            .set(VERSIONS, Some(AttributeValue::L(versions)))
            .set(TEXT, self.head.as_deref().map(text))
            .set(KCL, self.kcl.as_deref().map(text))
            .set(PENDING, self.pending_value())
    }

    /// Returns the update that leaves these of the pending entries, if the stored head still has
    /// this version and all of them.
    pub(super) fn settled(&self, left: BTreeMap<Arc<str>, Option<Arc<str>>>) -> Expressions {
        let after = Self { pending: left, ..Self::default() };
        self.condition().require(PENDING, self.pending_value()).set(PENDING, after.pending_value())
    }

    /// Returns the pending entries as an attribute; `None` without any.
    fn pending_value(&self) -> Option<AttributeValue> {
        let entries = self.pending.iter().map(|(worker, entry)| {
            let mut parts = HashMap::from([(WORKER.to_owned(), text(&**worker))]);
            parts.extend(entry.as_deref().map(|entry| (TEXT.to_owned(), text(entry))));
            AttributeValue::M(parts)
        });
        (!self.pending.is_empty()).then(|| AttributeValue::L(entries.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{self, heartbeat};
    use super::*;

    fn head(version: u64, versions: &[u64]) -> Item {
        let versions = versions.iter().map(|version| number(*version)).collect();
        let mut item = layout::key("a:s", HEAD);
        item.insert(FORMAT_ATTRIBUTE.to_owned(), number(FORMAT));
        item.insert(VERSION.to_owned(), number(version));
        item.insert(VERSIONS.to_owned(), AttributeValue::L(versions));
        item
    }

    #[test]
    fn front_without_items_has_version_0() {
        let front = Front::read("t", "a:s", &[]).unwrap();
        assert_eq!(front, Front::default());
        assert_eq!(front.versions_after(0), Some(&[][..]));
        assert_eq!(front.versions_after(7), None);
    }

    #[test]
    fn versions_after_a_known_one_are_those_of_the_log() {
        let front = Front::read("t", "a:s", &[head(30, &[10, 20, 30])]).unwrap();
        assert_eq!(front.versions_after(10), Some(&[20, 30][..]));
        assert_eq!(front.versions_after(30), Some(&[][..]));
        assert_eq!(front.versions_after(15), None);
    }

    #[test]
    fn next_version_follows_the_clock_and_always_rises() {
        let mut front = Front::default();
        let clock = Duration::from_micros(500);
        let versions = [(); 3].map(|()| {
            front.next_version(clock);
            front.version
        });
        assert_eq!(versions, [500, 501, 502]);
        let forgotten: Vec<_> =
            (0..REMEMBERED_VERSIONS).filter_map(|_| front.next_version(clock)).collect();
        assert_eq!(forgotten, versions, "the oldest versions are forgotten");
    }

    #[test]
    fn damaged_head_is_an_error_that_names_the_item() {
        let mut no_number = head(1, &[]);
        no_number.insert(VERSION.to_owned(), text("one"));
        let mut later = head(1, &[]);
        later.insert(FORMAT_ATTRIBUTE.to_owned(), number(FORMAT + 1));
        for (item, why) in [(no_number, "not a number"), (later, "format 2")] {
            let error = Front::read("t", "a:s", &[item]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreCorrupt);
            let said = error.to_string();
            assert!(said.contains("table t, item head of a:s") && said.contains(why), "{said}");
        }
    }

    #[test]
    fn pending_entries_are_read_from_the_head() {
        let entries = [("one", Some("7 1 10000 3")), ("", None), ("ü b", Some(""))];
        let entries = entries.map(|(worker, entry)| (worker.into(), entry.map(Into::into)));
        let front = Front { version: 7, pending: entries.into(), ..Front::default() };
        let mut item = head(7, &[7]);
        item.insert(PENDING.to_owned(), front.pending_value().unwrap());
        assert_eq!(Front::read("t", "a:s", &[item]).unwrap().pending, front.pending);
        assert_eq!(Front::default().pending_value(), None);
    }

    #[test]
    fn heartbeat_without_a_text_is_no_entry() {
        let mut entry = layout::key("a:s", &heartbeat("one"));
        entry.insert(TEXT.to_owned(), text("7 1 10000 3"));
        let bare = layout::key("a:s", &heartbeat("two"));
        let front = Front::read("t", "a:s", &[entry, bare]).unwrap();
        assert_eq!(front.workers.keys().map(|name| &**name).collect::<Vec<_>>(), ["one"]);
        assert_eq!(&*front.mark("one"), "");
    }
}
