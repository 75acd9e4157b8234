use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;

use super::settings::{Settings, check_application, check_stream};
use super::{Consumer, Inner};
use crate::discovery::{ShardOrdering, ShardPosition, StartingPosition};
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;
use crate::shard::CheckpointOn;
use crate::source::{Kinesis, MemoryBudget, OnTrimmed, RegisteredConsumer};
use crate::store::{CheckpointStore, Contained, MemoryStore, Scope, leases_of};
use crate::telemetry::Telemetry;

/// The options of a [`Consumer`], each with a default that suits most.
///
/// [`build`](Self::build) checks them all, and its error names the one that is wrong and the
/// allowed range.
///
/// ```no_run
/// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use std::time::Duration;
///
/// use kinestream::{Consumer, MemoryStore, StartingPosition};
///
/// let consumer = Consumer::builder(client, "arn:aws:kinesis:eu-west-1:123456789012:stream/orders")
///     .application("billing")
///     .starting_position(StartingPosition::TrimHorizon)
///     .store(MemoryStore::new())
///     .interval(Duration::from_millis(250))
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct ConsumerBuilder {
    client: Client,
    stream: String,
    application: String,
    store: Arc<dyn CheckpointStore>,
    settings: Settings,
}

impl ConsumerBuilder {
    pub(super) fn new(client: Client, stream: String) -> Self {
        Self {
            client,
            stream,
            application: "default".to_owned(),
            store: Arc::new(MemoryStore::new()),
            settings: Settings::default(),
        }
    }

    /// Whose checkpoints these are. Two applications read the same stream apart from each other.
    ///
    /// Default: `"default"`. Not empty, and without braces and control characters.
    pub fn application(mut self, name: impl Into<String>) -> Self {
        self.application = name.into();
        self
    }

    /// Where to begin when the store has no checkpoint of this application and stream at all.
    ///
    /// Default: [`StartingPosition::Latest`]. A timestamp must not lie in the future.
    pub fn starting_position(mut self, position: StartingPosition) -> Self {
        self.settings.start.all = position;
        self
    }

    /// Sets where to begin with one shard when the store has no checkpoint of it: a [`ShardPosition`],
    /// a [`StartingPosition`] or a [`Checkpoint`](crate::Checkpoint), such as that of the
    /// [last record](crate::Record::checkpoint) in a database of the caller's.
    ///
    /// Shards that were split or merged from it begin at `TRIM_HORIZON` unless they are named
    /// themselves, even if [`starting_position`](Self::starting_position) is later. If a named shard has
    /// left retention, its position is ignored, and each shard with a parent that has left retention
    /// begins at `TRIM_HORIZON` too, since it may descend from the named shard.
    ///
    /// A time, or the moment of the first poll for [`Latest`](ShardPosition::Latest), is stored before the
    /// first read of the shard, so that a restart skips nothing. From then on the stored time counts,
    /// whatever a later start names.
    ///
    /// Default: none. May be called for many shards. A timestamp must not lie in the future.
    pub fn starting_position_for(
        mut self,
        shard: ShardId,
        position: impl Into<ShardPosition>,
    ) -> Self {
        self.settings.start.each.insert(shard, position.into());
        self
    }

    /// Where positions are kept. One store serves many consumers.
    ///
    /// Default: a new [`MemoryStore`], which forgets when the process ends.
    pub fn store(mut self, store: impl CheckpointStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// The pause between two calls of a shard that has nothing new: the longest that a record
    /// waits. A shard that is behind is asked every 200 ms, which is what Kinesis allows.
    ///
    /// Default: 1 s. At least 200 ms. The five calls a second of a shard are shared by all that
    /// read it, so with several applications use a longer one.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.settings.interval = interval;
        self
    }

    /// The most records that one call returns.
    ///
    /// Default: 10,000, the most that Kinesis allows. 1 to 10,000. A smaller one only limits how
    /// much is read at a time; memory is limited by
    /// [`max_buffered_bytes`](Self::max_buffered_bytes).
    pub fn limit(mut self, records: u32) -> Self {
        self.settings.limit = records;
        self
    }

    /// When a record counts as finished.
    ///
    /// Default: [`CheckpointOn::Pull`].
    pub fn checkpoint_on(mut self, when: CheckpointOn) -> Self {
        self.settings.rules.checkpoint_on = when;
        self
    }

