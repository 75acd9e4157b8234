//! Lists the stream, and says what that changes in the table.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::start::{Pin, Start};
use crate::backoff::{Backoff, LISTINGS};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Remedy};
use crate::observe::{Event, Observer};
use crate::record::ShardId;
use crate::source::{Kinesis, KnownShard, Listing, OnTrimmed, Position};
use crate::store::lease::{Change, Lease, Table};

/// How long a Kinesis that has never answered may be out of reach before the caller is told: a
/// wrong endpoint or region looks just like a bad moment.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// Lists one stream.
#[derive(Clone)]
pub(crate) struct Lister {
    pub(crate) kinesis: Kinesis,
    pub(crate) start: Start,
    pub(crate) on_trimmed: OnTrimmed,
    pub(crate) observer: Observer,
    /// Tells the caller what no retry cures.
    pub(crate) tell: Arc<dyn Fn(Error) + Send + Sync>,
}

/// The shards of a stream, as they were listed.
pub(crate) struct Listed {
    shards: Vec<KnownShard>,
    taken: SystemTime,
    /// Those that hold anything to read, where an application begins at a time.
    reachable: Option<BTreeSet<ShardId>>,
    /// The table as it was before: only of what was in it does the listing say that it is gone.
    before: Arc<Table>,
    /// The worker has begun with it.
    begins: bool,
}

/// What is to be changed in a table.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) list: Vec<Change>,
    /// What the caller is to be told of once they are made.
    pub(crate) losses: Vec<Loss>,
}

/// Records that were lost before they were read.
#[derive(Debug)]
pub(crate) enum Loss {
    /// Only the caller can say what is to become of it.
    Told(Error),
    /// It was said what is to become of it.
    PassedOver(Event),
}

impl Listed {
    /// Whether it was made for this table, and not for one that was forgotten or cleared since.
    pub(crate) fn is_of(&self, table: &Table) -> bool {
        self.before.generation == table.generation
    }

    fn had_finished(&self, shard: &ShardId) -> bool {
        self.before.leases.get(shard).is_some_and(Lease::is_finished)
    }
}

impl Lister {
    /// Lists until Kinesis has answered; `begins` says that nobody has read anything yet. `None`
    /// when the stream is gone.
    pub(crate) async fn list(self, before: Arc<Table>, begins: bool) -> Option<Listed> {
        let Listing { shards, taken } = self.until_answered(None, begins).await?;
        let reachable = match self.start.since(taken) {
            Some(since) if before.leases.is_empty() => {
                let open = self.until_answered(Some(since), false).await?;
                Some(open.shards.into_iter().map(|shard| shard.id).collect())
            }
            _ => None,
        };
        Some(Listed { shards, taken, reachable, before, begins })
    }

    async fn until_answered(&self, since: Option<SystemTime>, begins: bool) -> Option<Listing> {
        let began = Instant::now();
        let mut backoff = Backoff::new(LISTINGS);
        let (mut told, mut failed, mut panics) = (None, 0, 0);
        loop {
            let failure = match self.kinesis.shards(since).await {
                Ok(listing) => return Some(listing),
                Err(failure) => failure,
            };
            let remedy = failure.remedy_after(&mut panics);
            let error = failure.error.in_stream(self.kinesis.name());
            failed += 1;
            self.observer.tell(Event::retried(None, &error, failed));
            let kind = error.kind();
            let overdue = begins && told.is_none() && began.elapsed() >= FIRST_ANSWER;
            match remedy {
                Remedy::Gone => {
                    (self.tell)(error);
                    return None;
                }
                Remedy::Report if told != Some(kind) => {
                    told = Some(kind);
                    (self.tell)(error);
                }
                Remedy::Retry if overdue => {
                    told = Some(kind);
                    (self.tell)(error);
                }
                _ => {}
            }
            sleep(backoff.failed()).await;
        }
    }

