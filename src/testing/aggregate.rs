use md5::{Digest, Md5};
use prost::Message;

/// <https://github.com/awslabs/amazon-kinesis-producer/blob/master/aggregation-format.md>.
const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];

#[derive(Clone, PartialEq, Message)]
struct AggregateMessage {
    #[prost(string, repeated, tag = "1")]
    partition_keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    parts: Vec<AggregatePart>,
}

#[derive(Clone, PartialEq, Message)]
struct AggregatePart {
    #[prost(uint64, required, tag = "1")]
    partition_key: u64,
    #[prost(bytes = "vec", required, tag = "3")]
    data: Vec<u8>,
}

/// Packs records into the payload of one aggregated record, as the Kinesis Producer Library does.
/// Each record is a partition key and a payload.
///
/// Put the payload into a shard with [`Shard::put_as`](super::Shard::put_as). The consumer delivers
/// the user records in it, except for those whose partition key belongs to another shard.
///
/// ```
/// use kinestream::testing::{Kinesis, aggregate};
/// use futures::StreamExt;
/// use kinestream::{Consumer, StartingPosition};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let kinesis = Kinesis::new();
/// let orders = kinesis.create_stream("orders", 1);
/// orders.shard(0).put_as("any", aggregate([("a", "one"), ("b", "two")]));
///
/// let consumer = Consumer::builder(kinesis.client(), "orders")
///     .starting_position(StartingPosition::TrimHorizon)
///     .build()
///     .unwrap();
/// let mut records = consumer.records();
/// let first = records.next().await.unwrap().unwrap();
/// assert_eq!((first.partition_key(), first.data()), (Some("a"), &b"one"[..]));
/// let second = records.next().await.unwrap().unwrap();
/// assert_eq!((second.sequence_number(), second.sub_sequence_number()), (first.sequence_number(), 1));
/// # }
/// ```
pub fn aggregate<K: Into<String>, D: Into<Vec<u8>>>(
    records: impl IntoIterator<Item = (K, D)>,
) -> Vec<u8> {
    let mut packed = AggregateMessage::default();
    for (key, data) in records {
        let key = key.into();
        let known = packed.partition_keys.iter().position(|known| *known == key);
        let index = known.unwrap_or(packed.partition_keys.len());
        if known.is_none() {
            packed.partition_keys.push(key);
        }
        packed.parts.push(AggregatePart { partition_key: index as u64, data: data.into() });
    }
    let message = packed.encode_to_vec();
    let digest = Md5::digest(&message);
    [&MAGIC, &message[..], &digest[..]].concat()
}
