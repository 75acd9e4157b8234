//! One call through the SDK: a single attempt within a time limit, in which panics are contained.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::{Builder, ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::{BoxError, ProvideErrorMetadata, SdkError};

use crate::error::{ClassifiedError, contain, date_of};
use crate::mutex::Mutex;

/// The timeout of a call: ten times as long as a response of 10 MiB takes at 30 Mbit/s.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns settings without the SDK's retries. This crate limits the rate of the calls, and each
/// attempt of the SDK would count as a call for the shard.
pub(super) fn single_attempt() -> Builder {
    Builder::new().retry_config(RetryConfig::disabled())
}

/// Makes a call, and classifies its failure.
///
/// Cancel safe: a dropped call may still be carried out by Kinesis.
pub(super) async fn response<T, E>(
    operation: &'static str,
    call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, ClassifiedError>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match contain(tokio::time::timeout(CALL_TIMEOUT, call)).await {
        Ok(Ok(result)) => result.map_err(|error| ClassifiedError::of(operation, error)),
        Ok(Err(_elapsed)) => Err(ClassifiedError::timed_out(operation, CALL_TIMEOUT.as_secs())),
        Err(panic) => Err(ClassifiedError::panicked(operation, panic)),
    }
}

/// Captures the `Date` header of a response, which the SDK does not pass on.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerDate(Arc<Mutex<Option<SystemTime>>>);

impl ServerDate {
    /// Returns the date of the last response, if it has one.
    pub(super) fn read(&self) -> Option<SystemTime> {
        *self.0.lock()
    }
}

impl Intercept for ServerDate {
    fn name(&self) -> &'static str {
        "ServerDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = date_of(context.response());
        *self.0.lock() = date;
        Ok(())
    }
}
