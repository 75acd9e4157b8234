//! Sends requests, one at a time, and retries the records that Kinesis has not stored.

use std::time::{Duration, Instant};

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::operation::put_records::PutRecordsError;
use aws_sdk_kinesis::{Client, Config};
use tokio::time::{Instant as TokioInstant, sleep, sleep_until};

use super::lines::Origin;
use super::request::{LARGEST_RECORD, MAX_RECORD, Request};
use crate::arguments::PutArguments;
use crate::client::of_stream;
use crate::failure::{Failure, Outcome};

/// The first pause after a failure, which doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The count of records that were put so far.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) began: Instant,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// The records that were sent again, each time.
    pub(super) retried: u64,
    /// The lines that are no record, and the first of them.
    pub(super) refused: u64,
    pub(super) first_refused: Option<Origin>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            records: 0,
            bytes: 0,
            retried: 0,
            refused: 0,
            first_refused: None,
        }
    }
}

/// Sends requests to one stream.
#[derive(Debug)]
pub(super) struct Sender {
    client: Client,
    stream: String,
    /// The failures in a row of the first record.
    failures: u32,
    retries: u32,
    rate: Option<u32>,
    /// The time from which the rate allows the next request.
    next: TokioInstant,
    /// The largest record that the stream allows; `None` before it was needed.
    max_record: Option<usize>,
    pub(super) tally: Tally,
}

impl Sender {
    pub(super) fn new(client: Client, arguments: &PutArguments) -> Self {
        Self {
            client,
            stream: arguments.stream.clone(),
            failures: 0,
            retries: arguments.retries,
            rate: arguments.rate,
            next: TokioInstant::now(),
            max_record: None,
            tally: Tally::new(),
        }
    }

    /// Returns the limit for a record of this size. Only a record above the usual limit needs a call,
    /// and if the call fails, as without its permission, the usual limit applies.
    pub(super) async fn max_record(&mut self, size: usize) -> usize {
        if size <= MAX_RECORD {
            return MAX_RECORD;
        }
        if let Some(limit) = self.max_record {
            return limit;
        }
        let call = of_stream!(self.client.describe_stream_summary(), &self.stream).send().await;
        let summary = call.ok().and_then(|response| response.stream_description_summary);
        let kib = summary.and_then(|summary| summary.max_record_size_in_kib);
        let limit = kib
            .and_then(|kib| usize::try_from(kib).ok())
            .map_or(MAX_RECORD, |kib| kib.saturating_mul(1024).clamp(MAX_RECORD, LARGEST_RECORD));
        *self.max_record.insert(limit)
    }

    /// Makes one call with the first records of the request, and removes those that Kinesis has
    /// stored. Returns the reason if it has not stored all of them, after a pause.
    ///
    /// If the response to a call is lost, its records may be stored: they are sent again, and are then
    /// stored twice.
    ///
    /// # Errors
    ///
    /// A failure that retries do not fix, or that has lasted for all retries.
    ///
    /// # Cancel safety
    ///
    /// The records of a dropped call stay in the request, and may have been stored.
    pub(super) async fn send(&mut self, request: &mut Request) -> Outcome<Option<String>> {
        let limit =
            self.rate.map_or(usize::MAX, |rate| usize::try_from(rate).unwrap_or(usize::MAX));
        sleep_until(self.next).await;
        let entries = request.entries(limit)?;
        let sent = entries.len();
        self.spend(sent);
        let call = of_stream!(self.client.put_records(), &self.stream).set_records(Some(entries));
        // The retries are those of the option, with their notes.
        let once = Config::builder().retry_config(RetryConfig::disabled());
        let (is_stored, reason) = match call.customize().config_override(once).send().await {
            Ok(response) => {
                let is_stored =
                    response.records.iter().map(|record| record.error_code.is_none()).collect();
                let failed = response.records.iter().find(|record| record.error_code.is_some());
                let reason = failed.map(|record| {
                    let code = record.error_code.as_deref().unwrap_or_default();
                    describe(code, record.error_message.as_deref().unwrap_or_default())
                });
                (is_stored, reason)
            }
            Err(error) if is_temporary(&error) => {
                let failure = Failure::of_call("PutRecords", Some(&self.stream), &error);
                (Vec::new(), Some(failure.message().to_owned()))
            }
            Err(error) => return Err(Failure::of_call("PutRecords", Some(&self.stream), &error)),
        };
        self.failures = if is_stored.first() == Some(&true) { 0 } else { self.failures + 1 };
        let (records, bytes) = request.retain_failed(&is_stored);
        self.tally.records += records;
        self.tally.bytes += bytes;
        let failed = sent as u64 - records;
        if failed == 0 {
            return Ok(None);
        }
        let reason = reason.unwrap_or_else(|| "the response lacks records".to_owned());
        if self.failures > self.retries {
            return Err(Failure::new(format!("gave up after {} retries: {reason}", self.retries)));
        }
        self.tally.retried += failed;
        sleep(pause(self.failures.max(1), fastrand::f64())).await;
        Ok(Some(reason))
    }

