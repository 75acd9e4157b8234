use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::Client;

use super::settings::{Settings, check_application, check_stream};
use super::{Consumer, ConsumerInner};
use crate::discovery::{ShardOrdering, ShardPosition, StartingPosition};
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;
use crate::shard::CheckpointOn;
use crate::source::{
    EndingPosition, MemoryBudget, OnTrimmed, RegisteredConsumer, StreamClient, WireFormat,
    other_region,
};
use crate::store::lease::Leases;
use crate::store::{CheckpointStore, GuardedStore, MemoryStore, Scope, leases_of, parse_arn};
use crate::telemetry::Telemetry;

/// A builder of a [`Consumer`]. Every option has a default that suits most programs.
///
/// [`build`](Self::build) checks all options. Its error names the option that is out of range and
/// the allowed range.
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
    /// `None` for the default of the store.
    checkpoint_interval: Option<Duration>,
    settings: Settings,
}

impl ConsumerBuilder {
    pub(super) fn new(client: Client, stream: String) -> Self {
        Self {
            client,
            stream,
            application: "default".to_owned(),
            store: Arc::new(MemoryStore::new()),
            checkpoint_interval: None,
            settings: Settings::default(),
        }
    }

    /// Sets the name of the application under which checkpoints and leases are stored. Two
    /// applications read the same stream independently of each other.
    ///
    /// Default: `"default"`. The name must not be empty and must not contain braces or control
    /// characters.
    #[doc(alias("consumer group", "group_id", "application_name"))]
    pub fn application(mut self, name: impl Into<String>) -> Self {
        self.application = name.into();
        self
    }

    /// Sets the position at which the application starts if the store has no checkpoint of any
    /// shard of the stream.
    ///
    /// Default: [`StartingPosition::Latest`]. A timestamp must not be in the future.
    #[doc(alias("initial position", "iterator type", "auto offset reset"))]
    pub fn starting_position(mut self, position: StartingPosition) -> Self {
        self.settings.start.all = position;
        self
    }

    /// Sets the position at which one shard starts if the store has no checkpoint of it: a
    /// [`ShardPosition`], a [`StartingPosition`] or a [`Checkpoint`](crate::Checkpoint), such as
    /// the [checkpoint of the last record](crate::Record::checkpoint) in the caller's own database.
    ///
    /// Shards that were split or merged from this shard start at `TRIM_HORIZON`, even if
    /// [`starting_position`](Self::starting_position) is later, unless this option names them too.
    /// If a named shard has left retention, its position is ignored. Each shard with a parent that
    /// has left retention then starts at `TRIM_HORIZON` as well, since it may descend from the
    /// named shard.
    ///
    /// A timestamp, or for [`Latest`](ShardPosition::Latest) the time of the first poll, is stored
    /// before the first read of the shard, so that a restart skips no record. Afterwards the stored
    /// time applies, even if a later start passes another position.
    ///
    /// Default: none. Can be called for any number of shards. A timestamp must not be in the
    /// future.
    #[doc(alias = "offset")]
    pub fn starting_position_for(
        mut self,
        shard: ShardId,
        position: impl Into<ShardPosition>,
    ) -> Self {
        self.settings.start.each.insert(shard, position.into());
        self
    }

