//! What is seen from outside: each happening is told once, here, and becomes a `tracing` event, a
//! typed [`Event`] and a metric.
//!
//! Nothing here waits for anybody. What nobody listens to is not made.

mod event;
mod events;
mod shard;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::broadcast;

use crate::record::ShardId;

pub use event::Event;
pub use events::Events;
pub(crate) use shard::ShardObserver;
use shard::View;

/// Events that a slow listener may be behind before it misses some.
const LONGEST_BACKLOG: usize = 1024;

/// Who is told what happens to one consumer. The clones are one.
#[derive(Clone)]
pub(crate) struct Observer(Arc<Inner>);

struct Inner {
    stream: Arc<str>,
    application: Arc<str>,
    events: broadcast::Sender<Event>,
    /// The shards that are read, for as long as they are.
    shards: Mutex<BTreeMap<ShardId, Weak<View>>>,
}

impl Observer {
    pub(crate) fn new(stream: &Arc<str>, application: &str) -> Self {
        Self(Arc::new(Inner {
            stream: Arc::clone(stream),
            application: application.into(),
            events: broadcast::Sender::new(LONGEST_BACKLOG),
            shards: Mutex::default(),
        }))
    }

    /// Something has happened.
    pub(crate) fn tell(&self, event: Event) {
        event.trace(&self.0.stream, &self.0.application);
        // Nobody listens: then it is gone.
        let _unheard = self.0.events.send(event);
    }

    /// What happens from now on.
    pub(crate) fn events(&self) -> Events {
        Events::new(self.0.events.subscribe())
    }

    /// A shard that is read from now on.
    pub(crate) fn shard(&self, id: &ShardId) -> ShardObserver {
        let observer = ShardObserver::new(self.clone(), id.clone());
        let mut shards = self.shards();
        shards.retain(|_, view| view.strong_count() > 0);
        shards.insert(id.clone(), Arc::downgrade(observer.view()));
        observer
    }

    /// How far behind the newest record of a shard its reader was when it asked last, in
    /// milliseconds; `None` of a shard that is not read here, or has not answered yet.
    pub(crate) fn millis_behind_latest(&self, id: &ShardId) -> Option<i64> {
        self.shards().get(id)?.upgrade()?.millis_behind_latest()
    }

    fn shards(&self) -> MutexGuard<'_, BTreeMap<ShardId, Weak<View>>> {
        self.0.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stream, application) = (&self.0.stream, &self.0.application);
        write!(formatter, "Observer({application} of {stream})")
    }
}
