//! The model behind the SDK's HTTP interface: JSON in, JSON out, no socket.

use aws_sdk_kinesis::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::shards::Shard;
use super::{Action, Call, Kinesis, Model};

const ITERATOR_LIFE: u64 = 5 * 60 * 1000;
const TOKEN_LIFE: u64 = 300 * 1000;
const LARGEST_ANSWER: usize = 10 << 20;

/// An answer: its status and its body.
type Answer = (u16, String);

pub(super) fn http_client(kinesis: Kinesis) -> SharedHttpClient {
    let connector = SharedHttpConnector::new(Connector(kinesis));
    http_client_fn(move |_settings, _components| connector.clone())
}

#[derive(Debug, Clone)]
struct Connector(Kinesis);

/// Counts a call as under way until its future is gone.
struct Under(Kinesis);

impl Drop for Under {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let kinesis = self.0.clone();
        HttpConnectorFuture::new(async move {
            let target = request.headers().get("x-amz-target").unwrap_or_default();
            let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
            let body: Value = serde_json::from_slice(request.body().bytes().unwrap_or_default())
                .unwrap_or(Value::Null);
            let (index, action, latency) = {
                let mut model = kinesis.lock();
                model.in_flight += 1;
                let call = Call {
                    operation: operation.clone(),
                    shard: shard_of(&operation, &body),
                    at: Instant::now(),
                    status: None,
                    records: 0,
                    bytes: 0,
                };
                let mut hook = model.hook.take();
                let action = hook.as_mut().map_or(Action::Serve, |hook| hook(&call));
                model.hook = hook;
                model.calls.push(call);
                (model.calls.len() - 1, action, model.latency)
            };
            let _under = Under(kinesis.clone());
            tokio::task::yield_now().await;
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            let (status, body) = match action {
                Action::Serve => kinesis.lock().serve(index, &operation, &body),
                Action::Delay(time) => {
                    let answer = kinesis.lock().serve(index, &operation, &body);
                    tokio::time::sleep(time).await;
                    answer
                }
                Action::Lose => {
                    kinesis.lock().serve(index, &operation, &body);
                    return Err(ConnectorError::io("connection reset".into()));
                }
                Action::Fail { status, code, message } => refusal(status, code, message),
                Action::Raw { status, body } => (status, body.to_owned()),
                Action::Refuse => return Err(ConnectorError::io("connection refused".into())),
                Action::Hang => std::future::pending().await,
            };
            let date = {
                let mut model = kinesis.lock();
                model.calls[index].status = Some(status);
                let seconds = i64::try_from(model.now() / 1000).expect("a sane time");
                aws_smithy_types::DateTime::from_secs(seconds)
                    .fmt(aws_smithy_types::date_time::Format::HttpDate)
                    .expect("a sane time")
            };
            let status = StatusCode::try_from(status).expect("a valid status");
            let mut response = HttpResponse::new(status, SdkBody::from(body));
            response.headers_mut().insert("date", date);
            response.headers_mut().insert("content-type", "application/x-amz-json-1.1");
            Ok(response)
        })
    }
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    (status, json!({ "__type": code, "message": message }).to_string())
}

fn invalid(message: &str) -> Answer {
    refusal(400, "InvalidArgumentException", message)
}

fn not_found(what: &str) -> Answer {
    refusal(400, "ResourceNotFoundException", &format!("{what} not found"))
}

fn id(shard: usize) -> String {
    format!("shardId-{shard:012}")
}

fn index_of(id: &str) -> Option<usize> {
    id.strip_prefix("shardId-")?.parse().ok()
}

/// An iterator names the stream, the shard, the next record and the time it was given.
fn iterator(stream: &str, shard: usize, next: usize, now: u64) -> String {
    format!("{stream}/{shard}/{next}/{now}")
}

fn shard_of(operation: &str, body: &Value) -> Option<usize> {
    match operation {
        "GetRecords" => body["ShardIterator"].as_str()?.split('/').nth(1)?.parse().ok(),
        "GetShardIterator" => index_of(body["ShardId"].as_str()?),
        _ => None,
    }
}

