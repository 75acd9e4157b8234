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

mod watch;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::lease::{Fenced, Verdict};
use super::{LeaseStore, Scope, in_time};
use crate::backoff::{Backoff, SAVES};
use crate::checkpoint::Checkpoint;
use crate::closing::Closing;
use crate::error::{Error, ErrorKind, Result, TOLERATED, contain};
use crate::observe::{Event, Observer, Task, log_line};
use crate::record::ShardId;
use crate::wakers::{Waiters, wake_all};

pub(crate) use watch::Watched;
use watch::{Place, WatchList};

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
    /// Closed where the task has ended before its time, with its runtime.
    gone: Closing,
    /// The keys of readers, so far.
    keys: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// How many times a position has advanced, where each is saved before the next record.
    advanced: u64,
    /// How many of those a finished save holds.
    saved: u64,
    watched: WatchList,
    pending: BTreeMap<Place, Pending>,
    gate: Gate,
    /// The last save failed.
    failing: bool,
    /// What the reader is to be told, once.
    report: Option<Error>,
    /// It was, since the last save.
    is_told: bool,
    /// The readers that wait for the gate, by the keys of their handles.
    waiting: Waiters,
}

/// A position that is to be saved.
#[derive(Debug)]
struct Pending {
    checkpoint: Checkpoint,
    /// Since when the shard has another position than the store.
    since: Instant,
}

/// Whether records may be handed out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
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
            gone: Closing::new(),
            keys: AtomicU64::new(0),
        });
        let (requests, received) = mpsc::unbounded_channel();
        let task = Saving {
            shared: Arc::clone(&shared),
            requests: received,
            asking: Vec::new(),
            outage: None,
            written: Instant::now(),
        };
        tokio::spawn(task.run());
        Self { shared, requests }
    }

    /// Whether the task still runs: it does not outlive the runtime that it was started on.
    pub(crate) fn is_running(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Closed where the task has ended before its time, with the runtime that it was started on.
    pub(crate) fn gone(&self) -> Closing {
        self.shared.gone.clone()
    }

    /// Saves the position of a shard from now on.
    pub(crate) fn watch(&self, watched: Watched) {
        let before = self.shared.lock().watched.insert(watched);
        // Not under the lock: it holds wakers.
        drop(before);
    }

    /// What tells the writer that the watermark of a shard has advanced. It keeps no handle, so that
    /// records that live on do not keep the task alive.
    pub(crate) fn bell(&self, shard: ShardId, epoch: u64) -> Bell {
        Bell { shared: Arc::clone(&self.shared), place: (shard, epoch) }
    }

    /// Whether nobody has told yet of the store that fails; who asks tells of it.
    pub(crate) fn is_untold(&self) -> bool {
        !std::mem::replace(&mut self.shared.lock().is_told, true)
    }

    /// Notes that the store has answered another call: the next outage is reported again.
    pub(crate) fn store_answered(&self) {
        let mut state = self.shared.lock();
        state.is_told &= state.failing;
    }

    /// For how long the oldest position that is not saved has been waiting for that.
    pub(crate) fn unsaved_for(&self) -> Option<Duration> {
        let state = self.shared.lock();
        let pending = state.pending.values().map(|pending| pending.since.elapsed());
        pending.chain(state.watched.changed_for()).max()
    }

    /// Saves everything that is finished, and waits until it is saved.
    pub(crate) async fn flush(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let gone = Error::runtime_shutdown;
        self.requests.send(answer).map_err(|_closed| gone())?;
        answered.await.unwrap_or_else(|_closed| Err(gone()))
    }

    /// Returns the gate for one reader. It keeps a handle of the task.
    pub(crate) fn gate(&self) -> ReaderGate {
        let key = self.shared.keys.fetch_add(1, Ordering::Relaxed);
        ReaderGate { writer: self.clone(), key, until: None }
    }
}

/// What one reader asks before it delivers records.
#[derive(Debug)]
pub(crate) struct ReaderGate {
    writer: Writer,
    /// Of this reader, among those that wait.
    key: u64,
    /// How many positions had advanced when the reader first asked, where those are to be saved before it
    /// delivers the next record.
    until: Option<u64>,
}

