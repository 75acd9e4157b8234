use futures::FutureExt;

use super::*;

const KIBIBYTE: usize = 1024;

fn demand(urgency: Urgency) -> Demand {
    let demand = Demand::default();
    match urgency {
        Urgency::Held => demand.hold(),
        Urgency::Ahead => demand.fetch_ahead(),
        Urgency::Urgent => demand.urge(0),
    }
    demand
}

#[test]
fn dropped_reservation_releases_its_memory() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let memory = budget.shard();
    let mut space = memory.empty();
    assert!(space.resize(RESERVE + 8 * KIBIBYTE));
    assert_eq!(budget.taken(), 8 * KIBIBYTE, "the reserve is taken first");
    assert!(!memory.empty().resize(3 * KIBIBYTE));
    space.shrink(space.taken() - 4 * KIBIBYTE);
    assert_eq!(budget.taken(), 4 * KIBIBYTE, "shared memory is released first");
    drop(space);
    assert_eq!((budget.taken(), memory.free()), (0, RESERVE + 10 * KIBIBYTE));
}

#[test]
fn held_buffer_keeps_its_memory_until_the_last_part_is_dropped() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let mut space = budget.shard().empty();
    assert!(space.resize(RESERVE + KIBIBYTE));
    let (buffer, memory) = space.hold(vec![7; KIBIBYTE]);
    drop(memory);
    let part = buffer.slice(10..20);
    drop(buffer);
    assert_eq!((&part[..], budget.taken()), (&[7; 10][..], KIBIBYTE));
    drop(part);
    assert_eq!(budget.taken(), 0);
}

#[test]
fn kept_part_of_a_delivered_buffer_leaves_the_reserve_to_the_next_one() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let shard = budget.shard();
    for is_kept in [false, true] {
        let mut space = shard.empty();
        assert!(space.resize(RESERVE + KIBIBYTE));
        let (buffer, memory) = space.hold(vec![7; KIBIBYTE]);
        let kept = is_kept.then(|| buffer.slice(10..20));
        drop(buffer);
        memory.count(5 * KIBIBYTE);
        assert_eq!(budget.taken(), 6 * KIBIBYTE);
        memory.end_delivery(5 * KIBIBYTE);
        let taken = if is_kept { RESERVE + KIBIBYTE } else { 0 };
        assert_eq!(budget.taken(), taken, "the budget is exceeded");
        let free = if is_kept { RESERVE } else { RESERVE + 10 * KIBIBYTE };
        assert_eq!(shard.free(), free);
        drop(kept);
        assert_eq!((budget.taken(), shard.free()), (0, RESERVE + 10 * KIBIBYTE));
    }
}

#[test]
fn memory_that_is_allocated_already_counts_beyond_the_budget() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let shard = budget.shard();
    let (buffer, memory) = shard.empty().hold(vec![7; KIBIBYTE]);
    memory.count(RESERVE + 15 * KIBIBYTE);
    assert_eq!((budget.taken(), shard.free()), (15 * KIBIBYTE, 0));
    drop((buffer, memory));
    assert_eq!((budget.taken(), shard.free()), (0, RESERVE + 10 * KIBIBYTE));
}

#[test]
fn reservation_grows_only_into_free_memory() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let (mut space, mut other) = (budget.shard().empty(), budget.shard().empty());
    assert!(space.resize(RESERVE + 4 * KIBIBYTE));
    assert!(other.resize(RESERVE + 4 * KIBIBYTE));
    assert!(!space.resize(RESERVE + 7 * KIBIBYTE));
    assert_eq!(space.taken(), RESERVE + 4 * KIBIBYTE, "a failed resize changes nothing");
    drop(other);
    assert!(space.resize(RESERVE + 7 * KIBIBYTE));
}

#[tokio::test]
async fn urgent_fetch_begins_without_free_shared_memory() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let mut held = budget.shard().empty();
    held.resize_up_to(usize::MAX);
    let space = budget.shard().grant(&demand(Urgency::Urgent), 1 << 20).now_or_never();
    assert_eq!(space.expect("an urgent fetch does not wait").taken(), RESERVE);
}

#[tokio::test]
async fn fetch_ahead_waits_for_memory_or_urgency() {
    let budget = MemoryBudget::new(10 * KIBIBYTE);
    let (memory, demand) = (budget.shard(), demand(Urgency::Ahead));
    let mut held = budget.shard().empty();
    held.resize_up_to(RESERVE + 10 * KIBIBYTE);
    let bytes = RESERVE + 5 * KIBIBYTE;
    let mut first = pin!(memory.grant(&demand, bytes));
    assert!(first.as_mut().now_or_never().is_none());
    held.shrink(held.taken() - 4 * KIBIBYTE);
    assert!(first.as_mut().now_or_never().is_none(), "too few bytes are free");
    held.shrink(held.taken() - KIBIBYTE);
    let space = first.as_mut().now_or_never().expect("enough bytes are free");
    drop(space);
    held.resize_up_to(RESERVE + 10 * KIBIBYTE);
    let mut second = pin!(memory.grant(&demand, bytes));
    assert!(second.as_mut().now_or_never().is_none());
    demand.hold();
    assert!(second.as_mut().now_or_never().is_none());
    demand.urge(0);
    assert_eq!(
        second.as_mut().now_or_never().expect("an urgent fetch does not wait").taken(),
        RESERVE
    );
}

#[test]
fn buffer_of_a_dropped_response_is_used_again_until_its_memory_is_taken() {
    const LENGTH: usize = 1024 * KIBIBYTE;
    let budget = MemoryBudget::new(3 * LENGTH);
    let shard = budget.shard();
    let response = || {
        let mut space = shard.empty();
        assert!(space.resize(RESERVE + LENGTH));
        let buffer = space.buffer(LENGTH);
        space.hold(buffer)
    };
    let (kept, other) = (&budget.0.spare_buffers, budget.shard());
    drop(response());
    assert_eq!((budget.taken(), kept.bytes()), (0, LENGTH));
    let held = response();
    assert_eq!((budget.taken(), kept.bytes()), (LENGTH, 0), "the same buffer");
    drop(held);
    let takes: [fn(&mut Reservation, usize); 3] = [
        |space, bytes| assert!(space.resize(bytes)),
        Reservation::resize_up_to,
        Reservation::overdraw,
    ];
    for take in takes {
        drop(response());
        let mut space = other.empty();
        take(&mut space, RESERVE + 2 * LENGTH);
        assert_eq!((budget.taken(), kept.bytes()), (2 * LENGTH, LENGTH));
        drop(space);
        let mut space = other.empty();
        take(&mut space, RESERVE + 2 * LENGTH + 1);
        assert_eq!((budget.taken(), kept.bytes()), (2 * LENGTH + 1, 0));
    }
}
