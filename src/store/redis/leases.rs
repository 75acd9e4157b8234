//! Leases in Redis: the arguments of the scripts, and the parsing of their replies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use redis::{FromRedisValue, Script, ScriptInvocation, Value};

use super::RedisStore;
use super::errors::{classify, classify_script_error, corrupt_value, shard_of};
use super::keys::{Key, Keys};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::record::ShardId;
use crate::store::Scope;
use crate::store::lease::{
    AdminEdit, Change, EditOutcome, FencedCheckpoint, HeartbeatRequest, HeartbeatResponse,
    IfLeased, Lease, LeaseStore, LeaseTable, Membership, SaveOutcome, WorkerEntry, format_name,
    format_parents, format_start, parse_lease, parse_name, parse_worker,
};

/// The largest integer that Lua represents exactly.
const LIMIT: u64 = (1 << 53) - 1;

impl LeaseStore for RedisStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        request: &'a HeartbeatRequest,
    ) -> BoxFuture<'a, Result<HeartbeatResponse>> {
        async move {
            let call = ScriptCall::of(self, scope, &self.scripts.exchange);
            call.run(|arguments| exchange_arguments(arguments, request)).await?.answer()
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        positions: &'a [FencedCheckpoint],
    ) -> BoxFuture<'a, Result<Vec<SaveOutcome>>> {
        async move {
            if positions.is_empty() {
                return Ok(Vec::new());
            }
            let call = ScriptCall::of(self, scope, &self.scripts.save_fenced);
            let arguments = |arguments: &mut ScriptInvocation<'_>| {
                for FencedCheckpoint { shard, epoch, checkpoint } in positions {
                    arguments.arg(shard.as_str()).arg(*epoch).arg(checkpoint.to_string());
                }
            };
            call.run(arguments).await?.verdicts(positions.len())
        }
        .boxed()
    }

    fn table<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<LeaseTable>> {
        async move {
            let call = ScriptCall::of(self, scope, &self.scripts.table);
            let mut reply = call.run(|_none| ()).await?;
            let now: u64 = reply.number()?;
            let (mut table, expiries) = reply.table()?;
            table.retain_workers(|worker| expiries[worker] > now);
            Ok(table)
        }
        .boxed()
    }

    fn edit<'a>(
        &'a self,
        scope: &'a Scope,
        edit: &'a AdminEdit,
        if_leased: IfLeased,
    ) -> BoxFuture<'a, Result<EditOutcome>> {
        async move {
            let call = ScriptCall::of(self, scope, &self.scripts.edit);
            let arguments = |arguments: &mut ScriptInvocation<'_>| {
                arguments.arg(u8::from(if_leased == IfLeased::Force));
                match edit {
                    AdminEdit::Set { positions } => {
                        arguments.arg("SET");
                        for (shard, checkpoint) in positions {
                            arguments.arg(shard.as_str()).arg(checkpoint.to_string());
                        }
                    }
                    AdminEdit::Clear => {
                        arguments.arg("CLEAR");
                    }
                }
            };
            let against: Option<String> = call.run(arguments).await?.next(Key::Leases)?;
            let worker = against.and_then(|word| parse_name(&word));
            Ok(worker.map_or(EditOutcome::Applied, |worker| EditOutcome::Refused { worker }))
        }
        .boxed()
    }
}

fn exchange_arguments(arguments: &mut ScriptInvocation<'_>, request: &HeartbeatRequest) {
    let known = request.known.map(|(generation, version)| [generation, version]);
    let [generation, version] =
        known.map_or_else(<[String; 2]>::default, |known| known.map(|number| number.to_string()));
    arguments
        .arg(&*format_name(&request.worker))
        .arg(request.incarnation)
        .arg(millis(request.lease_duration))
        .arg(request.capacity)
        .arg(u8::from(request.leaving))
        .arg(generation)
        .arg(version)
        .arg(u8::from(request.only_if_unchanged));
    for change in &request.changes {
        change_arguments(arguments, change);
    }
}