    /// Sets the position at which reading stops, so that the stream ends: for a backfill, a job or a
    /// test. See [bounded reads](crate::guide::bounded_reads).
    ///
    /// Each shard is read up to the ending position, and then makes no further call. A closed shard
    /// is followed by its children, which end in the same way. The stream of
    /// [`records`](Consumer::records) or [`shards`](Consumer::shards) yields `None` when every shard
    /// is finished, has reached the ending position, or is held by another live worker. Then call
    /// [`close`](Consumer::close), which saves the checkpoints and releases the leases.
    ///
    /// The checkpoint of a shard that has reached the ending position is that of its last
    /// acknowledged record. A restart with the same ending position continues a job that was
    /// stopped, and a later start without one continues behind it.
    ///
    /// A shard that an error keeps from being read keeps the stream open: the stream yields the
    /// error, and the shard is retried. If the server states no arrival times, a shard ends when it
    /// has caught up. If it states no `MillisBehindLatest`, an open shard ends only at a record that
    /// arrived later.
    ///
    /// Default: [`EndingPosition::Never`].
    ///
    /// ```no_run
    /// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
    /// use std::time::{Duration, SystemTime};
    ///
    /// use futures::TryStreamExt;
    /// use kinestream::{Consumer, EndingPosition, StartingPosition};
    ///
    /// // The records of one hour of yesterday.
    /// let hour = Duration::from_secs(3600);
    /// let from = SystemTime::now() - 24 * hour;
    /// let consumer = Consumer::builder(client, "orders")
    ///     .application("backfill-of-yesterday")
    ///     .starting_position(StartingPosition::AtTimestamp(from))
    ///     .ending_position(EndingPosition::AtTimestamp(from + hour))
    ///     .build()?;
    /// let mut records = consumer.records();
    /// while let Some(record) = records.try_next().await? {
    ///     println!("{:?}", record.data());
    /// }
    /// consumer.close().await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("until", "end offset", "stopping offset", "backfill", "bounded"))]
    pub fn ending_position(mut self, position: EndingPosition) -> Self {
        self.settings.ending = position;
        self
    }

