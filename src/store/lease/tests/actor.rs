//! A worker simulated by the suite.

use std::sync::Arc;
use std::time::Duration;

use super::{checkpoint, shard};
use crate::clock::Clock;
use crate::error::Result;
use crate::record::SequenceNumber;
use crate::store::Scope;
use crate::store::lease::access::Access;
use crate::store::lease::saves::Saves;
use crate::store::lease::view::View;
use crate::store::lease::{
    Change, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse, Lease, LeaseStore, LeaseTable,
    SaveOutcome,
};

/// A worker, and the table that it saw last.
pub(super) struct Actor<'a> {
    store: &'a dyn LeaseStore,
    scope: &'a Scope,
    clock: Clock,
    saves: Saves,
    view: View,
    name: Arc<str>,
    pub(super) incarnation: u64,
    pub(super) lease_duration: Duration,
    pub(super) capacity: u32,
    pub(super) leaving: bool,
    pub(super) only_if_unchanged: bool,
    pub(super) known: LeaseTable,
}

impl<'a> Actor<'a> {
    pub(super) fn new(store: &'a dyn LeaseStore, scope: &'a Scope, name: &str) -> Self {
        // High, so that each bit counts, and different each time.
        let incarnation = u64::MAX - fastrand::u64(..1 << 32);
        let lease_duration = Duration::from_mins(10);
        let (capacity, name, known) = (3, name.into(), LeaseTable::default());
        let (leaving, only_if_unchanged) = (false, false);
        Self {
            store,
            scope,
            clock: Clock::default(),
            saves: Saves::default(),
            view: View::default(),
            name,
            incarnation,
            lease_duration,
            capacity,
            leaving,
            only_if_unchanged,
            known,
        }
    }

    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn request(&self, changes: impl IntoIterator<Item = Change>) -> HeartbeatRequest {
        HeartbeatRequest {
            capacity: self.capacity,
            leaving: self.leaving,
            known: Some((self.known.generation, self.known.version)),
            only_if_unchanged: self.only_if_unchanged,
            changes: changes.into_iter().collect(),
            ..HeartbeatRequest::new(self.name(), self.incarnation, self.lease_duration)
        }
    }

    pub(super) async fn exchange(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> HeartbeatResponse {
        let answer = match self.try_exchange(changes).await {
            Ok(answer) => answer,
            Err(error) => panic!("an exchange succeeds on a healthy store: {error}"),
        };
        if let Some(table) = &answer.table {
            self.known = LeaseTable::clone(table);
        }
        answer
    }

    pub(super) async fn try_exchange(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<HeartbeatResponse> {
        let request = self.request(changes);
        let Self { store, scope, clock, saves, .. } = self;
        let access = Access { store: *store, scope, clock, saves };
        access.exchange(&mut self.view, &request).await
    }

    pub(super) fn access(&self) -> Access<'_> {
        let Self { store, scope, clock, saves, .. } = self;
        Access { store: *store, scope, clock, saves }
    }

    /// Renews, and returns the table.
    pub(super) async fn look(&mut self) -> &LeaseTable {
        self.exchange([]).await;
        &self.known
    }

    /// Asserts that the changes do not change the table. Changes of other workers are seen before.
    pub(super) async fn changes_nothing(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        rule: &str,
    ) {
        let before = self.look().await.clone();
        let answer = self.exchange(changes).await;
        let is_same = self.known.version == before.version;
        assert!(answer.applied && is_same, "{rule}: {before:?} became {answer:?}");
    }

    pub(super) async fn table(&self) -> LeaseTable {
        match self.access().table(&mut View::default()).await {
            Ok(table) => table,
            Err(error) => panic!("reading the table succeeds on a healthy store: {error}"),
        }
    }

    /// Returns the lease of a shard in the last seen table.
    pub(super) fn lease(&self, index: usize) -> Lease {
        match self.known.leases.get(&shard(index)) {
            Some(lease) => lease.clone(),
            None => panic!("an added shard is in the table: {:?}", self.known),
        }
    }

    /// Returns a restore of a lease by a worker of the same incarnation.
    pub(super) fn restore(&self, index: usize, lease: &Lease) -> Change {
        let (incarnation, lease) = (self.incarnation, lease.clone());
        Change::Restore { shard: shard(index), incarnation, lease }
    }

    pub(super) async fn save(&self, index: usize, epoch: u64, place: &str, expected: SaveOutcome) {
        let position =
            [FencedCheckpoint { shard: shard(index), epoch, checkpoint: checkpoint(place) }];
        // Twice, since a save that was carried out may be retried.
        for _ in 0..2 {
            let verdicts = self.access().save_fenced(&position).await;
            assert!(
                matches!(&verdicts, Ok(verdicts) if verdicts[..] == [expected]),
                "saving {position:?} returns {expected:?}, not {verdicts:?}"
            );
        }
    }

    pub(super) async fn assert_at(&self, index: usize, place: &str) {
        let stored = self.table().await.leases.remove(&shard(index));
        let stored = stored.and_then(|lease| lease.checkpoint);
        assert_eq!(stored, Some(checkpoint(place)), "the furthest position is kept");
    }
}

pub(super) fn add(index: usize) -> Change {
    Change::Add { shard: shard(index), parents: Vec::new(), start: None, checkpoint: None }
}

pub(super) fn identify(index: usize, start: Option<&str>) -> Change {
    Change::Identify { shard: shard(index), start: start.map(number) }
}

pub(super) fn number(text: &str) -> SequenceNumber {
    match text.parse() {
        Ok(number) => number,
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn assign(index: usize, to: &str) -> Change {
    Change::Assign { shard: shard(index), to: to.into() }
}

pub(super) fn offer(index: usize, to: &str) -> Change {
    Change::Offer { shard: shard(index), to: to.into() }
}

pub(super) fn release(index: usize, epoch: u64) -> Change {
    Change::Release { shard: shard(index), epoch }
}
