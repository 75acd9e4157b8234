//! The entries of a lease table in Redis: the arguments of the scripts, and the parsing of their
//! replies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use redis::{AsyncCommands, FromRedisValue, Script, ScriptInvocation, Value};

use super::RedisStore;
use super::connection::Connection;
use super::errors::{classify, classify_script_error, corrupt_value, shard_of, wrong_key_type};
use super::keys::{Key, Keys};
use super::refusal::is_wrong_type;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Scope;
use crate::store::lease::{
    EntryChange, EntryKey, Exchange, Exchanged, FencedOutcome, FencedSave, Heartbeats,
    LastHeartbeat, LeaseStore, Step, format_name, parse_name,
};

/// The largest integer that Lua represents exactly.
const LIMIT: u64 = (1 << 53) - 1;

impl LeaseStore for RedisStore {
    fn exchange<'a>(
        &'a self,
        scope: &'a Scope,
        exchange: &'a Exchange,
    ) -> BoxFuture<'a, Result<Exchanged>> {
        async move {
            let call = ScriptCall::of(self, scope, &self.scripts.exchange);
            call.run(|arguments| exchange_arguments(arguments, exchange)).await?.exchanged()
        }
        .boxed()
    }

    fn save_fenced<'a>(
        &'a self,
        scope: &'a Scope,
        saves: &'a [FencedSave],
    ) -> BoxFuture<'a, Result<Vec<FencedOutcome>>> {
        async move {
            let saves = saves.iter().map(|save| (Some(save.epoch), save));
            self.save_texts(scope, saves.collect()).await
        }
        .boxed()
    }

    fn unreadable(&self, scope: &Scope, key: &EntryKey, _text: &str) -> String {
        let keys = Keys::of(scope);
        let error = match key {
            EntryKey::Lease(shard) => corrupt_value(&keys, Key::Leases, shard.as_str()),
            EntryKey::Position(shard) => corrupt_value(&keys, Key::Checkpoints, shard.as_str()),
            EntryKey::Worker(worker) => corrupt_value(&keys, Key::Workers, worker),
            _ => corrupt_value(&keys, Key::Fleet, "generation"),
        };
        error.to_string()
    }
}

impl RedisStore {
    /// Saves positions, each if the stored text is the expected one and, where an epoch is given, if
    /// the lease has it.
    pub(super) async fn save_texts(
        &self,
        scope: &Scope,
        saves: Vec<(Option<u64>, &FencedSave)>,
    ) -> Result<Vec<FencedOutcome>> {
        if saves.is_empty() {
            return Ok(Vec::new());
        }
        let call = ScriptCall::of(self, scope, &self.scripts.save);
        let count = saves.len();
        let arguments = |arguments: &mut ScriptInvocation<'_>| {
            for (epoch, save) in saves {
                let epoch = epoch.map_or_else(String::new, |epoch| epoch.to_string());
                let expected = optional(save.expected.as_deref());
                arguments.arg(save.shard.as_str()).arg(epoch).arg(expected);
                arguments.arg(optional(Some(&save.text)));
            }
        };
        call.run(arguments).await?.outcomes(count)
    }
}

fn exchange_arguments(arguments: &mut ScriptInvocation<'_>, exchange: &Exchange) {
    let Exchange { step, renewals, known } = exchange;
    let version = |version: Option<u64>| version.map_or_else(String::new, |it| it.to_string());
    let nothing = Step::default();
    let Step { version: of_step, silent, entries } = step.as_ref().unwrap_or(&nothing);
    arguments.arg(version(*known)).arg(version(*of_step)).arg(silent.len());
    for LastHeartbeat { worker, mark } in silent {
        arguments.arg(&*format_name(worker)).arg(if mark.is_empty() { NEVER } else { mark });
    }
    let fields = |change: &EntryChange| if change.key == EntryKey::Head { HEAD.len() } else { 1 };
    arguments.arg(entries.iter().map(fields).sum::<usize>());
    for change in entries {
        change_arguments(arguments, change);
    }
    for renewal in renewals {
        let duration =
            u64::try_from(renewal.lease_duration.as_millis()).unwrap_or(LIMIT).min(LIMIT);
        arguments.arg(&*format_name(&renewal.worker)).arg(&*renewal.entry).arg(duration);
    }
}

/// The expiry of a worker of which no heartbeat was noted.
const NEVER: &str = "0";

/// The expected text of an entry that is changed whatever its text is.
const ANY: &[u8] = b"*";

/// The fields of the head's words, in their order.
const HEAD: [&str; 5] = ["generation", "cleared", "first_poll", "epoch", FURTHER];

/// The field of the words that a later version has written. Without it, the others are numbers.
const FURTHER: &str = "further";

/// Adds the change of an entry. Each word of the head is a field of its own.
fn change_arguments(arguments: &mut ScriptInvocation<'_>, change: &EntryChange) {
    let (expected, text) = (change.expected.as_deref(), change.text.as_deref());
    let (kind, field) = match &change.key {
        EntryKey::Worker(worker) => ("W", format_name(worker)),
        EntryKey::Lease(shard) => ("L", shard.as_str().into()),
        EntryKey::Position(shard) => ("P", shard.as_str().into()),
        _ => {
            let word = |text: Option<&str>, index| {
                optional(text.and_then(|text| text.splitn(HEAD.len(), ' ').nth(index)))
            };
            for (index, field) in HEAD.into_iter().enumerate() {
                arguments.arg("F").arg(field).arg(word(expected, index)).arg(word(text, index));
            }
            return;
        }
    };
    let expected = if change.is_forced { ANY.to_vec() } else { optional(expected) };
    arguments.arg(kind).arg(&*field).arg(expected).arg(optional(text));
}

