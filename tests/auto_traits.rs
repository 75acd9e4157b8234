//! Checks the auto traits of every public type. Losing one would break callers that spawn or store
//! the type.

use std::pin::Pin;

use kinestream::store::{Leased, Scope, lease};
use kinestream::{
    AckFilter, Acker, ApplicationStatus, Batches, BufferByKey, Checkpoint, CheckpointOn, Consumer,
    ConsumerBuilder, Decode, DecodeError, Decoded, EncryptionType, EndingPosition, Error,
    ErrorKind, Event, Events, FallbackReason, Health, IfLeased, InFlightLimit, MemoryBudget,
    MemoryStore, OnTrimmed, Record, RecordBatch, Records, SequenceNumber, ShardFailure, ShardId,
    ShardOrdering, ShardPosition, ShardState, ShardStatus, ShardStream, Shards, StartingPosition,
    Task, WireFormat,
};

/// The future of a handler, which need not be `Unpin` or `Sync`.
type Handler = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

fn assert_all<T: Send + Sync + Unpin + std::fmt::Debug + 'static>() {}
fn assert_send<T: Send + Unpin + std::fmt::Debug + 'static>() {}

#[test]
fn public_types_keep_their_auto_traits() {
    assert_all::<Acker>();
    assert_all::<MemoryBudget>();
    assert_all::<Checkpoint>();
    assert_all::<CheckpointOn>();
    assert_all::<Consumer>();
    assert_all::<ConsumerBuilder>();
    assert_all::<EncryptionType>();
    assert_all::<EndingPosition>();
    assert_all::<Error>();
    assert_all::<ErrorKind>();
    assert_all::<Event>();
    assert_all::<FallbackReason>();
    assert_all::<Health>();
    assert_all::<InFlightLimit>();
    assert_all::<MemoryStore>();
    assert_all::<Leased<MemoryStore>>();
    assert_all::<OnTrimmed>();
    assert_all::<ShardOrdering>();
    assert_all::<Record>();
    assert_all::<Scope>();
    assert_all::<SequenceNumber>();
    assert_all::<ShardFailure>();
    assert_all::<ShardId>();
    assert_all::<ShardPosition>();
    assert_all::<ShardState>();
    assert_all::<ShardStatus>();
    assert_all::<StartingPosition>();
    assert_all::<Task>();
    assert_all::<WireFormat>();
    assert_all::<ApplicationStatus>();
    assert_all::<IfLeased>();
    assert_all::<lease::HeartbeatResponse>();
    assert_all::<lease::EntryKey>();
    assert_all::<lease::Exchange>();
    assert_all::<lease::Exchanged>();
    assert_all::<lease::Step>();
    assert_all::<lease::EntryChange>();
    assert_all::<lease::Renewal>();
    assert_all::<lease::LastHeartbeat>();
    assert_all::<lease::OtherReader>();
    assert_all::<lease::Heartbeats>();
    assert_all::<lease::FencedSave>();
    assert_all::<lease::FencedOutcome>();
    assert_all::<lease::Change>();
    assert_all::<lease::AdminEdit>();
    assert_all::<lease::FencedCheckpoint>();
    assert_all::<lease::Lease>();
    assert_all::<lease::WorkerEntry>();
    assert_all::<lease::HeartbeatRequest>();
    assert_all::<lease::Membership>();
    assert_all::<lease::LeaseTable>();
    assert_all::<lease::Leases>();
    assert_all::<lease::SaveOutcome>();
    #[cfg(feature = "dynamodb")]
    assert_all::<kinestream::DynamoDbStore>();
    #[cfg(feature = "redis")]
    assert_all::<kinestream::RedisStore>();
    #[cfg(feature = "testing")]
    {
        assert_all::<kinestream::testing::Call>();
        assert_all::<kinestream::testing::CborSupport>();
        assert_all::<kinestream::testing::Interruption>();
        assert_all::<kinestream::testing::Kinesis>();
        assert_all::<kinestream::testing::Outcome>();
        assert_all::<kinestream::testing::Shard>();
        assert_all::<kinestream::testing::Stream>();
        assert_all::<kinestream::testing::TestRecord>();
        assert_all::<kinestream::testing::WallClock>();
        assert_all::<kinestream::testing::WrongListing>();
    }
    // Streams are polled by one task at a time, so they need no `Sync`.
    assert_send::<Events>();
    assert_send::<Records>();
    assert_send::<ShardStream>();
    assert_send::<Shards>();
    assert_all::<Decoded<u64>>();
    assert_all::<DecodeError<Error, String>>();
    assert_all::<RecordBatch>();
    assert_send::<AckFilter<Records, fn(&Record) -> bool>>();
    assert_send::<Batches<Records>>();
    assert_send::<BufferByKey<Records, fn(Record) -> Handler, Handler>>();
    assert_send::<Decode<Records, fn(&Record) -> Result<u64, String>>>();
}
