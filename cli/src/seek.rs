//! `kinestream seek` and `kinestream reset`: changes of an application's stored positions.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use kinestream::{
    ApplicationStatus, Checkpoint, Consumer, ErrorKind, IfLeased, ShardId, StartingPosition,
};

use crate::arguments::{Aws, DynamoDb, ResetArguments, SeekArguments, Store, Target};
use crate::client::{self, Calls};
use crate::confirm::confirmed;
use crate::failure::{Failure, Outcome};
use crate::output::{escape, note, say, short, write_out};
use crate::position;
use crate::quantity::counted;
use crate::status::unknown_application;
use crate::store;
use crate::time::{self, Since};

/// The time between two looks at the heartbeats of workers.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn seek(arguments: &SeekArguments, aws: &Aws) -> Outcome<()> {
    let target = &arguments.target;
    let consumer = consumer(target, aws).await?;
    let status = status(&consumer, target).await?;
    check(&status, target)?;
    let shards = selected(&status, &arguments.shard)?;
    let mut plan = format!(
        "application {} of stream {}: move {} to {}\n",
        escape(target.application.as_bytes()),
        escape(target.stream.as_bytes()),
        counted(shards.len() as u64, "shard"),
        target_shown(&arguments.to),
    );
    for shard in &shards {
        let from = status.shards.get(shard).and_then(|shard| shard.position.as_ref());
        let from = position::shown(from);
        plan += &format!("  shard {}, now: {from}\n", short(shard.as_str()));
    }
    if !agreed(target, &plan, "Move the application?")? {
        return Ok(());
    }
    if arguments.shard.is_empty() {
        let to = match &arguments.to {
            Since::TrimHorizon => StartingPosition::TrimHorizon,
            Since::Time(time) => StartingPosition::AtTimestamp(*time),
            Since::Latest => StartingPosition::Latest,
            // The arguments check it as well.
            Since::Sequence(_) => {
                return Err(Failure::new("a sequence number belongs to one shard")
                    .advise("Add exactly one --shard."));
            }
        };
        consumer.seek(to).await?;
    } else {
        for shard in &shards {
            let moved =
                consumer.set_position(shard, checkpoint(&arguments.to), if_leased(target)).await;
            moved.map_err(|error| in_use_or(error, target))?;
        }
    }
    say(&format!("moved {}\n", counted(shards.len() as u64, "shard")));
    Ok(())
}

pub(crate) async fn reset(arguments: &ResetArguments, aws: &Aws) -> Outcome<()> {
    let target = &arguments.target;
    let consumer = consumer(target, aws).await?;
    let status = status(&consumer, target).await?;
    check(&status, target)?;
    let plan = format!(
        "application {} of stream {}: delete the positions of {}; its next worker starts at its \
         starting position\n",
        escape(target.application.as_bytes()),
        escape(target.stream.as_bytes()),
        counted(status.shards.len() as u64, "shard"),
    );
    if !agreed(target, &plan, "Delete the positions?")? {
        return Ok(());
    }
    let cleared = consumer.clear_positions(if_leased(target)).await;
    cleared.map_err(|error| in_use_or(error, target))?;
    say(&format!("deleted the positions of {}\n", counted(status.shards.len() as u64, "shard")));
    Ok(())
}

async fn consumer(target: &Target, aws: &Aws) -> Outcome<Consumer> {
    let client = client::connect(aws, Some(&target.stream), Calls::Short).await?;
    let store = store::connect(&target.store, aws, &target.stream).await?;
    let builder = Consumer::builder(client, &target.stream).application(&target.application);
    Ok(builder.store(store).build()?)
}