fn change_arguments(arguments: &mut ScriptInvocation<'_>, change: &Change) {
    let position = |checkpoint: &Option<Checkpoint>| {
        checkpoint.as_ref().map_or_else(String::new, Checkpoint::to_string)
    };
    match change {
        Change::Begin { first_poll } => arguments.arg("BEGIN").arg(*first_poll),
        Change::Add { shard, parents, start, checkpoint } => arguments
            .arg("ADD")
            .arg(shard.as_str())
            .arg(format_parents(parents))
            .arg(format_start(start.as_ref()))
            .arg(position(checkpoint)),
        Change::Identify { shard, start } => {
            arguments.arg("IDENTIFY").arg(shard.as_str()).arg(format_start(start.as_ref()))
        }
        Change::Replace { shard, parents, start, checkpoint } => arguments
            .arg("REPLACE")
            .arg(shard.as_str())
            .arg(format_parents(parents))
            .arg(start.as_str())
            .arg(checkpoint.to_string()),
        Change::Assign { shard, to } => {
            arguments.arg("ASSIGN").arg(shard.as_str()).arg(&*format_name(to))
        }
        Change::Offer { shard, to } => {
            arguments.arg("OFFER").arg(shard.as_str()).arg(&*format_name(to))
        }
        Change::Release { shard, epoch } => {
            arguments.arg("RELEASE").arg(shard.as_str()).arg(*epoch)
        }
        Change::Finish { shard, epoch } => arguments.arg("FINISH").arg(shard.as_str()).arg(*epoch),
        Change::MarkExpired { shard } => arguments.arg("LOSE").arg(shard.as_str()),
        Change::Forget { shard } => arguments.arg("FORGET").arg(shard.as_str()),
        Change::ReviveWorker { worker, member } => {
            let WorkerEntry { incarnation, joined, lease_duration, capacity } = member;
            arguments
                .arg("VOUCH")
                .arg(&*format_name(worker))
                .arg(*incarnation)
                .arg(*joined)
                .arg(millis(*lease_duration))
                .arg(*capacity)
        }
        Change::Restore { shard, incarnation, lease } => arguments
            .arg("RESTORE")
            .arg(shard.as_str())
            .arg(*incarnation)
            .arg(lease.line())
            .arg(u8::from(lease.parents.is_some()))
            .arg(position(&lease.checkpoint)),
    };
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(LIMIT).min(LIMIT)
}

/// A script with the keys of one application and stream.
struct ScriptCall<'a> {
    store: &'a RedisStore,
    keys: Keys,
    script: &'a Script,
}

impl<'a> ScriptCall<'a> {
    fn of(store: &'a RedisStore, scope: &Scope, script: &'a Script) -> Self {
        Self { store, keys: Keys::of(scope), script }
    }

    async fn run(self, arguments: impl FnOnce(&mut ScriptInvocation<'_>)) -> Result<Reply<'a>> {
        let Self { store, keys, script } = self;
        let mut call = script.prepare_invoke();
        for key in keys.all() {
            call.key(key);
        }
        arguments(&mut call);
        let mut connection = store.connection.clone();
        match call.invoke_async::<Value>(&mut connection).await {
            Ok(Value::Array(parts)) => Ok(Reply { store, keys, parts: parts.into_iter() }),
            Ok(part) => Ok(Reply { store, keys, parts: vec![part].into_iter() }),
            Err(error) => Err(classify_script_error(error, &store.address, &keys)),
        }
    }
}

/// The reply of a script, consumed part by part.
struct Reply<'a> {
    store: &'a RedisStore,
    keys: Keys,
    parts: std::vec::IntoIter<Value>,
}

impl Reply<'_> {
    /// Returns the next part, which concerns this key; nil after the last part.
    fn next<T: FromRedisValue>(&mut self, key: Key) -> Result<T> {
        let part = self.parts.next().unwrap_or(Value::Nil);
        T::from_redis_value(part)
            .map_err(|error| classify(error.into(), &self.store.address, &self.keys.of_part(key)))
    }

