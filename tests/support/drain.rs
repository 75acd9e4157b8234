//! The loop of whoever reads by this crate.

use futures::{Stream, StreamExt};
use kinestream::{Record, Result};

/// Reads so many records, and drops each.
pub(crate) async fn drain(
    stream: impl Stream<Item = Result<Record>>,
    records: usize,
    acknowledged: bool,
) {
    let mut stream = std::pin::pin!(stream);
    for _ in 0..records {
        let record = stream.next().await.unwrap().unwrap();
        if acknowledged {
            record.ack();
        }
    }
}
