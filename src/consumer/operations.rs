//! Operations on the stored positions of an application: reads, changes, seeks.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::ConsumerInner;
use crate::backoff::{Backoff, LISTINGS};
use crate::checkpoint::Checkpoint;
use crate::discovery::{Confirmations, StartingPosition};
use crate::error::{ClassifiedError, Error, ErrorKind, Result};
use crate::record::ShardId;
use crate::source::Listing;
use crate::store::lease::{AdminEdit, EditOutcome, IfLeased, LeaseTable, OtherReader};
use crate::store::{Mark, STORE_CALL_TIMEOUT, leases_unsupported, with_timeout};
use crate::telemetry::Event;
use crate::worker_message::WorkerMessage;

/// The interval of reads that show whether a worker renews.
const OBSERVATION_INTERVAL: Duration = Duration::from_secs(1);

impl ConsumerInner {
    /// Reads the lease table from the store.
    pub(super) async fn table(&self) -> Result<LeaseTable> {
        let table = with_timeout(self.operations.table()).await;
        let mut table = table.map_err(|error| self.in_this_stream(error))?;
        table.leases.retain(|shard, _| !Mark::is_one(shard));
        Ok(table)
    }

    /// Implements [`Consumer::set_position`](super::Consumer::set_position).
    pub(super) async fn set_position(
        &self,
        shard: &ShardId,
        checkpoint: Checkpoint,
        if_leased: IfLeased,
    ) -> Result<()> {
        if let Checkpoint::AtTimestamp(time) | Checkpoint::CaughtUp { until: time, .. } = checkpoint
            && time > self.settings.worker_config.clock.now()
            // The local clock may be behind the clock of Kinesis.
            && self.is_future(time, self.now().await?)
        {
            let message =
                format!("position {checkpoint} is in the future; pass a time in the past");
            let error = Error::new(ErrorKind::Configuration, message);
            return Err(self.in_this_stream(error).in_shard(shard));
        }
        let edit = AdminEdit::Set { positions: vec![(shard.clone(), checkpoint)] };
        let edited = self.edit(&edit, if_leased).await;
        edited.map_err(|error| error.in_shard(shard))?;
        self.wait_for_worker().await;
        Ok(())
    }

    /// Implements [`Consumer::clear_positions`](super::Consumer::clear_positions).
    pub(super) async fn clear_positions(&self, if_leased: IfLeased) -> Result<()> {
        self.edit(&AdminEdit::Clear, if_leased).await?;
        self.wait_for_worker().await;
        Ok(())
    }

    /// Implements [`Consumer::seek`](super::Consumer::seek).
    pub(super) async fn seek(&self, to: StartingPosition) -> Result<()> {
        let mut confirmations = Confirmations::default();
        let mut listed = self.list_all_shards(&mut confirmations).await?;
        let checkpoint = match to {
            StartingPosition::TrimHorizon => Checkpoint::TrimHorizon,
            StartingPosition::Latest => Checkpoint::AtTimestamp(listed.taken),
            StartingPosition::AtTimestamp(time) if self.is_future(time, listed.taken) => {
                let message = "seek timestamp is in the future; pass a time in the past";
                return Err(self.in_this_stream(Error::new(ErrorKind::Configuration, message)));
            }
            StartingPosition::AtTimestamp(time) => Checkpoint::AtTimestamp(time),
        };
        // The listing is repeated until it shows no new shard: a child may have been created and
        // started before its parents were moved. After the move it waits for them.
        let mut moved = BTreeSet::new();
        loop {
            let is_read = |id: &ShardId| self.settings.worker_config.rules.selects(id);
            let mut ids = listed.shards.iter().map(|shard| &shard.id).filter(|id| is_read(id));
            if ids.all(|id| moved.contains(id)) {
                break;
            }
            let closed = self.closed_before(&checkpoint, &listed).await?;
            let position = |id: ShardId| {
                let is_closed = closed.contains(&id);
                (id, if is_closed { Checkpoint::ShardEnd } else { checkpoint.clone() })
            };
            let ids = listed.shards.into_iter().map(|shard| shard.id).filter(is_read);
            let positions: Vec<_> =
                ids.filter(|id| moved.insert(id.clone())).map(position).collect();
            let edit = AdminEdit::Set { positions };
            // Workers of the application follow the seek, those of another client do not.
            self.refuse_other_readers(&edit, "").await?;
            self.edit(&edit, IfLeased::Force).await?;
            listed = self.list_all_shards(&mut confirmations).await?;
        }
        self.wait_for_worker().await;
        Ok(())
    }

    /// Returns true if a time is in the future by the local clock and by the clock of Kinesis.
    /// `listed_at` is the time of a listing by the latter, truncated to the second.
    fn is_future(&self, time: SystemTime, listed_at: SystemTime) -> bool {
        let local = self.settings.worker_config.clock.now();
        time > local.max(listed_at + Duration::from_secs(1))
    }

    /// Returns a time by the clock of Kinesis that is not later than its current time.
    async fn now(&self) -> Result<SystemTime> {
        let mut attempts = ListingRetries::new();
        loop {
            match self.kinesis.shards().await {
                Ok(listing) => return Ok(listing.taken),
                Err(failure) => attempts.back_off_or_fail(self, failure).await?,
            }
        }
    }

