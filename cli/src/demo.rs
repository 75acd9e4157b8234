//! A Kinesis in this process with a stream that is written to, for a first look without an account.

use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use kinestream::testing::{Kinesis, Stream, aggregate};

/// The stream of the demonstration.
pub(crate) const STREAM: &str = "orders";

/// The records that exist at the start, which arrived within the last hour.
const EARLIER: u64 = 1000;

/// Starts a Kinesis with a stream of three shards that receives ten records per second, and returns
/// a client of it. It ends with the runtime.
pub(crate) fn start() -> Client {
    let kinesis = Kinesis::new();
    kinesis.set_retention(Duration::from_secs(24 * 3600));
    let orders = kinesis.create_stream(STREAM, 3);
    put_earlier(&orders, kinesis.now());
    let client = kinesis.client();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        let mut number = EARLIER;
        loop {
            ticks.tick().await;
            for _ in 0..5 {
                orders.put(&customer(number), order(number));
                number += 1;
            }
            // As an operator does: a shard is split, and writing continues.
            if number == EARLIER + 100 {
                orders.shard(0).split();
            }
        }
    });
    client
}

/// Puts records whose arrival times are spread over the last hour, as a producer with the KPL does:
/// several to a record of Kinesis.
fn put_earlier(orders: &Stream, now: SystemTime) {
    for shard in orders.open_shards() {
        let mine = (0..EARLIER).filter(|number| shard.has_key(&customer(*number)));
        for some in mine.collect::<Vec<_>>().chunks(5) {
            let Some(last) = some.last() else { continue };
            let records = some.iter().map(|number| (customer(*number), order(*number)));
            let age = Duration::from_millis(3600 * (EARLIER - last));
            shard.put_at(now - age, aggregate(records));
        }
    }
}

fn customer(number: u64) -> String {
    format!("customer-{}", number % 97)
}

fn order(number: u64) -> String {
    let items = ["espresso", "flat white", "crème brûlée", "抹茶ラテ", "chai"];
    let index = usize::try_from(number * 7 % 5).unwrap_or(0);
    let item = items.get(index).copied().unwrap_or("tea");
    format!(
        r#"{{"order":{number},"item":"{item}","price":{}.{:02}}}"#,
        2 + number % 5,
        number * 5 % 100
    )
}
