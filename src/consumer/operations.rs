//! What an operator sees and moves: the positions of an application.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::Consumer;
use crate::backoff::{Backoff, LISTINGS};
use crate::checkpoint::Checkpoint;
use crate::discovery::{Confirmations, StartingPosition};
use crate::error::{ClassifiedError, Error, ErrorKind, Result};
use crate::fleet::WorkerMessage;
use crate::record::ShardId;
use crate::source::Listing;
use crate::store::lease::{AdminEdit, Lease, LeaseTable};
use crate::store::{LONGEST_CALL, Mark, with_timeout};
use crate::telemetry::Event;

/// What to do about positions that a worker has the lease of.
///
/// ```no_run
/// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
/// use kinestream::{Checkpoint, WhenHeld};
///
/// let shard = "shardId-000000000000".parse()?;
/// consumer.set_position(&shard, Checkpoint::TrimHorizon, WhenHeld::Refuse).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum IfLeased {
    /// Change nothing, and name the worker.
    #[default]
    Refuse,
    /// Change it all the same: the worker begins there anew, in a new epoch, when it hears of it.
    Force,
}

impl Consumer {
    /// Every shard that the application knows: how far it is finished, who reads it, in which
    /// epoch, and its parents. Asks the store, and joins nothing.
    ///
    /// # Errors
    ///
    /// The store's.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// for (shard, lease) in consumer.positions().await? {
    ///     println!("{shard} {:?} {:?}", lease.checkpoint, lease.owner);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn positions(&self) -> Result<BTreeMap<ShardId, Lease>> {
        Ok(self.table().await?.leases)
    }

    /// The table of leases, as the store has it now.
    pub(super) async fn table(&self) -> Result<LeaseTable> {
        let table = with_timeout(self.inner.leases.table(&self.inner.scope)).await;
        let mut table = table.map_err(|error| self.here(error))?;
        table.leases.retain(|shard, _| !Mark::is_one(shard));
        Ok(table)
    }

    /// Has a shard read on from `checkpoint`, which may lie before its position or behind it.
    ///
    /// # Errors
    ///
    /// [`InUse`](crate::ErrorKind::InUse) where a worker has the lease and it is not forced;
    /// [`Configuration`](crate::ErrorKind::Configuration) for a time in the future, and for a store of
    /// your own that keeps no leases; the store's. Only where `checkpoint` is a time ahead of the local
    /// clock, that of listing the shards.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, it is done or not; to do it again changes nothing.
    pub async fn set_position(
        &self,
        shard: &ShardId,
        checkpoint: Checkpoint,
        when_held: IfLeased,
    ) -> Result<()> {
        if let Checkpoint::AtTimestamp(time) | Checkpoint::CaughtUp { until: time, .. } = checkpoint
            && time > SystemTime::now()
            // The local clock may be behind that of Kinesis.
            && is_future(time, self.now().await?)
        {
            let message = format!("the position {checkpoint} is in the future, but must be past");
            let error = Error::new(ErrorKind::Configuration, message);
            return Err(self.here(error).in_shard(shard.as_str()));
        }
        let edit = AdminEdit::Set { positions: vec![(shard.clone(), checkpoint)] };
        let edited = self.edit(&edit, when_held).await;
        edited.map_err(|error| error.in_shard(shard.as_str()))?;
        self.see().await;
        Ok(())
    }

    /// Forgets everything that is stored of this application and stream: whoever reads next begins
    /// at its starting position.
    ///
    /// # Errors
    ///
    /// As [`set_position`](Self::set_position), where any worker is alive.
    ///
    /// # Cancel safety
    ///
    /// As [`set_position`](Self::set_position).
    pub async fn clear_positions(&self, when_held: IfLeased) -> Result<()> {
        self.edit(&AdminEdit::Clear, when_held).await?;
        self.see().await;
        Ok(())
    }

    /// Has every shard read on from `to`, while it is read: back, to read something again, or
    /// forward, to leave something out. Shards that are finished are read again where `to` lies in
    /// them, and children wait for their parents as always.
    ///
    /// The workers of the application, this one among them, begin anew with each shard that they have,
    /// this one before this returns, others at their next renewal. What was handed out before counts no
    /// more: to acknowledge it changes nothing, and its
    /// [`epoch`](crate::Record::epoch) is lower than that of what comes. For a single shard, or a
    /// sequence number, see [`set_position`](Self::set_position) with [`IfLeased::Force`].
    ///
    /// # Errors
    ///
    /// [`Configuration`](crate::ErrorKind::Configuration) for a timestamp in the future, and for a
    /// store of your own that keeps no leases; Kinesis's, of listing the shards, where ten seconds of
    /// retries do not cure it, and [`Unavailable`](crate::ErrorKind::Unavailable) where the listings lack
    /// a shard for as long; the store's.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, or failed, it is done for all shards that were listed, or for none of them: do it
    /// again. The store makes one step of it, however many shards there are.
    ///
    /// ```no_run
    /// # async fn example(consumer: kinestream::Consumer) -> kinestream::Result<()> {
    /// use std::time::{Duration, SystemTime};
    ///
    /// use kinestream::StartingPosition;
    ///
    /// // The last hour once more.
    /// let hour = SystemTime::now() - Duration::from_secs(3600);
    /// consumer.seek(StartingPosition::AtTimestamp(hour)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn seek(&self, to: StartingPosition) -> Result<()> {
        let mut confirmations = Confirmations::default();
        let mut listed = self.whole_listing(&mut confirmations).await?;
        let checkpoint = match to {
            StartingPosition::TrimHorizon => Checkpoint::TrimHorizon,
            StartingPosition::Latest => Checkpoint::AtTimestamp(listed.taken),
            StartingPosition::AtTimestamp(time) if is_future(time, listed.taken) => {
                let message = "the time to seek lies in the future, but must be past";
                return Err(self.here(Error::new(ErrorKind::Configuration, message)));
            }
            StartingPosition::AtTimestamp(time) => Checkpoint::AtTimestamp(time),
        };
        // Listed anew until there is nothing new: a shard may have come, and been begun, before its
        // parents were moved. From then on it waits for them.
        let mut moved = BTreeSet::new();
        loop {
            if listed.shards.iter().all(|shard| moved.contains(&shard.id)) {
                break;
            }
            let closed = self.closed_before(&checkpoint, &listed).await?;
            let position = |id: ShardId| {
                let is_closed = closed.contains(&id);
                (id, if is_closed { Checkpoint::ShardEnd } else { checkpoint.clone() })
            };
            let ids = listed.shards.into_iter().map(|shard| shard.id);
            let positions: Vec<_> =
                ids.filter(|id| moved.insert(id.clone())).map(position).collect();
            self.edit(&AdminEdit::Set { positions }, IfLeased::Force).await?;
            listed = self.whole_listing(&mut confirmations).await?;
        }
        self.see().await;
        Ok(())
    }

    /// A moment by the server's clock that is not after now.
    async fn now(&self) -> Result<SystemTime> {
        let mut attempts = Attempts::new();
        loop {
            match self.inner.kinesis.shards().await {
                Ok(listing) => return Ok(listing.taken),
                Err(failure) => attempts.after(self, failure).await?,
            }
        }
    }

    /// Lists the shards until none that the application could read is missing.
    async fn whole_listing(&self, confirmations: &mut Confirmations) -> Result<Listing> {
        let table = self.table().await?;
        let mut attempts = Attempts::new();
        loop {
            match confirmations.list_whole(&self.inner.kinesis, &table).await {
                Ok(listing) => return Ok(listing),
                Err(failure) => attempts.after(self, failure).await?,
            }
        }
    }

    /// The listed shards that hold nothing from there on, as far as Kinesis can say.
    async fn closed_before(
        &self,
        checkpoint: &Checkpoint,
        listed: &Listing,
    ) -> Result<BTreeSet<ShardId>> {
        let Checkpoint::AtTimestamp(time) = checkpoint else { return Ok(BTreeSet::new()) };
        let mut attempts = Attempts::new();
        loop {
            match self.inner.kinesis.shards_open_before(*time).await {
                Ok(open_then) => return Ok(listed.closed_before(&open_then)),
                // What does not know the filter can still be moved.
                Err(failure) if failure.error.kind() == ErrorKind::Rejected => {
                    return Ok(BTreeSet::new());
                }
                Err(failure) => attempts.after(self, failure).await?,
            }
        }
    }

    /// Waits until the worker of this consumer, where it has one, has seen what was edited: then it
    /// hands out no more of what it had before.
    async fn see(&self) {
        let (told, seen) = oneshot::channel();
        let messages = self.inner.messages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if messages.is_some_and(|messages| messages.send(WorkerMessage::TableEdited(told)).is_ok()) {
            // A store that does not answer any more has its leases run out.
            let _seen = timeout(LONGEST_CALL, seen).await;
        }
    }

    async fn edit(&self, edit: &AdminEdit, when_held: IfLeased) -> Result<()> {
        let forced = when_held == IfLeased::Force;
        let edited = with_timeout(self.inner.leases.edit(&self.inner.scope, edit, forced)).await;
        match edited.map_err(|error| self.here(error))? {
            None => Ok(()),
            Some(worker) => Err(self.in_use(&format!(
                "worker {worker} is reading; stop it first, or force it, and what it has not saved \
                 yet is lost to it"
            ))),
        }
    }

    fn here(&self, error: Error) -> Error {
        error.in_stream(self.inner.kinesis.name())
    }
}

/// The attempts of a listing, over at most [`LONGEST_CALL`].
struct Attempts {
    began: Instant,
    backoff: Backoff,
    failed: u32,
}

impl Attempts {
    fn new() -> Self {
        Self { began: Instant::now(), backoff: Backoff::new(LISTINGS), failed: 0 }
    }

    /// Backs off from a failure that a retry may cure.
    async fn after(&mut self, consumer: &Consumer, failure: ClassifiedError) -> Result<()> {
        let error = consumer.here(failure.error);
        let pause = self.backoff.failed();
        if !error.is_temporary() || self.began.elapsed() + pause >= LONGEST_CALL {
            return Err(error);
        }
        self.failed += 1;
        consumer.inner.telemetry.emit(Event::retried(None, &error, self.failed));
        sleep(pause).await;
        Ok(())
    }
}

/// Whether a time is later than now, by the local clock and by the server's, whose listing was taken
/// at most a second before `taken` ends.
fn is_future(time: SystemTime, taken: SystemTime) -> bool {
    time > SystemTime::now().max(taken + Duration::from_secs(1))
}
