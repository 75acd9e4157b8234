//! Conformance suites for [`CheckpointStore`] and [`LeaseStore`](super::lease::LeaseStore)
//! implementations.

mod leases;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::join_all;

use super::{CheckpointStore, Scope};
use crate::checkpoint::Checkpoint;
use crate::record::ShardId;

pub use leases::check_leases;

/// Runs the conformance suite on a [`CheckpointStore`]. Each run uses new scopes, and leaves its
/// data in the store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use kinestream::MemoryStore;
/// use kinestream::store::conformance;
///
/// conformance::check(&MemoryStore::new()).await;
/// # }
/// ```
///
/// # Panics
///
/// Panics if the store violates a rule of [`CheckpointStore`]. The message names the rule.
pub async fn check(store: &dyn CheckpointStore) {
    let suite = Suite { store, run: unique() };
    suite.begins_empty().await;
    suite.loads_every_form().await;
    suite.never_moves_backwards().await;
    suite.keeps_scopes_apart().await;
    suite.saves_many_at_once().await;
    suite.concurrent_saves_keep_the_furthest().await;
    suite.survives_dropped_saves().await;
}

struct Suite<'a> {
    store: &'a dyn CheckpointStore,
    run: String,
}

/// Pairs of a stored checkpoint and one that must not replace it.
const BACKWARDS: [(&str, &str); 16] = [
    ("TRIM_HORIZON", "AT_TIMESTAMP:1000"),
    ("AT_TIMESTAMP:1000", "TRIM_HORIZON"),
    ("AT_TIMESTAMP:1000", "AT_TIMESTAMP:2000"),
    ("AT_TIMESTAMP:2000", "AT_TIMESTAMP:1000"),
    ("AFTER_SEQUENCE_NUMBER:10", "AFTER_SEQUENCE_NUMBER:9"),
    ("AFTER_SEQUENCE_NUMBER:10", "AT_TIMESTAMP:1000"),
    ("AFTER_SEQUENCE_NUMBER:10", "TRIM_HORIZON"),
    ("AFTER_SEQUENCE_NUMBER:10", "AFTER_SEQUENCE_NUMBER:10:3"),
    ("AFTER_SEQUENCE_NUMBER:10:3", "AFTER_SEQUENCE_NUMBER:10:2"),
    ("AFTER_SEQUENCE_NUMBER:10:10", "AFTER_SEQUENCE_NUMBER:10:9"),
    ("SHARD_END", "AFTER_SEQUENCE_NUMBER:10"),
    ("SHARD_END", "TRIM_HORIZON"),
    ("SHARD_END", "CAUGHT_UP:1000:10"),
    ("CAUGHT_UP:1000", "AT_TIMESTAMP:2000"),
    ("CAUGHT_UP:1000:10", "CAUGHT_UP:1000"),
    ("CAUGHT_UP:1000:10", "AFTER_SEQUENCE_NUMBER:10"),
];

/// Pairs of a stored checkpoint and one that must replace it.
const FORWARDS: [(&str, &str); 14] = [
    ("TRIM_HORIZON", "AFTER_SEQUENCE_NUMBER:0"),
    ("AT_TIMESTAMP:1000", "AFTER_SEQUENCE_NUMBER:0"),
    ("TRIM_HORIZON", "SHARD_END"),
    ("AFTER_SEQUENCE_NUMBER:9", "AFTER_SEQUENCE_NUMBER:10"),
    ("AFTER_SEQUENCE_NUMBER:10:9", "AFTER_SEQUENCE_NUMBER:10:10"),
    ("AFTER_SEQUENCE_NUMBER:10:9", "AFTER_SEQUENCE_NUMBER:10"),
    ("AFTER_SEQUENCE_NUMBER:10", "AFTER_SEQUENCE_NUMBER:11:0"),
    ("AFTER_SEQUENCE_NUMBER:10", "SHARD_END"),
    ("AT_TIMESTAMP:2000", "CAUGHT_UP:1000"),
    ("CAUGHT_UP:999", "CAUGHT_UP:1000"),
    ("CAUGHT_UP:1000", "AFTER_SEQUENCE_NUMBER:0"),
    ("AFTER_SEQUENCE_NUMBER:10", "CAUGHT_UP:999:10"),
    ("CAUGHT_UP:999:10", "CAUGHT_UP:1000:10"),
    ("CAUGHT_UP:1000:9", "AFTER_SEQUENCE_NUMBER:10:0"),
];