    /// Where a shard begins of which nothing but its name is stored.
    pub(crate) fn position(
        &self,
        shard: &ShardId,
        checkpoint: Option<Checkpoint>,
    ) -> Option<Position> {
        match checkpoint {
            Some(checkpoint) => Position::of(checkpoint),
            None => match self.start.pin(shard, false, SystemTime::UNIX_EPOCH) {
                Pin::Named(position) => Some(position),
                Pin::Kept(checkpoint) => Position::of(checkpoint),
            },
        }
    }

    /// What is to be changed in the table, after what has been listed. Where it has no shard yet, the
    /// changes are the start of the application, and belong into one step with nothing before it:
    /// half a start would be taken for a later one.
    pub(crate) fn changes(&self, listed: &Listed, table: &Table) -> Changes {
        let first = table.leases.is_empty();
        let ids: BTreeSet<&ShardId> = listed.shards.iter().map(|shard| &shard.id).collect();
        let unknown = |shard: &&KnownShard| match table.leases.get(&shard.id) {
            Some(lease) => lease.parents.is_none(),
            // One that is not there any more was forgotten meanwhile, and is not to be read again.
            None => !listed.had_finished(&shard.id),
        };
        let mut losses = Vec::new();
        let mut list: Vec<Change> = listed
            .shards
            .iter()
            .filter(unknown)
            .map(|KnownShard { id, parents }| Change::Add {
                shard: id.clone(),
                parents: parents.clone(),
                checkpoint: match table.leases.get(id) {
                    // It has a position already.
                    Some(_) => None,
                    None => self.pin(id, listed, first),
                },
            })
            .collect();
        for (shard, lease) in table.leases.iter().filter(|(shard, _)| !ids.contains(shard)) {
            if lease.is_finished() {
                if listed.had_finished(shard) {
                    list.push(Change::Forget { shard: shard.clone() });
                }
            } else if listed.begins
                && listed.before.leases.contains_key(shard)
                && lease.owner.is_none()
            {
                list.extend(self.lose(shard, lease, &mut losses));
            }
        }
        Changes { list, losses }
    }

    /// What is stored for a shard that nothing is known of. One that was closed before a first
    /// start's time holds nothing to read: it is finished.
    fn pin(&self, shard: &ShardId, listed: &Listed, first: bool) -> Option<Checkpoint> {
        let named = self.start.each.contains_key(shard);
        if first && !named && listed.reachable.as_ref().is_some_and(|open| !open.contains(shard)) {
            return Some(Checkpoint::ShardEnd);
        }
        match self.start.pin(shard, first, listed.taken) {
            // A child begins where it begins, which needs no store to say so.
            Pin::Kept(checkpoint) => (listed.begins || named).then_some(checkpoint),
            Pin::Named(_) => None,
        }
    }

    /// A shard that was begun and has left retention meanwhile.
    fn lose(&self, shard: &ShardId, lease: &Lease, losses: &mut Vec<Loss>) -> Vec<Change> {
        let read = match &lease.checkpoint {
            Some(checkpoint) => checkpoint.to_string(),
            None => "its beginning".to_owned(),
        };
        let error = Error::new(
            ErrorKind::Trimmed,
            format!(
                "the shard has left the stream's retention before it was read to its end (it was \
                 read to {read}); set on_trimmed to go on with its children, which wait until then"
            ),
        )
        .in_stream(self.kinesis.name())
        .in_shard(shard.as_str());
        let (id, epoch) = (|| shard.clone(), lease.epoch);
        let mut changes = Vec::new();
        if lease.parents.is_none() {
            changes.push(Change::Add { shard: id(), parents: Vec::new(), checkpoint: None });
        }
        if self.on_trimmed == OnTrimmed::Fail {
            losses.push(Loss::Told(error));
            changes.push(Change::Lose { shard: id() });
        } else {
            losses.push(Loss::PassedOver(Event::Gap {
                shard_id: shard.clone(),
                after: lease.checkpoint.as_ref().and_then(Checkpoint::sequence_number).cloned(),
                position: Checkpoint::ShardEnd,
            }));
            changes.push(Change::Finish { shard: id(), epoch });
        }
        changes
    }
}
