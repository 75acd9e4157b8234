use std::ops::Deref;
use std::slice;
use std::vec;

use crate::record::Record;

/// Records that are processed and acknowledged together.
///
/// Yielded by [`batches`](crate::RecordStreamExt::batches), with at least one record. It
/// dereferences to a slice, and can be iterated by value and by reference. `R` is [`Record`], or
/// [`Decoded`](crate::Decoded) after [`decode`](crate::RecordStreamExt::decode). For a test of your
/// own code, create one from a `Vec`.
///
/// With [`CheckpointOn::Ack`](crate::CheckpointOn::Ack), a batch that is dropped without
/// [`ack`](Self::ack) stops the checkpoints of its shards.
///
/// ```
/// # async fn insert(rows: Vec<Vec<u8>>) {}
/// async fn store(batch: kinestream::RecordBatch) {
///     println!("{} records from {}", batch.len(), batch[0].shard_id());
///     insert(batch.iter().map(|record| record.data().to_vec()).collect()).await;
///     batch.ack();
/// }
/// ```
#[derive(Debug)]
pub struct RecordBatch<R = Record> {
    records: Vec<R>,
}

impl<R: AsRef<Record>> RecordBatch<R> {
    /// Acknowledges every record, as [`Record::ack`] does.
    pub fn ack(&self) {
        for record in &self.records {
            record.as_ref().ack();
        }
    }
}

impl<R> RecordBatch<R> {
    /// Returns the records, without an acknowledgement.
    pub fn into_vec(self) -> Vec<R> {
        self.records
    }
}

impl<R> From<Vec<R>> for RecordBatch<R> {
    fn from(records: Vec<R>) -> Self {
        Self { records }
    }
}

impl<R> Deref for RecordBatch<R> {
    type Target = [R];

    fn deref(&self) -> &[R] {
        &self.records
    }
}

impl<R> AsRef<[R]> for RecordBatch<R> {
    fn as_ref(&self) -> &[R] {
        &self.records
    }
}

impl<R> IntoIterator for RecordBatch<R> {
    type Item = R;
    type IntoIter = vec::IntoIter<R>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.into_iter()
    }
}

impl<'a, R> IntoIterator for &'a RecordBatch<R> {
    type Item = &'a R;
    type IntoIter = slice::Iter<'a, R>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.iter()
    }
}
