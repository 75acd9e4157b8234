//! Carries out each operation on the model.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Answer, error_response};
use super::contents::{
    MAX_RECORDS, ShardContents, Stored, StreamContents, format_number, hash_key, id_of, index_of,
};
use super::model::Model;

/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetShardIterator.html>.
const ITERATOR_LIFE: u64 = 5 * 60 * 1000;
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_ListShards.html>.
const TOKEN_LIFE: u64 = 300 * 1000;
const LARGEST_PAGE: u64 = 1000;
/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_GetRecords.html>.
const LARGEST_ANSWER: usize = 10 << 20;

const NUMBER_REFUSED: &str = "StartingSequenceNumber used in GetShardIterator is invalid";

pub(super) fn invalid(message: &str) -> Answer {
    error_response(400, "InvalidArgumentException", message)
}

pub(super) fn not_found(what: &str) -> Answer {
    error_response(400, "ResourceNotFoundException", &format!("{what} not found"))
}

fn throttled(limit: &str) -> Answer {
    error_response(400, "ProvisionedThroughputExceededException", limit)
}

/// Returns an iterator or a page token: stream, shard, next record and time of issue.
pub(super) fn token(stream: &str, shard: usize, next: usize, now: u64) -> String {
    format!("{stream}/{shard}/{next}/{now}")
}

fn parse_token(token: &str) -> Option<(String, usize, usize, u64)> {
    let mut parts = token.split('/');
    let stream = parts.next()?.to_owned();
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (shard, next, given) = (number()?, number()?, number()?);
    Some((stream, usize::try_from(shard).ok()?, usize::try_from(next).ok()?, given))
}

/// Converts a time on the wire, in seconds, to milliseconds.
fn millis(seconds: &Value) -> Option<u64> {
    Some((seconds.as_f64()? * 1000.0).max(0.0) as u64)
}

/// The shards that a listing contains.
#[derive(Debug, Clone, Copy)]
enum Filter {
    /// Shards that are open at this time or later.
    From(u64),
    /// Shards that are open at this time.
    At(u64),
}

impl Filter {
    fn of(filter: &Value) -> Self {
        let time = millis(&filter["Timestamp"]).unwrap_or_default();
        if filter["Type"] == "AT_TIMESTAMP" { Self::At(time) } else { Self::From(time) }
    }

    /// Encodes the filter for a page token.
    fn number(self) -> u64 {
        match self {
            Self::From(time) => time << 1,
            Self::At(time) => time << 1 | 1,
        }
    }

    fn of_number(number: u64) -> Self {
        if number & 1 == 0 { Self::From(number >> 1) } else { Self::At(number >> 1) }
    }

    fn shows(self, shard: &ShardContents, opened: u64) -> bool {
        match self {
            Self::From(time) => shard.closed.is_none_or(|closed| closed >= time),
            Self::At(time) => opened <= time && shard.closed.is_none_or(|closed| closed > time),
        }
    }
}

impl Model {
    /// Carries out a call. `arrives` is true if the client receives the whole response.
    pub(super) fn serve(
        &mut self,
        call: usize,
        operation: &str,
        body: &Value,
        arrives: bool,
    ) -> Answer {
        let answer = match operation {
            "ListShards" => self.list_shards(body),
            "GetShardIterator" => self.shard_iterator(body),
            "GetRecords" => {
                let read = self.records(call, body, arrives);
                return read.unwrap_or_else(|refused| refused);
            }
            "PutRecord" => self.put_record(body),
            "PutRecords" => self.put_records(body),
            "DescribeStreamSummary" => self.describe_stream(body),
            "RegisterStreamConsumer" => self.register(body),
            "DescribeStreamConsumer" => self.describe_consumer(body),
            "DeregisterStreamConsumer" => self.deregister(body),
            _ => Err(error_response(400, "UnknownOperationException", operation)),
        };
        answer.map_or_else(|refused| refused, |members| Answer::of(200, members))
    }

    fn violation(&mut self, what: &str) -> Answer {
        self.violations.push(what.to_owned());
        throttled(what)
    }

