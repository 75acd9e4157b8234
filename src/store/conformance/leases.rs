//! The conformance suite for [`LeaseStore`] implementations.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::{shard, unique};
use crate::store::Scope;
use crate::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats,
    LastHeartbeat, LeaseStore, Renewal, Step,
};

/// Runs the conformance suite on a [`LeaseStore`]. Each run uses new scopes, and leaves its data in
/// the store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::MemoryStore;
/// use kinestream::store::conformance;
///
/// conformance::check_leases(&MemoryStore::new()).await;
/// # }
/// ```
///
/// # Panics
///
/// Panics if the store violates a rule of [`LeaseStore`]. The message names the rule.
pub async fn check_leases(store: &dyn LeaseStore) {
    let suite = LeaseSuite { store, run: unique() };
    suite.begins_empty().await;
    suite.makes_steps().await;
    suite.makes_all_of_a_step_or_nothing().await;
    suite.checks_versions().await;
    suite.returns_what_has_changed().await;
    suite.notes_heartbeats().await;
    suite.keeps_workers_for_their_lease_duration().await;
    suite.saves_by_epoch().await;
    suite.one_of_many_concurrent_steps_is_made().await;
    suite.shows_concurrent_steps_to_all().await;
    suite.survives_dropped_exchanges().await;
    suite.keeps_scopes_apart().await;
    suite.keeps_every_text().await;
    suite.handles_many_shards().await;
}

/// The lease duration of workers that are to expire.
const SHORT: Duration = Duration::from_millis(100);

/// A lease duration of which most passes in the suite.
const MIDDLE: Duration = Duration::from_secs(1);

/// A lease duration that does not end during the suite.
const LONG: Duration = Duration::from_mins(10);

struct LeaseSuite<'a> {
    store: &'a dyn LeaseStore,
    run: String,
}

fn lease(index: usize) -> EntryKey {
    EntryKey::Lease(shard(index))
}

fn position(index: usize) -> EntryKey {
    EntryKey::Position(shard(index))
}

fn worker(name: &str) -> EntryKey {
    EntryKey::Worker(name.into())
}

/// Returns the text of a lease in this epoch.
fn lease_text(epoch: u64) -> String {
    format!("{epoch} - - 1 - - - - -")
}

const WORKER: &str = "7 1 10000 3";

/// Returns a step that changes entries from one text to another.
fn step<'a>(
    changes: impl IntoIterator<Item = (EntryKey, Option<&'a str>, Option<&'a str>)>,
) -> Step {
    let change = |(key, expected, text): (EntryKey, Option<&str>, Option<&str>)| {
        EntryChange::new(key, expected.map(Into::into), text.map(Into::into))
    };
    Step { entries: changes.into_iter().map(change).collect(), ..Step::default() }
}

fn renewal(name: &str, entry: &str, lease_duration: Duration) -> Renewal {
    Renewal { worker: name.into(), entry: entry.into(), lease_duration }
}

/// Returns the text of an entry in an answer; `None` if the answer does not include the entry.
#[allow(
    clippy::option_option,
    reason = "an entry that is left out differs from one that is absent"
)]
fn shown<'a>(answer: &'a Exchanged, key: &EntryKey) -> Option<Option<&'a str>> {
    let found = answer.entries.iter().find(|(shown, _)| shown == key);
    found.map(|(_, text)| text.as_deref())
}

