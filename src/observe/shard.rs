use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::{Event, Observer};
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
#[derive(Debug)]
pub(super) struct View {
    pub(super) id: ShardId,
    millis_behind_latest: AtomicI64,
}

impl View {
    pub(super) fn millis_behind_latest(&self) -> Option<i64> {
        let millis = self.millis_behind_latest.load(Ordering::Relaxed);
        (millis != UNKNOWN).then_some(millis)
    }
}

impl ShardObserver {
    pub(super) fn new(observer: Observer, id: ShardId) -> Self {
        let view = View { id, millis_behind_latest: AtomicI64::new(UNKNOWN) };
        Self { observer, view: Arc::new(view) }
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

    /// Kinesis has answered: so far behind its newest record is the shard.
    pub(crate) fn answered(&self, millis_behind_latest: i64) {
        let millis = millis_behind_latest.max(0);
        let before = self.view.millis_behind_latest.swap(millis, Ordering::Relaxed);
        if millis == 0 && before != 0 {
            self.tell(Event::CaughtUp { shard_id: self.shard_id().clone() });
        }
    }
}
