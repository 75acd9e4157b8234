//! Exchanges: a step, the heartbeats, and what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use super::buckets::{Bucket, bucket_of};
use super::expressions::{Expressions, text};
use super::front::{Front, MARK};
use super::kcl::ended_by;
use super::layout::{TEXT, heartbeat, step as step_key};
use super::log;
use super::reads::Whole;
use super::requests::{PARALLEL, Partition};
use crate::error::Result;
use crate::record::ShardId;
use crate::store::lease::{EntryKey, Exchange, Exchanged, Heartbeats, Renewal, Step};

/// Entries of an answer.
type Entries = Vec<(EntryKey, Option<Arc<str>>)>;

impl Partition<'_> {
    /// See [`LeaseStore::exchange`](crate::store::LeaseStore::exchange).
    pub(super) async fn exchange(&self, exchange: &Exchange) -> Result<Exchanged> {
        let Exchange { step, renewals, known } = exchange;
        let (Some(step), known) = (step, *known) else {
            return self.renew_and_read(renewals, *known).await;
        };
        if starts_worker(step)
            && let Some(lease_duration) = renewals.iter().map(|it| it.lease_duration).max()
        {
            self.admit(lease_duration).await?;
        }
        let front = self.front().await?;
        let heartbeats = front.heartbeats();
        let (front, is_made) = self.make(front, step).await?;
        if is_made && self.kcl.is_some() {
            self.show_ends(ended_by(step)).await?;
        }
        self.renew(renewals, &front).await?;
        let shown = step.entries.iter().filter(|_| !is_made).map(|change| change.key.clone());
        let mut answer = self.answer(front, known, shown.collect()).await?;
        (answer.is_made, answer.heartbeats) = (is_made, Heartbeats::Last(heartbeats));
        Ok(answer)
    }

    /// Makes an exchange without a step.
    async fn renew_and_read(&self, renewals: &[Renewal], known: Option<u64>) -> Result<Exchanged> {
        if known.is_none() {
            let whole = self.whole().await?;
            self.renew(renewals, &whole.front).await?;
            self.show_ends_of(&whole).await?;
            return Ok(answer_whole(whole));
        }
        let front = self.front().await?;
        let heartbeats = front.heartbeats();
        self.renew(renewals, &front).await?;
        let mut answer = self.answer(front, known, BTreeSet::new()).await?;
        answer.heartbeats = Heartbeats::Last(heartbeats);
        Ok(answer)
    }

    /// Notes the heartbeats of workers whose entries have the texts of their renewals.
    ///
    /// A mark replaces the one that was read, so that a request that arrives late does not bring an
    /// earlier mark back. If the mark has changed since, another heartbeat of the worker was noted.
    async fn renew(&self, renewals: &[Renewal], front: &Front) -> Result<()> {
        let calls = renewals.iter().map(|renewal| async move {
            // A mark is never used twice, so that a step that needs a worker to be silent does not
            // take a heartbeat of a later incarnation for the one that it has seen.
            let mark = format!("{:016x}", fastrand::u64(..));
            let change = Expressions::default()
                .require(TEXT, Some(text(&*renewal.entry)))
                .require(MARK, front.mark_value(&renewal.worker))
                .set(MARK, Some(text(mark)));
            self.update(&self.key(&heartbeat(&renewal.worker)), &change).await
        });
        let calls: Vec<_> = calls.collect();
        stream::iter(calls).buffer_unordered(PARALLEL).try_for_each(|_| async { Ok(()) }).await
    }

    /// Returns what has changed since a known version, and the present texts of `shown`.
    async fn answer(
        &self,
        front: Front,
        known: Option<u64>,
        mut shown: BTreeSet<EntryKey>,
    ) -> Result<Exchanged> {
        let changed = match known {
            Some(known) => self.changed_since(&front, known).await?,
            None => None,
        };
        let Some(changed) = changed else {
            let mut answer = answer_whole(self.whole().await?);
            for (key, _) in &answer.entries {
                shown.remove(key);
            }
            answer.entries.extend(shown.into_iter().map(|key| (key, None)));
            return Ok(answer);
        };
        shown.extend(changed);
        let mut answer = Exchanged::new(front.version, Heartbeats::Last(Vec::new()));
        answer.entries = self.entries(&front, shown).await?;
        Ok(answer)
    }

    /// Returns the keys of the entries that have changed since a version; `None` if the log does not
    /// reach back to it.
    async fn changed_since(&self, front: &Front, known: u64) -> Result<Option<BTreeSet<EntryKey>>> {
        let Some(versions) = front.versions_after(known) else { return Ok(None) };
        if versions.is_empty() {
            return Ok(Some(BTreeSet::new()));
        }
        let versions: BTreeSet<u64> = versions.iter().copied().collect();
        let keys = versions.iter().map(|version| self.key(&step_key(*version)));
        let steps = self.items(keys.collect()).await?;
        Ok((steps.len() == versions.len()).then(|| log::changed(&steps)).flatten())
    }

    /// Reads these entries. The head and the workers are those of the front.
    async fn entries(&self, front: &Front, mut keys: BTreeSet<EntryKey>) -> Result<Entries> {
        let shards: BTreeSet<ShardId> = keys.iter().filter_map(EntryKey::shard).cloned().collect();
        if shards.is_empty() {
            return Ok(keys.into_iter().map(|key| with_text(front, key)).collect());
        }
        let leases: Vec<EntryKey> =
            keys.iter().filter(|key| matches!(key, EntryKey::Lease(_))).cloned().collect();
        keys.extend(leases.iter().filter_map(EntryKey::shard).cloned().map(EntryKey::Position));
        let buckets: BTreeMap<u8, Bucket> =
            self.buckets(&shards.iter().map(bucket_of).collect()).await?;
        let rows = self.rows(&shards).await?;
        let entries = keys.into_iter().map(|key| match &key {
            EntryKey::Lease(shard) => {
                let text = buckets.get(&bucket_of(shard)).and_then(|bucket| bucket.lease(shard));
                (key, text)
            }
            EntryKey::Position(shard) => {
                let text = rows.get(shard).and_then(|row| row.text.clone());
                (key, text)
            }
            EntryKey::Head | EntryKey::Worker(_) => with_text(front, key),
        });
        Ok(entries.collect())
    }
}

