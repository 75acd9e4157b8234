//! The task that finds out which shards there are, and says when each may be read.
//!
//! It lists the stream, loads the checkpoints, pins the start where there are none, and then
//! waits for words from the shards (a child is born, a shard is finished) and for the time to
//! list again. It holds no lock and owns the [`Lineage`]; dropping its task stops it anywhere,
//! since whatever it has done is either in the store or found out anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::start::{Pin, Start};
use super::{Lineage, Ordering};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Failure, Remedy, Result};
use crate::pace::jitter;
use crate::record::ShardId;
use crate::source::{Kinesis, KnownShard, Listing, OnTrimmed, Position};
use crate::store::{CheckpointStore, Scope, Writer, in_time};

/// The pauses between attempts that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// How long a Kinesis that has never answered may be out of reach before the caller is told: a
/// wrong endpoint or region looks just like a bad moment.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Listings that are asked for, by the end of a shard whose children nobody names, come no
/// closer than this.
const SOON: Duration = Duration::from_secs(1);

/// A shard that may be read now.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) shard: KnownShard,
    pub(crate) position: Position,
}

/// What a shard has to say.
#[derive(Debug)]
pub(crate) enum Word {
    /// It is read to its end, and these are its children as far as the server names them.
    Children(Vec<KnownShard>),
    /// All its records are finished.
    Finished(ShardId),
}

/// What it takes to find the shards of a stream.
pub(crate) struct Discovery {
    pub(crate) kinesis: Kinesis,
    pub(crate) store: Arc<dyn CheckpointStore>,
    pub(crate) scope: Scope,
    pub(crate) writer: Writer,
    pub(crate) start: Start,
    pub(crate) ordering: Ordering,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) interval: Duration,
    pub(crate) openings: mpsc::UnboundedSender<Result<Opening>>,
}

impl Discovery {
    /// Runs until nobody takes openings, or the stream is gone.
    pub(crate) async fn run(self, mut words: mpsc::UnboundedReceiver<Word>) {
        // An error has been told; there is nothing left to do.
        let _ended = self.follow(&mut words).await;
    }

    async fn follow(&self, words: &mut mpsc::UnboundedReceiver<Word>) -> Option<()> {
        let mut lineage = Lineage::new(self.ordering);
        self.begin(&mut lineage).await?;
        let mut listed = Instant::now();
        let mut due = listed + self.interval;
        loop {
            for (shard, position) in lineage.open() {
                self.openings.send(Ok(Opening { shard, position })).ok()?;
            }
            // In this order, so that what happens depends on nothing but what happened.
            tokio::select! {
                biased;
                word = words.recv() => match word? {
                    Word::Finished(shard) => lineage.finish(&shard),
                    Word::Children(children) => {
                        if !Self::add_children(&mut lineage, children) {
                            due = due.min(listed + SOON).max(Instant::now());
                        }
                    }
                },
                () = sleep_until(due) => {
                    let listing = self.list(None, false).await?;
                    listed = Instant::now();
                    due = listed + self.interval;
                    self.add_listed(&mut lineage, listing);
                }
            }
        }
    }

    /// Adds children as their parent names them; `false` where only a listing can tell.
    fn add_children(lineage: &mut Lineage, children: Vec<KnownShard>) -> bool {
        // A parent that is not known may be one that is not found yet, and must not be passed.
        let complete = !children.is_empty()
            && children
                .iter()
                .all(|child| child.parents.iter().all(|parent| lineage.knows(parent)));
        if complete {
            for child in children {
                lineage.add(child, Some(Position::TrimHorizon));
            }
        }
        complete
    }

    fn add_listed(&self, lineage: &mut Lineage, listing: Listing) {
        let ids: BTreeSet<ShardId> = listing.shards.iter().map(|shard| shard.id.clone()).collect();
        lineage.forget_unlisted(|shard| ids.contains(shard));
        for shard in listing.shards {
            if !lineage.knows(&shard.id) {
                let position = match self.start.pin(&shard.id, false, listing.taken) {
                    Pin::Named(position) => Some(position),
                    Pin::Kept(checkpoint) => Position::of(checkpoint),
                };
                lineage.add(shard, position);
            }
        }
    }

