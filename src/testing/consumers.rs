//! Enhanced fan-out: the registered consumers.

use serde_json::{Value, json};

use super::answer::{Answer, error_response};
use super::contents::{Registered, StreamContents};
use super::model::Model;
use super::operations::not_found;

/// <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_RegisterStreamConsumer.html>.
const MAX_CONSUMERS: usize = 20;

impl Model {
    pub(super) fn describe_stream(&self, body: &Value) -> Result<Value, Answer> {
        let (name, stream) = self.stream_of(body)?;
        let open = stream.shards.iter().filter(|shard| shard.closed.is_none()).count();
        Ok(json!({ "StreamDescriptionSummary": {
            "StreamName": name,
            "StreamARN": stream_arn(&name),
            "StreamStatus": "ACTIVE",
            "RetentionPeriodHours": self.retention.map_or(24, |millis| millis / 3_600_000),
            "StreamCreationTimestamp": 0,
            "EnhancedMonitoring": [],
            "OpenShardCount": open,
        } }))
    }

    pub(super) fn register(&mut self, body: &Value) -> Result<Value, Answer> {
        let (now, registration) = (self.now(), self.registration);
        let (stream, _) = self.stream_of(body)?;
        let name = body["ConsumerName"].as_str().unwrap_or_default().to_owned();
        let consumers = self.consumers_of(&stream)?;
        if consumers.iter().any(|known| known.name == name) {
            return Err(error_response(
                400,
                "ResourceInUseException",
                "the consumer already exists",
            ));
        }
        if consumers.len() >= MAX_CONSUMERS {
            return Err(error_response(
                400,
                "LimitExceededException",
                "the stream has 20 consumers",
            ));
        }
        let registered = Registered {
            arn: format!("{}/consumer/{name}:{}", stream_arn(&stream), now / 1000),
            name,
            created: now,
            active: now + registration.as_millis() as u64,
        };
        let described = registered.describe(now);
        consumers.push(registered);
        Ok(json!({ "Consumer": described }))
    }

    pub(super) fn describe_consumer(&mut self, body: &Value) -> Result<Value, Answer> {
        let now = self.now();
        let (stream, index) = self.consumer_of(body)?;
        let mut described = self.consumers_of(&stream)?[index].describe(now);
        described["StreamARN"] = json!(stream_arn(&stream));
        Ok(json!({ "ConsumerDescription": described }))
    }

    pub(super) fn deregister(&mut self, body: &Value) -> Result<Value, Answer> {
        let (stream, index) = self.consumer_of(body)?;
        self.consumers_of(&stream)?.remove(index);
        self.streams.get(&stream).into_iter().for_each(StreamContents::notify_subscriptions);
        Ok(json!({}))
    }

    fn consumers_of(&mut self, stream: &str) -> Result<&mut Vec<Registered>, Answer> {
        let stream = self.streams.get_mut(stream).ok_or_else(|| not_found("Stream"))?;
        Ok(&mut stream.consumers)
    }

    /// Returns the stream of a consumer, and its index there.
    pub(super) fn consumer_of(&self, body: &Value) -> Result<(String, usize), Answer> {
        let (stream, is_it): (_, &dyn Fn(&Registered) -> bool) = match &body["ConsumerARN"] {
            Value::String(arn) => {
                let stream = arn.split_once("/consumer/").map_or("", |(stream, _)| stream);
                let stream = stream.rsplit('/').next().unwrap_or_default().to_owned();
                (stream, &move |known| known.arn == *arn)
            }
            _ => (self.stream_of(body)?.0, &|known| body["ConsumerName"] == known.name),
        };
        let consumers = self.streams.get(&stream).map(|stream| &stream.consumers);
        let index = consumers.and_then(|consumers| consumers.iter().position(is_it));
        Ok((stream, index.ok_or_else(|| not_found("Consumer"))?))
    }
}

impl Registered {
    fn describe(&self, now: u64) -> Value {
        json!({
            "ConsumerName": self.name,
            "ConsumerARN": self.arn,
            "ConsumerStatus": if now < self.active { "CREATING" } else { "ACTIVE" },
            "ConsumerCreationTimestamp": self.created as f64 / 1000.0,
        })
    }
}

fn stream_arn(name: &str) -> String {
    format!("arn:aws:kinesis:eu-west-1:123456789012:stream/{name}")
}
