//! The contract of a store with leases: it keeps texts under keys, and compares them.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use crate::error::Result;
use crate::record::ShardId;
use crate::store::Scope;

/// Stores leases together with checkpoints, so that workers can share the shards of a stream.
///
/// Implemented by [`MemoryStore`](crate::MemoryStore) and `RedisStore`; your own store may
/// implement it too. A store makes no decisions: it keeps one text for each [`EntryKey`], and one
/// heartbeat for each worker. [`Step::is_met`], [`Step::changes`] and [`FencedSave::is_met`] compare.
/// [`Leased`] makes the store a [`CheckpointStore`]. [`conformance::check_leases`] tests it.
///
/// [The module page](crate::store::lease#a-store-of-your-own) describes what a store has to consider.
///
/// # Errors
///
/// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable) is retried with back-off. Any other
/// kind is reported to the caller once, and is then retried as well.
///
/// # Cancel safety
///
/// A dropped call may have been carried out, or may be carried out later. Every call names the
/// texts that it replaces, so a call that is repeated does no harm.
///
/// [`conformance::check_leases`]: crate::store::conformance::check_leases
/// [`CheckpointStore`]: crate::CheckpointStore
/// [`Leased`]: crate::store::Leased
pub trait LeaseStore: Debug + Send + Sync + 'static {
    /// Makes a step, renews workers, and returns what has changed.
    ///
    /// The store performs these parts in order:
    ///
    /// 1. It notes which workers have expired, if it has a clock.
    /// 2. It makes the [step](Exchange::step): all of it, in one atomic step, or nothing.
    /// 3. It notes a heartbeat for each [renewal](Exchange::renewals).
    /// 4. It returns the entries; see [`Exchanged`].
    ///
    /// Other calls may run between these parts, but the step is atomic, and so is each heartbeat: no
    /// step that needs its worker to be silent is made after it. The returned entries are at least
    /// as new as the returned version.
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>>;

    /// Saves positions, each by itself. No shard occurs twice. The outcomes are in the order of the
    /// list.
    ///
    /// A position is saved if the lease entry of its shard has the epoch of the save, and the
    /// position entry has the expected text. The epoch is the first word of a lease entry. Comparing
    /// and saving is one atomic step for each position. The version of the table stays the same.
    ///
    /// A save that overlaps a step counts as made before it or after it, for each shard. It must not
    /// count as made before a step that an answer has shown.
    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>>;

    /// Returns true if another client of the store deletes the positions of finished shards, as the
    /// Kinesis Client Library does. A listed shard without an entry, of which a descendant has one,
    /// then counts as finished. Otherwise it is read from its oldest record.
    ///
    /// Default: false. A store that wraps another store forwards this call.
    fn forgets_finished_shards(&self) -> bool {
        false
    }

    /// Returns another client of the store that holds one of these shards, or any shard for `None`: a
    /// worker of the Kinesis Client Library, of which the entries show nothing. If there are several, it
    /// returns one that is alive.
    ///
    /// [`IfLeased::Refuse`](super::IfLeased::Refuse) protects such a client as it protects a worker of
    /// this crate. Without a clock, the store observes by its own calls for how long a client stays
    /// silent. After `lease_duration`, the client counts as dead, and is not returned.
    ///
    /// Default: none, without a call. A store that wraps another store forwards this call.
    fn other_reader<'a>(
        &'a self,
        scope: &'a Scope,
        shards: Option<&'a [ShardId]>,
        lease_duration: Duration,
    ) -> BoxFuture<'a, Result<Option<OtherReader>>> {
        let _ = (scope, shards, lease_duration);
        ready(Ok(None)).boxed()
    }

    /// Returns why an entry with this text cannot be read, for an error message: where it is stored
    /// and what to do. The default names the entry.
    fn unreadable(&self, scope: &Scope, key: &EntryKey, text: &str) -> String {
        format!(
            "the {key} of {scope} cannot be read: {text:?}; correct it, or set the shard's position \
             with Consumer::set_position"
        )
    }
}

/// The key of an entry of the table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EntryKey {
    /// The numbers of the table.
    Head,
    /// A worker.
    Worker(Arc<str>),
    /// The lease of a shard. The first word of its text is the epoch.
    Lease(ShardId),
    /// The position of a shard.
    Position(ShardId),
}

