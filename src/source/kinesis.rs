//! Makes the calls to Kinesis. No other module of the consumer sends requests through the SDK.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::StalledStreamProtectionConfig;
use aws_sdk_kinesis::operation::list_shards::ListShardsOutput;
use aws_sdk_kinesis::operation::register_stream_consumer::RegisterStreamConsumerError;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{
    self, ConsumerDescription, ConsumerStatus, ShardFilter, ShardFilterType, ShardIteratorType,
};
use futures::TryFutureExt;
use tokio::time::Instant;

use super::Position;
use super::connections::ConnectionSlot;
use super::get_records::{RecordsCaller, RecordsOutcome, RecordsRequest};
use super::hash_range::{HashRange, HashRanges};
use super::listing::{Listing, Pages, restart_listing, start_mismatch, unusable_listing};
use super::listing_cache::{LISTING_INTERVAL, ListingCache, ShardPresence};
use super::retention_period::{Period, RetentionPeriod};
use super::sdk_call::{ServerDate, response, single_attempt};
use super::subscription::{MessageMeter, Subscription};
use super::wire_format::{ShardFailures, WireChoice, WireFormat};
use crate::error::{ClassifiedError, Error, ErrorKind, Result, RetryAction};
use crate::pacing::Pace;
use crate::record::{SequenceNumber, ShardId};

/// The maximum skew of a working clock. AWS rejects requests that are signed by a clock that is
/// further off:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html>.
pub(crate) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// One stream, accessed with the client of the caller.
#[derive(Debug, Clone)]
pub(crate) struct StreamClient {
    client: Client,
    name: Arc<str>,
    arn: Option<Arc<str>>,
    ranges: Arc<HashRanges>,
    listing_cache: Arc<ListingCache>,
    retention: Arc<RetentionPeriod>,
    wire: WireChoice,
}

