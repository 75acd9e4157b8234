//! A KCL of our own: its workers, with the protocol of versions 1, 2 and 3. No real KCL takes part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use aws_sdk_kinesis::operation::get_records::GetRecordsError;
use aws_sdk_kinesis::operation::get_shard_iterator::GetShardIteratorError;
use aws_sdk_kinesis::types::{Record, ShardIteratorType};
use futures::future::join_all;
use kinestream::testing::Kinesis;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::ledger::Ledger;
use super::requests::{Lease, LeaseTable};

/// The time after which a lease that is not renewed has expired.
pub(crate) const FAILOVER: Duration = Duration::from_millis(900);

/// The pause between two reads of a shard. Kinesis allows five in a second, by all readers.
const READ_INTERVAL: Duration = Duration::from_millis(230);

/// The pause between two rounds of a worker.
const ROUND: Duration = Duration::from_millis(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Workers take leases; no children are named in the row of their parent.
    One,
    /// Workers take leases, as does version 3 during its rollout.
    Two,
    /// A leader assigns leases, and hands them over.
    Three,
}

/// The workers of a KCL application.
pub(crate) struct FakeKcl {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeKcl {
    pub(crate) fn start(
        version: Version,
        workers: usize,
        table: &LeaseTable,
        kinesis: &Kinesis,
        ledger: &Ledger,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let names: Vec<String> =
            (0..workers).map(|_| format!("kcl-{:08x}", fastrand::u32(..))).collect();
        let mut tasks = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let worker = Worker {
                name: name.clone(),
                version,
                is_leader: index == 0,
                table: table.clone(),
                kinesis: kinesis.client(),
                ledger: ledger.clone(),
                held: BTreeMap::new(),
                seen: HashMap::new(),
                stopped: stopped.clone(),
            };
            tasks.push(tokio::spawn(worker.run()));
        }
        if version == Version::Three {
            let leader = Leader { workers: names, table: table.clone(), seen: HashMap::new() };
            tasks.push(tokio::spawn(leader.run(stopped)));
        }
        Self { stop, tasks }
    }

    /// Stops the workers after a last checkpoint. They keep their leases, as a KCL does.
    pub(crate) async fn stop(mut self) {
        self.stop.send(true).unwrap();
        for ended in join_all(std::mem::take(&mut self.tasks)).await {
            ended.unwrap();
        }
    }

    /// Ends the workers at once.
    pub(crate) async fn kill(mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for ended in join_all(std::mem::take(&mut self.tasks)).await {
            let is_panic = ended.is_err_and(|error| error.is_panic());
            assert!(!is_panic, "expected no failure of a KCL worker");
        }
    }

    /// Fails if a worker has failed.
    pub(crate) fn assert_alive(&self) {
        assert!(self.tasks.iter().all(|task| !task.is_finished()), "a KCL worker has failed");
    }
}

impl Drop for FakeKcl {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A lease that a worker holds.
struct Held {
    lease: Lease,
    iterator: Option<String>,
    /// The last processed user record.
    processed: (String, u64),
    is_started: bool,
    read_at: Instant,
}

struct Worker {
    name: String,
    version: Version,
    is_leader: bool,
    table: LeaseTable,
    kinesis: aws_sdk_kinesis::Client,
    ledger: Ledger,
    held: BTreeMap<String, Held>,
    /// The last seen counter of each lease, and when it was seen first.
    seen: HashMap<String, (u64, Instant)>,
    stopped: watch::Receiver<bool>,
}

impl Worker {
    fn is_native(&self) -> bool {
        self.version == Version::Three
    }

    async fn run(mut self) {
        let (mut renewed, mut taken, mut cleaned) = (Instant::now(), None, Instant::now());
        loop {
            if *self.stopped.borrow() {
                return self.checkpoint_all().await;
            }
            if renewed.elapsed() >= FAILOVER / 3 {
                renewed = Instant::now();
                self.renew().await;
            }
            if taken.is_none_or(|taken: Instant| taken.elapsed() >= FAILOVER) {
                taken = Some(Instant::now());
                if self.is_leader {
                    self.synchronize().await;
                }
                if self.is_native() { self.adopt().await } else { self.take().await }
            }
            if cleaned.elapsed() >= FAILOVER {
                cleaned = Instant::now();
                self.clean_up().await;
            }
            self.process().await;
            sleep(ROUND).await;
        }
    }