    fn spend(&mut self, records: usize) {
        let Some(rate) = self.rate else { return };
        let records = u32::try_from(records).unwrap_or(u32::MAX);
        self.next = self.next.max(TokioInstant::now())
            + Duration::from_secs_f64(f64::from(records) / f64::from(rate));
    }
}

/// Returns the pause after this many failures in a row, of which a random part is left out.
fn pause(failures: u32, random: f64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 - random / 2.0)
}

fn describe(code: &str, message: &str) -> String {
    match code {
        "ProvisionedThroughputExceededException" => "a shard is throttled by Kinesis".to_owned(),
        _ if message.is_empty() => code.to_owned(),
        _ => format!("{code}: {message}"),
    }
}

fn is_temporary(error: &SdkError<PutRecordsError, HttpResponse>) -> bool {
    match error {
        SdkError::ServiceError(response) => {
            let code = response.err().code().unwrap_or_default();
            response.raw().status().as_u16() >= 500
                || matches!(
                    code,
                    "ProvisionedThroughputExceededException"
                        | "LimitExceededException"
                        | "KMSThrottlingException"
                        | "ThrottlingException"
                        | "ThrottledException"
                        | "RequestLimitExceeded"
                        | "RequestTimeoutException"
                        | "InternalFailureException"
                )
        }
        SdkError::DispatchFailure(failure) => failure.is_io() || failure.is_timeout(),
        SdkError::ResponseError(_) | SdkError::TimeoutError(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use kinestream::testing::{Kinesis, Outcome as CallOutcome};

    use super::super::lines::Line;
    use super::super::request::Entry;
    use super::*;

    fn sender(kinesis: &Kinesis, rate: Option<u32>) -> Sender {
        Sender {
            client: kinesis.client(),
            stream: "orders".to_owned(),
            failures: 0,
            retries: 3,
            rate,
            next: TokioInstant::now(),
            max_record: None,
            tally: Tally::new(),
        }
    }

    fn request(records: u64) -> Request {
        let mut request = Request::default();
        for number in 0..records {
            let line = Line::of(number, &number.to_string());
            request.push(Entry::new("key".to_owned(), line, MAX_RECORD).unwrap());
        }
        request
    }

    #[tokio::test(start_paused = true)]
    async fn throttled_call_is_repeated() {
        let kinesis = Kinesis::new();
        let orders = kinesis.create_stream("orders", 1);
        kinesis.next_calls("PutRecords", 2, CallOutcome::throttled());
        let (mut sender, mut request) = (sender(&kinesis, None), request(3));
        let mut reasons = 0;
        while !request.is_empty() {
            reasons += usize::from(sender.send(&mut request).await.unwrap().is_some());
        }
        assert_eq!((reasons, sender.tally.records, sender.tally.retried), (2, 3, 6));
        assert_eq!(orders.shard(0).sequence_numbers().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_failure_ends_after_the_retries() {
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", 1);
        kinesis.on_call(|_| CallOutcome::throttled());
        let (mut sender, mut request) = (sender(&kinesis, None), request(2));
        let failure = loop {
            if let Err(failure) = sender.send(&mut request).await {
                break failure;
            }
        };
        assert!(failure.message().starts_with("gave up after 3 retries: "), "{failure:?}");
        assert_eq!(request.len(), 2, "expected the records to stay in the request");
    }

    #[tokio::test(start_paused = true)]
    async fn denied_call_is_not_repeated() {
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", 1);
        kinesis.on_call(|_| CallOutcome::failed(400, "AccessDeniedException", "no"));
        let failure = sender(&kinesis, None).send(&mut request(1)).await.unwrap_err();
        assert_eq!(failure.message(), "access denied: PutRecords");
        assert_eq!(kinesis.call_count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_stream_is_reported() {
        let failure = sender(&Kinesis::new(), None).send(&mut request(1)).await.unwrap_err();
        assert!(failure.is_unknown_stream(), "{failure:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn rate_spreads_the_records() {
        let kinesis = Kinesis::new();
        kinesis.create_stream("orders", 1);
        let began = TokioInstant::now();
        let (mut sender, mut request) = (sender(&kinesis, Some(10)), request(30));
        while !request.is_empty() {
            assert_eq!(sender.send(&mut request).await, Ok(None));
        }
        assert_eq!(began.elapsed().as_secs(), 2, "expected three requests of ten records");
    }

    #[test]
    fn pause_doubles_up_to_its_limit() {
        assert_eq!([1, 2, 3].map(|failures| pause(failures, 0.0).as_millis()), [100, 200, 400]);
        assert_eq!(pause(u32::MAX, 0.0), LONGEST_PAUSE);
        assert_eq!(pause(1, 1.0).as_millis(), 50);
    }
}