/// Returns true if a worker starts with a step: it gets an entry of another incarnation, which is the
/// first word of the text. The entry may be that of an earlier worker of the same name.
fn starts_worker(step: &Step) -> bool {
    let incarnation = |text: &Option<Arc<str>>| {
        text.as_deref().and_then(|text| text.split(' ').next()).map(str::to_owned)
    };
    step.entries.iter().any(|change| {
        matches!(change.key, EntryKey::Worker(_))
            && change.text.is_some()
            && incarnation(&change.text) != incarnation(&change.expected)
    })
}

fn with_text(front: &Front, key: EntryKey) -> (EntryKey, Option<Arc<str>>) {
    let text = match &key {
        EntryKey::Worker(worker) => front.workers.get(worker).map(|it| Arc::clone(&it.text)),
        _ => front.head.clone(),
    };
    (key, text)
}

fn answer_whole(whole: Whole) -> Exchanged {
    let Whole { front, buckets, rows } = whole;
    let heartbeats = Heartbeats::Last(front.heartbeats());
    let head = front.head.map(|text| (EntryKey::Head, text));
    let workers = front.workers.into_iter();
    let workers = workers.map(|(worker, last)| (EntryKey::Worker(worker), last.text));
    let leases = buckets.iter().flat_map(Bucket::leases);
    let leases = leases.map(|(shard, text)| (EntryKey::Lease(shard), text));
    let rows = rows.into_iter();
    let rows = rows.filter_map(|(shard, row)| Some((EntryKey::Position(shard), row.text?)));
    let entries = head.into_iter().chain(workers).chain(leases).chain(rows);
    let mut answer = Exchanged::new(front.version, heartbeats);
    answer.entries = entries.map(|(key, text)| (key, Some(text))).collect();
    answer.is_whole = true;
    answer
}