    /// Renews the held leases. The KCL 3 learns of a handoff by a failed renewal.
    async fn renew(&mut self) {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            let Some(held) = self.held.get_mut(&key) else { continue };
            if self.table.renew(&held.lease, self.version == Version::Three).await {
                held.lease.counter += 1;
                continue;
            }
            let row = self.table.get(&key).await;
            match row {
                Some(row)
                    if self.is_native()
                        && row.checkpoint_owner.as_deref() == Some(&*self.name)
                        && row.counter == self.held[&key].lease.counter =>
                {
                    // The old owner saves, and then hands the lease over.
                    self.checkpoint(&key).await;
                    let next = row.owner.clone().unwrap();
                    self.table.assign(&row, &next).await;
                    self.held.remove(&key);
                }
                _ => {
                    self.held.remove(&key);
                }
            }
        }
    }

    /// Returns the leases, and those among them that have expired or are free.
    async fn look(&mut self) -> (Vec<Lease>, Vec<Lease>) {
        let leases = self.table.scan().await;
        let now = Instant::now();
        let mut expired = Vec::new();
        for lease in &leases {
            let known = self.seen.get(&lease.key).filter(|(counter, _)| *counter == lease.counter);
            let since = known.map_or(now, |(_, since)| *since);
            self.seen.insert(lease.key.clone(), (lease.counter, since));
            if lease.owner.is_none() || now - since >= FAILOVER {
                expired.push(lease.clone());
            }
        }
        (leases, expired)
    }

    /// Takes leases up to the worker's share, and steals one from the most loaded worker.
    async fn take(&mut self) {
        let (leases, expired) = self.look().await;
        let is_expired = |lease: &Lease| expired.iter().any(|it| it.key == lease.key);
        let mut loads: BTreeMap<&str, usize> = BTreeMap::from([(&*self.name, 0)]);
        for lease in leases.iter().filter(|lease| !is_expired(lease)) {
            *loads.entry(lease.owner.as_deref().unwrap()).or_default() += 1;
        }
        let target = leases.len().div_ceil(loads.len());
        let mut room = target.saturating_sub(loads[&*self.name]);
        let mut wanted: Vec<Lease> = expired.clone();
        fastrand::shuffle(&mut wanted);
        wanted.retain(|lease| lease.owner.as_deref() != Some(&*self.name) || room > 0);
        if wanted.is_empty() && room > 0 {
            let most = loads.iter().filter(|(name, _)| **name != self.name).max_by_key(|it| it.1);
            if let Some((victim, load)) = most
                && *load > target
            {
                wanted = leases
                    .iter()
                    .filter(|lease| lease.owner.as_deref() == Some(victim))
                    .take(1)
                    .cloned()
                    .collect();
            }
        }
        for mut lease in wanted {
            if room == 0 {
                return;
            }
            if self.table.take(&lease, &self.name).await {
                room -= 1;
                lease.counter += 1;
                self.hold(lease);
            }
        }
    }

    /// Picks up the leases that the leader has assigned to this worker.
    async fn adopt(&mut self) {
        for lease in self.table.scan().await {
            let is_mine =
                lease.owner.as_deref() == Some(&*self.name) && lease.checkpoint_owner.is_none();
            if is_mine && !self.held.contains_key(&lease.key) {
                self.hold(lease);
            }
        }
    }

    fn hold(&mut self, lease: Lease) {
        let processed = (lease.checkpoint.clone(), lease.sub_sequence_number);
        let read_at = Instant::now();
        let held = Held { iterator: None, processed, is_started: false, read_at, lease };
        self.held.insert(held.lease.key.clone(), held);
    }

    /// Adds leases: at the first start those of the oldest shards, later those of open shards that
    /// have neither a lease nor an ancestor with one.
    async fn synchronize(&self) {
        let shards = self.kinesis.list_shards().stream_name("orders").send().await.unwrap();
        let shards = shards.shards();
        let parents = |id: &str| -> Vec<String> {
            let shard = shards.iter().find(|shard| shard.shard_id() == id);
            let both = shard.map(|it| [it.parent_shard_id(), it.adjacent_parent_shard_id()]);
            both.into_iter().flatten().flatten().map(str::to_owned).collect()
        };
        let leases: BTreeSet<String> =
            self.table.scan().await.into_iter().map(|lease| lease.key).collect();
        for shard in shards {
            let id = shard.shard_id();
            let has_listed_parent =
                parents(id).iter().any(|parent| shards.iter().any(|it| it.shard_id() == parent));
            let is_added = if leases.is_empty() {
                !has_listed_parent
            } else {
                let range = shard.sequence_number_range();
                let is_open = range.is_some_and(|it| it.ending_sequence_number().is_none());
                let (mut left, mut has_ancestor) = (parents(id), false);
                while let Some(ancestor) = left.pop() {
                    has_ancestor |= leases.contains(&ancestor);
                    left.extend(parents(&ancestor));
                }
                is_open && !leases.contains(id) && !has_ancestor
            };
            if is_added {
                self.table.create(id, &parents(id)).await;
            }
        }
    }