    /// The first listing, with the checkpoints that belong to it.
    async fn begin(&self, lineage: &mut Lineage) -> Option<()> {
        let listing = self.list(None, true).await?;
        let mut stored = self.load().await?;
        let first = stored.is_empty();
        let pins = self.pins(&listing, &stored, first).await?;
        if !pins.is_empty() {
            // In one step, and before anything is read: half a start would be taken for a later
            // one. Who came first has pinned it for all, so what counts is what is stored now.
            self.retry_store("save the starting positions", || self.store.save(&self.scope, &pins))
                .await?;
            stored = self.load().await?;
        }
        let mut unlisted: BTreeMap<_, _> = stored.clone().into_iter().collect();
        for shard in listing.shards {
            unlisted.remove(&shard.id);
            let position = match stored.get(&shard.id) {
                Some(checkpoint) => Position::of(checkpoint.clone()),
                None => match self.start.pin(&shard.id, first, listing.taken) {
                    Pin::Named(position) => Some(position),
                    Pin::Kept(checkpoint) => Position::of(checkpoint),
                },
            };
            lineage.add(shard, position);
        }
        self.lose(lineage, unlisted);
        Some(())
    }

    /// What is to be stored for shards without a checkpoint. A shard that was closed before a
    /// first start's time holds nothing to read: it is finished.
    async fn pins(
        &self,
        listing: &Listing,
        stored: &HashMap<ShardId, Checkpoint>,
        first: bool,
    ) -> Option<Vec<(ShardId, Checkpoint)>> {
        let reachable: Option<BTreeSet<ShardId>> = match self.start.since(listing.taken) {
            Some(since) if first => {
                let open = self.list(Some(since), false).await?;
                Some(open.shards.into_iter().map(|shard| shard.id).collect())
            }
            _ => None,
        };
        let mut pins = Vec::new();
        for shard in &listing.shards {
            if stored.contains_key(&shard.id) {
                continue;
            }
            let named = self.start.each.contains_key(&shard.id);
            if !named && reachable.as_ref().is_some_and(|open| !open.contains(&shard.id)) {
                pins.push((shard.id.clone(), Checkpoint::ShardEnd));
            } else if let Pin::Kept(checkpoint) = self.start.pin(&shard.id, first, listing.taken) {
                pins.push((shard.id.clone(), checkpoint));
            }
        }
        Some(pins)
    }

    /// Shards that were begun and have left retention meanwhile.
    fn lose(&self, lineage: &mut Lineage, unlisted: BTreeMap<ShardId, Checkpoint>) {
        for (shard, checkpoint) in unlisted {
            if checkpoint == Checkpoint::ShardEnd {
                continue;
            }
            let error = Error::new(
                ErrorKind::Trimmed,
                format!(
                    "the shard has left the stream's retention before it was read to its end (it \
                     was read to {checkpoint}); set on_trimmed to go on with its children, which \
                     wait until then"
                ),
            )
            .in_stream(self.kinesis.name())
            .in_shard(shard.as_str());
            if self.on_trimmed == OnTrimmed::Fail {
                lineage.block(shard);
                let _nobody_listens = self.openings.send(Err(error));
            } else {
                tracing::warn!(%error, "records were lost before they were read: going on");
                self.writer.put(shard, Checkpoint::ShardEnd);
            }
        }
    }

    async fn load(&self) -> Option<HashMap<ShardId, Checkpoint>> {
        self.retry_store("load the checkpoints", || self.store.load(&self.scope)).await
    }

    /// Tries until the store has done it. `None` when nobody listens.
    async fn retry_store<'a, T>(
        &'a self,
        what: &str,
        mut attempt: impl FnMut() -> futures::future::BoxFuture<'a, Result<T>>,
    ) -> Option<T> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            let error = match in_time(attempt()).await {
                Ok(done) => return Some(done),
                Err(error) => error.in_stream(self.kinesis.name()),
            };
            tracing::debug!(%error, "cannot {what} yet");
            let tell = !error.is_temporary() || began.elapsed() >= FIRST_ANSWER;
            if tell && !std::mem::replace(&mut told, true) {
                self.openings.send(Err(error)).ok()?;
            }
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lists until Kinesis has answered. `None` when the stream is gone or nobody listens.
    async fn list(&self, since: Option<SystemTime>, first: bool) -> Option<Listing> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut told = None;
        loop {
            let Failure { remedy, error, .. } = match self.kinesis.shards(since).await {
                Ok(listing) => return Some(listing),
                Err(failure) => failure,
            };
            let error = error.in_stream(self.kinesis.name());
            tracing::debug!(%error, "cannot list the shards yet");
            let kind = error.kind();
            match remedy {
                Remedy::Gone => {
                    let _nobody_listens = self.openings.send(Err(error));
                    return None;
                }
                Remedy::Report if told != Some(kind) => {
                    told = Some(kind);
                    self.openings.send(Err(error)).ok()?;
                }
                Remedy::Retry if first && told.is_none() && began.elapsed() >= FIRST_ANSWER => {
                    told = Some(kind);
                    self.openings.send(Err(error)).ok()?;
                }
                _ => {}
            }
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