    /// Lists the shards until the listing lacks no shard that the application could read.
    async fn list_all_shards(&self, confirmations: &mut Confirmations) -> Result<Listing> {
        let table = self.table().await?;
        let mut attempts = ListingRetries::new();
        loop {
            match confirmations.list_whole(&self.kinesis, &table).await {
                Ok(listing) => return Ok(listing),
                Err(failure) => attempts.back_off_or_fail(self, failure).await?,
            }
        }
    }

    /// Returns the listed shards that Kinesis shows to hold no record from `checkpoint` on.
    async fn closed_before(
        &self,
        checkpoint: &Checkpoint,
        listed: &Listing,
    ) -> Result<BTreeSet<ShardId>> {
        let Checkpoint::AtTimestamp(time) = checkpoint else { return Ok(BTreeSet::new()) };
        let mut attempts = ListingRetries::new();
        loop {
            match self.kinesis.shards_open_before(*time).await {
                Ok(open_then) => return Ok(listed.closed_before(&open_then)),
                // A server that does not support the filter proves nothing: all shards are moved.
                Err(failure) if failure.error.kind() == ErrorKind::Rejected => {
                    return Ok(BTreeSet::new());
                }
                Err(failure) => attempts.back_off_or_fail(self, failure).await?,
            }
        }
    }

    /// Waits until the worker of this consumer, if it has one, has read the edited table.
    /// Afterwards it delivers no record from before the edit.
    async fn wait_for_worker(&self) {
        let (seen, is_seen) = oneshot::channel();
        let messages = self.messages.lock().clone();
        if messages.is_some_and(|messages| messages.send(WorkerMessage::TableEdited(seen)).is_ok())
        {
            // If the store does not respond, the leases expire.
            let _seen = timeout(STORE_CALL_TIMEOUT, is_seen).await;
        }
    }

    async fn edit(&self, edit: &AdminEdit, if_leased: IfLeased) -> Result<()> {
        if self.settings.worker_config.has_own_leases {
            // Positions in such a store only advance.
            return Err(self.in_this_stream(leases_unsupported()));
        }
        if if_leased != IfLeased::Force {
            let choice = ", or pass IfLeased::Force, which discards its unsaved positions";
            self.refuse_other_readers(edit, choice).await?;
        }
        loop {
            let edited = with_timeout(self.operations.edit(edit, if_leased)).await;
            match edited.map_err(|error| self.in_this_stream(error))? {
                EditOutcome::Applied => return Ok(()),
                EditOutcome::Refused { worker } => {
                    // A store without a clock does not tell whether the worker is alive.
                    if let Some(left) = self.operations.undecided(&worker).await {
                        sleep(left.min(OBSERVATION_INTERVAL)).await;
                        continue;
                    }
                    return Err(self.in_use(&format!(
                        "worker {worker} is reading; stop it first, or pass IfLeased::Force, which \
                         discards its unsaved checkpoints"
                    )));
                }
            }
        }
    }

    /// Fails if another client of the store is reading a shard of the edit. `choice` is what the caller
    /// can do besides stopping it. Waits until it is known whether such a client is alive, for at most
    /// two lease durations: then it counts as alive.
    async fn refuse_other_readers(&self, edit: &AdminEdit, choice: &str) -> Result<()> {
        let shards: Option<Vec<ShardId>> = match edit {
            AdminEdit::Set { positions } => Some(positions.iter().map(|it| it.0.clone()).collect()),
            AdminEdit::Clear => None,
        };
        let lease_duration = self.settings.worker_config.lease_duration;
        let patience_ends = Instant::now() + 2 * lease_duration;
        loop {
            let reader = self.operations.other_reader(shards.as_deref(), lease_duration);
            let reader = with_timeout(reader).await.map_err(|error| self.in_this_stream(error))?;
            match reader {
                None => return Ok(()),
                Some(OtherReader { undecided: Some(left), .. })
                    if Instant::now() < patience_ends =>
                {
                    sleep(left.min(OBSERVATION_INTERVAL)).await;
                }
                Some(OtherReader { name, shard, .. }) => {
                    return Err(self.in_use(&format!(
                        "{name}, another client of the store, is reading {shard}; stop it \
                         first{choice}"
                    )));
                }
            }
        }
    }
}

/// The retries of a listing, over at most [`STORE_CALL_TIMEOUT`].
struct ListingRetries {
    began: Instant,
    backoff: Backoff,
    failed: u32,
}

impl ListingRetries {
    fn new() -> Self {
        Self { began: Instant::now(), backoff: Backoff::new(LISTINGS), failed: 0 }
    }

    /// Backs off after a transient failure. Returns any other error, and every error after
    /// [`STORE_CALL_TIMEOUT`].
    async fn back_off_or_fail(
        &mut self,
        consumer: &ConsumerInner,
        failure: ClassifiedError,
    ) -> Result<()> {
        let error = consumer.in_this_stream(failure.error);
        let pause = self.backoff.failed();
        if !error.is_temporary() || self.began.elapsed() + pause >= STORE_CALL_TIMEOUT {
            return Err(error);
        }
        self.failed += 1;
        consumer.telemetry.emit(Event::retried(None, &error, self.failed));
        sleep(pause).await;
        Ok(())
    }
}