impl LeaseSuite<'_> {
    fn scope(&self, name: &str) -> Scope {
        Scope::new(format!("{}-{name}", self.run), "orders")
    }

    async fn ask(&self, scope: &Scope, exchange: Exchange) -> Exchanged {
        match self.store.exchange(scope, &exchange).await {
            Ok(answer) => {
                let keys: BTreeSet<&EntryKey> = answer.entries.iter().map(|(key, _)| key).collect();
                let rule = "an answer has each entry once";
                assert_eq!(keys.len(), answer.entries.len(), "{rule}: {answer:?}");
                answer
            }
            Err(error) => panic!("an exchange succeeds on a healthy store: {error}"),
        }
    }

    async fn read(&self, scope: &Scope) -> Exchanged {
        let answer = self.ask(scope, Exchange::default()).await;
        assert!(answer.is_whole, "the whole table is returned if none is known");
        assert!(answer.is_made, "a request without a step counts as made");
        answer
    }

    async fn make(&self, scope: &Scope, step: Step) -> Exchanged {
        self.ask(scope, Exchange { step: Some(step), ..Exchange::default() }).await
    }

    async fn save(&self, scope: &Scope, save: FencedSave) -> FencedOutcome {
        match self.store.save_fenced(scope, &[save]).await {
            Ok(mut outcomes) if outcomes.len() == 1 => outcomes.remove(0),
            Ok(outcomes) => panic!("each save has an outcome: {outcomes:?}"),
            Err(error) => panic!("a save succeeds on a healthy store: {error}"),
        }
    }

    async fn begins_empty(&self) {
        let answer = self.read(&self.scope("empty")).await;
        assert_eq!(answer.version, 0, "an unused scope has version 0");
        assert_eq!(answer.entries, [], "an unused scope has no entries");
        let (Heartbeats::Expired(heartbeats) | Heartbeats::Last(heartbeats)) = answer.heartbeats;
        assert_eq!(heartbeats, [], "an unused scope has no heartbeats");
    }

    async fn makes_steps(&self) {
        let scope = self.scope("steps");
        let texts = ["1 0 0 0", WORKER, &lease_text(5), "TRIM_HORIZON"];
        let keys = [EntryKey::Head, worker("a b%-"), lease(0), position(0)];
        let adds = keys.iter().zip(texts).map(|(key, text)| (key.clone(), None, Some(text)));
        let made = self.make(&scope, step(adds)).await;
        assert!(made.is_made && made.version > 0, "a step whose conditions hold is made: {made:?}");
        let answer = self.read(&scope).await;
        assert_eq!(answer.version, made.version, "a read does not change the version");
        for (key, text) in keys.iter().zip(texts) {
            assert_eq!(shown(&answer, key), Some(Some(text)), "a step stores the text of {key}");
        }
        assert_eq!(answer.entries.len(), keys.len(), "no other entry exists: {answer:?}");
        let deletions = keys.iter().zip(texts).map(|(key, text)| (key.clone(), Some(text), None));
        let removed = self.make(&scope, step(deletions)).await;
        assert!(
            removed.is_made && removed.version > made.version,
            "the version rises: {removed:?}"
        );
        assert_eq!(self.read(&scope).await.entries, [], "a step without a text deletes the entry");
    }

    async fn makes_all_of_a_step_or_nothing(&self) {
        let scope = self.scope("atomic");
        let old = lease_text(1);
        let first = self.make(&scope, step([(lease(0), None, Some(&*old))])).await;
        let new = lease_text(2);
        for (expected, rule) in [
            (None, "an entry that exists is not as expected if it must not exist"),
            (Some("other"), "an entry with another text is not as expected"),
        ] {
            let both = [(lease(1), None, Some(&*new)), (lease(0), expected, Some(&*new))];
            let answer = self.make(&scope, step(both)).await;
            assert!(!answer.is_made, "{rule}: {answer:?}");
            assert_eq!(answer.version, first.version, "a step that is not made keeps the version");
            assert_eq!(shown(&answer, &lease(0)), Some(Some(&*old)), "nothing of it is stored");
            assert!(matches!(shown(&answer, &lease(1)), None | Some(None)), "nothing is stored");
        }
        let missing = [(lease(3), Some("other"), Some(&*new))];
        assert!(
            !self.make(&scope, step(missing)).await.is_made,
            "an entry that does not exist is not as expected if it must have a text"
        );
        let mut forced = step([(position(0), Some("other"), Some("new"))]);
        forced.entries[0].is_forced = true;
        let answer = self.make(&scope, forced).await;
        let rule = "a forced change needs no expected text";
        assert!(answer.is_made && answer.version > first.version, "{rule}: {answer:?}");
        let found = self.read(&scope).await;
        assert_eq!(shown(&found, &position(0)), Some(Some("new")), "{rule}");
        let first = answer;
        let only = step([(lease(0), Some(&*old), Some(&*old)), (lease(1), None, None)]);
        let answer = self.make(&scope, only).await;
        assert!(answer.is_made, "a step may consist of conditions");
        assert_eq!(answer.version, first.version, "a step of conditions changes no version");
    }

    async fn checks_versions(&self) {
        let scope = self.scope("versions");
        let text = lease_text(1);
        let add = |index, version| Step { version, ..step([(lease(index), None, Some(&*text))]) };
        let first = self.make(&scope, add(0, Some(0))).await;
        assert!(first.is_made, "an unused scope has version 0");
        let second = self.make(&scope, add(1, Some(first.version))).await;
        assert!(second.is_made, "a step is made at the version that it names");
        let late = self.make(&scope, add(2, Some(first.version))).await;
        assert!(!late.is_made, "a step is not made at another version than it names");
        assert_eq!(late.version, second.version, "the answer has the present version");
    }

    async fn returns_what_has_changed(&self) {
        let scope = self.scope("changes");
        let (one, two) = (lease_text(1), lease_text(2));
        let adds = [
            (lease(0), None, Some(&*one)),
            (position(0), None, Some("TRIM_HORIZON")),
            (lease(1), None, Some(&*one)),
            (worker("a"), None, Some(WORKER)),
        ];
        let known = Some(self.make(&scope, step(adds)).await.version);
        let ask = |step| Exchange { step, known, ..Exchange::default() };
        let same = self.ask(&scope, ask(None)).await;
        assert!(!same.is_whole, "the store knows its last version");
        assert_eq!(same.entries, [], "nothing has changed since the present version");
        let change = step([(lease(0), Some(&*one), Some(&*two))]);
        let own = self.ask(&scope, ask(Some(change))).await;
        let rule = "an answer includes the step of its request";
        assert_eq!(shown(&own, &lease(0)), Some(Some(&*two)), "{rule}: {own:?}");
        let changed = self.ask(&scope, ask(None)).await;
        if !changed.is_whole {
            let rule = "entries that have not changed are left out";
            assert_eq!(shown(&changed, &lease(1)), None, "{rule}: {changed:?}");
        }
        assert_eq!(shown(&changed, &lease(0)), Some(Some(&*two)), "a changed entry is included");
        let rule = "the position of a changed lease is included";
        assert_eq!(
            shown(&changed, &position(0)),
            Some(Some("TRIM_HORIZON")),
            "{rule}: {changed:?}"
        );
        let remove = step([(lease(1), Some(&*one), None)]);
        assert!(self.make(&scope, remove).await.is_made, "an entry is deleted");
        let removed = self.ask(&scope, ask(None)).await;
        let is_shown = match shown(&removed, &lease(1)) {
            None => removed.is_whole,
            Some(text) => text.is_none(),
        };
        assert!(is_shown, "a deleted entry is shown as absent: {removed:?}");
        let conflict = step([(worker("a"), Some("other"), None)]);
        let refused =
            self.ask(&scope, Exchange { known: Some(removed.version), ..ask(Some(conflict)) });
        let refused = refused.await;
        assert!(!refused.is_made, "a worker's entry is compared as well");
        let rule = "the entries of a step that is not made are included";
        assert_eq!(shown(&refused, &worker("a")), Some(Some(WORKER)), "{rule}: {refused:?}");
        let strange = Exchange { known: Some(1), ..Exchange::default() };
        let strange = self.ask(&scope, strange).await;
        assert!(strange.is_whole, "a version that the store never had returns the whole table");
    }

    /// Returns the heartbeats of an answer, and whether those of expired workers.
    fn heartbeats(answer: Exchanged) -> (Vec<LastHeartbeat>, bool) {
        match answer.heartbeats {
            Heartbeats::Expired(heartbeats) => (heartbeats, true),
            Heartbeats::Last(heartbeats) => (heartbeats, false),
        }
    }

    async fn notes_heartbeats(&self) {
        let scope = self.scope("heartbeats");
        let adds = ["a", "b"].map(|name| (worker(name), None, Some(WORKER)));
        let renewals = vec![renewal("a", WORKER, SHORT), renewal("b", WORKER, LONG)];
        let joined = Exchange { step: Some(step(adds)), renewals, known: None };
        let version = self.ask(&scope, joined).await.version;
        let (before, has_clock) = Self::heartbeats(self.read(&scope).await);
        if has_clock {
            assert_eq!(before, [], "workers that have renewed have not expired");
        }
        let renew = |name: &str, entry: &str, duration| Exchange {
            renewals: vec![renewal(name, entry, duration)],
            ..Exchange::default()
        };
        sleep(SHORT * 2).await;
        let answer = self.ask(&scope, renew("a", "another incarnation", LONG)).await;
        assert_eq!(answer.version, version, "a heartbeat does not change the version");
        let (silent, _) = Self::heartbeats(self.read(&scope).await);
        let mark = silent.iter().find(|last| *last.worker == *"a").cloned();
        let rule = "a heartbeat under another entry is not noted, so the worker stays silent";
        let Some(seen) = mark else { panic!("{rule}: {silent:?}") };
        if has_clock {
            assert_eq!(
                silent.len(),
                1,
                "only the worker that did not renew has expired: {silent:?}"
            );
        }
        let answer = self.ask(&scope, renew("a", WORKER, LONG)).await;
        let (before, _) = Self::heartbeats(answer);
        assert!(before.contains(&seen), "an answer shows the heartbeats before its request");
        let (after, _) = Self::heartbeats(self.read(&scope).await);
        assert!(!after.contains(&seen), "a worker that renews has another mark: {after:?}");
        let remove = step([(worker("a"), Some(WORKER), None)]);
        let late = Step { silent: vec![seen], ..remove.clone() };
        assert!(
            !self.make(&scope, late).await.is_made,
            "a step that needs a worker to be silent is not made after its heartbeat"
        );
        assert!(self.make(&scope, remove).await.is_made, "a worker's entry is deleted");
        let unknown = self.ask(&scope, renew("a", WORKER, LONG)).await;
        assert!(unknown.is_made, "a heartbeat without an entry is not an error");
        let (rest, _) = Self::heartbeats(self.read(&scope).await);
        let rule = "a worker without an entry has no heartbeat";
        assert!(rest.iter().all(|last| *last.worker != *"a"), "{rule}: {rest:?}");
        let back = step([(worker("a"), None, Some(WORKER))]);
        self.make(&scope, back).await;
        let (fresh, _) = Self::heartbeats(self.read(&scope).await);
        if has_clock {
            let rule = "a worker of which no heartbeat was noted has expired, with an empty mark";
            assert!(fresh.contains(&LastHeartbeat::new("a", "")), "{rule}: {fresh:?}");
        }
        let never = Step { silent: vec![LastHeartbeat::new("a", "")], ..Step::default() };
        assert!(self.make(&scope, never).await.is_made, "a worker that never renewed is silent");
    }

    async fn keeps_workers_for_their_lease_duration(&self) {
        let scope = self.scope("lease duration");
        let adds = step([(worker("a"), None, Some(WORKER))]);
        let renewals = vec![renewal("a", WORKER, MIDDLE)];
        let before = Instant::now();
        self.ask(&scope, Exchange { step: Some(adds), renewals, known: None }).await;
        sleep(MIDDLE * 6 / 10).await;
        let (expired, has_clock) = Self::heartbeats(self.read(&scope).await);
        // A busy machine may have taken longer than the lease duration.
        if has_clock && before.elapsed() < MIDDLE {
            let rule = "a worker does not expire before its lease duration";
            assert_eq!(expired, [], "{rule}");
        }
    }

    async fn saves_by_epoch(&self) {
        let scope = self.scope("saves");
        let text = lease_text(7);
        let version = self.make(&scope, step([(lease(0), None, Some(&*text))])).await.version;
        let save = |index, epoch, expected: Option<&str>, text: &str| FencedSave {
            shard: shard(index),
            epoch,
            expected: expected.map(Into::into),
            text: text.into(),
        };
        let outcome = self.save(&scope, save(0, 7, None, "first")).await;
        let lease_entry: Arc<str> = (&*text).into();
        let expected = FencedOutcome::new(true, Some(lease_entry), Some("first".into()));
        // A store may leave out the lease of a saved position.
        let lease = outcome.lease.clone().or(expected.lease.clone());
        let outcome = FencedOutcome { lease, ..outcome };
        assert_eq!(outcome, expected, "a position is saved in the epoch of its lease");
        for (save, rule) in [
            (save(0, 6, Some("first"), "other"), "an earlier epoch than that of the lease"),
            (save(0, 8, Some("first"), "other"), "a later epoch than that of the lease"),
            (save(0, 7, None, "other"), "no position where there is one"),
            (save(0, 7, Some("third"), "other"), "another position than the stored one"),
        ] {
            let outcome = self.save(&scope, save).await;
            let refused = FencedOutcome { is_saved: false, ..expected.clone() };
            assert_eq!(outcome, refused, "a save that expects {rule} is refused");
        }
        let outcome = self.save(&scope, save(1, 7, None, "other")).await;
        let refused = FencedOutcome::new(false, None, None);
        assert_eq!(outcome, refused, "a shard without a lease saves no position");
        let several = [save(0, 7, Some("first"), "second"), save(1, 7, None, "other")];
        let outcomes = self.store.save_fenced(&scope, &several).await;
        let saved = |outcome: &FencedOutcome| outcome.is_saved;
        assert!(
            matches!(&outcomes, Ok(outcomes) if outcomes.iter().map(saved).eq([true, false])),
            "each save has an outcome of its own: {outcomes:?}"
        );
        let answer = self.read(&scope).await;
        assert_eq!(shown(&answer, &position(0)), Some(Some("second")), "positions are stored");
        assert_eq!(answer.version, version, "a save does not change the version");
        let none = self.store.save_fenced(&scope, &[]).await;
        assert!(
            matches!(&none, Ok(none) if none.is_empty()),
            "no saves have no outcomes: {none:?}"
        );
    }

    async fn one_of_many_concurrent_steps_is_made(&self) {
        let scope = self.scope("race");
        let text = lease_text(1);
        let steps = (0..8).map(|_| self.make(&scope, step([(lease(0), None, Some(&*text))])));
        let made = futures::future::join_all(steps).await.iter().filter(|it| it.is_made).count();
        assert_eq!(made, 1, "one of several steps with the same condition is made");
        let steps =
            (1..9).map(|index| self.make(&scope, step([(lease(index), None, Some(&*text))])));
        let made = futures::future::join_all(steps).await;
        // A store may report a conflict of steps that have none; the crate repeats them.
        assert!(made.iter().any(|it| it.is_made), "steps of different entries are made");
    }

    /// Lets several readers make steps of the same entries at the same time. Each knows the table by
    /// what has changed since its last answer.
    async fn shows_concurrent_steps_to_all(&self) {
        for run in 0..10 {
            self.shows_concurrent_steps(&self.scope(&format!("readers {run}"))).await;
        }
    }

    async fn shows_concurrent_steps(&self, scope: &Scope) {
        let read = |texts: &mut BTreeMap<EntryKey, Arc<str>>, answer: Exchanged| {
            if answer.is_whole {
                texts.clear();
            }
            for (key, text) in answer.entries {
                match text {
                    Some(text) => texts.insert(key, text),
                    None => texts.remove(&key),
                };
            }
            Some(answer.version)
        };
        let readers = (0..4_usize).map(|reader| async move {
            let (mut texts, mut known) = (BTreeMap::new(), None);
            for round in 0..6_usize {
                let key = lease((reader + round) % 3);
                let text: Arc<str> = lease_text(4 * round as u64 + reader as u64).into();
                let text = Some(text).filter(|_| round % 4 > 0);
                let change = EntryChange::new(key.clone(), texts.get(&key).cloned(), text);
                let step = Some(Step { entries: vec![change], ..Step::default() });
                // Other steps are likely to be made while these are looked up.
                let renewals = (0..8).map(|index| renewal(&index.to_string(), WORKER, LONG));
                let renewals = renewals.collect();
                let answer = self.ask(scope, Exchange { step, renewals, known }).await;
                known = read(&mut texts, answer);
            }
            (texts, known)
        });
        let readers = futures::future::join_all(readers).await;
        let mut present = BTreeMap::new();
        read(&mut present, self.read(scope).await);
        for (mut texts, known) in readers {
            let answer = self.ask(scope, Exchange { known, ..Exchange::default() }).await;
            read(&mut texts, answer);
            assert_eq!(texts, present, "changes since the known version complete what is known");
        }
    }

    async fn survives_dropped_exchanges(&self) {
        let scope = self.scope("dropped");
        let text = lease_text(1);
        for index in 0..20 {
            let add = step([(lease(index), None, Some(&*text))]);
            // Polled once, then dropped.
            let _carried_out_or_not = self.make(&scope, add).now_or_never();
        }
        for index in 0..20 {
            let answer = self.make(&scope, step([(lease(index), None, Some(&*text))])).await;
            assert_eq!(
                shown(&answer, &lease(index)),
                Some(Some(&*text)),
                "a store works after drops"
            );
        }
    }

    async fn keeps_scopes_apart(&self) {
        let run = &self.run;
        let names = [("-a", "s"), ("-b", "s"), ("-a", "t"), ("-a:s", "s"), ("-a%3As", "s")];
        for (application, stream) in names {
            let scope = Scope::new(format!("{run}{application}"), stream);
            let answer = self.make(&scope, step([(worker("a"), None, Some(WORKER))])).await;
            assert!(answer.is_made, "each application and stream has its own entries: {scope:?}");
        }
    }

    async fn keeps_every_text(&self) {
        let scope = self.scope("texts");
        let names = ["", "-", "?", "%", "a b", "a:b", "ä", "a%20b"];
        let longest = format!("1 {}", "x".repeat(10_000));
        let words = format!("{} {} 1 3 a=b ä", u64::MAX, (1_u64 << 53) - 1);
        let adds = names.map(|name| (worker(name), None, Some(&*words)));
        let adds = adds.into_iter().chain([(lease(0), None, Some(&*longest))]);
        assert!(self.make(&scope, step(adds)).await.is_made, "any name and text is stored");
        let answer = self.read(&scope).await;
        for name in names {
            let rule = "the text of a worker is returned as it is";
            assert_eq!(shown(&answer, &worker(name)), Some(Some(&*words)), "{rule}: {name:?}");
        }
        assert_eq!(shown(&answer, &lease(0)), Some(Some(&*longest)), "a long text is returned");
    }

    async fn handles_many_shards(&self) {
        let scope = self.scope("many");
        let text = lease_text(1);
        let adds = (0..1000).map(|index| (lease(index), None, Some(&*text)));
        assert!(self.make(&scope, step(adds)).await.is_made, "1,000 leases are added at once");
        let save = |index| FencedSave {
            shard: shard(index),
            epoch: 1,
            expected: None,
            text: format!("{index}").into(),
        };
        let saves: Vec<_> = (0..1000).map(save).collect();
        let outcomes = self.store.save_fenced(&scope, &saves).await;
        assert!(
            matches!(&outcomes, Ok(outcomes)
                if outcomes.len() == 1000 && outcomes.iter().all(|outcome| outcome.is_saved)),
            "1,000 positions are saved at once"
        );
        let answer = self.read(&scope).await;
        for index in 0..1000 {
            let text = index.to_string();
            assert_eq!(shown(&answer, &position(index)), Some(Some(&*text)), "all are stored");
        }
    }
}