impl EntryKey {
    /// Returns the kind of the entry and its name within the kind: `head` with an empty name, or
    /// `worker`, `lease` or `position` with the name of the worker or the id of the shard.
    ///
    /// A store that keeps entries by these texts, and reads them with
    /// [`from_parts`](Self::from_parts), also keeps those of later versions.
    ///
    /// ```
    /// use kinestream::store::lease::EntryKey;
    ///
    /// let key = EntryKey::Worker("host-7".into());
    /// assert_eq!(key.parts(), ("worker", "host-7"));
    /// assert_eq!(EntryKey::from_parts("worker", "host-7"), Some(key));
    /// ```
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Head => ("head", ""),
            Self::Worker(worker) => ("worker", worker),
            Self::Lease(shard) => ("lease", shard.as_str()),
            Self::Position(shard) => ("position", shard.as_str()),
        }
    }

    /// Creates the key of this kind and name; `None` if they are not the [parts](Self::parts) of a
    /// key.
    pub fn from_parts(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "head" => name.is_empty().then_some(Self::Head),
            "worker" => Some(Self::Worker(name.into())),
            "lease" => name.parse().ok().map(Self::Lease),
            "position" => name.parse().ok().map(Self::Position),
            _ => None,
        }
    }

    /// Returns the shard of a lease or a position.
    pub fn shard(&self) -> Option<&ShardId> {
        match self {
            Self::Lease(shard) | Self::Position(shard) => Some(shard),
            Self::Head | Self::Worker(_) => None,
        }
    }
}

/// Returns the workers that have an entry. Their keys come after the head and before all others.
pub(in crate::store) fn workers_of(
    entries: &BTreeMap<EntryKey, Arc<str>>,
) -> impl Iterator<Item = &Arc<str>> {
    let keys = entries.keys().skip_while(|key| **key == EntryKey::Head);
    keys.map_while(|key| match key {
        EntryKey::Worker(worker) => Some(worker),
        _ => None,
    })
}

impl fmt::Display for EntryKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => formatter.write_str("head"),
            Self::Worker(worker) => write!(formatter, "worker {worker}"),
            Self::Lease(shard) => write!(formatter, "lease of {shard}"),
            Self::Position(shard) => write!(formatter, "position of {shard}"),
        }
    }
}

/// A request to a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// The step to make, if any.
    pub step: Option<Step>,
    /// The workers to renew.
    pub renewals: Vec<Renewal>,
    /// The version of the table that the caller knows. `None` requests the whole table.
    pub known: Option<u64>,
}

/// Changes of entries that are made together or not at all.
///
/// An entry whose new text is the expected one is a condition only, unless it is forced.
///
/// The step is made if every condition holds: the version, the expected texts, and the heartbeats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The version that the table must have; `None` for any.
    pub version: Option<u64>,
    /// The workers that must not have renewed since these heartbeats were seen. A worker removes at
    /// most 30 others in one step.
    pub silent: Vec<LastHeartbeat>,
    /// The entries. No key occurs twice.
    pub entries: Vec<EntryChange>,
}

impl Step {
    /// Returns true if every condition holds for the version of the table, the texts of its entries,
    /// and the marks of the last heartbeats of its workers, which are empty for none.
    ///
    /// The store calls this inside of the atomic step, or expresses it in conditions of its own.
    pub fn is_met<T: AsRef<str>, M: AsRef<str>>(
        &self,
        version: u64,
        text: impl Fn(&EntryKey) -> Option<T>,
        mark: impl Fn(&Arc<str>) -> M,
    ) -> bool {
        let is_expected = |change: &EntryChange| {
            let text = text(&change.key);
            text.as_ref().map(AsRef::as_ref) == change.expected.as_deref()
        };
        self.version.is_none_or(|expected| expected == version)
            && self.silent.iter().all(|last| mark(&last.worker).as_ref() == &*last.mark)
            && self.entries.iter().all(|change| change.is_forced || is_expected(change))
    }

    /// Returns the changes without those that are conditions only. A step with any starts a new
    /// version.
    pub fn changes(&self) -> impl Iterator<Item = &EntryChange> {
        self.entries.iter().filter(|change| change.is_forced || change.text != change.expected)
    }
}

/// The change of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryChange {
    /// The entry.
    pub key: EntryKey,
    /// The text that the entry must have; `None` if it must not exist.
    pub expected: Option<Arc<str>>,
    /// The new text; `None` to delete the entry.
    pub text: Option<Arc<str>>,
    /// True to change the entry whatever its text is, instead of the expected one only.
    pub is_forced: bool,
}

impl EntryChange {
    /// Creates a change of an entry from the expected text to another.
    pub fn new(key: EntryKey, expected: Option<Arc<str>>, text: Option<Arc<str>>) -> Self {
        Self { key, expected, text, is_forced: false }
    }
}

/// The renewal of a worker: a heartbeat to note.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewal {
    /// The worker.
    pub worker: Arc<str>,
    /// The text of the worker's entry. Without an entry of this text, nothing is noted: the entry
    /// is that of another incarnation.
    pub entry: Arc<str>,
    /// The time after which the worker expires without another heartbeat.
    pub lease_duration: Duration,
}

impl Renewal {
    /// Creates the renewal of a worker under the entry of this text.
    pub fn new(
        worker: impl Into<Arc<str>>,
        entry: impl Into<Arc<str>>,
        lease_duration: Duration,
    ) -> Self {
        Self { worker: worker.into(), entry: entry.into(), lease_duration }
    }
}

/// The last noted heartbeat of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastHeartbeat {
    /// The worker.
    pub worker: Arc<str>,
    /// A text that differs after each heartbeat, at least if they are a millisecond apart. Empty if
    /// none was ever noted.
    pub mark: Arc<str>,
}

