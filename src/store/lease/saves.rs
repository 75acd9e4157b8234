//! Fenced saves of positions.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::{Instant, sleep};

use super::access::Access;
use super::contract::{EntryKey, Exchange, FencedOutcome, FencedSave, Step};
use super::heartbeat::{FencedCheckpoint, SaveOutcome};
use super::rules::{is_kept, millis};
use super::table::{Lease, LeaseTable};
use super::view::View;
use crate::backoff::{Backoff, CONFLICTS};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::mutex::Mutex;
use crate::record::ShardId;

/// The positions that this process knows from its saves.
#[derive(Debug, Default)]
pub(super) struct Saves {
    /// The stored text of each shard, as the last save has shown it.
    stored: Mutex<HashMap<ShardId, Option<Arc<str>>>>,
    /// The positions that were saved and that the view lacks.
    news: Mutex<HashMap<ShardId, SavedPosition>>,
}

/// A position that was saved.
#[derive(Debug)]
struct SavedPosition {
    epoch: u64,
    text: Arc<str>,
    at: Instant,
}

impl Saves {
    /// Remembers the positions of the shards that a worker has acquired.
    pub(super) fn learn(&self, view: &View, worker: &Arc<str>) {
        let mut stored = self.stored.lock();
        stored.retain(|shard, _text| view.table.lease(shard).is_some());
        for shard in view.owned_by(worker) {
            let position = || view.text(&EntryKey::Position(shard.clone())).cloned();
            stored.entry(shard.clone()).or_insert_with(position);
        }
    }

    /// Moves the positions that were saved to the view. The last answer is newer than an earlier save:
    /// the store may have lost the position since.
    pub(super) fn move_to(&self, view: &mut View) {
        let news = std::mem::take(&mut *self.news.lock());
        for (shard, SavedPosition { epoch, text, at }) in news {
            if view.answered().is_none_or(|answered| at > answered) {
                view.note_saved(&shard, epoch, &text);
            }
        }
    }
}

/// The consequence of one outcome.
enum Verdict {
    Settled(SaveOutcome),
    /// The stored position differs from the expected one, and is not further.
    Again,
    /// The store has no lease of this epoch or a later one.
    Forgotten,
}