    /// Sets the shards to read. All other shards are neither read nor leased, and the store has no
    /// entry for them.
    ///
    /// A parent that is not named holds nothing back, and a child that is not named is not read. The
    /// stream ends when every named shard is finished, or with
    /// [`ending_position`](Self::ending_position) earlier. A named shard that the stream does not
    /// have is an error of kind [`NotFound`](ErrorKind::NotFound) that the stream yields once, after
    /// a listing without it and three calls that do not find it; the other shards are read.
    ///
    /// A named shard starts at the starting position unless the store has a checkpoint of it. If the
    /// application has read an ancestor of it, it starts at its first record.
    ///
    /// The workers of an application may name the same shards, others, or some in common. Each
    /// worker takes leases of the shards that it names only, and workers that name the same shards
    /// share them evenly. Do not mix them with workers that name no shards: these may read the
    /// other shards late or from their first record. Prefer a separate
    /// [`application`](Self::application) for each set.
    ///
    /// Default: all shards. The last call applies. At least one shard.
    ///
    /// ```no_run
    /// # fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
    /// use kinestream::Consumer;
    ///
    /// let consumer = Consumer::builder(client, "orders")
    ///     .application("debug-of-shard-3")
    ///     .only_shards(["shardId-000000000003".parse()?])
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("partitions", "assign", "shard filter"))]
    pub fn only_shards(mut self, ids: impl IntoIterator<Item = ShardId>) -> Self {
        self.settings.worker_config.rules.only = Some(Arc::new(ids.into_iter().collect()));
        self
    }

    /// Sets the store of checkpoints, and of leases if it supports them. Several consumers can
    /// share one store.
    ///
    /// Default: a new [`MemoryStore`], whose contents are lost when the process ends.
    pub fn store(mut self, store: impl CheckpointStore) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Sets the interval between two `GetRecords` calls for a shard that is caught up. It is also
    /// the longest time that a new record waits to be fetched. A shard that lags is polled every
    /// 210 to 220 ms, just within the five calls per second that Kinesis allows.
    ///
    /// Default: 1 s. 200 ms to a year. Less than 210 ms has the effect of 210 ms. All applications
    /// that poll a shard share its limit of five calls per second, so set at least 200 ms for each
    /// of them: 600 ms or more for three applications.
    #[doc(alias("poll interval", "idleTimeBetweenReads"))]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.settings.interval = interval;
        self
    }

    /// Sets the maximum number of records that one `GetRecords` call returns.
    ///
    /// Default: 10,000, the maximum that Kinesis allows. 1 to 10,000 records. A smaller value only
    /// limits the size of one response; memory is limited by
    /// [`max_buffered_bytes`](Self::max_buffered_bytes).
    #[doc(alias = "max records")]
    pub fn limit(mut self, records: u32) -> Self {
        self.settings.limit = records;
        self
    }

    /// Sets the format of the `GetRecords` calls. Enhanced fan-out and all other calls are not
    /// affected.
    ///
    /// With [`WireFormat::Auto`], one fetch of at most ten records is repeated in the other format
    /// and compared, once per consumer, or up to three times while all of the records arrived at a
    /// whole second. Both fetches count towards the limits of the shard.
    ///
    /// With either format, the crate reads the bodies of the responses itself: an interceptor of the
    /// client sees the output of `GetRecords` without its records.
    ///
    /// Default: [`WireFormat::Auto`].
    #[doc(alias("cbor", "json", "protocol"))]
    pub fn wire_format(mut self, format: WireFormat) -> Self {
        self.settings.wire_format = format;
        self
    }

    /// Sets when a record counts as acknowledged: at the next poll, or at a call of
    /// [`Record::ack`](crate::Record::ack).
    ///
    /// Default: [`CheckpointOn::Pull`].
    #[doc(alias("auto commit", "manual ack"))]
    pub fn checkpoint_on(mut self, when: CheckpointOn) -> Self {
        self.settings.worker_config.checkpoint_on = when;
        self
    }

    /// Sets the minimum time between two writes of checkpoints to the store. One call writes the
    /// checkpoints of all shards. After a crash, records that were acknowledged within this time
    /// are delivered again.
    ///
    /// Default: 1 s, or as the store
    /// [states](CheckpointStore::default_checkpoint_interval); 10 s with `DynamoDbStore`. At most a
    /// year. Zero writes every position: while the store responds, the next
    /// record of a shard is delivered only after the previous position is written.
    #[doc(alias("commit", "commit interval", "auto commit"))]
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.checkpoint_interval = Some(interval);
        self
    }

    /// Sets the maximum number of unacknowledged records per shard, with [`CheckpointOn::Ack`]. At
    /// the limit, the shard delivers no record until one is acknowledged.
    ///
    /// Default: 10,000 records. At least 1 record.
    #[doc(alias = "backpressure")]
    pub fn max_in_flight(mut self, records: usize) -> Self {
        self.settings.in_flight.records = records;
        self
    }

    /// Sets the maximum number of unacknowledged bytes per shard, payloads and partition keys
    /// together, with [`CheckpointOn::Ack`]. The shard waits while its next record would exceed the
    /// limit. If no bytes of the shard are in flight, its next record is delivered regardless of
    /// its size.
    ///
    /// A record that the caller keeps also counts towards
    /// [`max_buffered_bytes`](Self::max_buffered_bytes), with its whole response. If that is
    /// exhausted, all shards fetch few records at a time.
    ///
    /// Default: 64 MiB. At least 1 byte.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> Self {
        self.settings.in_flight.bytes = bytes;
        self
    }

    /// Sets the time for which the store may fail before delivery pauses and the caller receives an
    /// error, also if the store has never responded. Delivery resumes when the store responds
    /// again.
    ///
    /// With a store that supports leases, delivery pauses earlier if the leases expire first, which
    /// is [`lease_duration`](Self::lease_duration) after the last renewal. No worker reads without
    /// a valid lease, not even the only worker.
    ///
    /// Default: 60 s. 0 to a year. With 0, delivery pauses at the first failed write of
    /// checkpoints.
    pub fn max_unflushed(mut self, time: Duration) -> Self {
        self.settings.flush.max_unflushed = time;
        self.settings.worker_config.max_unflushed = time;
        self
    }

    /// Sets the number of batches of a shard that are fetched ahead of demand. Prefetching starts
    /// when the caller has taken the second record of the current batch, and uses only memory that
    /// is free. With 0, a batch is fetched only when the caller waits for a record.
    ///
    /// Default: 1 batch. 0 to 1,000 batches.
    pub fn prefetch(mut self, batches: usize) -> Self {
        self.settings.prefetch = batches;
        self
    }

    /// Sets the maximum number of bytes of responses that are in memory over all shards, including
    /// those of which the caller keeps a record.
    ///
    /// In addition, each shard has a reserve of 64 KiB or one record (with
    /// [`fan_out`](Self::fan_out): one event). A shard therefore makes progress when its caller
    /// waits for a record, regardless of the memory that other shards hold. A response counts with
    /// its whole length until the last record of it is dropped, and while it is read with a quarter
    /// more. The tables of its aggregated records count as well, even beyond the limit. A response
    /// whose length the server does not state counts twice while it is read, and so does an event of
    /// enhanced fan-out. A response that exceeds the free memory is not read. If the caller waits,
    /// the shard retries with fewer records; a prefetch waits until memory is free.
    ///
    /// Default: 64 MiB. At least 1 byte.
    pub fn max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_buffered_bytes = Some(bytes);
        self
    }

    /// Sets a memory budget that this consumer shares with others, for a program that reads several
    /// streams. The bytes that all of them buffer stay within the budget. If the caller of one
    /// consumer takes no records, that consumer may hold the whole budget; the others then read
    /// within the reserves of their shards, 64 KiB each.
    ///
    /// Default: none, so that the consumer has a separate budget of
    /// [`max_buffered_bytes`](Self::max_buffered_bytes). Setting both is an error.
    pub fn memory_budget(mut self, memory_budget: &MemoryBudget) -> Self {
        self.settings.memory_budget = Some(memory_budget.clone());
        self
    }

    /// Sets whether a shard is read only after all its parents are finished.
    ///
    /// Default: [`ShardOrdering::ParentFirst`].
    pub fn ordering(mut self, ordering: ShardOrdering) -> Self {
        self.settings.worker_config.rules.ordering = ordering;
        self
    }

    /// Sets the policy for a position that has left retention, so that records may have been lost.
    ///
    /// The position is compared with the oldest kept record each time that reading starts there. A
    /// shard that was read up to a time within retention has lost no record. If a shard was not
    /// read for 24 hours, the retention period of the stream is looked up with
    /// `DescribeStreamSummary`; 24 hours are assumed if IAM denies the call.
    ///
    /// The policy also applies to the stored time of a first start at `Latest` and to a time set by
    /// [`seek`](crate::Consumer::seek). It does not apply to a time passed to
    /// [`starting_position`](Self::starting_position): before retention, such a time means the
    /// oldest kept record.
    ///
    /// A loss must be proven. If the calls that prove it fail for 60 s, the shard yields one error
    /// of kind [`Unavailable`](ErrorKind::Unavailable) or [`Denied`](ErrorKind::Denied) under every
    /// policy, and its lease is released. The position that [`OnTrimmed::Latest`] chooses is
    /// stored, so a restart does not choose again. [Records that left
    /// retention](crate::guide::operations#records-that-left-retention) lists the proofs and the
    /// time that each takes.
    ///
    /// Default: [`OnTrimmed::Fail`].
    #[doc(alias("retention", "auto offset reset"))]
    pub fn on_trimmed(mut self, policy: OnTrimmed) -> Self {
        self.settings.on_trimmed = policy;
        self
    }

    /// Sets the name or ARN of the registered consumer with which shards are read by enhanced
    /// fan-out. Kinesis pushes records within about 70 ms, and each registered consumer has 2 MB/s
    /// of each shard for itself. AWS charges for it by consumer, shard and hour, and by volume.
    ///
    /// If no registered consumer of this name exists, it is registered, and reading starts when it
    /// is active. All workers of an application use the same name, and each application needs a
    /// different one: a new subscription to a shard replaces the previous one of the same
    /// registered consumer.
    ///
    /// [`interval`](Self::interval) and [`limit`](Self::limit) have no effect. If the caller takes
    /// no records, a subscription ends after 10 s. Subscriptions share connections, 32 on each,
    /// since servers allow about a hundred concurrent requests per connection.
    ///
    /// Default: none, so that shards are polled. A name has 1 to 128 letters, digits, `_`, `.` and
    /// `-`. An ARN has the form
    /// `arn:aws:kinesis:eu-west-1:123456789012:stream/orders/consumer/billing:1767225600`, and the
    /// registered consumer of an ARN must exist.
    #[doc(alias("enhanced fan-out", "efo", "SubscribeToShard"))]
    pub fn fan_out(mut self, consumer: impl Into<String>) -> Self {
        self.settings.fan_out = Some(consumer.into().into());
        self
    }

    /// Sets whether [`Consumer::close`] deregisters the registered consumer of
    /// [`fan_out`](Self::fan_out) if no other worker of the application is left. AWS charges for a
    /// registered consumer until it is deregistered. Another registration takes up to a minute, so
    /// leave this off if the program restarts soon.
    ///
    /// Default: `false`. A drop or a crash never deregisters it.
    pub fn deregister_on_close(mut self, deregister: bool) -> Self {
        self.settings.deregister_on_close = deregister;
        self
    }

    /// Sets whether an aggregated record is delivered as its user records. The format is that of
    /// the [Kinesis Producer Library], which Firehose, Fluent Bit and others write as well.
    ///
    /// Each user record has a separate [`partition_key`](crate::Record::partition_key) and
    /// [`sub_sequence_number`](crate::Record::sub_sequence_number), and is acknowledged separately,
    /// so a restart resumes inside an aggregated record. A user record with a hash key that belongs
    /// to another shard is not delivered, since after a reshard the other shard has it as well.
    /// Data that resembles an aggregated record but fails to decode, down to its checksum, is
    /// delivered as a plain record. [`limit`](Self::limit) counts aggregated records, and
    /// [`max_in_flight`](Self::max_in_flight) counts user records.
    ///
    /// Default: `true`. With `false`, an aggregated record is delivered as it was written.
    ///
    /// [Kinesis Producer Library]: https://docs.aws.amazon.com/streams/latest/dev/kinesis-kpl-concepts.html
    pub fn deaggregate(mut self, deaggregate: bool) -> Self {
        self.settings.deaggregate = deaggregate;
        self
    }

    /// Sets the interval between two listings of the stream's shards. A closed shard names its
    /// children itself, so listings only find the shards that this misses.
    ///
    /// Default: 30 s. 1 s to a year.
    pub fn discovery_interval(mut self, interval: Duration) -> Self {
        self.settings.worker_config.discovery_interval = interval;
        self
    }

    /// Sets the name of this worker, under which the store keeps its leases.
    ///
    /// Default: the host name, the process id and a random part. The name must be unique in the
    /// application: while another worker uses it, this worker waits. 1 to 200 characters, without
    /// spaces, braces, commas and control characters, and not `-`.
    pub fn worker_id(mut self, name: impl Into<String>) -> Self {
        self.settings.worker_config.worker_id = name.into().into();
        self
    }

    /// Sets the time for which a lease is valid without renewal. The worker renews its leases every
    /// third of this time in a separate task, so a slow caller does not lose them. A caller that
    /// blocks the threads of the runtime does.
    ///
    /// Default: 10 s, as in the Kinesis Client Library. 2 s to a day. With a shorter time, the
    /// shards of a failed worker are taken over sooner, and the store receives more calls.
    #[doc(alias("session timeout", "failover time", "rebalance"))]
    pub fn lease_duration(mut self, duration: Duration) -> Self {
        self.settings.worker_config.lease_duration = duration;
        self
    }

    /// Sets the load that this worker can take relative to the other workers of the fleet. A worker with
    /// 2.0 gets twice the [load](crate::guide::fleets#load) of one with 1.0.
    ///
    /// Default: 1.0. 0.01 to 1,000, in steps of 0.01.
    ///
    /// ```
    /// # fn example(builder: kinestream::ConsumerBuilder) -> kinestream::ConsumerBuilder {
    /// let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    /// builder.capacity(cores)
    /// # }
    /// ```
    #[doc(alias("weight", "balance", "rebalance"))]
    pub fn capacity(mut self, capacity: f64) -> Self {
        self.settings.worker_config.capacity = capacity;
        self
    }

    /// Sets the time for which a handoff waits for the unacknowledged records of the shard. Records
    /// that are not acknowledged in this time are delivered again by the other worker.
    ///
    /// Default: 30 s. 0 to a year. With 0, the lease is released without waiting.
    #[doc(alias("rebalance", "graceful handoff"))]
    pub fn handoff_timeout(mut self, time: Duration) -> Self {
        self.settings.worker_config.handoff_timeout = time;
        self
    }

    /// Sets the time after which the shards of a caller that has stopped polling are released to
    /// other workers. A caller that waits for a record polls when it is woken, so it does not count
    /// as stopped.
    ///
    /// Default: `None`, so that a caller keeps its shards without a time limit. 1 s to a year. The
    /// worker checks the time at each renewal.
    pub fn poll_timeout(mut self, time: Option<Duration>) -> Self {
        self.settings.worker_config.poll_timeout = time;
        self
    }

    /// Sets the wall clock by which the leases of the consumer expire, for tests.
    ///
    /// Default: the clock of the machine.
    #[cfg(feature = "testing")]
    pub fn wall_clock(mut self, clock: &crate::testing::WallClock) -> Self {
        self.settings.worker_config.clock = clock.clock();
        self
    }

    /// Checks that the client calls the region of the stream, if an ARN names it.
    fn check_region(&self) -> Result<(), String> {
        let fan_out = self.settings.fan_out.as_deref().map(|consumer| ("fan_out", consumer));
        for (option, arn) in [Some(("stream", self.stream.as_str())), fan_out].into_iter().flatten()
        {
            let Some(arn) = parse_arn(arn) else { continue };
            if let Some(own) = other_region(&self.client, arn.region) {
                let region = arn.region;
                return Err(format!(
                    "{option} is an ARN of region {region}, but the client calls region {own}; build \
                     the client with region {region}"
                ));
            }
        }
        Ok(())
    }

    /// Checks the options and returns the consumer.
    ///
    /// # Errors
    ///
    /// Returns [`ErrorKind::Configuration`] for the first option that is out of its range, and for a
    /// client whose calls go to AWS in another region than that of the stream's ARN.
    pub fn build(mut self) -> Result<Consumer> {
        let interval = self.checkpoint_interval;
        self.settings.flush.interval =
            interval.unwrap_or_else(|| self.store.default_checkpoint_interval());
        let wire_format = self.settings.wire_format;
        let kinesis = StreamClient::new(self.client.clone(), &self.stream, wire_format);
        check_stream(&self.stream)
            .map_err(|message| Error::new(ErrorKind::Configuration, message))?;
        check_application(&self.application)
            .and_then(|()| self.settings.check())
            .and_then(|()| self.check_region())
            .map_err(|message| {
                Error::new(ErrorKind::Configuration, message).in_stream(kinesis.name())
            })?;
        let scope = Scope::new(self.application, self.stream);
        let telemetry = Telemetry::new(kinesis.name(), scope.application_name());
        let fan_out = self.settings.fan_out.as_ref();
        let fan_out = fan_out.map(|name| Arc::new(RegisteredConsumer::new(kinesis.clone(), name)));
        let (leases, has_own_leases) = leases_of(&self.store);
        self.settings.worker_config.has_own_leases = has_own_leases;
        self.settings.worker_config.is_bounded = self.settings.ending != EndingPosition::Never;
        let clock = self.settings.worker_config.clock.clone();
        let for_callers = GuardedStore::for_callers(Arc::clone(&leases));
        let for_tasks = GuardedStore::for_tasks(leases, telemetry.clone());
        Ok(Consumer {
            inner: Arc::new(ConsumerInner {
                kinesis,
                fan_out,
                leases: Leases::with_clock(Arc::new(for_tasks), scope.clone(), clock.clone()),
                operations: Leases::with_clock(Arc::new(for_callers), scope.clone(), clock),
                store: self.store,
                scope,
                telemetry,
                settings: self.settings,
                close_signal: crate::shard::CloseSignal::new(),
                has_session: Arc::default(),
                writer: Mutex::default(),
                messages: Mutex::default(),
                worker: Mutex::default(),
            }),
        })
    }
}