    pub(super) fn stream_of(&self, body: &Value) -> Result<(String, &StreamContents), Answer> {
        let name = match (&body["StreamName"], &body["StreamARN"]) {
            (Value::String(name), _) => name,
            (_, Value::String(arn)) => arn.rsplit('/').next().unwrap_or_default(),
            _ => return Err(invalid("missing StreamName or StreamARN")),
        };
        let stream = self.streams.get(name).ok_or_else(|| not_found("Stream"))?;
        Ok((name.to_owned(), stream))
    }

    /// Returns the arrival time of the oldest record in retention.
    pub(super) fn oldest(&self) -> u64 {
        self.retention.map_or(0, |retention| self.now().saturating_sub(retention))
    }

    fn has_expired(&self, given: u64, life: u64) -> bool {
        given < self.expired || self.now() - given > life
    }

    fn list_shards(&mut self, body: &Value) -> Result<Value, Answer> {
        let now = self.now();
        let (name, from, filter) = if let Value::String(next) = &body["NextToken"] {
            if body.get("StreamName").is_some() || body.get("StreamARN").is_some() {
                self.violations.push("ListShards with both NextToken and a stream name".to_owned());
                return Err(invalid("NextToken and StreamName cannot be provided together"));
            }
            let (name, from, since, given) =
                parse_token(next).ok_or_else(|| invalid("NextToken is invalid"))?;
            let is_of_deleted =
                self.streams.get(&name).is_some_and(|stream| given < stream.created);
            if is_of_deleted || self.has_expired(given, TOKEN_LIFE) {
                return Err(error_response(
                    400,
                    "ExpiredNextTokenException",
                    "the token has expired",
                ));
            }
            (name, from, Filter::of_number(since as u64))
        } else {
            (self.stream_of(body)?.0, 0, Filter::of(&body["ShardFilter"]))
        };
        let page = body["MaxResults"].as_u64().unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE) as usize;
        let stream = self.streams.get(&name).ok_or_else(|| not_found("Stream"))?;
        let listed: Vec<usize> = (from..stream.shards.len())
            .filter(|index| !stream.shards[*index].expired)
            .filter(|index| filter.shows(&stream.shards[*index], stream.opened(*index)))
            .collect();
        let next = listed.get(page).map(|next| token(&name, *next, filter.number() as usize, now));
        let page: Vec<Value> = listed
            .into_iter()
            .take(page)
            .map(|index| describe(index, &stream.shards[index]))
            .collect();
        Ok(json!({ "Shards": page, "NextToken": next }))
    }

    fn shard_iterator(&mut self, body: &Value) -> Result<Value, Answer> {
        let (now, instant) = (self.now(), Instant::now());
        let (name, _) = self.stream_of(body)?;
        let (oldest, accepted) = (self.oldest(), self.trimmed_accepted);
        let index = body["ShardId"].as_str().and_then(index_of).unwrap_or(usize::MAX);
        let shard = self
            .streams
            .get_mut(&name)
            .and_then(|stream| stream.shards.get_mut(index))
            .filter(|shard| !shard.expired)
            .ok_or_else(|| not_found("Shard"))?;
        shard.trim_expired(oldest);
        if !shard.iterators.admits(instant) {
            return Err(self.violation(&format!(
                "shard {index}: more than 5 GetShardIterator calls in one second"
            )));
        }
        let next = place(
            shard,
            body["ShardIteratorType"].as_str().unwrap_or_default(),
            body["StartingSequenceNumber"].as_str().unwrap_or_default(),
            &body["Timestamp"],
            now,
            accepted,
        )?;
        Ok(json!({ "ShardIterator": token(&name, index, next, now) }))
    }

    fn records(&mut self, call: usize, body: &Value, arrives: bool) -> Result<Answer, Answer> {
        let (now, instant) = (self.now(), Instant::now());
        let named = body["ShardIterator"].as_str().unwrap_or_default();
        let Some((name, index, next, given)) = parse_token(named) else {
            self.violations.push(format!("unknown shard iterator: {named:?}"));
            return Err(invalid("unknown shard iterator"));
        };
        if self.has_expired(given, ITERATOR_LIFE) {
            return Err(error_response(400, "ExpiredIteratorException", "Iterator expired"));
        }
        let (child_shards, oldest) = (self.child_shards, self.oldest());
        let stream = self.streams.get_mut(&name).ok_or_else(|| not_found("Stream"))?;
        if given < stream.created {
            return Err(error_response(400, "ExpiredIteratorException", "Iterator expired"));
        }
        let shard = stream
            .shards
            .get_mut(index)
            .filter(|shard| !shard.expired)
            .ok_or_else(|| not_found("Shard"))?;
        if shard.occupied.is_some_and(|until| instant < until) {
            return Err(throttled("Rate exceeded for shard"));
        }
        if !shard.reads.admits(instant) {
            return Err(self
                .violation(&format!("shard {index}: more than 5 GetRecords calls in one second")));
        }
        if !shard.bytes.admits(instant) {
            if !shard.bytes.are_known() {
                return Err(throttled("Rate exceeded for shard"));
            }
            return Err(
                self.violation(&format!("shard {index}: more than 2 MiB read in one second"))
            );
        }
        shard.trim_expired(oldest);
        let limit = body["Limit"].as_u64().unwrap_or(MAX_RECORDS).min(MAX_RECORDS) as usize;
        let place = next.max(shard.trimmed);
        let first = place.min(shard.records.len());
        let (count, bytes) = records_that_fit(&shard.records[first..], limit);
        let found = shard.records[first..first + count].to_vec();
        shard.bytes.read(instant, bytes, arrives);
        let next = first + count;
        let behind = shard.records.get(next).map_or(0, |record| now.saturating_sub(record.arrival));
        let is_done = shard.closed.is_some() && next >= shard.records.len();
        // An iterator of a closed shard counts the responses from the last record on.
        let passed = place.saturating_sub(next);
        let at_end = is_done && passed >= self.responses_before_end;
        if arrives {
            let call = &mut self.calls[call];
            (call.records, call.bytes) = (count, bytes);
            let last = shard.records[first..next].last();
            call.last = last.and_then(|record| record.number.parse().ok());
        }
        let mut members = json!({ "MillisBehindLatest": behind });
        if !at_end {
            let next = if is_done { next + passed + 1 } else { next };
            members["NextShardIterator"] = json!(token(&name, index, next, now));
        } else if child_shards {
            members["ChildShards"] = describe_children(stream, index);
        }
        Ok(Answer { records: Some(found), ..Answer::of(200, members) })
    }

    /// Notes that the response to a `GetRecords` call, which was carried out, has not arrived
    /// completely.
    pub(super) fn lose(&mut self, call: usize, body: &Value) {
        let call = &mut self.calls[call];
        (call.records, call.bytes, call.last) = (0, 0, None);
        let named = body["ShardIterator"].as_str().and_then(parse_token);
        let Some((name, index, ..)) = named else { return };
        let stream = self.streams.get_mut(&name);
        if let Some(shard) = stream.and_then(|stream| stream.shards.get_mut(index)) {
            shard.bytes.lose();
        }
    }

    fn put_record(&mut self, body: &Value) -> Result<Value, Answer> {
        let (name, _) = self.stream_of(body)?;
        self.put(&name, body)
    }

    fn put_records(&mut self, body: &Value) -> Result<Value, Answer> {
        let (name, _) = self.stream_of(body)?;
        let entries = body["Records"].as_array().cloned().unwrap_or_default();
        let put = entries.iter().map(|entry| self.put(&name, entry));
        let put = put.collect::<Result<Vec<_>, _>>()?;
        Ok(json!({ "FailedRecordCount": 0, "Records": put }))
    }

    fn put(&mut self, stream: &str, entry: &Value) -> Result<Value, Answer> {
        let now = self.now();
        let stream = self.streams.get_mut(stream).ok_or_else(|| not_found("Stream"))?;
        let key = entry["PartitionKey"].as_str().unwrap_or_default().to_owned();
        let data = entry["Data"].as_str().map(aws_smithy_types::base64::decode);
        let Some(Ok(data)) = data else { return Err(invalid("Data is not base64")) };
        let hash = match entry["ExplicitHashKey"].as_str() {
            Some(explicit) => {
                explicit.parse().map_err(|_| invalid("ExplicitHashKey is not a number"))?
            }
            None => hash_key(&key),
        };
        let shard = stream.shard_of_key(hash).ok_or_else(|| not_found("Shard"))?;
        let number = stream.put(shard, key, data, now);
        Ok(json!({ "ShardId": id_of(shard), "SequenceNumber": number }))
    }
}

