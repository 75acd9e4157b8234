//! The task that saves checkpoints, apart from whoever reads.
//!
//! ```text
//!            changed and the interval is over, or urgent
//!   resting ───────────────────────────────────────────► saving
//!      ▲  ▲                                              │    │
//!      │  └──────────────── saved ───────────────────────┘    │ failed
//!      └──────────────── back-off is over ◄── waiting ◄───────┘
//! ```
//!
//! What is to be saved stands in `pending` until the store has said that it is saved, so a failed
//! or dropped save forgets nothing. A position goes with the epoch under which it was reached, and
//! one whose lease is lost is given up: who has it now saves its own. When the last handle is dropped the task saves what is
//! finished, as far as the store lets it within [`LAST_WORDS`], and ends.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::lease::{Fenced, Verdict};
use super::{LeaseStore, Scope, in_time};
use crate::checkpoint::{Checkpoint, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::observe::{Event, Observer};
use crate::pace::jitter;
use crate::record::ShardId;

/// The pauses between saves to a failing store: from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long the task goes on trying when nobody holds a handle any more.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How the writer works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rhythm {
    /// At most one write each; zero writes whenever there is something to write.
    pub(crate) interval: Duration,
    /// How long the store may fail before records stop.
    pub(crate) max_unflushed: Duration,
}

/// A handle of the task. The task ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<oneshot::Sender<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn LeaseStore>,
    scope: Scope,
    rhythm: Rhythm,
    observer: Observer,
    state: Mutex<State>,
    /// Something is to be written at once.
    urgent: Notify,
    /// Whether readers have to look at the gate: the one word they read for each record.
    attention: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    watched: Vec<Watched>,
    /// By shard and epoch.
    pending: BTreeMap<(ShardId, u64), Checkpoint>,
    gate: Gate,
    /// The last save failed.
    failing: bool,
    /// What the reader is to be told, once.
    report: Option<Error>,
    /// It was, since the last save.
    is_told: bool,
    waiting: Vec<Waker>,
}

/// A shard whose position is saved as it advances.
pub(crate) struct Watched {
    pub(crate) shard: ShardId,
    pub(crate) epoch: u64,
    pub(crate) watermark: Arc<Watermark>,
    /// Told that the end of the shard is saved, and where the store has something else to say than that
    /// a position is saved.
    pub(crate) tell: Box<dyn Fn(Verdict) + Send + Sync>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} in epoch {}", self.shard, self.epoch)
    }
}

/// Whether records may be handed out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    /// Each record is saved before the next one, and one is being saved.
    Saving,
    /// The store has failed for too long.
    Shut,
}

impl Writer {
    /// Starts the task, on the runtime of the caller.
    pub(crate) fn spawn(
        store: Arc<dyn LeaseStore>,
        scope: Scope,
        rhythm: Rhythm,
        observer: Observer,
    ) -> Self {
        let shared = Arc::new(Shared {
            store,
            scope,
            rhythm,
            observer,
            state: Mutex::default(),
            urgent: Notify::new(),
            attention: AtomicBool::new(false),
        });
        let (requests, received) = mpsc::unbounded_channel();
        tokio::spawn(run(Arc::clone(&shared), received));
        Self { shared, requests }
    }