    fn number(&mut self) -> Result<u64> {
        self.next(Key::Fleet)
    }

    fn answer(mut self) -> Result<HeartbeatResponse> {
        let membership: String = self.next(Key::Workers)?;
        let membership = match &*membership {
            "RENEWED" => Membership::Renewed,
            "JOINED" => Membership::Joined,
            "OCCUPIED" => Membership::Occupied,
            "LEFT" => Membership::Left,
            _ => return Err(unknown(&membership)),
        };
        let applied = self.next(Key::Workers)?;
        let table = if self.parts.len() > 0 { Some(self.table()?.0) } else { None };
        Ok(HeartbeatResponse { membership, applied, table })
    }

    fn verdicts(mut self, count: usize) -> Result<Vec<SaveOutcome>> {
        let mut verdict = || {
            let verdict: String = self.next(Key::Checkpoints)?;
            match &*verdict {
                "SAVED" => Ok(SaveOutcome::Saved),
                "FORGOTTEN" => Ok(SaveOutcome::Forgotten),
                "LOST" => Ok(SaveOutcome::Lost),
                "UNREADABLE" => Ok(SaveOutcome::Unreadable),
                _ => Err(unknown(&verdict)),
            }
        };
        (0..count).map(|_| verdict()).collect()
    }

    /// Parses a whole table, with the expiry of each worker.
    fn table(&mut self) -> Result<(LeaseTable, HashMap<Arc<str>, u64>)> {
        let mut table = LeaseTable {
            generation: self.number()?,
            version: self.number()?,
            cleared: self.number()?,
            first_poll: self.number()?,
            ..LeaseTable::default()
        };
        let mut expiries = HashMap::new();
        for (word, line) in self.fields(Key::Workers)? {
            let word = String::from_utf8_lossy(&word);
            // The script replaces a worker that it cannot parse.
            let (Some(name), Some((member, expiry))) = (parse_name(&word), parse_worker(&line))
            else {
                continue;
            };
            expiries.insert(Arc::clone(&name), expiry);
            table.workers.insert(name, member);
        }
        for (field, line) in self.fields(Key::Leases)? {
            let Some(shard) = shard_of(&self.keys, Key::Leases, &field) else { continue };
            let lease = parse_lease(&line).unwrap_or_else(|| self.unreadable(Key::Leases, &shard));
            table.leases.insert(shard, lease);
        }
        for (field, text) in self.fields(Key::Checkpoints)? {
            let Some(shard) = shard_of(&self.keys, Key::Checkpoints, &field) else { continue };
            let lease = table.leases.entry(shard.clone()).or_default();
            match text.parse() {
                Ok(_) if lease.unreadable.is_some() => {}
                Ok(checkpoint) => lease.checkpoint = Some(checkpoint),
                Err(_) => *lease = self.unreadable(Key::Checkpoints, &shard),
            }
        }
        Ok((table, expiries))
    }

    /// Returns the lease of a shard with a field that cannot be parsed.
    fn unreadable(&self, key: Key, shard: &ShardId) -> Lease {
        let why = corrupt_value(&self.keys, key, shard.as_str()).to_string();
        Lease { unreadable: Some(why.into()), ..Lease::default() }
    }

    /// Returns the fields of a hash. Bytes that are not UTF-8 do not parse as a number or
    /// checkpoint either.
    fn fields(&mut self, key: Key) -> Result<HashMap<Vec<u8>, String>> {
        let fields: HashMap<Vec<u8>, Vec<u8>> = self.next(key)?;
        let text = |text: Vec<u8>| String::from_utf8_lossy(&text).into_owned();
        Ok(fields.into_iter().map(|(field, value)| (field, text(value))).collect())
    }
}

/// Returns the error for an unknown reply. The scripts are part of this version, so only a server
/// that is not Redis gives such a reply.
fn unknown(answer: &str) -> Error {
    Error::new(
        ErrorKind::StoreCorrupt,
        format!(
            "unexpected reply {answer:?} from a Redis script; check that the server is Redis or Valkey"
        ),
    )
}