    /// Deletes the rows of finished shards with children that are being read, the oldest first.
    async fn clean_up(&mut self) {
        let leases = self.table.scan().await;
        let of = |id: &String| leases.iter().find(|lease| lease.key == *id);
        for lease in leases.iter().filter(|lease| lease.is_ended()) {
            if lease.owner.as_deref() != Some(&*self.name)
                || lease.parents.iter().any(|it| of(it).is_some())
            {
                continue;
            }
            let children: Vec<&String> = leases
                .iter()
                .filter(|it| it.parents.contains(&lease.key))
                .map(|it| &it.key)
                .chain(&lease.children)
                .collect();
            let is_read = |id: &&String| of(id).is_some_and(|it| it.checkpoint != "TRIM_HORIZON");
            if !children.is_empty() && children.iter().all(is_read) {
                self.table.delete(&lease.key).await;
                self.held.remove(&lease.key);
            }
        }
    }

    async fn process(&mut self) {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            if self.held[&key].lease.is_ended() || !self.may_start(&key).await {
                continue;
            }
            let Some(held) = self.held.get_mut(&key) else { continue };
            if held.read_at > Instant::now() {
                continue;
            }
            held.read_at = Instant::now() + READ_INTERVAL;
            let iterator = match held.iterator.take() {
                Some(iterator) => Some(iterator),
                None => iterator(&self.kinesis, &key, &held.processed.0).await,
            };
            let Some(iterator) = iterator else { continue };
            let request = self.kinesis.get_records().shard_iterator(&iterator).limit(100);
            let records = match request.send().await {
                Ok(records) => records,
                Err(error) => {
                    let refused = error.as_service_error();
                    let is_throttled = refused
                        .is_some_and(GetRecordsError::is_provisioned_throughput_exceeded_exception);
                    assert!(is_throttled, "{error:?}");
                    held.iterator = Some(iterator);
                    continue;
                }
            };
            let after = held.processed.clone();
            for record in records.records() {
                for part in parts(&self.ledger, &key, record, &after) {
                    self.ledger.note(part.0);
                    held.processed = (record.sequence_number().to_owned(), part.1);
                }
            }
            held.iterator = records.next_shard_iterator().map(str::to_owned);
            if held.iterator.is_none() {
                let children: Vec<(String, Vec<String>)> = records
                    .child_shards()
                    .iter()
                    .map(|child| (child.shard_id().to_owned(), child.parent_shards().to_vec()))
                    .collect();
                self.end(&key, &children).await;
            } else if fastrand::u8(..5) == 0 {
                self.checkpoint(&key).await;
            }
        }
    }

    /// Returns true if the parents of a shard are finished.
    async fn may_start(&mut self, key: &str) -> bool {
        let held = &self.held[key];
        if held.is_started {
            return true;
        }
        for parent in held.lease.parents.clone() {
            if self.table.get(&parent).await.is_some_and(|parent| !parent.is_ended()) {
                return false;
            }
        }
        if let Some(held) = self.held.get_mut(key) {
            held.is_started = true;
        }
        true
    }

    /// Ends a shard: the children's rows, then their names, then the end.
    async fn end(&mut self, key: &str, children: &[(String, Vec<String>)]) {
        for (child, parents) in children {
            self.table.create(child, parents).await;
        }
        let lease = self.held[key].lease.clone();
        if self.version != Version::One {
            let names: Vec<String> = children.iter().map(|(child, _)| child.clone()).collect();
            self.table.name_children(&lease, &names).await;
        }
        if self.table.checkpoint(&lease, "SHARD_END", 0).await {
            let held = self.held.get_mut(key).unwrap();
            held.lease.counter += 1;
            "SHARD_END".clone_into(&mut held.lease.checkpoint);
        } else {
            self.held.remove(key);
        }
    }

    /// Saves the last processed user record of a shard.
    async fn checkpoint(&mut self, key: &str) {
        let Some(held) = self.held.get_mut(key) else { return };
        let (number, part) = held.processed.clone();
        let is_same = (&number, part) == (&held.lease.checkpoint, held.lease.sub_sequence_number);
        if is_same || held.lease.is_ended() {
            return;
        }
        if self.table.checkpoint(&held.lease, &number, part).await {
            held.lease.counter += 1;
            (held.lease.checkpoint, held.lease.sub_sequence_number) = (number, part);
        } else {
            self.held.remove(key);
        }
    }

    async fn checkpoint_all(&mut self) {
        for key in self.held.keys().cloned().collect::<Vec<_>>() {
            self.checkpoint(&key).await;
        }
    }
}

