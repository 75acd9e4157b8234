//! The consumer of enhanced fan-out: found or registered, and waited for.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::types::ConsumerStatus;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::Kinesis;
use crate::backoff::{Backoff, REGISTRATIONS};
use crate::cooldown::Cooldown;
use crate::error::{ClassifiedError, Error, ErrorKind, Result, RetryAction};
use crate::telemetry::log_line;

/// How long one attempt waits for a consumer to become ACTIVE. Each further attempt emits an event.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The time after which the caller gets an error for a consumer that stays inactive, or is registered and not
/// found. AWS names no time; registrations take seconds, and the KCL for Java waits for 60 s.
const LONGEST_INACTIVE: Duration = Duration::from_secs(300);

/// The consumer by which all shards of a stream are subscribed to.
#[derive(Debug)]
pub(crate) struct RegisteredConsumer {
    kinesis: Kinesis,
    /// A name or an ARN.
    consumer: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    arn: Option<Arc<str>>,
    cooldown: Cooldown,
    wait: Wait,
}

/// Since when the consumer has not been ACTIVE.
#[derive(Debug, Default)]
struct Wait {
    /// It is there.
    inactive: Option<Instant>,
    /// It is registered, and not found.
    unlisted: Option<Instant>,
}

impl RegisteredConsumer {
    /// `consumer` is a name or an ARN. Nothing is asked until it is needed.
    pub(crate) fn new(kinesis: Kinesis, consumer: &str) -> Self {
        Self { kinesis, consumer: consumer.into(), state: Mutex::default() }
    }

    /// The ARN of the consumer, once it is ACTIVE. Whoever asks first finds out for all.
    ///
    /// Cancel safe: whoever asks next goes on.
    pub(super) async fn arn(&self) -> Result<Arc<str>, ClassifiedError> {
        let mut state = self.state.lock().await;
        if let Some(arn) = &state.arn {
            return Ok(Arc::clone(arn));
        }
        state.cooldown.begin("the consumer of enhanced fan-out could not be found")?;
        match self.find(&mut state.wait).await {
            Ok(arn) => {
                *state = State { arn: Some(Arc::clone(&arn)), ..State::default() };
                Ok(arn)
            }
            Err(failure) => Err(state.cooldown.failed(failure)),
        }
    }

    /// It is not there any more: whoever asks next looks for it anew.
    pub(super) async fn forget(&self) {
        self.state.lock().await.arn = None;
    }

    /// Whoever it was registered by, it is no more.
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
                    log_line!(info, consumer = &*self.consumer, %status, "waiting for the consumer");
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
                                log_line!(info, consumer = &*self.consumer, "registered");
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
            // Also after a registration, which may be listed late.
            sleep(backoff.failed()).await;
        }
    }

    /// Reports a consumer that is not ACTIVE: to the caller where that lasts.
    fn inactive(&self, status: &ConsumerStatus, inactive: Duration) -> ClassifiedError {
        let message = format!(
            "consumer {} has been {status} for {} s, and only an ACTIVE one can be subscribed to; check \
             it by DescribeStreamConsumer, deregister it or set another name",
            self.consumer,
            inactive.as_secs()
        );
        let action =
            if inactive >= LONGEST_INACTIVE { RetryAction::Report } else { RetryAction::Retry };
        let error = Error::new(ErrorKind::Unavailable, message);
        ClassifiedError { action, error, answered: None }
    }

    /// Reports a registered consumer that is not found: to the caller where that lasts.
    fn unlisted(&self, unlisted: Duration) -> ClassifiedError {
        let message = format!(
            "consumer {} is registered, but DescribeStreamConsumer has not found it for {} s; check it by \
             ListStreamConsumers, or set another name",
            self.consumer,
            unlisted.as_secs()
        );
        let action =
            if unlisted >= LONGEST_INACTIVE { RetryAction::Report } else { RetryAction::Retry };
        let error = Error::new(ErrorKind::Unavailable, message);
        ClassifiedError { action, error, answered: None }
    }
}
