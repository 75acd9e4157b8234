use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use futures::channel::{mpsc, oneshot};
use futures::{FutureExt, future, stream};
use proptest::prelude::*;

use super::*;
use crate::adapters::RecordStreamExt;
use crate::adapters::fixtures::RecordFixture;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];

type Source = mpsc::UnboundedSender<Result<Record, usize>>;

/// The way in which a handler ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Ok,
    Err,
    Panic,
    /// The future panics when it is dropped.
    PanicOfDestructor,
}

#[derive(Debug, Clone)]
enum Step {
    Deliver { key: usize, breaks_f: bool },
    Fail,
    Finish(prop::sample::Index, End),
}

fn any_step() -> impl Strategy<Value = Step> {
    // Some keys bring more records than others.
    let key = prop_oneof![4 => Just(0), 2 => Just(1), 1 => Just(2), 1 => Just(3)];
    let end = prop_oneof![
        6 => Just(End::Ok),
        2 => Just(End::Err),
        1 => Just(End::Panic),
        1 => Just(End::PanicOfDestructor),
    ];
    prop_oneof![
        8 => (key, prop::bool::weighted(0.05))
            .prop_map(|(key, breaks_f)| Step::Deliver { key, breaks_f }),
        1 => Just(Step::Fail),
        6 => (any::<prop::sample::Index>(), end).prop_map(|(index, end)| Step::Finish(index, end)),
    ]
}

/// The records and handlers, as the test sees them.
#[derive(Default)]
struct Watched {
    limit: usize,
    taken: usize,
    /// The key and number of each started record, in this order.
    started: Vec<(&'static str, usize)>,
    /// The handlers that were not ended by the test.
    running: Vec<(&'static str, oneshot::Sender<End>)>,
}

/// A future with a destructor that may panic.
struct Fragile<F> {
    future: F,
    breaks: Rc<RefCell<bool>>,
}

impl<F: Future + Unpin> Future for Fragile<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.future.poll_unpin(context)
    }
}

impl<F> Drop for Fragile<F> {
    fn drop(&mut self) {
        if self.breaks.take() {
            resume_unwind(Box::new("a broken destructor"));
        }
    }
}

/// Returns true for a record whose handler panics before it returns a future.
fn breaks_f(record: &Record) -> bool {
    record.data().ends_with(b"!")
}

fn number(record: &Record) -> usize {
    std::str::from_utf8(record.data()).unwrap().trim_end_matches('!').parse().unwrap()
}

fn key(record: &Record) -> &'static str {
    KEYS.into_iter().find(|key| record.partition_key() == Some(key)).unwrap()
}

fn handle(
    watched: &Rc<RefCell<Watched>>,
    record: &Record,
) -> impl Future<Output = Result<usize, usize>> + use<> {
    let (key, number) = (key(record), number(record));
    let mut state = watched.borrow_mut();
    assert!(state.running.len() < state.limit, "expected a free slot for record {number}");
    assert!(
        state.running.iter().all(|(of, _)| *of != key),
        "expected no handler of {key:?} to run when record {number} starts"
    );
    state.started.push((key, number));
    if breaks_f(record) {
        drop(state);
        resume_unwind(Box::new("a broken function"));
    }
    let (sender, receiver) = oneshot::channel();
    state.running.push((key, sender));
    let breaks = Rc::new(RefCell::new(false));
    let future = receiver.map({
        let breaks = Rc::clone(&breaks);
        move |end| match end.expect("the test ends each handler") {
            End::Ok => Ok(number),
            End::Err => Err(number),
            End::Panic => resume_unwind(Box::new("a broken handler")),
            End::PanicOfDestructor => {
                *breaks.borrow_mut() = true;
                Ok(number)
            }
        }
    });
    Fragile { future, breaks }
}

/// A waker that notes that it was used.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A caller that polls only after a wake, until the stream is pending, and continues after a panic.
struct Caller<S: Stream> {
    stream: Pin<Box<S>>,
    flag: Arc<Flag>,
    items: Vec<S::Item>,
    panics: usize,
    has_ended: bool,
}

impl<S: Stream> Caller<S> {
    fn new(stream: S) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self { stream: Box::pin(stream), flag, items: Vec::new(), panics: 0, has_ended: false }
    }

    fn run(&mut self) {
        while self.flag.0.swap(false, Ordering::SeqCst) {
            loop {
                let waker = Waker::from(Arc::clone(&self.flag));
                let context = &mut Context::from_waker(&waker);
                let stream = self.stream.as_mut();
                match catch_unwind(AssertUnwindSafe(|| stream.poll_next(context))) {
                    Ok(Poll::Pending) => break,
                    Ok(Poll::Ready(Some(item))) => self.items.push(item),
                    Ok(Poll::Ready(None)) => {
                        self.has_ended = true;
                        break;
                    }
                    Err(_panic) => self.panics += 1,
                }
            }
        }
    }
}

fn deliver(source: &Source, key: usize, number: usize, breaks_f: bool) {
    let fixture = RecordFixture { key: Some(KEYS[key]), ..RecordFixture::default() };
    let mark = if breaks_f { "!" } else { "" };
    source.unbounded_send(Ok(fixture.record(format!("{number}{mark}").as_bytes()))).unwrap();
}