impl ReaderGate {
    /// Ready when records may be delivered; an error where the failure of the store is to be reported.
    ///
    /// Where each position is saved before the next record, that is when those are saved that had
    /// advanced when the reader first asked.
    pub(crate) fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let shared = &self.writer.shared;
        if !shared.attention.load(Ordering::Acquire) {
            self.until = None;
            return Poll::Ready(Ok(()));
        }
        let mut state = shared.lock();
        if let Some(error) = state.report.take()
            && !std::mem::replace(&mut state.is_told, true)
        {
            return Poll::Ready(Err(error));
        }
        let saved = *self.until.get_or_insert(state.advanced) <= state.saved;
        if state.gate == Gate::Open && saved {
            self.until = None;
            shared.look(&state);
            return Poll::Ready(Ok(()));
        }
        let before = state.waiting.wait(self.key, context.waker());
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl Drop for ReaderGate {
    fn drop(&mut self) {
        let before = self.writer.shared.lock().waiting.remove(self.key);
        drop(before);
    }
}

/// Tells the writer that there is something to write of a shard.
#[derive(Debug, Clone)]
pub(crate) struct Bell {
    shared: Arc<Shared>,
    place: Place,
}

impl Bell {
    /// The position has advanced; `is_first` says that it has not since it was last taken.
    pub(crate) fn advanced(&self, is_first: bool) {
        let saves_each = self.shared.rhythm.interval.is_zero();
        if !is_first && !saves_each {
            return;
        }
        let mut state = self.shared.lock();
        if is_first {
            state.watched.note_changed(&self.place);
        }
        if saves_each {
            state.advanced += 1;
            if state.failing {
                // A store that fails holds nobody up until it has failed for too long.
                state.saved = state.advanced;
            }
            self.shared.look(&state);
            drop(state);
            self.shared.urgent.notify_one();
        }
    }

