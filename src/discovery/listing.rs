//! Listings of the stream, repeated until one is complete.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use super::confirmation::{
    CONFIRM_EACH, CONFIRMATIONS, Confirmations, is_past_retention, unknown_parents,
};
use super::failure_patience::{FailurePatience, FailureVerdict};
use super::identity::is_of_other_stream;
use super::read_rules::ReadRules;
use super::scope_migration::ScopeMigration;
use super::start::{FirstPoll, Start, floor};
use super::stream_shards::StreamShards;
use super::unlisted::AbsentShards;
use crate::backoff::{Backoff, LISTINGS};
use crate::checkpoint::millis_of;
use crate::clock::Clock;
use crate::error::{ClassifiedError, Error, ErrorKind, ErrorReporter, RetryAction};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::source::{
    ListedShard, Listing, OnTrimmed, StreamClient, start_mismatch, unusable_listing,
};
use crate::store::lease::{Change, Lease, LeaseTable};
use crate::telemetry::{Event, Telemetry};

/// The longest back-off while the stream is not found: several responses are needed before the
/// stream counts as nonexistent.
const LONGEST_PAUSE_MISSING: Duration = Duration::from_secs(5);

/// The number of unusable responses to a listing by time before the worker continues without it.
const FILTERED_ATTEMPTS: u32 = 3;

/// Lists the shards of one stream, and derives the changes of the lease table.
#[derive(Clone)]
pub(crate) struct ShardDiscovery {
    pub(crate) kinesis: StreamClient,
    pub(crate) start: Start,
    pub(crate) rules: ReadRules,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) discovery_interval: Duration,
    pub(crate) telemetry: Telemetry,
    pub(crate) error_reporter: ErrorReporter,
    pub(crate) memory: Memory,
    /// Moves the positions under the stream's name to its ARN; `None` if the stream is given by
    /// name.
    pub(crate) scope_migration: Option<ScopeMigration>,
    /// See [`LeaseStore::forgets_finished_shards`](crate::store::LeaseStore).
    pub(crate) forgets_finished_shards: bool,
}

/// The state that the listings of one session share.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Remembered>);

#[derive(Debug)]
struct Remembered {
    first_poll: FirstPoll,
    latest: OnceLock<SystemTime>,
    absences: Mutex<AbsentShards>,
    /// The shards that the caller has named, that do not exist, and that are reported.
    nonexistent: Mutex<BTreeSet<ShardId>>,
}

impl Memory {
    /// Starts a session; its first poll is now.
    pub(crate) fn begin(clock: Clock) -> Self {
        Self(Arc::new(Remembered {
            first_poll: FirstPoll::now(clock),
            latest: OnceLock::new(),
            absences: Mutex::default(),
            nonexistent: Mutex::default(),
        }))
    }

    /// Returns the wall clock of the host.
    pub(super) fn clock(&self) -> &Clock {
        self.0.first_poll.clock()
    }

    /// Returns the moment of the first poll by the server's clock, or one before it. `answered` is
    /// the server's time of a response that has just arrived.
    fn set_latest(&self, answered: SystemTime) -> SystemTime {
        *self.0.latest.get_or_init(|| self.0.first_poll.before(answered))
    }

    /// Returns the moment of the first poll, in whole seconds: by the server's clock, or by the
    /// clock of this host before the first successful listing.
    pub(super) fn latest(&self) -> SystemTime {
        floor(self.moment())
    }

    /// Returns the same moment. It is not rounded if it is by the clock of this host, so that
    /// workers that start in the same second have different moments.
    fn moment(&self) -> SystemTime {
        self.0.latest.get().copied().unwrap_or_else(|| self.0.first_poll.by_own_clock())
    }

