//! The end of a reading with an ending position or with named shards: nothing is left to read.
//!
//! ```text
//!            the table shows no shard            a listing that began since then
//!            that this worker has to read        shows no other shard either
//!   reading ─────────────────────────► confirming ───────────────────► declaring
//!    ▲  ▲                              │    ▲   │                        │    │ the store has the
//!    │  │         the listing is older └────┘   │                        │    │ declaration, and the
//!    │  │         than the end of a shard       │                        │    │ table still shows
//!    │  └── the table shows a shard ────────────┘                        │    │ no shard
//!    └───── to read ────────────────────────────────────────────────────┘    ▼
//!                                                                          ended
//! ```
//!
//! # Outdated listings
//!
//! Listings are eventually consistent. One that began after the end of a shard may still show that
//! shard as open and lack its children, which would then not be read. The table shows which shards
//! have ended, and the open shards of a stream cover every hash key. So a listing confirms the end
//! only if the shards that it shows as open cover every hash key without those that have ended: then
//! nothing is missing, since every closed shard has descendants that are open.
//!
//! Otherwise the worker lists again, each time after twice the time, and believes a listing that
//! began [`OUTDATED_FOR`] after the table showed nothing to read. Two cases need that: a caller that
//! has set an open shard to its end, and a server that lists neither the last sequence number nor
//! the children of a closed shard. A server that lists only the children needs no repeat.
//!
//! A worker that reads named shards needs no such proof. Its table lacks no name that exists: if a
//! listing lacks a name, discovery requests an iterator of that shard.
//!
//! # The declaration
//!
//! While it declares, the worker states a capacity of the leases that it holds. Only then may its
//! stream end: another worker that did not know would assign a shard to this one, and end its own
//! stream because that shard has an owner.
//!
//! After the end the worker releases each lease when the records of its shard are acknowledged, so
//! that no shard is held unread. It accepts no other lease until the consumer is closed
//! or the stream is dropped.
//!
//! A shard is left to read unless it is
//!
//! - finished, expired or unreadable: no worker can read it;
//! - not readable yet: it follows its parents, which are in the table as well;
//! - read by this worker to the ending position, or to its end if no child waits for its last
//!   acknowledgements;
//! - held by another live worker, if there is an ending position. Without one, reading is not a job
//!   that each worker completes, and this worker waits to replace the other one.
//!
//! # Live workers
//!
//! A worker that was killed holds its leases until they expire: a job that is started again at once
//! finds them held. So the holder of a lease counts as live only if it joined after this worker, or after
//! this worker has been in the table for twice the lease duration of the holder. A worker that was dead
//! when this one joined has expired in the first half of that time, and some worker has removed it in the
//! second.
//!
//! The workers of a job do not wait for each other: the one that joined first ends as soon as its own
//! shards are read, and the others take these shards.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::worker::{AppliedListing, Worker};
use crate::discovery::{ReadRules, is_open};
use crate::fleet::Assignment;
use crate::record::ShardId;
use crate::store::lease::{Lease, LeaseTable, WorkerEntry};
use crate::telemetry::log_line;

/// The time after which a listing is believed although it shows shards as open that have ended.
const OUTDATED_FOR: Duration = Duration::from_secs(30);

/// The end of a shard's stream while the worker holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// At the end of the shard. Its last records may be unacknowledged.
    Shard,
    /// At the ending position.
    EndingPosition,
}

/// The progress of a reading towards its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Exhaustion {
    #[default]
    Reading,
    /// The table has shown nothing to read since then.
    Confirming { since: Instant },
    /// The worker accepts no further lease. `is_declared` is true once the store has that.
    Declaring { is_declared: bool },
    /// The caller's stream has ended.
    Ended,
}

impl Worker {
    /// Ends the caller's stream once nothing is left to read. Does nothing in a reading without
    /// bounds.
    pub(super) fn end_when_exhausted(&mut self) {
        if self.exhaustion == Exhaustion::Ended || !self.has_bounds() {
            return;
        }
        let now = Instant::now();
        if !self.is_exhausted(now) {
            if self.accepts_nothing() {
                // Withdraws the declaration.
                self.renew_at = now;
            }
            self.exhaustion = Exhaustion::Reading;
            return;
        }
        match self.exhaustion {
            Exhaustion::Reading => {
                self.exhaustion = Exhaustion::Confirming { since: now };
                self.request_listing();
            }
            Exhaustion::Confirming { since } => {
                if let Some(at) = self.next_confirmation(since) {
                    if !self.listing.is_under_way && !self.listing.is_requested {
                        self.request_listing_at(at);
                    }
                } else {
                    self.exhaustion = Exhaustion::Declaring { is_declared: false };
                    self.renew_at = now;
                }
            }
            Exhaustion::Declaring { is_declared: true } => {
                log_line!(info, scope = %self.deps.scope, "nothing left to read; the stream ends");
                self.exhaustion = Exhaustion::Ended;
                // If the receiver is gone, the caller has dropped the stream.
                let _dropped = self.deps.assignments.send(Assignment::End);
            }
            Exhaustion::Declaring { is_declared: false } | Exhaustion::Ended => {}
        }
    }

