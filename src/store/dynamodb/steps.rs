//! Steps: whether the conditions of a step hold, and the transaction that makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::TransactWriteItem;
use tokio::time::sleep;

use super::buckets::{Bucket, bucket_of};
use super::expressions::Expressions;
use super::front::{Front, Heartbeat, MARK};
use super::kcl::{Gone, Kcl};
use super::layout::{HEAD, heartbeat, leases, step as step_key};
use super::log;
use super::positions::{self, Named, PositionWrite};
use super::reads::Rows;
use super::requests::{Partition, TRANSACTION, Transacted};
use crate::backoff::{Backoff, CONFLICTS};
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;
use crate::store::lease::{EntryChange, EntryKey, Step};

/// The attempts of one step. The crate repeats a step that is not made, with back-off.
const ATTEMPTS: u32 = 6;

impl Partition<'_> {
    /// Makes a step if its conditions hold. Returns the front after it, and whether it was made.
    ///
    /// Cancel safe: the step is made as a whole or not at all, maybe later.
    pub(super) async fn make(&self, mut front: Front, step: &Step) -> Result<(Front, bool)> {
        let mut backoff = Backoff::new(CONFLICTS);
        for _ in 0..ATTEMPTS {
            if step.version.is_some_and(|version| version != front.version) {
                return Ok((front, false));
            }
            let shards = step.entries.iter().filter_map(|change| change.key.shard());
            let buckets = self.buckets(&shards.map(bucket_of).collect()).await?;
            // The row of a KCL is written only as it was read.
            let is_read = |change: &&EntryChange| self.kcl.is_some() || !change.is_forced;
            let compared = step.entries.iter().filter(is_read);
            let compared = compared.filter_map(|change| match &change.key {
                EntryKey::Position(shard) => Some(shard.clone()),
                EntryKey::Lease(shard) if self.kcl.is_some() => Some(shard.clone()),
                _ => None,
            });
            let rows = self.rows(&compared.collect()).await?;
            if !holds(step, &front, &buckets, &rows) {
                return Ok((front, false));
            }
            let plan = Plan::new(self, step, &front, buckets, &rows)?;
            if plan.items.is_empty() {
                return Ok((plan.front, true));
            }
            if plan.items.len() > TRANSACTION {
                return Err(self.too_large(plan.items.len()));
            }
            if self.transact(plan.items).await? == Transacted::Done {
                let is_pending = !plan.front.pending.is_empty();
                let front = if is_pending { self.front().await? } else { plan.front };
                return Ok((front, true));
            }
            sleep(backoff.failed()).await;
            front = self.front().await?;
        }
        Ok((front, false))
    }

    fn too_large(&self, items: usize) -> Error {
        let message = format!(
            "DynamoDB table {}: a step of {} changes {items} items, but a transaction has at most \
             {TRANSACTION}: too many workers must be silent at once",
            self.table, self.key
        );
        Error::new(ErrorKind::Rejected, message)
    }
}

/// Returns true if the conditions of a step hold, apart from its version.
fn holds(step: &Step, front: &Front, buckets: &BTreeMap<u8, Bucket>, rows: &Rows) -> bool {
    let text_of = |key: &EntryKey| match key {
        EntryKey::Head => front.head.clone(),
        EntryKey::Worker(worker) => front.workers.get(worker).map(|it| Arc::clone(&it.text)),
        EntryKey::Lease(shard) => lease_of(buckets, shard),
        EntryKey::Position(shard) => rows.get(shard).and_then(|row| row.text.clone()),
    };
    step.silent.iter().all(|last| front.mark(&last.worker) == last.mark)
        && step.entries.iter().all(|it| it.is_forced || text_of(&it.key) == it.expected)
}

fn lease_of(buckets: &BTreeMap<u8, Bucket>, shard: &ShardId) -> Option<Arc<str>> {
    buckets.get(&bucket_of(shard))?.lease(shard)
}

/// The transaction of a step, and the front after it.
struct Plan {
    items: Vec<TransactWriteItem>,
    front: Front,
}

impl Plan {
    /// Plans a step whose conditions hold for what was read.
    fn new(
        partition: &Partition<'_>,
        step: &Step,
        before: &Front,
        mut buckets: BTreeMap<u8, Bucket>,
        rows: &Rows,
    ) -> Result<Self> {
        let is_change = |it: &&EntryChange| it.is_forced || it.text != it.expected;
        let changes: Vec<&EntryChange> = step.entries.iter().filter(is_change).collect();
        let mut front = before.clone();
        let mut items = log_items(partition, &changes, &mut front)?;
        let (checked, workers) = workers(partition, step, &changes, before, &mut front)?;
        items.extend(checked);
        for change in changes.iter().filter(|change| change.key == EntryKey::Head) {
            front.head.clone_from(&change.text);
        }
        front.kcl = partition.kcl.map(Kcl::name);
        let moved = positions(partition, step, &buckets, rows);
        let mut written = set_leases(&changes, &mut buckets);
        let (checks, writes): (Vec<_>, Vec<_>) =
            moved.into_iter().partition(|(_, write)| write.is_check);
        for (shard, write) in checks {
            let Named::Text(expected) = &write.write.expected else { continue };
            let row = rows.get(&shard);
            items.push(positions::check(partition, &shard, row, expected.as_deref())?);
        }
        // One more for the head.
        let fits = |items: usize| items < TRANSACTION && !partition.postpones;
        if fits(items.len() + written.len() + workers.len() + writes.len()) {
            for (shard, Moved { write, .. }) in writes {
                let (row, lease) = (rows.get(&shard), lease_of(&buckets, &shard));
                items.extend(positions::write(partition, &shard, row, lease.as_deref(), &write)?);
            }
        } else {
            for (shard, Moved { write, .. }) in writes {
                if let Some(bucket) = buckets.get_mut(&bucket_of(&shard)) {
                    bucket.postpone(&shard, &write);
                    written.insert(bucket.number);
                }
            }
        }
        if fits(items.len() + written.len() + workers.len()) {
            for (worker, entry) in workers {
                items.push(partition.worker(&worker, entry.as_deref(), Expressions::default())?);
            }
        } else {
            front.pending = workers;
        }
        // The head keeps all other steps from being made at the same time.
        let key = partition.key(HEAD);
        if !changes.is_empty() {
            items.push(partition.write(key, &front.update(before))?);
        } else if *step != Step::default() {
            items.push(partition.check(key, &before.condition())?);
        }
        for bucket in written.iter().filter_map(|number| buckets.get(number)) {
            // The condition on the head includes the leases. Pending writes are added by steps only.
            let update = bucket.update(Expressions::default());
            items.push(partition.write(partition.key(&leases(bucket.number)), &update)?);
        }
        Ok(Self { items, front })
    }
}