    /// The shard is finished: that is written at once.
    pub(crate) fn ended(&self) {
        self.shared.lock().watched.note_changed(&self.place);
        self.shared.urgent.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the caller at once of an error, unless he was told since the last save. Gives it back
    /// where nobody is there.
    fn tell(&self, error: Error) -> Result<()> {
        if self.lock().is_told {
            return Ok(());
        }
        self.observer.complain(error.in_stream(self.scope.shared_stream_name()))?;
        self.lock().is_told = true;
        Ok(())
    }

    /// Has readers look at the gate where there is anything to see.
    fn look(&self, state: &State) {
        let attention =
            state.gate != Gate::Open || state.report.is_some() || state.saved < state.advanced;
        self.attention.store(attention, Ordering::Release);
    }

    /// Those who are to be woken when the lock is released.
    #[must_use = "they are woken without the lock"]
    fn set_gate(&self, state: &mut State, gate: Gate) -> impl Iterator<Item = Waker> + use<> {
        state.gate = gate;
        self.look(state);
        state.waiting.take()
    }

    /// Moves what has changed to `pending`, and gives a copy of it all, with how many times positions
    /// had advanced then.
    fn collect(&self) -> (Vec<Fenced>, u64) {
        let mut state = self.lock();
        let advanced = state.advanced;
        let State { watched, pending, .. } = &mut *state;
        for (place, checkpoint, since) in watched.take_changed() {
            let since = pending.get(&place).map_or(since, |before| before.since);
            pending.insert(place, Pending { checkpoint, since });
        }
        let over = watched.sweep(|place| pending.contains_key(place));
        let fenced = |((shard, epoch), pending): (&Place, &Pending)| Fenced {
            shard: shard.clone(),
            epoch: *epoch,
            checkpoint: pending.checkpoint.clone(),
        };
        let positions = pending.iter().map(fenced).collect();
        drop(state);
        // They hold wakers, and what the caller is told by.
        drop(over);
        (positions, advanced)
    }

    /// One attempt to save all that is pending.
    async fn save(&self) -> Result<()> {
        let (positions, advanced) = self.collect();
        let verdicts = if positions.is_empty() {
            Vec::new()
        } else {
            in_time(self.store.save_fenced(&self.scope, &positions)).await?
        };
        if verdicts.len() != positions.len() {
            return Err(miscounted(positions.len(), verdicts.len()));
        }
        let has_saved = !positions.is_empty();
        let mut state = self.lock();
        state.is_told &= !has_saved;
        let mut saved = 0;
        let mut settled = Vec::new();
        for (position, verdict) in positions.into_iter().zip(verdicts) {
            saved += usize::from(!verdict.is_refusal());
            settled.extend(state.settle(position, verdict));
        }
        state.failing = false;
        // What nobody was told in time is over.
        state.report = None;
        // What advanced since the positions were collected waits for the next save, which its bell
        // has rung for.
        state.saved = advanced;
        let waiting = self.set_gate(&mut state, Gate::Open);
        drop(state);
        wake_all(waiting);
        self.observer.saved(saved);
        for settled in settled {
            settled.tell(&self.scope);
        }
        Ok(())
    }
}

impl State {
    /// Takes note of what has become of a position, and gives what is to be told of it.
    fn settle(&mut self, saved: Fenced, verdict: Verdict) -> Option<SettledPosition> {
        let place = (saved.shard.clone(), saved.epoch);
        let is_it = |pending: &Pending| pending.checkpoint == saved.checkpoint;
        if verdict.is_refusal() || self.pending.get(&place).is_some_and(is_it) {
            self.pending.remove(&place);
        }
        if verdict == Verdict::Saved && saved.checkpoint != Checkpoint::ShardEnd {
            return None;
        }
        let tell = self.watched.get(&place).map(|it| Arc::clone(&it.tell));
        let given_up = if verdict.is_refusal() { self.watched.remove(&place) } else { None };
        Some(SettledPosition { saved, verdict, tell, _given_up: given_up })
    }
}

/// What a save has come to, to be told without the lock.
struct SettledPosition {
    saved: Fenced,
    verdict: Verdict,
    tell: Option<Arc<dyn Fn(Verdict) + Send + Sync>>,
    /// Not watched any more.
    _given_up: Option<Watched>,
}

impl SettledPosition {
    fn tell(self, scope: &Scope) {
        if let Some(tell) = &self.tell {
            tell(self.verdict);
        }
        let error = match self.verdict {
            Verdict::Saved | Verdict::Forgotten => return,
            Verdict::Lost => {
                Error::new(ErrorKind::LeaseLost, "another worker has the lease by now")
            }
            Verdict::Unreadable => {
                Error::store_corrupt("the stored lease or position is unreadable")
            }
        };
        let Fenced { shard, epoch, checkpoint } = &self.saved;
        let error = error.in_stream(scope.shared_stream_name()).in_shard(shard.as_str());
        log_line!(warn, %error, epoch, %checkpoint, "a position is not saved");
    }
}

/// A row of failed saves.
struct Outage {
    since: Instant,
    backoff: Backoff,
    retry_at: Instant,
    /// Whether an error was met that waiting does not cure.
    is_permanent: bool,
    told: bool,
}

/// The task.
struct Saving {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<oneshot::Sender<Result<()>>>,
    /// Those who wait until everything is saved.
    asking: Vec<oneshot::Sender<Result<()>>>,
    outage: Option<Outage>,
    /// When the last save was begun that has not failed.
    written: Instant,
}

impl Saving {
    /// Runs until nobody holds a handle, whatever panics meanwhile.
    async fn run(mut self) {
        let mut ends = EndsEarly(Some(Arc::clone(&self.shared)));
        let (mut panics, mut backoff) = (0, Backoff::new(SAVES));
        while let Err(panic) = contain(self.work()).await {
            let message = panic.to_string();
            let event = Event::TaskRestarted { task: Task::Checkpoints, shard_id: None, message };
            self.shared.observer.tell(event);
            panics += 1;
            if panics == TOLERATED + 1 {
                let _nobody_is_there = self.shared.tell(panicked(&panic).with_source(panic));
            }
            // As long as the store fails: what is to be saved is not held up by that.
            sleep(backoff.failed()).await;
        }
        let _panicked = contain(last_words(&self.shared)).await;
        ends.0 = None;
    }

    async fn work(&mut self) {
        loop {
            // While the store fails, nothing but time and a wish to flush brings the next attempt.
            let next = match &self.outage {
                Some(outage) => outage.retry_at,
                None => self.written + self.shared.rhythm.interval.max(Duration::from_millis(1)),
            };
            let resting = self.outage.is_none() && self.shared.rhythm.interval.is_zero();
            // In this order, so that what happens depends on nothing but what happened.
            if self.asking.is_empty() || self.outage.is_some() {
                tokio::select! {
                    biased;
                    request = self.requests.recv() => match request {
                        Some(answer) => self.asking.push(answer),
                        None => return,
                    },
                    () = self.shared.urgent.notified(), if self.outage.is_none() => {}
                    () = sleep_until(next), if !resting => {}
                }
            }
            while let Ok(answer) = self.requests.try_recv() {
                self.asking.push(answer);
            }
            if self.attempt().await.is_none() {
                return;
            }
        }
    }