    /// Returns the moment at which the application first polled the stream, or one before it.
    /// `stored` is [`LeaseTable::first_poll`].
    fn first_poll(&self, stored: u64) -> SystemTime {
        let latest = self.latest();
        // The clock of Kinesis is more exact than that of this host, by which the moment was
        // stored.
        let is_own = [self.0.first_poll.by_own_clock(), latest].map(millis_of).contains(&stored);
        match UNIX_EPOCH.checked_add(Duration::from_millis(stored)) {
            Some(stored) if stored > UNIX_EPOCH && !is_own => floor(stored).min(latest),
            _ => latest,
        }
    }

    /// Notes that a shard that the caller has named does not exist. Returns true the first time.
    fn note_nonexistent(&self, shard: &ShardId) -> bool {
        self.0.nonexistent.lock().insert(shard.clone())
    }

    fn absences(&self) -> MutexGuard<'_, AbsentShards> {
        self.0.absences.lock()
    }
}

impl ShardDiscovery {
    /// Lists the stream, and retries until the listing is usable. `begins` is true if this worker
    /// has not begun to read. Returns `None` if the stream does not exist.
    pub(crate) async fn list(self, before: Arc<LeaseTable>, begins: bool) -> Option<StreamShards> {
        let (listing, migrated) = self.list_and_migrate(&before, begins).await?;
        self.report_nonexistent(&listing, &before);
        let is_first = before.leases.is_empty() && migrated.leases.is_empty();
        let latest = self.memory.first_poll(if is_first { before.first_poll } else { 0 });
        let closed_before_start = match self.start.since(latest) {
            Some(since) if is_first => self.closed_before(&listing, since).await?,
            _ => BTreeSet::new(),
        };
        // Inherited shards are checked too: none is assigned before it is known whether it is gone.
        let mut known = Arc::clone(&before);
        for (shard, lease) in &migrated.leases {
            let leases = &mut Arc::make_mut(&mut known).leases;
            leases.entry(shard.clone()).or_insert_with(|| lease.clone());
        }
        let gone = self.find_gone(&listing, &known).await;
        let Listing { shards, taken, .. } = listing;
        Some(StreamShards {
            shards,
            taken,
            latest,
            closed_before_start,
            gone,
            before,
            begins,
            migrated,
        })
    }

    /// Returns the change to make before the first listing if shards start at the moment of the
    /// first poll. It stores that moment, so that a worker that fails before a complete listing is
    /// replaced by one that starts at the same moment. `known` is the moment that the store had
    /// before, or 0.
    pub(crate) fn first_poll_change(&self, known: u64) -> Option<Change> {
        let first_poll = if known > 0 { known } else { millis_of(self.memory.moment()) };
        self.start.is_relative().then_some(Change::Begin { first_poll })
    }

    /// Returns true if the last listings lack the shard and Kinesis gives no iterator for it, so
    /// that it may be gone.
    pub(crate) fn is_missing(&self, shard: &ShardId) -> bool {
        self.memory.absences().contains(shard)
    }

    pub(super) async fn until_complete(
        &self,
        before: &LeaseTable,
        begins: bool,
    ) -> Option<Listing> {
        let mut retries = Retries::new(begins, before);
        let mut confirmations = Confirmations::default();
        loop {
            match self.complete(before, &mut confirmations).await {
                Ok(listing) => return Some(listing),
                Err(failure) => retries.after(self, failure).await?,
            }
        }
    }

    /// Returns a listing in which no shard is known to be missing.
    ///
    /// # Errors
    ///
    /// Returns an error if the listing is incomplete or unconfirmed.
    async fn complete(
        &self,
        before: &LeaseTable,
        confirmations: &mut Confirmations,
    ) -> Result<Listing, ClassifiedError> {
        let listing = self.kinesis.shards().await?;
        self.memory.set_latest(listing.taken);
        let mut missing = unknown_parents(&listing, before);
        let nonexistent = self.unknown_names(&listing, before);
        missing.extend(nonexistent.iter().filter(|shard| !self.is_nonexistent(shard)));
        confirmations.confirm(&missing, |parent| is_past_retention(&self.kinesis, parent)).await?;
        self.confirm_other_starts(&listing, before).await?;
        self.confirm_new_starts(&listing, before).await?;
        Ok(listing)
    }