impl Suite<'_> {
    async fn begins_empty(&self) {
        let scope = self.scope("empty");
        let loaded = self.load(&scope).await;
        assert!(loaded.is_empty(), "an unused scope loads as empty: {loaded:?}");
        self.save(&scope, &[]).await;
        let loaded = self.load(&scope).await;
        assert!(loaded.is_empty(), "saving an empty list stores nothing: {loaded:?}");
    }

    async fn loads_every_form(&self) {
        let scope = self.scope("forms");
        let longest = format!("AFTER_SEQUENCE_NUMBER:{}", "9".repeat(129));
        let part = format!("{longest}:{}", u64::MAX - 1);
        let forms = [
            "TRIM_HORIZON",
            "AT_TIMESTAMP:1767225600123",
            "AFTER_SEQUENCE_NUMBER:0",
            &longest,
            &part,
            "CAUGHT_UP:1767225600123",
            "CAUGHT_UP:1767225600123:49590338",
            "SHARD_END",
        ];
        let saved: Vec<_> = forms
            .iter()
            .enumerate()
            .map(|(index, text)| (shard(index), checkpoint(text)))
            .collect();
        self.save(&scope, &saved).await;
        let expected: HashMap<_, _> = saved.into_iter().collect();
        assert_eq!(self.load(&scope).await, expected, "saved checkpoints are loaded");
    }

    async fn never_moves_backwards(&self) {
        for (stored, new) in BACKWARDS {
            self.assert_replaced(stored, new, stored).await;
        }
        for (stored, new) in FORWARDS {
            self.assert_replaced(stored, new, new).await;
            self.assert_replaced(new, stored, new).await;
        }
    }

    async fn assert_replaced(&self, stored: &str, new: &str, expected: &str) {
        let scope = self.scope(&format!("from {stored} to {new}").replace(':', " "));
        self.save(&scope, &[(shard(0), checkpoint(stored))]).await;
        // Twice, since a save that was carried out may be retried.
        for _ in 0..2 {
            self.save(&scope, &[(shard(0), checkpoint(new))]).await;
        }
        let loaded = self.load(&scope).await;
        assert_eq!(
            loaded.get(&shard(0)),
            Some(&checkpoint(expected)),
            "after {stored}, saving {new} leaves {expected}"
        );
    }

    async fn keeps_scopes_apart(&self) {
        let run = &self.run;
        let scopes = [
            Scope::new(format!("{run}-a"), "s"),
            Scope::new(format!("{run}-b"), "s"),
            Scope::new(format!("{run}-a"), "t"),
            Scope::new(format!("{run}-a"), "arn:aws:kinesis:eu-west-1:123456789012:stream/s"),
            Scope::new(format!("{run}-a"), "arn:aws:kinesis:us-east-1:123456789012:stream/s"),
            Scope::new(format!("{run}-a"), "arn:aws:kinesis:eu-west-1:210987654321:stream/s"),
            Scope::new(format!("{run}-a:s"), "s"),
            Scope::new(format!("{run}-a%3As"), "s"),
            Scope::new(format!("{run}-a ü"), "s"),
        ];
        for (index, scope) in scopes.iter().enumerate() {
            let place = format!("AFTER_SEQUENCE_NUMBER:{index}");
            self.save(scope, &[(shard(0), checkpoint(&place))]).await;
        }
        for (index, scope) in scopes.iter().enumerate() {
            let place = checkpoint(&format!("AFTER_SEQUENCE_NUMBER:{index}"));
            assert_eq!(
                self.load(scope).await,
                HashMap::from([(shard(0), place)]),
                "each application and stream has separate checkpoints: {scope:?}"
            );
        }
    }

    async fn saves_many_at_once(&self) {
        let scope = self.scope("many");
        let many: HashMap<_, _> = (0..2000)
            .map(|index| (shard(index), checkpoint(&format!("AFTER_SEQUENCE_NUMBER:{index}"))))
            .collect();
        self.save(&scope, &many.clone().into_iter().collect::<Vec<_>>()).await;
        self.save(&scope, &[(shard(7), Checkpoint::ShardEnd)]).await;
        let mut expected = many;
        expected.insert(shard(7), Checkpoint::ShardEnd);
        assert_eq!(
            self.load(&scope).await,
            expected,
            "2,000 shards are saved, and one of them advances"
        );
    }

    async fn concurrent_saves_keep_the_furthest(&self) {
        let scope = self.scope("race");
        join_all((0..50).map(|index| {
            let place = checkpoint(&format!("AFTER_SEQUENCE_NUMBER:{}", index * 37 % 50));
            let scope = &scope;
            async move { self.save(scope, &[(shard(0), place)]).await }
        }))
        .await;
        assert_eq!(
            self.load(&scope).await.get(&shard(0)),
            Some(&checkpoint("AFTER_SEQUENCE_NUMBER:49")),
            "concurrent saves keep the furthest position"
        );
    }

    async fn survives_dropped_saves(&self) {
        let scope = self.scope("dropped");
        for index in 0..20 {
            let place = checkpoint(&format!("AFTER_SEQUENCE_NUMBER:{index}"));
            // Polled once, then dropped.
            let _carried_out_or_not = self.store.save(&scope, &[(shard(0), place)]).now_or_never();
        }
        self.save(&scope, &[(shard(0), checkpoint("AFTER_SEQUENCE_NUMBER:20"))]).await;
        assert_eq!(
            self.load(&scope).await.get(&shard(0)),
            Some(&checkpoint("AFTER_SEQUENCE_NUMBER:20")),
            "a store works after dropped saves"
        );
    }

    fn scope(&self, name: &str) -> Scope {
        Scope::new(format!("{}-{name}", self.run), "orders")
    }

    async fn load(&self, scope: &Scope) -> HashMap<ShardId, Checkpoint> {
        match self.store.load(scope).await {
            Ok(loaded) => loaded,
            Err(error) => panic!("loading succeeds on a healthy store: {error}"),
        }
    }

    async fn save(&self, scope: &Scope, checkpoints: &[(ShardId, Checkpoint)]) {
        if let Err(error) = self.store.save(scope, checkpoints).await {
            panic!("saving succeeds on a healthy store: {error}");
        }
    }
}