/// Returns the index of the first record of an iterator.
pub(super) fn place(
    shard: &ShardContents,
    iterator_type: &str,
    number: &str,
    timestamp: &Value,
    now: u64,
    accepted: bool,
) -> Result<usize, Answer> {
    // Sequence numbers have no leading zeros, so the longer one is the greater one.
    let is_below = |record: &Stored, number: &str| {
        (record.number.len(), &record.number[..]) < (number.len(), number)
    };
    let named = || {
        let place = shard.records.partition_point(|record| is_below(record, number));
        let is_record = shard.records.get(place).is_some_and(|record| record.number == number);
        let is_known = is_record || shard.continuations.contains_key(number);
        let is_kept = place >= shard.trimmed;
        let found = match is_known {
            true if is_kept => Some((place, is_record)),
            true if accepted => Some((shard.trimmed, false)),
            _ => None,
        };
        found.ok_or_else(|| invalid(NUMBER_REFUSED))
    };
    match iterator_type {
        "TRIM_HORIZON" => Ok(shard.trimmed),
        "LATEST" => Ok(shard.records.len()),
        "AT_TIMESTAMP" => {
            let time = millis(timestamp).unwrap_or_default();
            if time > now {
                return Err(invalid("The timestamp cannot be greater than the current timestamp"));
            }
            let found = shard.records.iter().position(|record| record.arrival >= time);
            Ok(found.unwrap_or(shard.records.len()).max(shard.trimmed))
        }
        "AT_SEQUENCE_NUMBER" => named().map(|(place, _)| place),
        "AFTER_SEQUENCE_NUMBER" => match named()? {
            // Some servers refuse the last number of a closed shard.
            (last, true) if shard.closed.is_some() && last + 1 == shard.records.len() => {
                Err(invalid(NUMBER_REFUSED))
            }
            (place, is_record) => Ok(place + usize::from(is_record)),
        },
        other => Err(invalid(&format!("unknown iterator type {other}"))),
    }
}

