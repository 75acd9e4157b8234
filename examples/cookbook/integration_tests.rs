use aws_sdk_kinesis::Client;
use futures::TryStreamExt;
use kinestream::testing::{Kinesis, Outcome};
use kinestream::{Consumer, EndingPosition, StartingPosition};

/// The pipeline under test: returns the orders that are in the stream.
async fn orders(client: Client) -> kinestream::Result<Vec<String>> {
    let consumer = Consumer::builder(client, "orders")
        .starting_position(StartingPosition::TrimHorizon)
        .ending_position(EndingPosition::Latest)
        .build()?;
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    consumer.records().map_ok(|record| text(record.data())).try_collect().await
}

#[tokio::test(start_paused = true)]
async fn orders_are_read_over_a_split_while_kinesis_throttles() {
    let kinesis = Kinesis::new();
    let stream = kinesis.create_stream("orders", 1);
    stream.shard(0).put("17");
    let [left, _right] = stream.shard(0).split();
    left.put("18");
    kinesis.next_calls("GetRecords", 3, Outcome::throttled());

    assert_eq!(orders(kinesis.client()).await.unwrap(), ["17", "18"]);
    assert_eq!(kinesis.violations(), [""; 0]);
}