    /// Returns the shards that the caller has named and that neither the listing nor the table has.
    fn unknown_names(&self, listing: &Listing, before: &LeaseTable) -> BTreeSet<ShardId> {
        let listed: BTreeSet<&ShardId> = listing.shards.iter().map(|shard| &shard.id).collect();
        let is_known = |id: &ShardId| listed.contains(id) || before.leases.contains_key(id);
        self.rules.named().filter(|id| !is_known(id)).cloned().collect()
    }

    fn is_nonexistent(&self, shard: &ShardId) -> bool {
        self.memory.0.nonexistent.lock().contains(shard)
    }

    /// Reports to the caller each named shard that does not exist, as a complete listing has
    /// confirmed. Each is reported once.
    fn report_nonexistent(&self, listing: &Listing, before: &LeaseTable) {
        for shard in self.unknown_names(listing, before) {
            if self.memory.note_nonexistent(&shard) {
                let message = "only_shards names a shard that the stream does not have; it may have \
                               left retention, or its name may be wrong";
                let error = Error::new(ErrorKind::NotFound, message);
                self.report_error(error.in_stream(self.kinesis.name()).in_shard(&shard));
            }
        }
    }

    /// Fails unless another listing shows the same start for each shard with a start to be stored.
    /// With a wrong start, every later listing would look like that of another stream.
    async fn confirm_new_starts(
        &self,
        listing: &Listing,
        before: &LeaseTable,
    ) -> Result<(), ClassifiedError> {
        let is_new = |shard: &&ListedShard| {
            let lacks_start = |lease: &Lease| lease.start.is_none() && lease.unreadable.is_none();
            shard.start.is_some() && before.leases.get(&shard.id).is_none_or(lacks_start)
        };
        let new: Vec<&ListedShard> = listing.shards.iter().filter(is_new).collect();
        if new.is_empty() { Ok(()) } else { self.confirm_starts(&new).await }
    }

    /// Fails unless several listings agree on the start of each shard that seems to belong to
    /// another stream.
    pub(super) async fn confirm_other_starts(
        &self,
        listing: &Listing,
        before: &LeaseTable,
    ) -> Result<(), ClassifiedError> {
        let is_other = |shard: &&ListedShard| {
            let stays_lost = |lease: &Lease| lease.is_shard_expired && self.keeps_lost();
            let lease = before.leases.get(&shard.id).filter(|lease| !stays_lost(lease));
            lease.is_some_and(|lease| is_of_other_stream(lease, shard))
        };
        let others: Vec<&ListedShard> = listing.shards.iter().filter(is_other).collect();
        if others.is_empty() {
            return Ok(());
        }
        for _ in 1..CONFIRMATIONS {
            sleep(CONFIRM_EACH).await;
            self.confirm_starts(&others).await?;
        }
        Ok(())
    }

    /// Fails unless a new listing shows the same starts.
    async fn confirm_starts(&self, shards: &[&ListedShard]) -> Result<(), ClassifiedError> {
        let again = self.kinesis.shards().await?;
        let starts: HashMap<_, _> =
            again.shards.iter().map(|shard| (&shard.id, &shard.start)).collect();
        match shards.iter().find(|shard| starts.get(&shard.id) != Some(&&shard.start)) {
            Some(shard) => Err(start_mismatch(&shard.id)),
            None => Ok(()),
        }
    }