    /// Returns true if the reading ends when nothing is left to read.
    pub(super) fn has_bounds(&self) -> bool {
        self.deps.config.is_bounded || self.deps.config.rules.is_partial()
    }

    /// Notes that the store has the capacity of this worker.
    pub(super) fn note_declared(&mut self) {
        if let Exhaustion::Declaring { is_declared } = &mut self.exhaustion {
            *is_declared = true;
        }
    }

    /// Releases the shards that are read to the ending position and have no record in flight, once
    /// the caller's stream has ended.
    pub(super) fn release_reached(&mut self) {
        if self.exhaustion != Exhaustion::Ended {
            return;
        }
        for (shard, epoch) in self.owned.reached() {
            self.hand_off(&shard, epoch, self.deps.config.handoff_timeout);
        }
    }

    /// Returns true if the worker accepts no lease, because it has nothing to read.
    pub(super) fn accepts_nothing(&self) -> bool {
        matches!(self.exhaustion, Exhaustion::Declaring { .. } | Exhaustion::Ended)
    }

    /// Returns the time of the listing that may confirm that nothing was left to read at `since`;
    /// `None` if the changes of one are in the table.
    fn next_confirmation(&self, since: Instant) -> Option<Instant> {
        match &self.listing.applied {
            Some(AppliedListing { began, listed }) if *began >= since => {
                let age = began.duration_since(since);
                let is_believed = self.deps.config.rules.is_partial()
                    || age >= OUTDATED_FOR
                    || !listed.is_outdated(|shard| self.has_ended(shard));
                (!is_believed).then_some(*began + age)
            }
            _ => Some(Instant::now()),
        }
    }

    /// Returns true if the shard is known to be closed, as the table or this worker's own reading
    /// shows. Its children follow.
    fn has_ended(&self, shard: &ShardId) -> bool {
        self.table.leases.get(shard).is_some_and(|lease| {
            let is_own = lease.owner.as_ref() == Some(&self.deps.config.worker_id);
            let is_read =
                is_own && self.owned.stream_end(shard, lease.epoch) == Some(StreamEnd::Shard);
            // The position of an expired shard may belong to an earlier stream of this name.
            is_read || lease.is_finished() && !lease.is_shard_expired
        })
    }

    /// Returns true if another worker reads its shards to the ending position.
    fn is_reading(&self, holder: &WorkerEntry) -> bool {
        let me = self.table.workers.get(&self.deps.config.worker_id);
        let is_later = me.is_some_and(|me| me.joined < holder.joined);
        self.deps.config.is_bounded && (is_later || self.member_for >= 2 * holder.lease_duration)
    }

    /// Returns true if the worker knows the current table, has nothing to change in it, and the
    /// table shows nothing to read.
    fn is_exhausted(&self, now: Instant) -> bool {
        let is_settled = self.joined
            && self.failing_since.is_none()
            && self.pending.is_empty()
            && self.added_children.is_empty()
            && self.listing.listed.is_none()
            && self.is_balanced(now);
        is_settled
            && has_nothing_to_read(
                &self.table,
                &self.deps.config.rules,
                &self.deps.config.worker_id,
                |holder| self.is_reading(holder),
                |shard, epoch| self.owned.stream_end(shard, epoch),
            )
    }
}