/// Returns a name that no other run has, in this process or another.
fn unique() -> String {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("conformance-{}-{}-{run}", now.as_nanos(), std::process::id())
}

fn shard(index: usize) -> ShardId {
    match format!("shardId-{index:012}").parse() {
        Ok(shard) => shard,
        Err(error) => unreachable!("{error}"),
    }
}

fn checkpoint(text: &str) -> Checkpoint {
    match text.parse() {
        Ok(checkpoint) => checkpoint,
        Err(error) => unreachable!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::Arc;

    use futures::future::BoxFuture;

    use super::*;
    use crate::error::Result;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn checkpoint_pairs_agree_with_supersedes() {
        for (stored, new) in BACKWARDS {
            assert!(!checkpoint(new).supersedes(&checkpoint(stored)), "{stored} {new}");
        }
        for (stored, new) in FORWARDS {
            assert!(checkpoint(new).supersedes(&checkpoint(stored)), "{stored} {new}");
        }
    }

    type Alter = fn(&Scope, &[(ShardId, Checkpoint)]) -> (Scope, Vec<(ShardId, Checkpoint)>);

    /// A store that alters each save.
    #[derive(Debug)]
    struct FaultyCheckpointStore {
        stored: MemoryStore,
        /// True if a save replaces the stored checkpoints unconditionally.
        overwrites: bool,
        alter: Alter,
    }

    impl CheckpointStore for FaultyCheckpointStore {
        fn load<'a>(
            &'a self,
            scope: &'a Scope,
        ) -> BoxFuture<'a, Result<HashMap<ShardId, Checkpoint>>> {
            let scope = (self.alter)(scope, &[]).0;
            async move { self.stored.load(&scope).await }.boxed()
        }

        fn save<'a>(
            &'a self,
            scope: &'a Scope,
            checkpoints: &'a [(ShardId, Checkpoint)],
        ) -> BoxFuture<'a, Result<()>> {
            let (scope, checkpoints) = (self.alter)(scope, checkpoints);
            async move {
                if self.overwrites {
                    self.stored.forget(&scope, &checkpoints);
                }
                self.stored.save(&scope, &checkpoints).await
            }
            .boxed()
        }
    }

    async fn complaint(overwrites: bool, alter: Alter) -> String {
        let store: Arc<dyn CheckpointStore> =
            Arc::new(FaultyCheckpointStore { stored: MemoryStore::new(), overwrites, alter });
        let checked = AssertUnwindSafe(check(&store)).catch_unwind().await;
        let panic = checked.expect_err("the suite detects the mistake");
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[tokio::test]
    async fn suite_detects_each_mistake() {
        let kept: Alter = |scope, checkpoints| (scope.clone(), checkpoints.to_vec());
        assert!(
            complaint(true, kept).await.contains("saving AT_TIMESTAMP:1000 leaves TRIM_HORIZON")
        );

        let one_stream: Alter =
            |scope, checkpoints| (Scope::new(scope.application(), "orders"), checkpoints.to_vec());
        assert!(complaint(false, one_stream).await.contains("has separate checkpoints"));

        let joined: Alter = |scope, checkpoints| {
            (Scope::new(scope.to_string().replace("%3A", ":"), "orders"), checkpoints.to_vec())
        };
        assert!(complaint(false, joined).await.contains("has separate checkpoints"));

        let first_thousand: Alter =
            |scope, checkpoints| (scope.clone(), checkpoints.iter().take(1000).cloned().collect());
        assert!(complaint(false, first_thousand).await.contains("2,000 shards are saved"));

        let no_ends: Alter = |scope, checkpoints| {
            let open =
                |(_, checkpoint): &&(ShardId, Checkpoint)| *checkpoint != Checkpoint::ShardEnd;
            (scope.clone(), checkpoints.iter().filter(open).cloned().collect())
        };
        assert!(complaint(false, no_ends).await.contains("saved checkpoints are loaded"));
    }
}