    /// Returns the shards that were closed before a time, as Kinesis proves; `None` if the stream
    /// does not exist.
    async fn closed_before(
        &self,
        listing: &Listing,
        time: SystemTime,
    ) -> Option<BTreeSet<ShardId>> {
        if listing.shards.iter().all(ListedShard::is_open) {
            return Some(BTreeSet::new());
        }
        let mut retries = Retries::new(false, &LeaseTable::default());
        let mut unusable_responses = 0;
        loop {
            let failure = match self.kinesis.shards_open_before(time).await {
                Ok(open_then) => return Some(listing.closed_before(&open_then)),
                Err(ClassifiedError { error, .. }) if error.kind() == ErrorKind::Rejected => {
                    unusable_listing(format!("by time was rejected: {error}"))
                }
                Err(failure) => failure,
            };
            unusable_responses += u32::from(failure.action == RetryAction::RestartListing);
            if unusable_responses >= FILTERED_ATTEMPTS {
                tracing::warn!(
                    stream = %self.kinesis.name(),
                    error = %failure.error,
                    "listing by time failed; closed shards are read from the starting position as well"
                );
                return Some(BTreeSet::new());
            }
            retries.after(self, failure).await?;
        }
    }

    /// Returns true if expired shards stay expired, since the `on_trimmed` policy does not allow to
    /// continue without them.
    pub(super) fn keeps_lost(&self) -> bool {
        self.on_trimmed == OnTrimmed::Fail
    }

    /// Returns the shards of the table that are gone, among those that are unfinished and that no
    /// worker reads.
    async fn find_gone(&self, listing: &Listing, before: &LeaseTable) -> Vec<ShardId> {
        let ids: BTreeSet<&ShardId> = listing.shards.iter().map(|shard| &shard.id).collect();
        let is_idle = |lease: &Lease| {
            !lease.is_finished()
                && lease.owner.is_none()
                && !(lease.is_shard_expired && self.keeps_lost())
        };
        let idle = before.leases.iter().filter(|(_, lease)| is_idle(lease)).map(|(id, _)| id);
        let idle = idle.filter(|id| self.rules.selects(id));
        let mut absent = Vec::new();
        for shard in idle.filter(|id| !ids.contains(id)) {
            match is_past_retention(&self.kinesis, shard).await {
                Ok(true) => absent.push(shard.clone()),
                Ok(false) => {}
                // A failed call proves nothing.
                Err(failure) => self.note_panic(failure),
            }
        }
        self.memory.absences().note(absent, self.discovery_interval, Instant::now())
    }

    /// Reports to the caller an error that retries do not fix. It is dropped with the caller's
    /// stream.
    pub(crate) fn report_error(&self, error: Error) {
        let _no_stream = self.error_reporter.report(error);
    }

    /// Emits an event if the call panicked. Other failures are ignored.
    pub(super) fn note_panic(&self, failure: ClassifiedError) {
        if failure.error.kind() == ErrorKind::Panicked {
            let error = failure.error.in_stream(self.kinesis.name());
            self.telemetry.emit(Event::retried(None, &error, 1));
        }
    }
}

/// The retries of one listing.
struct Retries {
    patience: FailurePatience,
    backoff: Backoff,
    failed: u32,
    panics: u32,
}

impl Retries {
    fn new(begins: bool, before: &LeaseTable) -> Self {
        let is_new = begins && before.leases.is_empty();
        let patience = FailurePatience::new(begins, is_new, Instant::now());
        Self { patience, backoff: Backoff::new(LISTINGS), failed: 0, panics: 0 }
    }

    /// Reports a failure and backs off. Returns `None` if the stream does not exist.
    async fn after(
        &mut self,
        discovery: &ShardDiscovery,
        mut failure: ClassifiedError,
    ) -> Option<()> {
        failure.action = failure.action_after(&mut self.panics);
        let verdict = self.patience.judge(&failure, Instant::now());
        let is_missing = failure.action == RetryAction::Gone;
        let error = failure.error.in_stream(discovery.kinesis.name());
        self.failed += 1;
        discovery.telemetry.emit(Event::retried(None, &error, self.failed));
        if verdict != FailureVerdict::Retry {
            discovery.report_error(error);
        }
        if verdict == FailureVerdict::Gone {
            return None;
        }
        let pause = self.backoff.failed();
        sleep(if is_missing { pause.min(LONGEST_PAUSE_MISSING) } else { pause }).await;
        Some(())
    }
}
