//! Unit tests of the watermark.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::record::SequenceNumber;

fn whole(number: &SequenceNumber) -> RecordPosition {
    RecordPosition { number: number.clone(), part: None }
}

/// Returns `count` records: numbers from 0, and sequence numbers from 1007 in steps of 7.
fn records(count: usize) -> Vec<(u64, SequenceNumber)> {
    (0..count as u64)
        .map(|number| (number, (1007 + 7 * number).to_string().parse().unwrap()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn age_of_the_oldest_record_is_exact_with_1000_unacknowledged() {
    let watermark = Watermark::default();
    let second = Duration::from_secs(1);
    assert_eq!(watermark.unacknowledged(), (0, None));
    let records = records(1000);
    for (number, _) in &records {
        assert_eq!(watermark.begin_delivery(1, 0), Some(*number));
        watermark.deliver(number + 1);
        assert!(watermark.unacknowledged().0 > 0, "the record is unacknowledged");
        tokio::time::advance(second).await;
    }
    assert_eq!(watermark.unacknowledged(), (1000, Some(1000 * second)));
    // Records after the first do not change its age.
    for (number, place) in &records[1..] {
        let _advance = watermark.acknowledge(*number, &whole(place), 0);
    }
    assert_eq!(watermark.unacknowledged(), (1, Some(1000 * second)));
    let _advance = watermark.acknowledge(0, &whole(&records[0].1), 0);
    assert_eq!(watermark.unacknowledged(), (0, None));
    watermark.begin_delivery(2, 0);
    assert_eq!(watermark.unacknowledged(), (0, None), "neither record is delivered yet");
    watermark.deliver(1001);
    assert_eq!(watermark.unacknowledged().0, 1);
    tokio::time::advance(second).await;
    watermark.take_back(1, 0);
    watermark.begin_delivery(1, 0);
    watermark.deliver(1002);
    assert_eq!(watermark.unacknowledged(), (2, Some(second)));
}

#[tokio::test(start_paused = true)]
async fn stall_is_reported_once_until_a_record_is_acknowledged() {
    let watermark = Watermark::default();
    watermark.set_limits(InFlightConfig { records: 2, bytes: usize::MAX });
    let (second, records) = (Duration::from_secs(1), records(4));
    let stalled = || watermark.stalled(30 * second);
    let deliver = || {
        let number = watermark.begin_delivery(1, 0).unwrap();
        watermark.deliver(number + 1);
        watermark.unacknowledged();
    };
    deliver();
    tokio::time::advance(31 * second).await;
    assert!(watermark.held_by().is_none() && stalled().is_none());
    deliver();
    tokio::time::advance(29 * second).await;
    assert!(watermark.held_by().is_some() && stalled().is_none());
    tokio::time::advance(second).await;
    assert_eq!(stalled(), Some((InFlightLimit::Records, 2, 61 * second)));
    tokio::time::advance(60 * second).await;
    assert_eq!(stalled(), None, "the stall is reported once");
    let _advance = watermark.acknowledge(1, &whole(&records[1].1), 0);
    assert!(watermark.held_by().is_none());
    deliver();
    tokio::time::advance(30 * second).await;
    assert_eq!(
        stalled(),
        Some((InFlightLimit::Records, 2, 151 * second)),
        "a new stall is reported after an acknowledgement"
    );
}

proptest! {
    /// Compares with the simplest model: a list of flags.
    #[test]
    fn position_advances_over_the_acknowledged_prefix_only(
        count in 1..30_usize,
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        end_after in 0..60_usize,
    ) {
        let records = records(count);
        let (watermark, mut ends) = (Watermark::default(), 0);
        watermark.begin_delivery(records.len(), 0);
        let mut flags = vec![false; records.len()];
        let mut ended = false;
        let mut last = None;
        for (step, pick) in picks.iter().enumerate() {
            if step == end_after {
                ends += usize::from(watermark.end() == Some(Advance::End));
                ended = true;
            }
            let (number, sequence_number) = pick.get(&records);
            let advance = watermark.acknowledge(*number, &whole(sequence_number), 0);
            ends += usize::from(advance == Some(Advance::End));
            flags[usize::try_from(*number).unwrap()] = true;

            let prefix = flags.iter().take_while(|flag| **flag).count();
            let unacknowledged = flags.iter().filter(|flag| !**flag).count();
            let complete = ended && prefix == records.len();
            let expected = match prefix {
                _ if complete => Some(Checkpoint::ShardEnd),
                0 => None,
                _ => Some(Checkpoint::AfterSequenceNumber {
                    sequence_number: records[prefix - 1].1.clone(),
                    sub_sequence_number: None,
                }),
            };
            if let Some((checkpoint, _)) = watermark.take_changed() {
                last = Some(checkpoint);
            }
            prop_assert_eq!(&last, &expected);
            prop_assert_eq!(watermark.lock().in_flight.records(), unacknowledged);
            prop_assert_eq!(ends, usize::from(complete));
        }
    }
}

#[test]
fn passed_position_is_dropped_if_later_records_are_acknowledged_with_those_before_it() {
    let (watermark, records) = (Watermark::default(), records(3));
    watermark.begin_delivery(1, 0);
    let until = std::time::SystemTime::UNIX_EPOCH;
    let passed = QuietPosition { after: "1010".parse().ok(), until };
    assert!(watermark.note_passed(passed).is_none(), "the record before it is in flight");
    watermark.begin_delivery(2, 0);
    for (number, place) in [&records[1], &records[2], &records[0]] {
        let _advance = watermark.acknowledge(*number, &whole(place), 0);
    }
    let last = "AFTER_SEQUENCE_NUMBER:1021".parse().ok();
    assert_eq!(watermark.position(), last);
}

#[test]
fn acknowledged_record_makes_room_and_wakes_the_stream() {
    let watermark = Watermark::default();
    let (waker, count) = futures_test_waker();
    let mut context = Context::from_waker(&waker);
    let records = records(2);
    watermark.set_limits(InFlightConfig { records: 2, bytes: 100 });
    watermark.begin_delivery(2, 80);
    assert!(watermark.poll_allowance(&mut context).is_pending());
    let _advance = watermark.acknowledge(1, &whole(&records[1].1), 0);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    let Poll::Ready(allowance) = watermark.poll_allowance(&mut context) else {
        panic!("expected an allowance after a record was acknowledged")
    };
    assert_eq!(allowance.records, 1);
    watermark.refuse(21);
    assert!(watermark.poll_allowance(&mut context).is_pending(), "too many bytes");
}

struct Count(AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn futures_test_waker() -> (Waker, Arc<Count>) {
    let count = Arc::new(Count(AtomicUsize::new(0)));
    (Waker::from(Arc::clone(&count)), count)
}