    /// One save, and what follows from it; `None` when nobody holds a handle any more.
    async fn attempt(&mut self) -> Option<()> {
        let started = Instant::now();
        // What those want to be saved who ask from now on may come too late for this one.
        let mut late = Vec::new();
        let saved = {
            let shared = Arc::clone(&self.shared);
            let mut saving = pin!(shared.save());
            loop {
                tokio::select! {
                    biased;
                    saved = &mut saving => break saved,
                    request = self.requests.recv() => late.push(request?),
                }
            }
        };
        match saved {
            Ok(()) => {
                if let Some(ended) = self.outage.take() {
                    let after = ended.since.elapsed();
                    self.shared.observer.tell(Event::StoreRecovered { after });
                }
                self.written = started;
                for answer in self.asking.drain(..) {
                    let _ = answer.send(Ok(()));
                }
            }
            Err(error) => {
                self.asking.retain(|answer| !answer.is_closed());
                fail(&self.shared, &mut self.outage, started, error, &mut self.asking);
            }
        }
        self.asking.append(&mut late);
        Some(())
    }
}

/// Dropped with the runtime, it has readers notice that the task is gone.
struct EndsEarly(Option<Arc<Shared>>);

impl Drop for EndsEarly {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.gone.close();
        }
    }
}

fn panicked(panic: &dyn std::fmt::Display) -> Error {
    let message = format!(
        "what saves checkpoints has panicked again and again; it is restarted, and records go on \
         until max_unflushed: {panic}"
    );
    Error::new(ErrorKind::Panicked, message)
}

/// Counts a failed save, and tells who is to know of it.
fn fail(
    shared: &Shared,
    outage: &mut Option<Outage>,
    started: Instant,
    error: Error,
    asking: &mut Vec<oneshot::Sender<Result<()>>>,
) {
    let error = error.in_stream(shared.scope.shared_stream_name());
    let curable = error.is_temporary();
    let is_new = outage.is_none();
    let outage = outage.get_or_insert_with(|| {
        let backoff = Backoff::new(SAVES);
        Outage { since: started, backoff, retry_at: started, is_permanent: false, told: false }
    });
    let is_worse = !curable && !std::mem::replace(&mut outage.is_permanent, !curable);
    if is_new || is_worse {
        shared.observer.tell(Event::StoreFailed { message: error.to_string() });
    }
    shared.observer.save_failed(outage.since);
    outage.retry_at = Instant::now() + outage.backoff.failed();
    let too_long = outage.since.elapsed() >= shared.rhythm.max_unflushed;
    let (mut refused, mut report) = (None, None);
    if !curable && let Some(answer) = asking.pop() {
        refused = Some((answer, error));
    } else if !outage.told && (too_long || !curable) {
        outage.told = true;
        report = if curable {
            Some(overdue(error, shared.rhythm.max_unflushed))
        } else {
            // Who waits for records, and not for the store, is told as well.
            shared.tell(error).err()
        };
    }
    let waiting = {
        let mut state = shared.lock();
        state.failing = true;
        state.saved = state.advanced;
        state.report = report.or(state.report.take());
        shared.set_gate(&mut state, if too_long { Gate::Shut } else { Gate::Open })
    };
    wake_all(waiting);
    if let Some((answer, error)) = refused {
        let _nobody_waits = answer.send(Err(error));
    }
}

/// An answer that leaves open what has become of some positions.
fn miscounted(positions: usize, verdicts: usize) -> Error {
    Error::store_corrupt(format!(
        "save_fenced returned {verdicts} verdicts for {positions} positions, but must return one for \
         each; fix the LeaseStore"
    ))
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
        let mut backoff = Backoff::new(SAVES);
        while let Err(error) = shared.save().await {
            log_line!(debug, scope = %shared.scope, %error, "the last checkpoints cannot be saved yet");
            sleep(backoff.failed()).await;
        }
    });
    if saved.await.is_err() {
        log_line!(warn, scope = %shared.scope, "the last checkpoints were not saved: some records will be read again");
    }
}
