use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};

use super::metrics::ShardMetrics;
use super::{Event, Observer, Spanned, Task};
use crate::checkpoint::Watermark;
use crate::record::ShardId;

/// No answer has said yet how far behind the shard is.
const UNKNOWN: i64 = -1;

/// Who is told what happens to one shard that is read. The clones are one.
#[derive(Debug, Clone)]
pub(crate) struct ShardObserver {
    observer: Observer,
    view: Arc<View>,
}

/// What is seen of a shard that is read.
pub(super) struct View {
    id: ShardId,
    millis_behind_latest: AtomicI64,
    watermark: Weak<Watermark>,
    metrics: ShardMetrics,
}

impl View {
    pub(super) fn millis_behind_latest(&self) -> Option<i64> {
        let millis = self.millis_behind_latest.load(Ordering::Relaxed);
        (millis != UNKNOWN).then_some(millis)
    }

    pub(super) fn measure(&self) {
        if let Some(watermark) = self.watermark.upgrade() {
            let (unfinished, oldest) = watermark.unfinished();
            self.metrics.measure(unfinished, oldest);
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("View").field(&self.id).finish()
    }
}

impl ShardObserver {
    pub(super) fn new(
        observer: Observer,
        id: ShardId,
        watermark: &Arc<Watermark>,
        metrics: ShardMetrics,
    ) -> Self {
        let millis_behind_latest = AtomicI64::new(UNKNOWN);
        let watermark = Arc::downgrade(watermark);
        let view = Arc::new(View { id, millis_behind_latest, watermark, metrics });
        Self { observer, view }
    }

    pub(super) fn view(&self) -> &Arc<View> {
        &self.view
    }

    pub(crate) fn shard_id(&self) -> &ShardId {
        &self.view.id
    }

    pub(crate) fn tell(&self, event: Event) {
        self.observer.tell(event);
    }

    /// The same future, within the span of the shard.
    pub(crate) fn within_span<F: Future>(&self, future: F) -> Spanned<F> {
        Spanned::new(future, self.observer.span(self.shard_id()), self.observer.clone())
    }

    /// Kinesis has answered with so many records and bytes, and so far behind its newest record is
    /// the shard.
    pub(crate) fn answered(&self, records: usize, bytes: usize, millis_behind_latest: i64) {
        let millis = millis_behind_latest.max(0);
        self.observer.contain(Task::Metrics, || self.view.metrics.answered(records, bytes, millis));
        let before = self.view.millis_behind_latest.swap(millis, Ordering::Relaxed);
        if millis == 0 && before != 0 {
            self.tell(Event::CaughtUp { shard_id: self.shard_id().clone() });
        }
    }
}