proptest! {
    /// Every record starts, in the order of its key, one of a key at a time, within the limits;
    /// each item is yielded once; a caller that polls only when it is awakened misses nothing.
    #[test]
    fn every_schedule_keeps_order_limits_and_wakes(
        limit in 1..4_usize,
        steps in prop::collection::vec(any_step(), 0..150),
    ) {
        let watched = Rc::new(RefCell::new(Watched { limit, ..Watched::default() }));
        let (source, stream) = mpsc::unbounded();
        let stream = stream.inspect(|item| {
            let mut watched = watched.borrow_mut();
            watched.taken += usize::from(Result::is_ok(item));
            assert!(watched.running.len() < limit, "expected no record to be taken without a slot");
            let waiting = watched.taken - watched.started.len();
            assert!(waiting <= 16 * limit, "expected at most 16 records per slot to wait");
        });
        let handled = stream.buffer_by_key(limit, |record| handle(&watched, &record));
        let mut caller = Caller::new(handled);
        let (mut delivered, mut expected, mut panics) = (Vec::new(), Vec::new(), 0);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Deliver { key, breaks_f } => {
                    deliver(&source, key, number, breaks_f);
                    delivered.push((KEYS[key], number));
                    panics += usize::from(breaks_f);
                }
                Step::Fail => {
                    source.unbounded_send(Err(number)).unwrap();
                    expected.push(Err(number));
                }
                Step::Finish(index, end) => {
                    let mut watched = watched.borrow_mut();
                    if !watched.running.is_empty() {
                        let count = watched.running.len();
                        let (key, handler) = watched.running.swap_remove(index.index(count));
                        let started = watched.started.iter().rev().find(|(of, _)| *of == key);
                        let number = started.unwrap().1;
                        match end {
                            End::Ok => expected.push(Ok(number)),
                            End::Err => expected.push(Err(number)),
                            End::Panic | End::PanicOfDestructor => panics += 1,
                        }
                        handler.send(end).unwrap();
                    }
                }
            }
            caller.run();
        }
        source.close_channel();
        caller.run();
        loop {
            let next = watched.borrow_mut().running.pop();
            let Some((key, handler)) = next else { break };
            let number = {
                let watched = watched.borrow();
                watched.started.iter().rev().find(|(of, _)| *of == key).unwrap().1
            };
            expected.push(Ok(number));
            handler.send(End::Ok).unwrap();
            caller.run();
        }
        prop_assert!(caller.has_ended && caller.stream.is_terminated());
        for key in KEYS {
            let of_key = |records: &[(&str, usize)]| -> Vec<usize> {
                records.iter().filter(|(of, _)| *of == key).map(|(_, number)| *number).collect()
            };
            prop_assert_eq!(of_key(&watched.borrow().started), of_key(&delivered));
        }
        prop_assert_eq!(caller.panics, panics);
        caller.items.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(caller.items, expected);
    }
}

#[test]
fn hot_key_leaves_the_other_slots_to_other_keys() {
    let watched = Rc::new(RefCell::new(Watched { limit: 2, ..Watched::default() }));
    let (source, stream) = mpsc::unbounded();
    let mut caller = Caller::new(stream.buffer_by_key(2, |record| handle(&watched, &record)));
    for number in 0..20 {
        deliver(&source, 0, number, false);
    }
    deliver(&source, 1, 20, false);
    caller.run();
    assert_eq!(watched.borrow().started, [("a", 0), ("b", 20)]);
}

#[test]
fn error_of_the_stream_is_yielded_at_once_and_handlers_continue() {
    let watched = Rc::new(RefCell::new(Watched { limit: 2, ..Watched::default() }));
    let (source, stream) = mpsc::unbounded();
    let mut caller = Caller::new(stream.buffer_by_key(2, |record| handle(&watched, &record)));
    deliver(&source, 0, 1, false);
    caller.run();
    source.unbounded_send(Err(77)).unwrap();
    caller.run();
    assert_eq!(caller.items, [Err(77)]);
    let (_key, handler) = watched.borrow_mut().running.pop().unwrap();
    handler.send(End::Ok).unwrap();
    caller.run();
    assert_eq!(caller.items, [Err(77), Ok(1)]);
}

/// A stream that only fails yields its errors and the outputs in turn.
#[test]
fn errors_without_end_do_not_starve_a_handler() {
    let record = RecordFixture::default().record(b"7");
    let errors = stream::iter([Ok(record)]).chain(stream::repeat(0).map(Err::<Record, _>));
    let handled = errors.buffer_by_key(2, |record| {
        let number = number(&record);
        async move { Ok::<_, i32>(number) }
    });
    let outputs = handled.take(3).collect::<Vec<_>>().now_or_never().unwrap();
    assert!(outputs.contains(&Ok(7)), "expected an output among {outputs:?}");
}

/// A stream that is always ready leaves turns to other tasks.
#[test]
fn poll_of_a_stream_that_is_always_ready_takes_a_bounded_number_of_records() {
    let taken = Rc::new(RefCell::new(0));
    let records = stream::repeat_with({
        let taken = Rc::clone(&taken);
        move || {
            *taken.borrow_mut() += 1;
            Ok::<_, ()>(RecordFixture::default().record(b""))
        }
    });
    let handled = records.buffer_by_key(1000, |_| future::pending::<Result<(), ()>>());
    let mut caller = Caller::new(handled);
    let waker = Waker::from(Arc::clone(&caller.flag));
    let mut handled = pin!(&mut caller.stream);
    assert!(handled.as_mut().poll_next(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(*taken.borrow(), MAX_TAKEN_PER_POLL);
    caller.flag.0.store(true, Ordering::SeqCst);
    caller.run();
    assert_eq!(*taken.borrow(), 1 + 16 * 1000, "expected the waiting records to be bounded");
}

#[test]
#[should_panic(expected = "limit of buffer_by_key must be at least 1")]
fn limit_of_zero_panics() {
    let records = stream::empty::<Result<Record, ()>>();
    drop(records.buffer_by_key(0, |_| future::ready(Ok::<(), ()>(()))));
}