/// Returns true if the table shows nothing that worker `me` has to read. A shard whose holder
/// `is_reading` is left to that worker. `stream_end` returns the end of the stream of a shard that
/// `me` holds in an epoch.
fn has_nothing_to_read(
    table: &LeaseTable,
    rules: &ReadRules,
    me: &Arc<str>,
    is_reading: impl Fn(&WorkerEntry) -> bool,
    stream_end: impl Fn(&ShardId, u64) -> Option<StreamEnd>,
) -> bool {
    let has_waiting_child = |parent: &ShardId| {
        table.leases.iter().any(|(shard, lease)| {
            let is_child = lease.parents.as_ref().is_some_and(|of| of.contains(parent));
            is_child && rules.selects(shard) && is_open(lease) && !rules.may_begin(table, lease)
        })
    };
    let is_left = |(shard, lease): (&ShardId, &Lease)| {
        if !rules.selects(shard) || !is_open(lease) {
            return false;
        }
        if lease.owner.as_ref() == Some(me) {
            return match stream_end(shard, lease.epoch) {
                Some(StreamEnd::EndingPosition) => false,
                Some(StreamEnd::Shard) => has_waiting_child(shard),
                None => true,
            };
        }
        let holder = lease.holder().filter(|holder| *holder != me);
        match holder.and_then(|holder| table.workers.get(holder)) {
            Some(holder) => !is_reading(holder),
            None => lease.owner.is_some() || rules.may_begin(table, lease),
        }
    };
    !table.leases.iter().any(is_left)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{shard, table};
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::discovery::ShardOrdering;

    fn nothing(
        table: &LeaseTable,
        rules: &ReadRules,
        is_bounded: bool,
        ends: &[(usize, StreamEnd)],
    ) -> bool {
        let stream_end = |id: &ShardId, epoch| {
            assert_eq!(epoch, 7);
            ends.iter().find(|(number, _)| shard(*number) == *id).map(|(_, end)| *end)
        };
        has_nothing_to_read(table, rules, &"me".into(), |_| is_bounded, stream_end)
    }

    fn all() -> ReadRules {
        ReadRules::default()
    }

    fn only(numbers: &[usize]) -> ReadRules {
        let only = Some(Arc::new(numbers.iter().copied().map(shard).collect()));
        ReadRules { only, ..all() }
    }

    /// Returns a table in which shard 1 is a child of shard 0, with these owners.
    fn family(owners: &[Option<&str>; 2]) -> LeaseTable {
        let mut table = table(&[("me", 1), ("other", 2)], owners);
        table.leases.get_mut(&shard(1)).unwrap().parents = Some(vec![shard(0)]);
        table
    }

    #[test]
    fn owned_shard_is_left_until_its_stream_has_ended() {
        let held = table(&[("me", 1)], &[Some("me")]);
        assert!(!nothing(&held, &all(), true, &[]));
        assert!(nothing(&held, &all(), true, &[(0, StreamEnd::EndingPosition)]));
        assert!(nothing(&held, &all(), true, &[(0, StreamEnd::Shard)]));
    }

    #[test]
    fn free_shard_is_left_if_it_is_readable() {
        let free = family(&[None, None]);
        assert!(!nothing(&free, &all(), true, &[]));
        // The child of a reached shard is never read.
        let mut reached = family(&[Some("me"), None]);
        assert!(nothing(&reached, &all(), true, &[(0, StreamEnd::EndingPosition)]));
        // The child of a shard that is read to its end follows.
        assert!(!nothing(&reached, &all(), true, &[(0, StreamEnd::Shard)]));
        let unordered = ReadRules { ordering: ShardOrdering::Unordered, only: None };
        assert!(!nothing(&reached, &unordered, true, &[(0, StreamEnd::EndingPosition)]));
        let parent = reached.leases.get_mut(&shard(0)).unwrap();
        (parent.checkpoint, parent.owner) = (Some(Checkpoint::ShardEnd), None);
        assert!(!nothing(&reached, &all(), true, &[]));
    }

    #[test]
    fn shard_of_another_worker_is_left_only_without_an_ending_position() {
        let held = table(&[("me", 1), ("other", 2)], &[Some("other")]);
        assert!(nothing(&held, &all(), true, &[]));
        assert!(!nothing(&held, &only(&[0]), false, &[]));
        let mut moving = held.clone();
        moving.leases.get_mut(&shard(0)).unwrap().next_owner = Some("me".into());
        assert!(!nothing(&moving, &all(), true, &[]), "it is moving to this worker");
        let dead = table(&[("me", 1)], &[Some("other")]);
        assert!(!nothing(&dead, &all(), true, &[]));
    }

    #[test]
    fn shards_that_no_worker_can_read_are_not_left() {
        let mut lost = family(&[None, None]);
        lost.leases.get_mut(&shard(0)).unwrap().is_shard_expired = true;
        assert!(nothing(&lost, &all(), true, &[]), "its child waits for it");
        let mut damaged = table(&[("me", 1)], &[None]);
        damaged.leases.get_mut(&shard(0)).unwrap().unreadable = Some("damaged".into());
        assert!(nothing(&damaged, &all(), true, &[]));
    }

    #[test]
    fn only_selected_shards_are_left() {
        let held = family(&[Some("me"), None]);
        assert!(nothing(&held, &only(&[0]), false, &[(0, StreamEnd::Shard)]));
        assert!(!nothing(&held, &only(&[0, 1]), false, &[(0, StreamEnd::Shard)]));
        assert!(!nothing(&family(&[None, None]), &only(&[1]), false, &[]));
        assert!(nothing(&family(&[None, None]), &only(&[5]), false, &[]));
    }
}