/// Returns an iterator at a checkpoint; `None` if the call is throttled.
async fn iterator(
    kinesis: &aws_sdk_kinesis::Client,
    shard: &str,
    checkpoint: &str,
) -> Option<String> {
    let request = kinesis.get_shard_iterator().stream_name("orders").shard_id(shard);
    let request = match checkpoint {
        "TRIM_HORIZON" => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
        "LATEST" => request.shard_iterator_type(ShardIteratorType::Latest),
        number => request
            .shard_iterator_type(ShardIteratorType::AtSequenceNumber)
            .starting_sequence_number(number),
    };
    match request.send().await {
        Ok(answer) => answer.shard_iterator,
        Err(error) => {
            let refused = error.as_service_error();
            let is_throttled = refused
                .is_some_and(GetShardIteratorError::is_provisioned_throughput_exceeded_exception);
            assert!(is_throttled, "{error:?}");
            None
        }
    }
}

/// Returns the user records of a record after a position, each with its sub-sequence number.
fn parts(ledger: &Ledger, shard: &str, record: &Record, after: &(String, u64)) -> Vec<(u64, u64)> {
    let number = record.sequence_number();
    let is_past = |part: u64| {
        let order = |number: &str| (number.len(), number.to_owned());
        !after.0.starts_with(|letter: char| letter.is_ascii_digit())
            || (order(number), part) > (order(&after.0), after.1)
    };
    let parts = ledger.user_records(shard, number).into_iter().zip(0..);
    parts.filter(|(_, part)| is_past(*part)).collect()
}

/// The leader of the KCL 3.
struct Leader {
    workers: Vec<String>,
    table: LeaseTable,
    seen: HashMap<String, (u64, Instant)>,
}

impl Leader {
    async fn run(mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            self.assign().await;
            sleep(FAILOVER / 2).await;
        }
    }

    /// Assigns free and expired leases, and hands one over from the most to the least loaded worker.
    async fn assign(&mut self) {
        let leases = self.table.scan().await;
        let now = Instant::now();
        let mut loads: BTreeMap<String, usize> =
            self.workers.iter().map(|worker| (worker.clone(), 0)).collect();
        let mut due = Vec::new();
        for lease in &leases {
            // Only a counter that rises counts as a renewal.
            let known = self.seen.get(&lease.key).filter(|(counter, _)| *counter >= lease.counter);
            let (counter, since) = known.copied().unwrap_or((lease.counter, now));
            self.seen.insert(lease.key.clone(), (counter, since));
            let is_expired = now - since >= FAILOVER + FAILOVER / 2;
            match &lease.owner {
                Some(owner) if !is_expired => *loads.entry(owner.clone()).or_default() += 1,
                _ => due.push(lease),
            }
        }
        loads.retain(|worker, _| self.workers.contains(worker));
        for lease in due {
            let Some((worker, load)) = loads.iter_mut().min_by_key(|(_, load)| **load) else {
                return;
            };
            if self.table.assign(lease, worker).await {
                *load += 1;
            }
        }
        let most = loads.iter().max_by_key(|(_, load)| **load);
        let least = loads.iter().min_by_key(|(_, load)| **load);
        let (Some((from, high)), Some((to, low))) = (most, least) else { return };
        let is_free =
            |lease: &&Lease| lease.owner.as_ref() == Some(from) && lease.checkpoint_owner.is_none();
        // Also without need, so that handoffs take place.
        if (*high > low + 1 || fastrand::u8(..3) == 0)
            && from != to
            && let Some(lease) = leases.iter().find(is_free)
        {
            self.table.begin_handoff(lease, from, to).await;
        }
    }
}