    /// Whether the task still runs: it does not outlive the runtime that it was started on.
    pub(crate) fn is_running(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Saves the position of a shard from now on.
    pub(crate) fn watch(&self, watched: Watched) {
        self.shared.lock().watched.push(watched);
    }

    /// What tells the writer that a watermark has advanced. It keeps no handle, so that records
    /// that live on do not keep the task alive.
    pub(crate) fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.shared))
    }

    /// Whether nobody has told yet of the store that fails; who asks tells of it.
    pub(crate) fn is_untold(&self) -> bool {
        !std::mem::replace(&mut self.shared.lock().is_told, true)
    }

    /// Saves everything that is finished, and waits until it is saved.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let gone = || {
            Error::new(ErrorKind::StoreUnavailable, "the runtime that saved checkpoints has ended")
        };
        self.requests.send(answer).map_err(|_closed| gone())?;
        answered.await.unwrap_or_else(|_closed| Err(gone()))
    }

    /// Ready when records may be handed out; an error where the store's failing is to be told.
    pub(crate) fn poll_open(&self, context: &mut Context<'_>) -> Poll<Result<()>> {
        if !self.shared.attention.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.shared.lock();
        if let Some(error) = state.report.take()
            && !std::mem::replace(&mut state.is_told, true)
        {
            return Poll::Ready(Err(error));
        }
        if state.gate == Gate::Open {
            self.shared.attention.store(false, Ordering::Release);
            return Poll::Ready(Ok(()));
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// Tells the writer that there is something to write.
#[derive(Debug, Clone)]
pub(crate) struct Bell(Arc<Shared>);

impl Bell {
    /// A position has advanced.
    pub(crate) fn advanced(&self) {
        if self.0.rhythm.interval.is_zero() {
            let mut state = self.0.lock();
            // A store that fails holds nobody up until it has failed for too long.
            if state.gate == Gate::Open && !state.failing {
                self.0.set_gate(&mut state, Gate::Saving);
            }
            self.0.urgent.notify_one();
        }
    }

    /// A shard is finished: that is written at once.
    pub(crate) fn ended(&self) {
        self.0.urgent.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_gate(&self, state: &mut State, gate: Gate) {
        state.gate = gate;
        self.attention.store(gate != Gate::Open || state.report.is_some(), Ordering::Release);
        if gate != Gate::Saving {
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Moves what has changed to `pending`, and gives a copy of it all.
    fn collect(&self) -> Vec<Fenced> {
        let mut state = self.lock();
        let State { watched, pending, .. } = &mut *state;
        watched.retain(|Watched { shard, epoch, watermark, .. }| {
            if let Some(checkpoint) = watermark.take_changed() {
                pending.insert((shard.clone(), *epoch), checkpoint);
                return true;
            }
            // Neither a stream nor a record is left that could advance it, nor is it to be told of.
            Arc::strong_count(watermark) > 1 || pending.contains_key(&(shard.clone(), *epoch))
        });
        let fenced = |((shard, epoch), checkpoint): (&(ShardId, u64), &Checkpoint)| Fenced {
            shard: shard.clone(),
            epoch: *epoch,
            checkpoint: checkpoint.clone(),
        };
        pending.iter().map(fenced).collect()
    }

    /// One attempt to save all that is pending.
    async fn save(&self) -> Result<()> {
        let positions = self.collect();
        let verdicts = if positions.is_empty() {
            Vec::new()
        } else {
            in_time(self.store.save_fenced(&self.scope, &positions)).await?
        };
        let mut state = self.lock();
        state.is_told &= positions.is_empty();
        let mut saved = 0;
        for (position, verdict) in positions.into_iter().zip(verdicts) {
            saved += usize::from(verdict != Verdict::Lost);
            state.settle(&self.scope, position, verdict);
        }
        self.observer.saved(saved);
        state.failing = false;
        // What nobody was told in time is over.
        state.report = None;
        // What advanced meanwhile has rung the bell again, and waits for the next save.
        self.set_gate(&mut state, Gate::Open);
        Ok(())
    }
}

impl State {
    /// Takes note of what has become of a position.
    fn settle(&mut self, scope: &Scope, saved: Fenced, verdict: Verdict) {
        let Fenced { shard, epoch, checkpoint } = saved;
        let place = (shard, epoch);
        if verdict == Verdict::Lost || self.pending.get(&place) == Some(&checkpoint) {
            self.pending.remove(&place);
        }
        if verdict == Verdict::Saved && checkpoint != Checkpoint::ShardEnd {
            return;
        }
        let (shard, epoch) = place;
        for watched in self.watched.iter().filter(|it| it.shard == shard && it.epoch == epoch) {
            (watched.tell)(verdict);
        }
        if verdict == Verdict::Lost {
            let error = Error::new(ErrorKind::LeaseLost, "another worker has the lease by now")
                .in_stream(&scope.stream)
                .in_shard(shard.as_str());
            tracing::warn!(%error, epoch, %checkpoint, "a position is not saved");
            self.watched.retain(|watched| watched.shard != shard || watched.epoch != epoch);
        }
    }
}

/// A row of failed saves.
struct Outage {
    since: Instant,
    pause: Duration,
    told: bool,
}

async fn run(
    shared: Arc<Shared>,
    mut requests: mpsc::UnboundedReceiver<oneshot::Sender<Result<()>>>,
) {
    let mut asking: Vec<oneshot::Sender<Result<()>>> = Vec::new();
    let mut outage: Option<Outage> = None;
    let mut written = Instant::now();
    loop {
        // While the store fails, nothing but time and a wish to flush brings the next attempt.
        let next = match &outage {
            Some(outage) => Instant::now() + jitter(outage.pause),
            None => written + shared.rhythm.interval.max(Duration::from_millis(1)),
        };
        let resting = outage.is_none() && shared.rhythm.interval.is_zero();
        // In this order, so that what happens depends on nothing but what happened.
        if asking.is_empty() || outage.is_some() {
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(answer) => asking.push(answer),
                    None => break,
                },
                () = shared.urgent.notified(), if outage.is_none() => {}
                () = sleep_until(next), if !resting => {}
            }
        }
        while let Ok(answer) = requests.try_recv() {
            asking.push(answer);
        }
        let started = Instant::now();
        let mut late = Vec::new();
        let saved = {
            let mut saving = pin!(shared.save());
            loop {
                tokio::select! {
                    biased;
                    saved = &mut saving => break Some(saved),
                    // What they want to be saved may have come too late for this one.
                    request = requests.recv() => match request {
                        Some(answer) => late.push(answer),
                        None => break None,
                    },
                }
            }
        };
        match saved {
            None => break,
            Some(Ok(())) => {
                if let Some(ended) = outage.take() {
                    shared.observer.tell(Event::StoreRecovered { after: ended.since.elapsed() });
                }
                written = started;
                for answer in asking.drain(..) {
                    let _ = answer.send(Ok(()));
                }
            }
            Some(Err(error)) => {
                asking.retain(|answer| !answer.is_closed());
                fail(&shared, &mut outage, started, error, &mut asking);
            }
        }
        asking.append(&mut late);
    }
    last_words(&shared).await;
}

/// Counts a failed save, and tells who is to know of it.
fn fail(
    shared: &Shared,
    outage: &mut Option<Outage>,
    started: Instant,
    error: Error,
    asking: &mut Vec<oneshot::Sender<Result<()>>>,
) {
    let error = error.in_stream(&shared.scope.stream);
    let outage = outage.get_or_insert_with(|| {
        shared.observer.tell(Event::StoreFailed { message: error.to_string() });
        Outage { since: started, pause: FIRST_PAUSE, told: false }
    });
    shared.observer.save_failed(outage.since);
    outage.pause = (outage.pause * 2).min(LONGEST_PAUSE);
    let mut state = shared.lock();
    state.failing = true;
    let too_long = outage.since.elapsed() >= shared.rhythm.max_unflushed;
    let curable = error.is_temporary();
    if !curable && let Some(answer) = asking.pop() {
        let _ = answer.send(Err(error));
    } else if !outage.told && (too_long || !curable) {
        outage.told = true;
        state.report =
            Some(if curable { overdue(error, shared.rhythm.max_unflushed) } else { error });
    }
    shared.set_gate(&mut state, if too_long { Gate::Shut } else { Gate::Open });
}

fn overdue(cause: Error, limit: Duration) -> Error {
    let message = format!(
        "the checkpoint store has been failing for longer than max_unflushed ({limit:?}); \
         records go on when it answers: {cause}"
    );
    Error::new(ErrorKind::StoreUnavailable, message).with_source(cause)
}

/// Nobody is there to be told: what is finished is saved if the store lets us.
async fn last_words(shared: &Shared) {
    let saved = timeout(LAST_WORDS, async {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = shared.save().await {
            tracing::debug!(scope = %shared.scope, %error, "the last checkpoints cannot be saved yet");
            sleep(jitter(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
    if saved.await.is_err() {
        tracing::warn!(scope = %shared.scope, "the last checkpoints were not saved: some records will be read again");
    }
}
