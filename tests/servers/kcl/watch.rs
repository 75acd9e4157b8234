//! A watch over the lease table: what must never happen to a row.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::requests::{Lease, LeaseTable};

/// Watches the table until it is ended.
pub(crate) struct Watch {
    task: JoinHandle<()>,
    /// True once a row was seen twice.
    has_compared: Arc<AtomicBool>,
}

/// The progress of a row: unread, at a user record, or ended.
type Progress = (u8, usize, String, u64);

fn progress(lease: &Lease) -> Progress {
    let number = lease.checkpoint.clone();
    match &*number {
        "SHARD_END" => (2, 0, String::new(), 0),
        "TRIM_HORIZON" | "LATEST" | "AT_TIMESTAMP" => (0, 0, String::new(), 0),
        _ => (1, number.len(), number, lease.sub_sequence_number),
    }
}

impl Watch {
    /// Starts to watch. The server may be unreachable at times.
    pub(crate) fn start(table: &LeaseTable) -> Self {
        let (table, has_compared) = (table.clone(), Arc::new(AtomicBool::new(false)));
        let compared = Arc::clone(&has_compared);
        let task = tokio::spawn(async move {
            let mut before: HashMap<String, Lease> = HashMap::new();
            let mut owners: HashMap<(String, u64), String> = HashMap::new();
            loop {
                for lease in table.try_scan().await.unwrap_or_default() {
                    if let Some(known) = before.get(&lease.key) {
                        compared.store(true, Ordering::Relaxed);
                        let what = format!("{known:?} became {lease:?}");
                        assert!(progress(&lease) >= progress(known), "moved back: {what}");
                        assert!(lease.counter >= known.counter, "the counter fell: {what}");
                        assert!(lease.epoch >= known.epoch, "the epoch fell: {what}");
                        let is_changed = progress(&lease) != progress(known)
                            || lease.claimed_by != known.claimed_by;
                        assert!(
                            !is_changed || lease.counter > known.counter,
                            "the counter stayed: {what}"
                        );
                    }
                    if let (Some(epoch), Some(owner)) = (lease.epoch, &lease.claimed_by) {
                        let first = owners.entry((lease.key.clone(), epoch));
                        let first = first.or_insert_with(|| owner.clone());
                        assert_eq!(first, owner, "an epoch was issued twice: {lease:?}");
                    }
                    before.insert(lease.key.clone(), lease);
                }
                sleep(Duration::from_millis(25)).await;
            }
        });
        Self { task, has_compared }
    }

    /// Ends the watch. Fails if a rule was broken.
    pub(crate) async fn end(self) {
        self.task.abort();
        if let Err(error) = self.task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
        assert!(self.has_compared.load(Ordering::Relaxed), "expected rows to watch");
    }
}