/// Returns the status once it is known whether a worker is alive: in a store without a clock, once one
/// has renewed, or none has within its lease duration.
async fn status(consumer: &Consumer, target: &Target) -> Outcome<ApplicationStatus> {
    let mut is_noted = false;
    loop {
        let status = consumer.status().await?;
        let unconfirmed = status.unconfirmed_workers.len();
        let is_known = unconfirmed == 0 || unconfirmed < status.workers.len();
        if target.force || target.dry_run || is_known {
            return Ok(status);
        }
        if !std::mem::replace(&mut is_noted, true) {
            let names = names(&status.unconfirmed_workers);
            note(&format!("waiting to see whether {names} renews, for up to its lease duration"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Refuses a change of an application that does not exist, or that runs.
fn check(status: &ApplicationStatus, target: &Target) -> Outcome<()> {
    if status.shards.is_empty() && status.workers.is_empty() {
        return Err(unknown_application(&target.stream, &target.store, status));
    }
    // A dry run changes nothing. A worker that starts after this check is found by the store,
    // except by a seek of all shards, which live workers follow.
    if target.force || target.dry_run || status.workers.is_empty() {
        return Ok(());
    }
    Err(runs(&status.workers, target))
}

fn names(workers: &[String]) -> String {
    let names: Vec<_> = workers.iter().map(|worker| escape(worker.as_bytes())).collect();
    names.join(", ")
}

fn runs(workers: &[String], target: &Target) -> Failure {
    let application = escape(target.application.as_bytes());
    Failure::new(format!("application {application} is running: {}", names(workers)))
        .advise("Stop its workers first.")
        .advise(
            "With --force the change is made now: the workers continue from the new positions, and \
             checkpoints that they have not saved are lost.",
        )
}

/// Describes a worker that has started since the check, or a worker of a KCL, which the check does not
/// see.
fn in_use_or(error: kinestream::Error, target: &Target) -> Failure {
    if error.kind() != ErrorKind::InUse {
        return error.into();
    }
    let text = error.to_string();
    let of_kcl = text.split_once(", another client of the store, is reading ");
    let worker = match of_kcl.and_then(|(before, _)| before.rsplit(' ').next()) {
        Some(worker) => format!("worker {worker} of a KCL"),
        None => "a worker".to_owned(),
    };
    runs(&[worker], target)
}

fn if_leased(target: &Target) -> IfLeased {
    if target.force { IfLeased::Force } else { IfLeased::Refuse }
}

/// Returns the wanted shards, each once, or all of them.
fn selected(status: &ApplicationStatus, wanted: &[ShardId]) -> Outcome<Vec<ShardId>> {
    if wanted.is_empty() {
        return Ok(status.shards.keys().cloned().collect());
    }
    if let Some(unknown) = wanted.iter().find(|shard| !status.shards.contains_key(shard)) {
        return Err(Failure::new(format!("the application knows no shard {unknown}"))
            .advise("`kinestream status` lists its shards."));
    }
    Ok(wanted.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect())
}

/// Shows the plan. Returns true if the change is to be made.
fn agreed(target: &Target, plan: &str, question: &str) -> Outcome<bool> {
    write_out(plan.as_bytes())?;
    if let Store::DynamoDb(DynamoDb { kcl_table: Some(table), .. }) = &target.store {
        note(&format!("the rows of KCL table {table} change"));
    }
    if target.dry_run {
        say("nothing is changed, since this is a dry run\n");
        return Ok(false);
    }
    let is_agreed = confirmed(question, target.yes)?;
    if !is_agreed {
        say("nothing is changed\n");
    }
    Ok(is_agreed)
}

fn checkpoint(to: &Since) -> Checkpoint {
    match to {
        Since::Latest => Checkpoint::AtTimestamp(SystemTime::now()),
        Since::TrimHorizon => Checkpoint::TrimHorizon,
        Since::Time(time) => Checkpoint::AtTimestamp(*time),
        Since::Sequence(number) => Checkpoint::AfterSequenceNumber {
            sequence_number: number.clone(),
            sub_sequence_number: None,
        },
    }
}

fn target_shown(to: &Since) -> String {
    match to {
        Since::Latest => "the current end of the stream".to_owned(),
        Since::TrimHorizon => "the oldest record in retention".to_owned(),
        Since::Time(time) => time::shown(*time),
        Since::Sequence(number) => format!("the record after {number}"),
    }
}