/// Returns the number of records that fit into a response, and their bytes. One record always fits.
pub(super) fn records_that_fit(records: &[Stored], limit: usize) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for record in records.iter().take(limit) {
        if count > 0 && bytes + record.size() > LARGEST_ANSWER {
            break;
        }
        bytes += record.size();
        count += 1;
    }
    (count, bytes)
}

fn hash_keys(shard: &ShardContents) -> Value {
    json!({
        "StartingHashKey": shard.first_key.to_string(),
        "EndingHashKey": shard.last_key.to_string(),
    })
}

pub(super) fn describe_children(stream: &StreamContents, parent: usize) -> Value {
    let describe = |(index, shard): (usize, &ShardContents)| {
        let parents: Vec<String> = shard.parents.iter().map(|parent| id_of(*parent)).collect();
        json!({ "ShardId": id_of(index), "ParentShards": parents, "HashKeyRange": hash_keys(shard) })
    };
    stream.children(parent).map(describe).collect()
}

fn describe(index: usize, shard: &ShardContents) -> Value {
    let mut described = json!({
        "ShardId": id_of(index),
        "HashKeyRange": hash_keys(shard),
        "SequenceNumberRange": { "StartingSequenceNumber": format_number(shard.start) },
    });
    if let Some(parent) = shard.parents.first() {
        described["ParentShardId"] = json!(id_of(*parent));
    }
    if let Some(parent) = shard.parents.get(1) {
        described["AdjacentParentShardId"] = json!(id_of(*parent));
    }
    if let Some(end) = shard.end {
        described["SequenceNumberRange"]["EndingSequenceNumber"] = json!(format_number(end));
    }
    described
}
