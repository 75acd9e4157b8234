//! Responses that look like the end of a closed shard before its last record.

use std::time::Duration;

use kinestream::WireFormat;
use kinestream::testing::{Outcome, Stream};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{calls, consumer, next, number, orders};

/// Reads record 0, then puts record 1, closes the shard, and lets the next `GetRecords` calls get
/// these responses. Asserts that record 1 is delivered.
async fn assert_read_to_the_end(responses: impl FnOnce(&Stream) -> Vec<Value>) {
    let (kinesis, orders) = orders(1);
    // The children would prove the end.
    kinesis.set_child_shards(false);
    // A response that is not CBOR would be requested again by JSON.
    let reader = consumer(&kinesis).wire_format(WireFormat::Json).build().unwrap();
    let mut records = reader.records();
    orders.shard(0).put("0");
    assert_eq!(number(&next(&mut records).await), 0);
    orders.shard(0).put("1");
    orders.shard(0).split();
    let responses = responses(&orders);
    let expected = calls(&kinesis, "GetRecords").len() + responses.len();
    for response in responses {
        let outcome = Outcome::Garbled { status: 200, body: response.to_string() };
        kinesis.next_calls("GetRecords", 1, outcome);
    }
    let read = timeout(Duration::from_secs(60), next(&mut records)).await;
    assert_eq!(read.ok().as_ref().map(number), Some(1), "expected the last record");
    assert!(calls(&kinesis, "GetRecords").len() > expected, "expected every response to be used");
}

/// Returns a response that holds only the record that was read last.
fn last_record(orders: &Stream, lag: i64) -> Value {
    let record = json!({
        "SequenceNumber": orders.shard(0).sequence_numbers()[0].to_string(),
        "PartitionKey": "key",
        "Data": "MA==",
        "ApproximateArrivalTimestamp": 1_700_000_000.0,
    });
    json!({"Records": [record], "MillisBehindLatest": lag})
}

/// The first response proves nothing, and the second one is not its repetition.
#[tokio::test(start_paused = true)]
async fn response_after_one_that_lacks_records_does_not_end_a_shard() {
    assert_read_to_the_end(|orders| vec![json!({}), last_record(orders, 0)]).await;
}