/// The beginning of the text that stands for stored bytes which are not UTF-8. The bytes follow in
/// hexadecimal.
const NOT_UTF8: &str = "\0bytes:";

/// Formats a text that may be absent as an argument of a script.
fn optional(text: Option<&str>) -> Vec<u8> {
    let Some(text) = text else { return Vec::new() };
    let bytes = text.strip_prefix(NOT_UTF8).map(|digits| {
        let pairs = digits.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        pairs.filter_map(byte).collect()
    });
    [b"=".to_vec(), bytes.unwrap_or_else(|| text.as_bytes().to_vec())].concat()
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
            Err(error) if is_wrong_type(&error) => {
                let key = key_of_wrong_type(&keys, &mut connection).await;
                Err(wrong_key_type(&keys, key.unwrap_or(Key::Checkpoints)))
            }
            Err(error) => Err(classify_script_error(error, &store.address, &keys)),
        }
    }
}

/// Returns the first key that holds a value of another type than the scripts expect.
async fn key_of_wrong_type(keys: &Keys, connection: &mut Connection) -> Option<Key> {
    for key in Key::ALL {
        let found: String = connection.key_type(keys.of_part(key)).await.ok()?;
        if found != "none" && found != key.kind() {
            return Some(key);
        }
    }
    None
}

/// The reply of a script, consumed part by part.
struct Reply<'a> {
    store: &'a RedisStore,
    keys: Keys,
    parts: std::vec::IntoIter<Value>,
}

impl Reply<'_> {
    /// Returns the next part; nil after the last part.
    fn next<T: FromRedisValue>(&mut self) -> Result<T> {
        let part = self.parts.next().unwrap_or(Value::Nil);
        let key = || self.keys.of_part(Key::Fleet);
        T::from_redis_value(part)
            .map_err(|error| classify(error.into(), &self.store.address, &key()))
    }

    /// Returns the next text, which may be absent.
    fn next_text(&mut self) -> Result<Option<Arc<str>>> {
        Ok(text_of(&self.next::<Vec<u8>>()?))
    }

    fn exchanged(mut self) -> Result<Exchanged> {
        let is_made = self.next()?;
        let is_whole = self.next()?;
        let time = Some(Duration::from_micros(self.next()?));
        let expired: Vec<(Vec<u8>, String)> = self.next()?;
        let heartbeats = expired.iter().filter_map(|(name, mark)| {
            Some(LastHeartbeat::new(name_of(name)?, if mark == NEVER { "" } else { &**mark }))
        });
        let heartbeats = Heartbeats::Expired(heartbeats.collect());
        let numbers: HashMap<Vec<u8>, Vec<u8>> = self.next()?;
        let number = |field: &str| Some(String::from_utf8_lossy(numbers.get(field.as_bytes())?));
        let version = number("version").map_or(Ok(0), |version| version.parse());
        let version = version.map_err(|_| unknown())?;
        let parts: Vec<(String, Vec<u8>, Vec<u8>)> = self.next()?;
        let is_of_head = |(kind, field, _): &(String, Vec<u8>, Vec<u8>)| {
            kind == "F" && HEAD.iter().any(|it| field == it.as_bytes())
        };
        let head = parts.iter().any(is_of_head).then(|| {
            let words = HEAD.map(|field| {
                number(field).unwrap_or(if field == FURTHER { "" } else { "0" }.into())
            });
            let text = number("generation").map(|_| words.join(" ").trim_end().into());
            (EntryKey::Head, text)
        });
        let entries = parts.iter().filter_map(|(kind, field, text)| {
            let key = match &**kind {
                "W" => EntryKey::Worker(name_of(field)?),
                "L" => EntryKey::Lease(shard_of(&self.keys, Key::Leases, field)?),
                "P" => EntryKey::Position(shard_of(&self.keys, Key::Checkpoints, field)?),
                _ => return None,
            };
            Some((key, text_of(text)))
        });
        let entries = head.into_iter().chain(entries).collect();
        Ok(Exchanged { is_made, version, is_whole, entries, heartbeats, time })
    }

    fn outcomes(mut self, count: usize) -> Result<Vec<FencedOutcome>> {
        if self.parts.len() != 3 * count {
            return Err(unknown());
        }
        let mut outcome = || {
            Ok(FencedOutcome {
                is_saved: self.next()?,
                lease: self.next_text()?,
                position: self.next_text()?,
            })
        };
        (0..count).map(|_| outcome()).collect()
    }
}

/// Parses the field of a worker; `None` if it is not the form of any name.
fn name_of(field: &[u8]) -> Option<Arc<str>> {
    let word = std::str::from_utf8(field).ok()?;
    parse_name(word).filter(|name| format_name(name) == word)
}

/// Parses a text that may be absent from a reply of a script.
fn text_of(bytes: &[u8]) -> Option<Arc<str>> {
    let bytes = bytes.strip_prefix(b"=")?;
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(text.into());
    }
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{NOT_UTF8}{}", digits.concat()).into())
}

/// Returns the error for an unknown reply. The scripts are part of this version, so only a server
/// that is not Redis gives such a reply.
fn unknown() -> Error {
    let message = "unexpected reply from a Redis script; check that the server is Redis or Valkey";
    Error::new(ErrorKind::StoreCorrupt, message)
}