    /// Positions are written to the store at most once in this time, all shards in one call. It
    /// bounds what a crash repeats.
    ///
    /// Default: 1 s. At most a year. Zero writes each: while the store answers, the next record is
    /// yielded when the last position is written.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.settings.flush.interval = interval;
        self
    }

    /// With [`CheckpointOn::Ack`]: the most records of a shard that are handed out and not yet
    /// acknowledged. The shard waits while there are so many.
    ///
    /// Default: 10,000. At least 1.
    pub fn max_in_flight(mut self, records: usize) -> Self {
        self.settings.in_flight.records = records;
        self
    }

    /// Sets, with [`CheckpointOn::Ack`], the maximum of payload and partition key bytes of a shard that
    /// are delivered and not yet acknowledged. The shard waits while its next record would exceed it.
    /// If no bytes of the shard are in flight, its next record is delivered whatever its size.
    ///
    /// With enough unacknowledged records the program holds this much memory for each shard, in addition
    /// to [`max_buffered_bytes`](Self::max_buffered_bytes).
    ///
    /// Default: 64 MiB. At least 1 byte.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.settings.in_flight.bytes = bytes;
        self
    }

    /// How long the store may fail before records stop and the caller receives an error, also before
    /// the first answer. They go on when it answers again.
    ///
    /// With a store that keeps leases, records stop earlier where the leases expire before:
    /// [`lease_duration`](Self::lease_duration) after the last renewal. No worker reads without a valid
    /// lease, not even the only worker.
    ///
    /// Default: 60 s. At most a year.
    pub fn max_unflushed(mut self, time: Duration) -> Self {
        self.settings.flush.max_unflushed = time;
        self.settings.rules.max_unflushed = time;
        self
    }

    /// How many batches of a shard are fetched ahead of demand, from memory that is free, once the second
    /// record of the batch before was taken. 0 fetches only when a record is asked for.
    ///
    /// Default: 1. At most 1,000.
    pub fn prefetch(mut self, batches: usize) -> Self {
        self.settings.prefetch = batches;
        self
    }

    /// The most bytes of payloads and partition keys that are buffered, over all shards.
    ///
    /// Each shard may hold 64 KiB or one record (with [`fan_out`](Self::fan_out): one event) beside it, so
    /// a shard whose caller waits for a record makes progress whatever other shards hold. While an
    /// answer is read it counts twice, as its text and as the records made of it. One for which there
    /// is no room is not read: its shard asks again for fewer records, or, ahead of demand, when
    /// there is room.
    ///
    /// Default: 64 MiB. At least 1.
    pub fn max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_buffered_bytes = bytes;
        self
    }

    /// Has this consumer share the memory of others, for a program that reads several streams: what is
    /// buffered of all of them is within one budget. A consumer whose records nobody takes may hold all
    /// of it; the others then read within the reserves of their shards, 64 KiB each.
    ///
    /// Default: none, a budget of its own of [`max_buffered_bytes`](Self::max_buffered_bytes), which
    /// means nothing beside one that is shared.
    pub fn memory_budget(mut self, memory_budget: &MemoryBudget) -> Self {
        self.settings.memory_budget = Some(memory_budget.clone());
        self
    }

    /// Whether children wait for their parents.
    ///
    /// Default: [`ShardOrdering::ParentFirst`].
    pub fn ordering(mut self, ordering: ShardOrdering) -> Self {
        self.settings.rules.ordering = ordering;
        self
    }

    /// Sets what to do about a position that has left retention, so that records may have been lost.
    ///
    /// A position is compared with the oldest kept record whenever reading starts there. A shard that was
    /// read up to a time within retention has lost nothing. The stream's retention period is looked up by
    /// `DescribeStreamSummary` where a shard was not read for 24 hours; 24 hours are assumed where IAM does
    /// not allow the call.
    ///
    /// The moment of a first start at `Latest` and a time set by [`seek`](crate::Consumer::seek) are reported
    /// as well if they have left retention. A time that [`starting_position`](Self::starting_position) names
    /// is not: before retention it means the oldest kept record.
    ///
    /// A loss must be proven. If the calls that prove it fail for 60 s, the shard yields one error of kind
    /// [`Unavailable`](ErrorKind::Unavailable) or [`Denied`](ErrorKind::Denied) under every policy, and its
    /// lease is released. What [`OnTrimmed::Latest`] decides is stored, so a restart does not decide again.
    /// [Records that left retention](crate::guide::operations#records-that-left-retention) lists the proofs
    /// and how long each takes.
    ///
    /// Default: [`OnTrimmed::Fail`].
    pub fn on_trimmed(mut self, policy: OnTrimmed) -> Self {
        self.settings.on_trimmed = policy;
        self
    }

    /// Reads by enhanced fan-out, as the registered consumer of this name or ARN: Kinesis pushes records
    /// within some 70 ms, and each consumer has 2 MB/s of each shard for itself. AWS charges for it by
    /// shard and hour and by volume.
    ///
    /// A consumer of a name that is not there is registered, and is waited for. All workers of an
    /// application use the same name, and each application one of its own: of the subscriptions of one
    /// consumer to one shard the last has it. [`interval`](Self::interval) and [`limit`](Self::limit)
    /// mean nothing then. While nobody asks for records, a subscription is let go after 10 s.
    /// Subscriptions share connections, 32 on each, since servers allow some hundred requests on one.
    ///
    /// Default: none, shards are polled. A name has 1 to 128 letters, digits, `_`, `.` and `-`.
    pub fn fan_out(mut self, consumer: impl Into<String>) -> Self {
        self.settings.fan_out = Some(consumer.into().into());
        self
    }

    /// Whether [`Consumer::close`] deregisters the consumer of [`fan_out`](Self::fan_out), where no other
    /// worker of the application is left. What it costs ends with that; to register it anew takes up to
    /// a minute, so leave it where the program comes back soon.
    ///
    /// Default: `false`. It never is by a drop or a crash.
    pub fn deregister_on_close(mut self, deregister: bool) -> Self {
        self.settings.deregister_on_close = deregister;
        self
    }

    /// Whether records that a producer has packed into one come out one by one: the aggregation of
    /// the [Kinesis Producer Library], which Firehose, Fluent Bit and others write as well.
    ///
    /// Each has its own [`partition_key`](crate::Record::partition_key) and
    /// [`sub_sequence_number`](crate::Record::sub_sequence_number), and is finished by itself: who
    /// stops among them goes on among them. Those whose hash key belongs into another shard are left
    /// out, since after a reshard that one has them too. What looks packed and is not, to the last
    /// byte of its checksum, is a record like any other. `limit` counts what Kinesis counts, and
    /// `max_in_flight` what is handed out.
    ///
    /// Default: `true`. With `false` a packed record is handed out as it was written.
    ///
    /// [Kinesis Producer Library]: https://docs.aws.amazon.com/streams/latest/dev/kinesis-kpl-concepts.html
    pub fn deaggregate(mut self, unpack: bool) -> Self {
        self.settings.deaggregate = unpack;
        self
    }

    /// How often the shards are listed anew. A closed shard names its children itself, so this
    /// is for what that misses.
    ///
    /// Default: 30 s. 1 s to a year.
    pub fn discovery_interval(mut self, interval: Duration) -> Self {
        self.settings.rules.discovery_interval = interval;
        self
    }

    /// The name of this worker among those of the application, which says in the store who reads
    /// which shard.
    ///
    /// Default: made of the host's name, the process and a random part. One that is given must be
    /// one worker's alone: while two have it, the second waits. 1 to 200 characters without spaces,
    /// braces, commas and control characters.
    pub fn worker_id(mut self, name: impl Into<String>) -> Self {
        self.settings.rules.worker_id = name.into().into();
        self
    }

    /// How long a worker that is not heard of keeps its shards. It renews every third of it, in a
    /// task of its own, so a caller that is slow keeps them; one that blocks the threads of the
    /// runtime does not.
    ///
    /// Default: 10 s, as in the Kinesis Client Library. 2 s to a day. A shorter one takes over
    /// sooner from a worker that has died, and asks more of the store.
    pub fn lease_duration(mut self, duration: Duration) -> Self {
        self.settings.rules.lease_duration = duration;
        self
    }

    /// How long a shard that goes to another worker waits for its unfinished records. What is not
    /// finished by then is read again by the other.
    ///
    /// Default: 30 s. At most a year.
    pub fn handoff_timeout(mut self, time: Duration) -> Self {
        self.settings.rules.handoff_timeout = time;
        self
    }

    /// Gives the shards of a caller that has stopped polling to workers that read. A caller that
    /// waits for a record polls when it is woken, and has not stopped.
    ///
    /// Default: `None`, a caller keeps its shards for as long as it likes. At least 1 s and at most
    /// a year. Noticed at the next renewal.
    pub fn poll_timeout(mut self, time: Option<Duration>) -> Self {
        self.settings.rules.poll_timeout = time;
        self
    }

    /// Checks the options.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Configuration`] for the first option that is out of its range.
    pub fn build(mut self) -> Result<Consumer> {
        let kinesis = Kinesis::new(self.client.clone(), &self.stream);
        check_stream(&self.stream)
            .and_then(|()| check_application(&self.application))
            .and_then(|()| self.settings.check())
            .map_err(|message| {
                Error::new(ErrorKind::Configuration, message).in_stream(kinesis.name())
            })?;
        let scope = Scope::new(self.application, self.stream);
        let telemetry = Telemetry::new(kinesis.name(), scope.application_name());
        let fan_out = self.settings.fan_out.as_ref();
        let fan_out = fan_out.map(|name| Arc::new(RegisteredConsumer::new(kinesis.clone(), name)));
        let (leases, are_own) = leases_of(&self.store);
        self.settings.rules.has_own_leases = are_own;
        Ok(Consumer {
            inner: Arc::new(Inner {
                kinesis,
                fan_out,
                leases: Arc::new(Contained::new(leases, telemetry.clone())),
                store: self.store,
                scope,
                telemetry,
                settings: self.settings,
                close_signal: crate::shard::CloseSignal::new(),
                reading: Arc::default(),
                writer: std::sync::Mutex::default(),
                messages: std::sync::Mutex::default(),
                worker: std::sync::Mutex::default(),
            }),
        })
    }
}
