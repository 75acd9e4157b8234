//! The status of an application as text and as JSON.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kinestream::{ApplicationStatus, Checkpoint, ShardId, ShardState, WorkerStatus};
use serde::Serialize;

use super::lag::Lags;
use crate::output::{Paint, escape, short};
use crate::position;
use crate::quantity::{bytes, counted, duration};
use crate::table::Table;
use crate::time;

/// The status of an application. The names of the fields are those of `--output json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// The time of the report.
    #[serde(serialize_with = "time::serialize")]
    time: Option<SystemTime>,
    application: String,
    stream: String,
    workers: Vec<String>,
    /// The workers that may be dead.
    unconfirmed_workers: Vec<String>,
    worker_status: BTreeMap<String, WorkerStatus>,
    /// The largest lag; `None` if no lag is known.
    millis_behind_latest: Option<u64>,
    shards: Vec<ShardReport>,
    /// The number of shards whose call for the lag failed, and the reason of the first one.
    #[serde(skip)]
    unknown_lags: u64,
    #[serde(skip)]
    lag_failure: Option<String>,
}

/// The status of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ShardReport {
    shard_id: ShardId,
    state: ShardState,
    owner: Option<String>,
    /// The worker to which the shard is handed off.
    next_owner: Option<String>,
    epoch: u64,
    parents: Vec<ShardId>,
    position: Option<Checkpoint>,
    /// `None` if Kinesis does not answer, and for a finished shard.
    millis_behind_latest: Option<u64>,
}

impl Report {
    /// Creates the report of an application of this stream, named as its workers name it.
    pub(super) fn new(
        stream: &str,
        status: ApplicationStatus,
        lags: &Lags,
        now: SystemTime,
    ) -> Self {
        let lag = |shard: &ShardId| lags.get(shard).and_then(|lag| lag.as_ref().ok()).copied();
        let mut failures = lags.values().filter_map(|lag| lag.as_ref().err());
        let lag_failure = failures.next().map(|failure| failure.message().to_owned());
        let unknown_lags = lags.values().filter(|lag| lag.is_err()).count() as u64;
        let shards = status.shards.into_iter().map(|(shard_id, shard)| ShardReport {
            millis_behind_latest: lag(&shard_id),
            shard_id,
            state: shard.state,
            owner: shard.owner,
            next_owner: shard.next_owner,
            epoch: shard.epoch,
            parents: shard.parents,
            position: shard.position,
        });
        Self {
            time: Some(now),
            application: status.application,
            stream: stream.to_owned(),
            workers: status.workers,
            unconfirmed_workers: status.unconfirmed_workers,
            worker_status: status.worker_status,
            millis_behind_latest: lags.values().flatten().copied().max(),
            unknown_lags,
            lag_failure,
            shards: shards.collect(),
        }
    }

    /// Returns the report for people.
    pub(super) fn shown(&self, paint: Paint) -> String {
        let name = |name: &str| escape(name.as_bytes());
        let lag = |lag: Option<u64>| lag.map_or_else(|| "-".to_owned(), lag_shown);
        let mut text = format!(
            "{} {}\n{} {}\n{} {}\n{} {}\n\n",
            paint.heading("application"),
            paint.name(&name(&self.application)),
            paint.heading("stream     "),
            paint.name(&name(&self.stream)),
            paint.heading("workers    "),
            self.workers_shown(paint),
            paint.heading("behind     "),
            self.behind(),
        );
        let mut table =
            Table::new(&["SHARD", "STATE", "BEHIND", "OWNER", "POSITION"]).right(&[0, 2]);
        for shard in &self.shards {
            let owner = match (&shard.owner, &shard.next_owner) {
                (Some(owner), Some(next)) => format!("{} → {}", name(owner), name(next)),
                (Some(owner), None) => name(owner),
                _ => "-".to_owned(),
            };
            table.push(vec![
                paint.name(&name(short(shard.shard_id.as_str()))),
                state_shown(shard.state, paint),
                lag(shard.millis_behind_latest),
                owner,
                position::shown(shard.position.as_ref()),
            ]);
        }
        text += &table.shown(paint);
        text
    }

    /// Returns the number of shards whose lag is unknown, and the reason; `None` if no call failed.
    pub(super) fn unknown_lags(&self) -> Option<String> {
        let reason = escape(self.lag_failure.as_ref()?.as_bytes());
        Some(format!("lag of {} unknown ({reason})", counted(self.unknown_lags, "shard")))
    }

    fn workers_shown(&self, paint: Paint) -> String {
        if self.workers.is_empty() {
            return paint.warn("none: the application does not run");
        }
        let shown = |worker: &String| {
            let status = self.worker_status.get(worker);
            let load = status.and_then(|status| status.bytes_per_second).filter(|load| *load > 0);
            let load = load.map(|load| format!("{}/s", bytes(load)));
            let is_behind = status.is_some_and(|status| status.strain > 0);
            let is_unconfirmed = self.unconfirmed_workers.contains(worker);
            let notes = [
                load,
                is_behind.then(|| paint.warn("falls behind")),
                is_unconfirmed.then(|| "unconfirmed".to_owned()),
            ];
            let notes: Vec<String> = notes.into_iter().flatten().collect();
            let name = escape(worker.as_bytes());
            if notes.is_empty() { name } else { format!("{name} ({})", notes.join(", ")) }
        };
        let names: Vec<String> = self.workers.iter().map(shown).collect();
        format!("{}: {}", counted(names.len() as u64, "worker"), names.join(", "))
    }