impl StreamClient {
    /// Creates a handle for a stream. `stream` is a name or an ARN. The readers of all shards share
    /// the choice of the wire format.
    pub(crate) fn new(client: Client, stream: &str, format: WireFormat) -> Self {
        let (name, arn) = match stream.rsplit_once(":stream/") {
            Some((_, name)) if stream.starts_with("arn:") => (name, Some(stream.into())),
            _ => (stream, None),
        };
        Self {
            client,
            name: name.into(),
            arn,
            ranges: Arc::default(),
            listing_cache: Arc::default(),
            retention: Arc::default(),
            wire: WireChoice::new(format),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn target(&self) -> (Option<String>, Option<String>) {
        match &self.arn {
            Some(arn) => (None, Some(arn.to_string())),
            None => (Some(self.name.to_string()), None),
        }
    }

    pub(crate) async fn shard_iterator(
        &self,
        shard: &ShardId,
        position: &Position,
    ) -> Result<(Option<String>, Option<SystemTime>), ClassifiedError> {
        let (name, arn) = self.target();
        let call = self
            .client
            .get_shard_iterator()
            .set_stream_name(name)
            .set_stream_arn(arn)
            .shard_id(shard.as_str());
        let (kind, number, time) = iterator_start(position);
        let call =
            call.shard_iterator_type(kind).set_starting_sequence_number(number).set_timestamp(time);
        let date = ServerDate::default();
        let call =
            call.customize().config_override(single_attempt()).interceptor(date.clone()).send();
        Ok((response("GetShardIterator", call).await?.shard_iterator, date.read()))
    }

    /// Calls `GetRecords`. The response is read once there is memory for it. `pace` gives the turn of
    /// a call that has to be repeated.
    pub(super) async fn records(
        &self,
        request: RecordsRequest<'_>,
        failures: &mut ShardFailures,
        pace: &mut Pace,
    ) -> RecordsOutcome {
        let (client, arn) = (&self.client, self.arn.as_deref());
        RecordsCaller { client, arn, wire: &self.wire }.call(request, failures, pace).await
    }

    /// Returns the ARN of the stream. Looks it up if the stream was given by name.
    pub(super) async fn stream_arn(&self) -> Result<Arc<str>, ClassifiedError> {
        if let Some(arn) = &self.arn {
            return Ok(Arc::clone(arn));
        }
        let described = self.summary().await?;
        Ok(described.map(|summary| summary.stream_arn).unwrap_or_default().into())
    }

    async fn summary(&self) -> Result<Option<types::StreamDescriptionSummary>, ClassifiedError> {
        let (name, arn) = self.target();
        let call = self.client.describe_stream_summary();
        let call = call.set_stream_name(name).set_stream_arn(arn);
        let call = call.customize().config_override(single_attempt()).send();
        Ok(response("DescribeStreamSummary", call).await?.stream_description_summary)
    }

    /// Returns the retention period of the stream, from a lookup that began after `since`; 24 hours
    /// if Kinesis refuses the lookup.
    pub(super) async fn retention(&self, since: Instant) -> Result<Period, ClassifiedError> {
        let describe = async || {
            let hours = self.summary().await?.map_or(0, |summary| summary.retention_period_hours);
            match u64::try_from(hours) {
                // The SDK reads a missing field as 0.
                Ok(0) | Err(_) => Err(ClassifiedError::missing_field(
                    "DescribeStreamSummary",
                    "RetentionPeriodHours",
                )),
                Ok(hours) => Ok(Duration::from_secs(hours * 3600)),
            }
        };
        self.retention.get(since, describe).await
    }

    /// Returns the ARN and the status of a registered consumer. `consumer` is its name if the ARN
    /// of the stream is given, and its ARN otherwise.
    pub(super) async fn consumer(
        &self,
        stream_arn: Option<&str>,
        consumer: &str,
    ) -> Result<(Arc<str>, ConsumerStatus), ClassifiedError> {
        let described = self.described_consumer(stream_arn, consumer).await?;
        // The SDK reads a missing status as an empty one.
        if described.consumer_status.as_str().is_empty() {
            return Err(ClassifiedError::missing_field("DescribeStreamConsumer", "status"));
        }
        Ok((described.consumer_arn.into(), described.consumer_status))
    }

    /// Returns the ARN of the registered consumer with this name.
    pub(super) async fn consumer_arn(
        &self,
        stream_arn: &str,
        name: &str,
    ) -> Result<Arc<str>, ClassifiedError> {
        let described = self.described_consumer(Some(stream_arn), name).await?;
        Ok(described.consumer_arn.into())
    }

    async fn described_consumer(
        &self,
        stream_arn: Option<&str>,
        consumer: &str,
    ) -> Result<ConsumerDescription, ClassifiedError> {
        let call = self.client.describe_stream_consumer();
        let call = match stream_arn {
            Some(stream) => call.stream_arn(stream).consumer_name(consumer),
            None => call.consumer_arn(consumer),
        };
        let call = call.customize().config_override(single_attempt()).send();
        let described = response("DescribeStreamConsumer", call).await?.consumer_description;
        // The SDK reads a missing description or ARN as an empty one.
        described
            .filter(|consumer| !consumer.consumer_arn.is_empty())
            .ok_or_else(|| ClassifiedError::missing_field("DescribeStreamConsumer", "description"))
    }

    pub(super) async fn register(
        &self,
        stream_arn: &str,
        name: &str,
    ) -> Result<(), ClassifiedError> {
        let call = self.client.register_stream_consumer();
        let call = call.stream_arn(stream_arn).consumer_name(name);
        let call = call.customize().config_override(single_attempt()).send();
        let mut is_full = false;
        let call = call.inspect_err(|error| {
            let refused = error.as_service_error();
            is_full = refused.is_some_and(RegisterStreamConsumerError::is_limit_exceeded_exception);
        });
        let registered = response("RegisterStreamConsumer", call).await;
        registered
            .map(|_registered| ())
            .map_err(|failure| if is_full { too_many_consumers(failure) } else { failure })
    }

    pub(super) async fn deregister(&self, consumer_arn: &str) -> Result<(), ClassifiedError> {
        let call = self.client.deregister_stream_consumer().consumer_arn(consumer_arn);
        let call = call.customize().config_override(single_attempt()).send();
        response("DeregisterStreamConsumer", call).await.map(|_gone| ())
    }

    /// Calls `SubscribeToShard`. Events are read once there is memory for them.
    pub(super) async fn subscribe(
        &self,
        consumer_arn: &str,
        shard: &ShardId,
        position: &Position,
        meter: MessageMeter,
    ) -> Result<(Subscription, Option<SystemTime>), ClassifiedError> {
        let (kind, number, time) = iterator_start(position);
        let place = types::StartingPosition::builder()
            .r#type(kind)
            .set_sequence_number(number)
            .set_timestamp(time);
        // A subscription without events is not a stalled download. The crate detects a dead one
        // itself; the SDK would check every second.
        let (on, date) = (ConnectionSlot::take(), ServerDate::default());
        let settings = single_attempt()
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(on.timeout_config(self.client.config().timeout_config()));
        let call = self
            .client
            .subscribe_to_shard()
            .consumer_arn(consumer_arn)
            .shard_id(shard.as_str())
            // The type is given, so the position is complete.
            .set_starting_position(place.build().ok())
            .customize()
            .config_override(settings)
            .interceptor(meter.clone())
            .interceptor(date.clone())
            .send();
        let subscribed = response("SubscribeToShard", call).await?;
        Ok((Subscription::new(subscribed.event_stream, meter, on), date.read()))
    }

    /// Lists the shards of the stream that are within retention. Fails if the listing is evidently
    /// incomplete.
    pub(crate) async fn shards(&self) -> Result<Listing, ClassifiedError> {
        let listing = self.complete().await?;
        self.ranges.learn(&listing.shards).await;
        Ok(listing)
    }

    /// Lists the shards that were open [`MAX_CLOCK_SKEW`] before a time, because shards and
    /// records may be timed by different clocks. The listing may have holes.
    pub(crate) async fn shards_open_before(
        &self,
        time: SystemTime,
    ) -> Result<Listing, ClassifiedError> {
        self.pages(time.checked_sub(MAX_CLOCK_SKEW)).await
    }

    /// Returns the hash keys of a shard. The first request for a shard that was not listed yet
    /// lists all shards, for all callers.
    pub(super) async fn hash_range(&self, shard: &ShardId) -> Result<HashRange, ClassifiedError> {
        self.ranges.of(shard, async || Ok(self.complete().await?.shards)).await
    }

    /// Returns the state of a shard in a complete listing that began at `since` or later.
    pub(super) async fn shard_presence(
        &self,
        shard: &ShardId,
        since: Instant,
    ) -> Result<ShardPresence, ClassifiedError> {
        self.listing_cache.of(shard, since, async || Ok(self.complete().await?.shards)).await
    }

    /// Returns the sequence number at which a shard starts. Two new listings must agree on it.
    ///
    /// # Errors
    ///
    /// Fails if they differ, or if a listing fails.
    pub(super) async fn start_of(
        &self,
        shard: &ShardId,
    ) -> Result<Option<SequenceNumber>, ClassifiedError> {
        let began = Instant::now();
        let start = self.shard_presence(shard, began).await?.start;
        if self.shard_presence(shard, began + LISTING_INTERVAL).await?.start != start {
            return Err(start_mismatch(shard));
        }
        Ok(start)
    }

    async fn complete(&self) -> Result<Listing, ClassifiedError> {
        let listing = self.pages(None).await?;
        match listing.flaw() {
            Some(flaw) => Err(unusable_listing(format!("is incomplete: {flaw}"))),
            None => Ok(listing),
        }
    }

    async fn pages(&self, open_at: Option<SystemTime>) -> Result<Listing, ClassifiedError> {
        let asked = SystemTime::now();
        let (first, date) = self.page(Page::First(open_at)).await?;
        let mut pages = Pages::new(server_time(date, asked));
        let mut rest = pages.take(first)?;
        while let Some(next) = rest {
            let (page, _) = self.page(Page::Next(next)).await.map_err(restart_listing)?;
            rest = pages.take(page)?;
        }
        Ok(pages.listing)
    }

    async fn page(
        &self,
        page: Page,
    ) -> Result<(ListShardsOutput, Option<SystemTime>), ClassifiedError> {
        let call = self.client.list_shards();
        let call = match page {
            Page::First(open_at) => {
                let (name, arn) = self.target();
                let filter = open_at.map(|time| {
                    ShardFilter::builder()
                        .r#type(ShardFilterType::AtTimestamp)
                        .timestamp(time.into())
                        .build()
                });
                call.set_stream_name(name)
                    .set_stream_arn(arn)
                    // The type is given, so the filter is complete.
                    .set_shard_filter(filter.and_then(std::result::Result::ok))
            }
            // A token identifies its stream. Kinesis rejects it together with a name.
            Page::Next(token) => call.next_token(token),
        };
        let date = ServerDate::default();
        let call =
            call.customize().config_override(single_attempt()).interceptor(date.clone()).send();
        let listed = response("ListShards", call).await?;
        Ok((listed, date.read()))
    }
}

/// Makes the failure one to report to the caller, since no retry can succeed.
fn too_many_consumers(failure: ClassifiedError) -> ClassifiedError {
    let message = "RegisterStreamConsumer failed: LimitExceededException; a stream has at most 20 \
        registered consumers: deregister one, or pass the name of a registered one to fan_out";
    let error = Error::new(ErrorKind::Rejected, message).with_source(failure.error);
    ClassifiedError { action: RetryAction::Report, error, ..failure }
}

/// Returns the iterator type, sequence number and time that express a position in a call.
///
/// The last record read is fetched again and skipped: its presence shows that no record after it
/// has left retention. In addition, Kinesis may refuse to begin after the last number of a closed
/// shard.
fn iterator_start(position: &Position) -> (ShardIteratorType, Option<String>, Option<DateTime>) {
    if let Some(number) = position.number() {
        return (ShardIteratorType::AtSequenceNumber, Some(number.as_str().to_owned()), None);
    }
    match position.time() {
        Some(time) => (ShardIteratorType::AtTimestamp, None, Some(time.into())),
        None => (ShardIteratorType::TrimHorizon, None, None),
    }
}

enum Page {
    First(Option<SystemTime>),
    Next(String),
}

/// Returns a time by the server's clock that is not after the response: the second in its `Date`
/// header, or [`MAX_CLOCK_SKEW`] before the local time `asked` of the call. Records that arrive
/// from now on have no earlier time, even if a server keeps times in whole seconds.
pub(super) fn server_time(date: Option<SystemTime>, asked: SystemTime) -> SystemTime {
    date.unwrap_or_else(|| asked.checked_sub(MAX_CLOCK_SKEW).unwrap_or(asked))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn arn_yields_the_stream_name() {
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(aws_sdk_kinesis::config::BehaviorVersion::latest())
            .build();
        let client = Client::from_conf(config);
        let arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/orders";
        let kinesis = StreamClient::new(client.clone(), arn, WireFormat::Auto);
        assert_eq!(&**kinesis.name(), "orders");
        assert_eq!(kinesis.target(), (None, Some(arn.to_owned())));
        let kinesis = StreamClient::new(client, "orders", WireFormat::Auto);
        assert_eq!(kinesis.target(), (Some("orders".to_owned()), None));
    }

    #[test]
    fn missing_date_yields_the_local_time_less_the_skew() {
        let second = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(server_time(None, second), second - MAX_CLOCK_SKEW);
        assert_eq!(server_time(Some(second), second + MAX_CLOCK_SKEW), second);
    }
}