/// Moves the front to the next version. Returns the write of the step's item in the log, and the
/// deletion of the oldest one.
fn log_items(
    partition: &Partition<'_>,
    changes: &[&EntryChange],
    front: &mut Front,
) -> Result<Vec<TransactWriteItem>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let forgotten = front.next_version(now());
    let update = log::update(changes.iter().map(|change| &change.key));
    let mut items = vec![partition.write(partition.key(&step_key(front.version)), &update)?];
    if let Some(forgotten) = forgotten {
        let key = partition.key(&step_key(forgotten));
        items.push(partition.delete(key, &Expressions::default())?);
    }
    Ok(items)
}

/// Sets the texts of the changed leases. Returns the numbers of their buckets.
fn set_leases(changes: &[&EntryChange], buckets: &mut BTreeMap<u8, Bucket>) -> BTreeSet<u8> {
    let mut written = BTreeSet::new();
    for change in changes {
        if let EntryKey::Lease(shard) = &change.key
            && let Some(bucket) = buckets.get_mut(&bucket_of(shard))
        {
            bucket.set(shard, change.text.as_deref());
            written.insert(bucket.number);
        }
    }
    written
}

/// The entries of workers that a step writes or, for `None`, deletes.
type Workers = BTreeMap<Arc<str>, Option<Arc<str>>>;

/// Returns the writes and checks of workers that must be silent, and the other entries to write.
/// Applies the changes to the front.
fn workers(
    partition: &Partition<'_>,
    step: &Step,
    changes: &[&EntryChange],
    before: &Front,
    front: &mut Front,
) -> Result<(Vec<TransactWriteItem>, Workers)> {
    let mut workers = Workers::new();
    for change in changes {
        let EntryKey::Worker(worker) = &change.key else { continue };
        workers.insert(Arc::clone(worker), change.text.clone());
        match &change.text {
            Some(entry) => {
                let known: &mut Heartbeat = front.workers.entry(Arc::clone(worker)).or_default();
                known.text = Arc::clone(entry);
            }
            None => drop(front.workers.remove(worker)),
        }
    }
    let silent: BTreeSet<&Arc<str>> = step.silent.iter().map(|last| &last.worker).collect();
    let checked = silent.into_iter().map(|worker| {
        let condition = Expressions::default().require(MARK, before.mark_value(worker));
        match workers.remove(worker) {
            Some(entry) => partition.worker(worker, entry.as_deref(), condition),
            None => partition.check(partition.key(&heartbeat(worker)), &condition),
        }
    });
    let checked = checked.collect::<Result<_>>()?;
    Ok((checked, workers))
}

/// The write or the check of one position.
#[derive(Debug, Default)]
struct Moved {
    write: PositionWrite,
    /// True if nothing changes but the condition has to hold.
    is_check: bool,
}

/// Returns the positions that a step writes or checks: those that it changes or expects, and those
/// whose leases change their epochs.
fn positions(
    partition: &Partition<'_>,
    step: &Step,
    buckets: &BTreeMap<u8, Bucket>,
    rows: &Rows,
) -> BTreeMap<ShardId, Moved> {
    let mut moved: BTreeMap<ShardId, Moved> = BTreeMap::new();
    for change in &step.entries {
        match &change.key {
            EntryKey::Position(shard) => {
                let expected = if change.is_forced {
                    Named::Open
                } else {
                    Named::Text(change.expected.clone())
                };
                let is_check = !change.is_forced && change.text == change.expected;
                let text = if is_check { Named::Open } else { Named::Text(change.text.clone()) };
                let known = moved
                    .entry(shard.clone())
                    .or_insert(Moved { is_check: true, ..Moved::default() });
                known.write = PositionWrite { text, expected };
                known.is_check &= is_check;
            }
            EntryKey::Lease(shard) => {
                let stored = lease_of(buckets, shard);
                if positions::is_moved(partition, stored.as_deref(), change.text.as_deref()) {
                    moved.entry(shard.clone()).or_default().is_check = false;
                }
            }
            EntryKey::Head | EntryKey::Worker(_) => {}
        }
    }
    // The row of a finished shard that a KCL has deleted is not written again.
    let is_gone = |shard: &ShardId, write: &PositionWrite| {
        let row = rows.get(shard).filter(|row| row.gone == Some(Gone::Finished));
        row.is_some_and(|row| {
            write.text == Named::Open || write.text == Named::Text(row.text.clone())
        })
    };
    moved.retain(|shard, moved| moved.is_check || !is_gone(shard, &moved.write));
    moved
}

/// Returns the time since 1970 by the clock of this host.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