impl Access<'_> {
    /// See [`Leases::save_fenced`](super::Leases::save_fenced).
    pub(super) async fn save_fenced(
        &self,
        positions: &[FencedCheckpoint],
    ) -> Result<Vec<SaveOutcome>> {
        let mut outcomes: Vec<Option<SaveOutcome>> = vec![None; positions.len()];
        let mut conflicts = Backoff::new(CONFLICTS);
        let mut is_repeat = false;
        loop {
            // The positions of one shard are saved one after the other.
            let mut due: Vec<(usize, FencedSave)> = Vec::new();
            for (index, position) in positions.iter().enumerate() {
                let is_free = due.iter().all(|(_, save)| save.shard != position.shard);
                if outcomes[index].is_none() && is_free {
                    due.push((index, self.save_of(position)));
                }
            }
            if due.is_empty() {
                return Ok(outcomes.into_iter().flatten().collect());
            }
            if std::mem::replace(&mut is_repeat, false) {
                sleep(conflicts.failed()).await;
            }
            let mut forgotten = Vec::new();
            let (indexes, saves): (Vec<usize>, Vec<FencedSave>) = due.into_iter().unzip();
            let answers = self.store.save_fenced(self.scope, &saves).await?;
            if answers.len() != saves.len() {
                return Err(wrong_outcome_count(saves.len(), answers.len()));
            }
            for ((index, save), answer) in indexes.into_iter().zip(saves).zip(answers) {
                let position = &positions[index];
                let known = self.saves.stored.lock().insert(save.shard, answer.position.clone());
                match judge(position, &answer) {
                    Verdict::Settled(outcome) => {
                        if answer.is_saved {
                            let (epoch, at) = (position.epoch, Instant::now());
                            let news = SavedPosition { epoch, text: save.text, at };
                            self.saves.news.lock().insert(position.shard.clone(), news);
                        }
                        outcomes[index] = Some(outcome);
                    }
                    // The first guess is often wrong.
                    Verdict::Again => is_repeat |= known.is_some(),
                    Verdict::Forgotten => forgotten.push(index),
                }
            }
            if !forgotten.is_empty() {
                let some = forgotten.iter().map(|index| &positions[*index]).collect();
                let found = self.save_forgotten(some).await?;
                for (index, outcome) in forgotten.into_iter().zip(found) {
                    outcomes[index] = Some(outcome);
                }
            }
        }
    }

    fn save_of(&self, position: &FencedCheckpoint) -> FencedSave {
        let FencedCheckpoint { shard, epoch, checkpoint } = position;
        let stored = self.saves.stored.lock().get(shard).cloned().flatten();
        // The store shows a text that cannot be read if another one is expected.
        let known = stored.and_then(|text| Some((text.parse::<Checkpoint>().ok()?, text)));
        let (expected, text) = match known {
            // Saved again, so that the store checks the epoch.
            Some((known, stored)) if !checkpoint.supersedes(&known) => {
                (Some(Arc::clone(&stored)), stored)
            }
            known => (known.map(|(_, stored)| stored), checkpoint.to_string().into()),
        };
        FencedSave { shard: shard.clone(), epoch: *epoch, expected, text }
    }

    /// Saves positions of which the store has lost the epochs, unless the table was cleared or the
    /// shard was removed since. No shard occurs twice.
    async fn save_forgotten(&self, positions: Vec<&FencedCheckpoint>) -> Result<Vec<SaveOutcome>> {
        let mut conflicts = Backoff::new(CONFLICTS);
        let mut view = self.read().await?;
        loop {
            let mut after = LeaseTable::clone(&view.table);
            let now = millis(self.now(&view));
            let outcomes = positions.iter().map(|position| {
                let outcome = judge_forgotten(&view.table, now, position);
                if !outcome.is_refusal() {
                    let checkpoint = Some(position.checkpoint.clone());
                    after.advance(&position.shard, &Lease { checkpoint, ..Lease::default() });
                }
                outcome
            });
            let outcomes: Vec<SaveOutcome> = outcomes.collect();
            let mut entries = view.changes_to(&after);
            if entries.is_empty() {
                return Ok(outcomes);
            }
            let leases = positions.iter().map(|position| EntryKey::Lease(position.shard.clone()));
            view.require(&mut entries, leases.chain([EntryKey::Head]));
            let step = Some(Step { version: None, silent: Vec::new(), entries });
            let exchange = Exchange { step, renewals: Vec::new(), known: Some(view.table.version) };
            if self.ask(&mut view, &exchange).await? {
                let mut stored = self.saves.stored.lock();
                for position in positions {
                    let key = EntryKey::Position(position.shard.clone());
                    stored.insert(position.shard.clone(), view.text(&key).cloned());
                }
                return Ok(outcomes);
            }
            sleep(conflicts.failed()).await;
        }
    }
}

/// Returns the outcome of a save in an epoch that the lease of its shard does not have.
fn judge_forgotten(table: &LeaseTable, now: u64, position: &FencedCheckpoint) -> SaveOutcome {
    let FencedCheckpoint { shard, epoch, .. } = position;
    if table.leases.get(shard).is_some_and(|lease| lease.unreadable.is_some()) {
        return SaveOutcome::Unreadable;
    }
    let known = table.lease(shard).map(|lease| lease.epoch);
    let is_removed = known.is_none() && !is_kept(now, *epoch);
    let is_cleared = table.cleared > 0 && *epoch <= table.cleared;
    if known.is_some_and(|known| known > *epoch) || is_cleared || is_removed {
        return SaveOutcome::Lost;
    }
    if known == Some(*epoch) { SaveOutcome::Saved } else { SaveOutcome::Forgotten }
}

fn judge(position: &FencedCheckpoint, answer: &FencedOutcome) -> Verdict {
    if answer.is_saved {
        return Verdict::Settled(SaveOutcome::Saved);
    }
    let Some(lease) = &answer.lease else { return Verdict::Forgotten };
    let Some(lease) = super::text::parse_lease(lease) else {
        return Verdict::Settled(SaveOutcome::Unreadable);
    };
    let stored = answer.position.as_ref().map(|text| text.parse::<Checkpoint>());
    match (lease.epoch.cmp(&position.epoch), stored) {
        (_, Some(Err(_))) => Verdict::Settled(SaveOutcome::Unreadable),
        (Ordering::Greater, _) => Verdict::Settled(SaveOutcome::Lost),
        (Ordering::Less, _) => Verdict::Forgotten,
        (Ordering::Equal, Some(Ok(stored))) if !position.checkpoint.supersedes(&stored) => {
            Verdict::Settled(SaveOutcome::Saved)
        }
        (Ordering::Equal, _) => Verdict::Again,
    }
}

fn wrong_outcome_count(saves: usize, outcomes: usize) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "save_fenced returned {outcomes} outcomes for {saves} saves, but must return one for \
             each; fix the LeaseStore"
        ),
    )
}