impl Model {
    fn serve(&mut self, call: usize, operation: &str, body: &Value) -> Answer {
        match operation {
            "ListShards" => self.list_shards(body),
            "GetShardIterator" => self.shard_iterator(body),
            "GetRecords" => self.records(call, body),
            _ => refusal(400, "UnknownOperationException", operation),
        }
    }

    fn stream_of(&self, body: &Value) -> Option<String> {
        let name = match (&body["StreamName"], &body["StreamARN"]) {
            (Value::String(name), _) => name.clone(),
            (_, Value::String(arn)) => arn.rsplit('/').next()?.to_owned(),
            _ => return None,
        };
        self.streams.contains_key(&name).then_some(name)
    }

    fn list_shards(&mut self, body: &Value) -> Answer {
        let now = self.now();
        let (stream, from) = if let Value::String(token) = &body["NextToken"] {
            if body.get("StreamName").is_some() || body.get("StreamARN").is_some() {
                self.violations.push("a NextToken beside the name of a stream".to_owned());
                return invalid("NextToken and StreamName cannot be provided together");
            }
            let mut parts = token.split('/');
            let stream = parts.next().unwrap_or_default().to_owned();
            let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0_u64);
            let (from, given) = (number(), number());
            if now - given > TOKEN_LIFE {
                return refusal(400, "ExpiredNextTokenException", "the token has expired");
            }
            (stream, usize::try_from(from).expect("an index"))
        } else {
            match self.stream_of(body) {
                Some(stream) => (stream, 0),
                None => return not_found("Stream"),
            }
        };
        let since = body["ShardFilter"]["Timestamp"].as_f64().map(|seconds| seconds * 1000.0);
        let page = body["MaxResults"].as_u64().unwrap_or(1000).min(1000);
        let Some(shards) = self.streams.get(&stream).map(|stream| &stream.shards) else {
            return not_found("Stream");
        };
        let listed: Vec<usize> = (from..shards.len())
            .filter(|index| !shards[*index].expired)
            .filter(|index| match (since, shards[*index].closed) {
                (Some(since), Some(closed)) => closed as f64 >= since,
                _ => true,
            })
            .collect();
        let page = usize::try_from(page).expect("at most 1000");
        let next = listed.get(page).map(|next| format!("{stream}/{next}/{now}"));
        let page: Vec<Value> =
            listed.into_iter().take(page).map(|index| describe(index, &shards[index])).collect();
        (200, json!({ "Shards": page, "NextToken": next }).to_string())
    }

    fn shard_iterator(&mut self, body: &Value) -> Answer {
        let now = self.now();
        let Some(name) = self.stream_of(body) else {
            return not_found("Stream");
        };
        let index = body["ShardId"].as_str().and_then(index_of).unwrap_or(usize::MAX);
        let shards = &self.streams[&name].shards;
        let Some(shard) = shards.get(index).filter(|shard| !shard.expired) else {
            return not_found("Shard");
        };
        let number = body["StartingSequenceNumber"].as_str().unwrap_or_default();
        let place = || {
            let found = shard.records.iter().position(|record| record.number == number);
            found.filter(|place| *place >= shard.trimmed)
        };
        let refused = "StartingSequenceNumber used in GetShardIterator is invalid";
        let next = match body["ShardIteratorType"].as_str().unwrap_or_default() {
            "TRIM_HORIZON" => shard.trimmed,
            "LATEST" => shard.records.len(),
            "AT_TIMESTAMP" => {
                let time = body["Timestamp"].as_f64().unwrap_or_default() * 1000.0;
                if time > now as f64 {
                    return invalid("The timestamp cannot be greater than the current timestamp");
                }
                let at = |record: &super::shards::Stored| record.arrival as f64 >= time.floor();
                let found = shard.records.iter().position(at);
                found.unwrap_or(shard.records.len()).max(shard.trimmed)
            }
            "AT_SEQUENCE_NUMBER" => match place() {
                Some(place) => place,
                None => return invalid(refused),
            },
            "AFTER_SEQUENCE_NUMBER" => match place() {
                // As some servers do.
                Some(place) if !shard.open && place + 1 == shard.records.len() => {
                    return invalid(refused);
                }
                Some(place) => place + 1,
                None => return invalid(refused),
            },
            other => return invalid(&format!("no iterator type {other}")),
        };
        (200, json!({ "ShardIterator": iterator(&name, index, next, now) }).to_string())
    }

    fn records(&mut self, call: usize, body: &Value) -> Answer {
        let (now, instant) = (self.now(), Instant::now());
        let named = body["ShardIterator"].as_str().unwrap_or_default().to_owned();
        let parts: Vec<&str> = named.split('/').collect();
        let [name, index, next, given] = parts[..] else {
            return invalid("no such iterator");
        };
        let [index, next, given] =
            [index, next, given].map(|part| part.parse::<u64>().unwrap_or(0));
        let (index, next) = (index as usize, next as usize);
        let child_shards = self.child_shards;
        let Some(stream) = self.streams.get_mut(name) else {
            return not_found("Stream");
        };
        if now - given > ITERATOR_LIFE {
            return refusal(400, "ExpiredIteratorException", "Iterator expired");
        }
        let children = stream.children(index);
        let shard = &mut stream.shards[index];
        if shard.expired {
            return not_found("Shard");
        }
        if let Err(limit) = shard.may_read(instant) {
            self.violations.push(format!("{limit}, of shard {index}"));
            return refusal(400, "ProvisionedThroughputExceededException", limit);
        }
        let limit = body["Limit"].as_u64().unwrap_or(10_000).min(10_000) as usize;
        let mut place = next.max(shard.trimmed);
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(record) = shard.records.get(place).filter(|_| found.len() < limit) {
            let size = record.data.len() + 3;
            if !found.is_empty() && bytes + size > LARGEST_ANSWER {
                break;
            }
            bytes += size;
            place += 1;
            found.push(json!({
                "SequenceNumber": record.number,
                "ApproximateArrivalTimestamp": record.arrival as f64 / 1000.0,
                "Data": aws_smithy_types::base64::encode(&record.data),
                "PartitionKey": "key",
            }));
        }
        shard.was_read(instant, bytes);
        let behind = shard.records.get(place).map_or(0, |record| now - record.arrival);
        let at_end = !shard.open && place >= shard.records.len();
        let (call, count) = (&mut self.calls[call], found.len());
        (call.records, call.bytes) = (count, bytes);
        let mut answer = json!({ "Records": found, "MillisBehindLatest": behind });
        if !at_end {
            answer["NextShardIterator"] = json!(iterator(name, index, place, now));
        } else if child_shards {
            let child = |child: &usize| {
                let parents: Vec<String> = self.streams[name].shards[*child]
                    .parents
                    .iter()
                    .map(|shard| id(*shard))
                    .collect();
                json!({ "ShardId": id(*child), "ParentShards": parents, "HashKeyRange": range() })
            };
            answer["ChildShards"] = children.iter().map(child).collect();
        }
        (200, answer.to_string())
    }
}

fn range() -> Value {
    json!({ "StartingHashKey": "0", "EndingHashKey": u128::MAX.to_string() })
}

fn describe(index: usize, shard: &Shard) -> Value {
    let mut described = json!({
        "ShardId": id(index),
        "HashKeyRange": range(),
        "SequenceNumberRange": { "StartingSequenceNumber": "1" },
    });
    if let Some(parent) = shard.parents.first() {
        described["ParentShardId"] = json!(id(*parent));
    }
    if let Some(parent) = shard.parents.get(1) {
        described["AdjacentParentShardId"] = json!(id(*parent));
    }
    if !shard.open {
        described["SequenceNumberRange"]["EndingSequenceNumber"] = json!("9");
    }
    described
}
