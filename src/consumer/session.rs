//! What the streams of one reading share, from the first poll until the last of them is dropped.

use std::sync::atomic::Ordering as Atomic;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Consumer;
use crate::checkpoint::{Advance, Watermark};
use crate::error::Result;
use crate::lineage::{Discovery, Opening, Word};
use crate::shard::{Plan, Reading, ShardStream};
use crate::source::{Budget, Polling};
use crate::store::Writer;

/// How long a reading waits for the checkpoints of the one before it.
const LAST_READING: Duration = Duration::from_secs(5);

/// The right to read: while it lives, nobody else has it.
pub(super) struct Session {
    consumer: Consumer,
}

impl Session {
    /// The caller has made sure that there is no other.
    pub(super) fn new(consumer: Consumer) -> Self {
        Self { consumer }
    }

    pub(super) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Starts the tasks that all shards share.
    pub(super) fn start(self: &Arc<Self>) -> Running {
        let writer = self.writer();
        let (opening, openings) = mpsc::unbounded_channel();
        let (word, words) = mpsc::unbounded_channel();
        let inner = &self.consumer.inner;
        let discovery = Discovery {
            kinesis: inner.kinesis.clone(),
            store: Arc::clone(&inner.store),
            scope: inner.scope.clone(),
            writer: writer.clone(),
            start: inner.settings.start.clone(),
            ordering: inner.settings.ordering,
            on_trimmed: inner.settings.on_trimmed,
            interval: inner.settings.discovery_interval,
            openings: opening,
        };
        let mut task = JoinSet::new();
        task.spawn({
            let writer = writer.clone();
            async move {
                // What an earlier reading has finished counts for this one. If the store fails,
                // loading the checkpoints fails next, and says so.
                let _saved = timeout(LAST_READING, writer.flush()).await;
                drop(writer);
                discovery.run(words).await;
            }
        });
        Running {
            session: Arc::clone(self),
            budget: Budget::new(inner.settings.max_buffered_bytes),
            writer,
            word,
            openings,
            _task: task,
        }
    }

    /// The consumer's writer: one for all its readings, so that none saves behind another's back.
    fn writer(&self) -> Writer {
        let inner = &self.consumer.inner;
        let mut writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &*writer {
            Some(writer) if writer.is_running() => writer.clone(),
            _ => writer
                .insert(Writer::spawn(
                    Arc::clone(&inner.store),
                    inner.scope.clone(),
                    inner.settings.rhythm,
                ))
                .clone(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.consumer.inner.reading.store(false, Atomic::SeqCst);
    }
}

/// A session under way.
pub(super) struct Running {
    session: Arc<Session>,
    budget: Budget,
    writer: Writer,
    word: mpsc::UnboundedSender<Word>,
    pub(super) openings: mpsc::UnboundedReceiver<Result<Opening>>,
    _task: JoinSet<()>,
}

impl Running {
    /// The stream of a shard that may be read now.
    pub(super) fn open(&self, Opening { shard, position }: Opening) -> ShardStream {
        let inner = &self.session.consumer.inner;
        let bell = self.writer.bell();
        let watermark = Arc::new(Watermark::new({
            let (word, shard) = (self.word.clone(), shard.id.clone());
            move |advance| match advance {
                Advance::Position => bell.advanced(),
                Advance::End => {
                    bell.ended();
                    // Nobody listens any more where the reading has been dropped.
                    let _dropped = word.send(Word::Finished(shard.clone()));
                }
            }
        }));
        self.writer.watch(shard.id.clone(), Arc::clone(&watermark));
        let polling = Polling {
            kinesis: inner.kinesis.clone(),
            shard_id: shard.id.clone(),
            position,
            interval: inner.settings.interval,
            limit: inner.settings.limit,
            on_trimmed: inner.settings.on_trimmed,
            budget: self.budget.clone(),
            finish: Arc::clone(&watermark) as _,
            again: false,
        };
        let word = self.word.clone();
        ShardStream::new(Reading::new(Plan {
            shard_id: shard.id,
            parents: shard.parents,
            source: polling.into_source(),
            checkpoint_on: inner.settings.checkpoint_on,
            max_in_flight: inner.settings.max_in_flight,
            prefetch: inner.settings.prefetch,
            save_each: inner.settings.rhythm.interval.is_zero(),
            watermark,
            writer: self.writer.clone(),
            closing: inner.closing.clone(),
            ended: Box::new(move |children| {
                let _dropped = word.send(Word::Children(children));
            }),
            session: Arc::clone(&self.session) as _,
        }))
    }
}
