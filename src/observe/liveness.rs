//! Signs of life of one consumer: what [`Consumer::health`](crate::Consumer::health) tells, and the
//! watch that is kept once a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Observer, Polls, lock};

/// How often the watch looks.
const LOOK_EACH: Duration = Duration::from_secs(1);

/// How often it measures, in looks: a lease may last a day, and what is measured is to be seen sooner.
const MEASURE_EACH: u32 = 5;

/// How long the in-flight limit holds a shard before that is told.
const STALLED_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Liveness {
    began: Instant,
    /// The last answer of Kinesis that held records or said that there are none, in milliseconds
    /// since then and one more; 0 before the first.
    fetched: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts readings: one that ends late must not end the next.
    reading: u64,
    /// When the reading that goes on was begun.
    since: Option<Instant>,
    /// Its tasks are gone, and it was not they who ended it.
    is_broken: bool,
    renewed: Option<Instant>,
    leases: usize,
    polls: Vec<Weak<Polls>>,
}

/// What is known of a consumer without asking anybody.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vitals {
    pub(crate) is_running: bool,
    pub(crate) leases: usize,
    /// How long ago each of them was.
    pub(crate) begun: Option<Duration>,
    pub(crate) renewed: Option<Duration>,
    pub(crate) polled: Option<Duration>,
    pub(crate) fetched: Option<Duration>,
    /// The age of the oldest record that is delivered and not acknowledged.
    pub(crate) unacknowledged: Option<Duration>,
    /// For how long the caller of one of the streams has not asked for more records.
    pub(crate) silent: Option<Duration>,
}

/// A reading that goes on. Dropped with its runtime, it leaves a consumer behind that is not alive.
pub(crate) struct Going {
    observer: Observer,
    reading: u64,
    has_ended: bool,
}

impl Going {
    /// The reading has ended by itself, or as it was told to.
    pub(crate) fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let mut state = lock(&self.observer.0.liveness.state);
        if state.reading == self.reading {
            if self.has_ended {
                (state.since, state.renewed, state.leases) = (None, None, 0);
            } else {
                state.is_broken = true;
            }
        }
    }
}

impl Liveness {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), fetched: AtomicU64::new(0), state: Mutex::default() }
    }
}

impl Observer {
    /// A reading begins, and goes on until what it gives is ended.
    pub(crate) fn begin_reading(&self) -> Going {
        let mut state = lock(&self.0.liveness.state);
        state.reading += 1;
        (state.since, state.is_broken) = (Some(Instant::now()), false);
        (state.renewed, state.leases) = (None, 0);
        Going { observer: self.clone(), reading: state.reading, has_ended: false }
    }

    /// The worker has renewed, with so many leases, and has seen the table.
    pub(crate) fn renewed(&self, leases: usize) {
        let mut state = lock(&self.0.liveness.state);
        (state.renewed, state.leases) = (Some(Instant::now()), leases);
    }

    /// Kinesis has answered a fetch.
    pub(super) fn fetched(&self) {
        let liveness = &self.0.liveness;
        let millis = u64::try_from(liveness.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        liveness.fetched.store(millis.saturating_add(1), Ordering::Relaxed);
    }

    /// Where the polls of a stream are noted that is read from now on.
    pub(crate) fn polls(&self) -> Arc<Polls> {
        let polls = Arc::new(Polls::default());
        let mut state = lock(&self.0.liveness.state);
        state.polls.retain(|polls| polls.strong_count() > 0);
        state.polls.push(Arc::downgrade(&polls));
        polls
    }

    fn all_polls(&self) -> Vec<Arc<Polls>> {
        lock(&self.0.liveness.state).polls.iter().filter_map(Weak::upgrade).collect()
    }

    /// Looks once a second, for as long as it is polled: whoever holds a shard up may poll nothing.
    pub(crate) async fn watch(&self) {
        let mut looks = 0_u32;
        loop {
            sleep(LOOK_EACH).await;
            looks = looks.wrapping_add(1);
            for polls in self.all_polls() {
                polls.look();
            }
            for view in self.views() {
                // By which it notes what was delivered, too.
                let _in_flight = view.in_flight();
                if let Some(stalled) = view.stalled(STALLED_AFTER) {
                    self.tell(stalled);
                }
            }
            if looks.is_multiple_of(MEASURE_EACH) {
                let leases = lock(&self.0.liveness.state).leases;
                self.measure(leases);
            }
        }
    }

    pub(crate) fn vitals(&self) -> Vitals {
        let liveness = &self.0.liveness;
        let fetched = liveness.fetched.load(Ordering::Relaxed).checked_sub(1);
        let fetched = fetched
            .map(|millis| liveness.began.elapsed().saturating_sub(Duration::from_millis(millis)));
        let in_flight: Vec<_> = self.views().iter().map(|view| view.in_flight()).collect();
        let undelivered = in_flight.iter().filter_map(|shard| shard.undelivered).max();
        let polls = self.all_polls();
        let silent = polls.iter().filter_map(|polls| polls.silent_for(undelivered)).max();
        let state = lock(&liveness.state);
        Vitals {
            is_running: state.since.is_some() && !state.is_broken,
            leases: state.leases,
            begun: state.since.map(|at| at.elapsed()),
            renewed: state.renewed.map(|at| at.elapsed()),
            polled: polls.iter().filter_map(|polls| polls.last()).min(),
            fetched,
            unacknowledged: in_flight.iter().filter_map(|shard| shard.oldest).max(),
            silent,
        }
    }
}
