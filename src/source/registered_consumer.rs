//! Finds or registers the consumer of enhanced fan-out, and waits until it is ACTIVE.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::types::ConsumerStatus;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::StreamClient;
use crate::backoff::{Backoff, REGISTRATIONS};
use crate::cooldown::Cooldown;
use crate::error::{ClassifiedError, Error, ErrorKind, Result, RetryAction};
use crate::telemetry::log_line;

/// The time for which one attempt waits for a consumer to become ACTIVE. Each further attempt emits
/// an event.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The time after which the caller receives an error for a consumer that stays inactive, or is
/// registered but not found. AWS documents no limit; registrations take seconds, and the KCL for
/// Java waits for 60 s.
const MAX_INACTIVE: Duration = Duration::from_secs(300);

/// The registered consumer that subscribes to all shards of a stream.
#[derive(Debug)]
pub(crate) struct RegisteredConsumer {
    kinesis: StreamClient,
    /// A name or an ARN.
    consumer: Arc<str>,
    state: Mutex<ConsumerState>,
}

#[derive(Debug, Default)]
struct ConsumerState {
    arn: Option<Arc<str>>,
    cooldown: Cooldown,
    wait: Wait,
}

/// The time since which the consumer has not been ACTIVE.
#[derive(Debug, Default)]
struct Wait {
    /// Set while the consumer is found, but is not ACTIVE.
    inactive: Option<Instant>,
    /// Set while the consumer is registered, but is not found.
    unlisted: Option<Instant>,
}

impl RegisteredConsumer {
    /// Creates a handle for `consumer`, a name or an ARN. Makes no call until the ARN is needed.
    pub(crate) fn new(kinesis: StreamClient, consumer: &str) -> Self {
        Self { kinesis, consumer: consumer.into(), state: Mutex::default() }
    }

    /// Returns the ARN of the consumer, once it is ACTIVE. The first caller looks it up for all
    /// callers.
    ///
    /// Cancel safe: the next caller continues the lookup.
    pub(super) async fn arn(&self) -> Result<Arc<str>, ClassifiedError> {
        let mut state = self.state.lock().await;
        if let Some(arn) = &state.arn {
            return Ok(Arc::clone(arn));
        }
        state.cooldown.begin("enhanced fan-out consumer lookup failed")?;
        match self.find(&mut state.wait).await {
            Ok(arn) => {
                *state = ConsumerState { arn: Some(Arc::clone(&arn)), ..ConsumerState::default() };
                Ok(arn)
            }
            Err(failure) => Err(state.cooldown.failed(failure)),
        }
    }

    /// Forgets the ARN of a consumer that no longer exists. The next caller looks it up again.
    pub(super) async fn forget(&self) {
        self.state.lock().await.arn = None;
    }

    /// Deregisters the consumer, even if it was registered by another program. Succeeds if the
    /// consumer does not exist.
    pub(crate) async fn deregister(&self) -> Result<()> {
        let known = self.state.lock().await.arn.take();
        let gone = async {
            let arn = match known {
                Some(arn) => arn,
                None if self.consumer.starts_with("arn:") => Arc::clone(&self.consumer),
                None => {
                    let stream = self.kinesis.stream_arn().await?;
                    self.kinesis.consumer_arn(&stream, &self.consumer).await?
                }
            };
            self.kinesis.deregister(&arn).await
        };
        match gone.await {
            Err(failure) if failure.action != RetryAction::Gone => {
                Err(failure.error.in_stream(self.kinesis.name()))
            }
            _ => Ok(()),
        }
    }

    /// Finds the consumer, or registers it, and waits until it is ACTIVE.
    async fn find(&self, wait: &mut Wait) -> Result<Arc<str>, ClassifiedError> {
        let began = Instant::now();
        let by_arn = self.consumer.starts_with("arn:");
        let stream = if by_arn { None } else { Some(self.kinesis.stream_arn().await?) };
        let mut backoff = Backoff::new(REGISTRATIONS);
        let mut is_registered = false;
        loop {
            match self.kinesis.consumer(stream.as_deref(), &self.consumer).await {
                Ok((arn, ConsumerStatus::Active)) => return Ok(arn),
                Ok((_, status)) => {
                    log_line!(info, consumer = &*self.consumer, %status, "consumer not ACTIVE yet");
                    wait.unlisted = None;
                    let inactive = wait.inactive.get_or_insert_with(Instant::now).elapsed();
                    if began.elapsed() >= ATTEMPT {
                        return Err(self.inactive(&status, inactive));
                    }
                }
                Err(failure) => match (failure.action, &stream) {
                    (RetryAction::Gone, Some(_)) if is_registered || began.elapsed() >= ATTEMPT => {
                        let unlisted = wait.unlisted.get_or_insert(began).elapsed();
                        return Err(self.unlisted(unlisted));
                    }
                    (RetryAction::Gone, Some(stream)) => {
                        wait.inactive = None;
                        match self.kinesis.register(stream, &self.consumer).await {
                            Ok(()) => {
                                log_line!(info, consumer = &*self.consumer, "consumer registered");
                                is_registered = true;
                            }
                            // Another worker was faster.
                            Err(failure) if failure.action == RetryAction::WaitForOther => {}
                            Err(failure) => return Err(failure),
                        }
                    }
                    _ => return Err(failure),
                },
            }
            // A new registration may appear late, so this also waits after a registration.
            sleep(backoff.failed()).await;
        }
    }

    /// Returns the failure for a consumer that is not ACTIVE. If this lasts for
    /// [`MAX_INACTIVE`], the caller receives it as an error.
    fn inactive(&self, status: &ConsumerStatus, inactive: Duration) -> ClassifiedError {
        let message = format!(
            "consumer {} has been {status} for {} s, and subscriptions need an ACTIVE consumer; check \
             it with DescribeStreamConsumer, deregister it or set another name",
            self.consumer,
            inactive.as_secs()
        );
        let action =
            if inactive >= MAX_INACTIVE { RetryAction::Report } else { RetryAction::Retry };
        let error = Error::new(ErrorKind::Unavailable, message);
        ClassifiedError { action, error, answered: None }
    }

    /// Returns the failure for a registered consumer that is not found. If this lasts for
    /// [`MAX_INACTIVE`], the caller receives it as an error.
    fn unlisted(&self, unlisted: Duration) -> ClassifiedError {
        let message = format!(
            "consumer {} is registered, but DescribeStreamConsumer has not found it for {} s; check it \
             with ListStreamConsumers, or set another name",
            self.consumer,
            unlisted.as_secs()
        );
        let action =
            if unlisted >= MAX_INACTIVE { RetryAction::Report } else { RetryAction::Retry };
        let error = Error::new(ErrorKind::Unavailable, message);
        ClassifiedError { action, error, answered: None }
    }
}
