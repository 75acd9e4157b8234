//! The read loop of a caller of this crate.

use futures::{Stream, StreamExt};
use kinestream::{Record, Result};

/// Reads and drops `records` records, and acknowledges each if `acknowledged`.
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