    /// Returns the largest lag, and the reason if one is unknown.
    fn behind(&self) -> String {
        let known = self.millis_behind_latest.map(lag_shown);
        let parts: Vec<String> = known.into_iter().chain(self.unknown_lags()).collect();
        if parts.is_empty() { "-".to_owned() } else { parts.join("; ") }
    }
}

fn lag_shown(millis: u64) -> String {
    match millis {
        0 => "caught up".to_owned(),
        millis => duration(Duration::from_millis(millis)),
    }
}

fn state_shown(state: ShardState, paint: Paint) -> String {
    match state {
        ShardState::Reading => paint.good("reading"),
        ShardState::Unassigned => paint.bad("unassigned"),
        ShardState::Failed => paint.bad("failed"),
        ShardState::Expired => paint.bad("expired"),
        ShardState::Unreadable => paint.bad("unreadable"),
        ShardState::Waiting => paint.warn("waiting"),
        ShardState::HandingOff => paint.warn("handing off"),
        ShardState::EndingReached => paint.dim("ending reached"),
        ShardState::Finished => paint.dim("finished"),
        // A later version of the crate may add states.
        later => format!("{later:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use kinestream::testing::Kinesis;
    use kinestream::{Consumer, MemoryStore};
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::Failure;
    use crate::output::json_line;

    /// Returns the status of an application with a parent that is read and two children that wait.
    async fn status() -> ApplicationStatus {
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", 1).shard(0).split();
        let consumer = Consumer::builder(kinesis.client(), "orders")
            .application("billing")
            .store(MemoryStore::new())
            .worker_id("worker-1")
            .build()
            .unwrap();
        let mut shards = consumer.shards();
        let _held = futures::StreamExt::next(&mut shards).await.unwrap().unwrap();
        consumer.status().await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn report_is_an_object_of_json() {
        let status = status().await;
        let parent: ShardId = "shardId-000000000000".parse().unwrap();
        let (position, epoch) =
            (status.shards[&parent].position.clone(), status.shards[&parent].epoch);
        let position = position.unwrap().to_string();
        let lags = Lags::from([(parent, Ok(1500))]);
        let report =
            Report::new("orders", status, &lags, UNIX_EPOCH + Duration::from_secs(1_767_225_600));
        let json: Value = serde_json::from_str(&json_line(&report).unwrap()).unwrap();
        let child = |id| {
            json!({
                "shard_id": id,
                "state": "waiting",
                "owner": null,
                "next_owner": null,
                "epoch": 0,
                "parents": ["shardId-000000000000"],
                "position": position,
                "millis_behind_latest": null,
            })
        };
        assert_eq!(
            json,
            json!({
                "time": "2026-01-01T00:00:00.000Z",
                "application": "billing",
                "stream": "orders",
                "workers": ["worker-1"],
                "unconfirmed_workers": [],
                "worker_status": {
                    "worker-1": { "bytes_per_second": null, "capacity_percent": 100, "strain": 0 },
                },
                "millis_behind_latest": 1500,
                "shards": [
                    {
                        "shard_id": "shardId-000000000000",
                        "state": "reading",
                        "owner": "worker-1",
                        "next_owner": null,
                        "epoch": epoch,
                        "parents": [],
                        "position": position,
                        "millis_behind_latest": 1500,
                    },
                    child("shardId-000000000001"),
                    child("shardId-000000000002"),
                ],
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn reason_is_shown_if_a_lag_is_unknown() {
        let status = status().await;
        let mut lags: Lags = Lags::new();
        for shard in status.shards.keys() {
            lags.insert(shard.clone(), Err(Failure::new("access denied: GetRecords")));
        }
        let shown = |lags: &Lags| {
            Report::new("orders", status.clone(), lags, UNIX_EPOCH).shown(Paint::plain())
        };
        let unknown = "lag of 3 shards unknown (access denied: GetRecords)";
        assert!(shown(&lags).contains(&format!("behind      {unknown}\n")), "{}", shown(&lags));
        lags.insert(status.shards.keys().next().unwrap().clone(), Ok(0));
        let some = "caught up; lag of 2 shards unknown (access denied: GetRecords)";
        assert!(shown(&lags).contains(&format!("behind      {some}\n")), "{}", shown(&lags));
        let known = status.shards.keys().map(|shard| (shard.clone(), Ok(0))).collect();
        assert!(shown(&known).contains("behind      caught up\n"), "{}", shown(&known));
    }

    #[test]
    fn lag_is_shown_as_a_duration() {
        assert_eq!([0, 1500, 182_000].map(lag_shown), ["caught up", "1500 ms", "3m 2s"]);
    }
}