impl LastHeartbeat {
    /// Creates the last heartbeat of a worker.
    pub fn new(worker: impl Into<Arc<str>>, mark: impl Into<Arc<str>>) -> Self {
        Self { worker: worker.into(), mark: mark.into() }
    }
}

/// A client of another kind that holds a shard of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OtherReader {
    /// The name of the client.
    pub name: Arc<str>,
    /// A shard that it holds.
    pub shard: ShardId,
    /// The time after which another call shows whether the client is alive; `None` if it is.
    pub undecided: Option<Duration>,
}

impl OtherReader {
    /// Creates a client that holds a shard and is alive.
    pub fn new(name: impl Into<Arc<str>>, shard: ShardId) -> Self {
        Self { name: name.into(), shard, undecided: None }
    }
}

/// The noted heartbeats in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heartbeats {
    /// The store has a clock. These workers had expired by it before the request: no heartbeat was
    /// noted for the lease duration of the last one. A worker of which none was ever noted has
    /// expired. If the clock goes back, a worker expires at most one lease duration later, and not
    /// at once.
    Expired(Vec<LastHeartbeat>),
    /// The store has no clock. These are the last heartbeats of all workers before the request.
    /// Each caller observes by its own clock for how long a mark stays the same.
    Last(Vec<LastHeartbeat>),
}

/// A store's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchanged {
    /// True if the step was made, or there was none.
    pub is_made: bool,
    /// The version of the table after the request. It rises with each step that changes an entry,
    /// and no version is ever used twice, even if the store loses its last steps or everything: it
    /// follows a clock, such as the microseconds since 1970. 0 before the first step.
    pub version: u64,
    /// True if `entries` are all entries; false if they are the changed ones.
    pub is_whole: bool,
    /// The entries that have changed since the known version, each with its present text, or `None`
    /// if it was deleted. A position that exists is included if a step has changed the lease of its
    /// shard, since saves change positions without a version. All entries that exist are returned if
    /// no version is known, or if the store is not certain to have had the known version: it may have
    /// lost steps.
    ///
    /// If the step was not made, the present texts of all its entries are included, `None` for those
    /// that do not exist. These are as new as the version too: a text that was compared earlier may
    /// have changed since. No entry occurs twice.
    pub entries: Vec<(EntryKey, Option<Arc<str>>)>,
    /// The heartbeats.
    pub heartbeats: Heartbeats,
    /// The time since 1970 by the store's clock, if it has one. Otherwise the clock of the worker's
    /// host counts.
    pub time: Option<Duration>,
}

impl Exchanged {
    /// Creates the answer to a request without a step, at this version and without changes.
    pub fn new(version: u64, heartbeats: Heartbeats) -> Self {
        let (is_made, is_whole) = (true, false);
        Self { is_made, version, is_whole, entries: Vec::new(), heartbeats, time: None }
    }
}

/// A position to save under an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FencedSave {
    /// The shard.
    pub shard: ShardId,
    /// The epoch of the lease under which the position was reached.
    pub epoch: u64,
    /// The text that the position entry must have; `None` if it must not exist.
    pub expected: Option<Arc<str>>,
    /// The new text.
    pub text: Arc<str>,
}

impl FencedSave {
    /// Creates a save of a position in this epoch, from the expected text to another.
    pub fn new(
        shard: ShardId,
        epoch: u64,
        expected: Option<Arc<str>>,
        text: impl Into<Arc<str>>,
    ) -> Self {
        Self { shard, epoch, expected, text: text.into() }
    }

    /// Returns true if the position is to be saved, given the texts of the lease and the position of
    /// the shard.
    ///
    /// ```
    /// use kinestream::store::lease::FencedSave;
    ///
    /// let shard = "shardId-000000000000".parse()?;
    /// let save = FencedSave::new(shard, 7, None, "TRIM_HORIZON");
    /// assert!(save.is_met(Some("7 one - 1 - - - - -"), None));
    /// assert!(!save.is_met(Some("8 two - 1 - - - - -"), None));
    /// # Ok::<(), kinestream::Error>(())
    /// ```
    pub fn is_met(&self, lease: Option<&str>, position: Option<&str>) -> bool {
        let epoch = lease.and_then(|lease| lease.split(' ').next());
        epoch == Some(self.epoch.to_string().as_str()) && position == self.expected.as_deref()
    }
}

/// The outcome of a [`FencedSave`], and what the store holds after it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FencedOutcome {
    /// True if the position was saved.
    pub is_saved: bool,
    /// The text of the lease entry, if there is one. A store may leave it out if the position was
    /// saved.
    pub lease: Option<Arc<str>>,
    /// The text of the position entry, if there is one.
    pub position: Option<Arc<str>>,
}

impl FencedOutcome {
    /// Creates an outcome with these fields.
    pub fn new(is_saved: bool, lease: Option<Arc<str>>, position: Option<Arc<str>>) -> Self {
        Self { is_saved, lease, position }
    }
}
