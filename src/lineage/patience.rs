//! What a failed listing asks for: another attempt, an error to the caller, or the end.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{ErrorKind, Failure, Remedy};

/// How long a Kinesis that has never answered may be out of reach before the caller is told: a
/// wrong endpoint or region looks just like a bad moment.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// How long answers that cannot be used may last before the caller is told.
const LASTING: Duration = Duration::from_secs(60);

/// For how long, and how often, a stream must not be found before that is believed: at the very
/// first start, where the name may be a mistake, and later.
const NEVER_FOUND: (Duration, u32) = (Duration::from_secs(2), 3);
const NOT_FOUND: (Duration, u32) = (Duration::from_secs(30), 3);

/// The failures of one listing since its last success.
#[derive(Debug)]
pub(super) struct Patience {
    /// Nobody has read anything yet.
    begins: bool,
    /// Nothing is known of the stream.
    is_new: bool,
    began: Instant,
    told: Option<ErrorKind>,
    /// Since when, and how often, Kinesis has answered nothing but that the stream does not exist.
    missing: Option<(Instant, u32)>,
    /// Since when Kinesis is in reach, and no answer could be used.
    useless: Option<Instant>,
}

/// What a failure asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Another attempt.
    Again,
    /// The same, and an error to the caller.
    Tell,
    /// The stream is gone.
    Gone,
}

impl Patience {
    pub(super) fn new(begins: bool, is_new: bool, now: Instant) -> Self {
        Self { begins, is_new, began: now, told: None, missing: None, useless: None }
    }

    pub(super) fn judge(&mut self, failure: &Failure, now: Instant) -> Judgement {
        if failure.remedy == Remedy::Gone {
            let (since, times) = self.missing.unwrap_or((now, 0));
            self.missing = Some((since, times + 1));
            let (time, least) = if self.is_new { NEVER_FOUND } else { NOT_FOUND };
            let is_gone = now.duration_since(since) >= time && times + 1 >= least;
            return if is_gone { Judgement::Gone } else { Judgement::Again };
        }
        self.missing = None;
        let is_useless = matches!(failure.remedy, Remedy::RestartListing | Remedy::RetryThenReport);
        if is_useless {
            self.useless.get_or_insert(now);
        } else if failure.remedy == Remedy::Retry {
            self.useless = None;
        }
        let lasting = self.useless.map_or(Duration::ZERO, |since| now.duration_since(since));
        let kind = failure.error.kind();
        let failing = now.duration_since(self.began);
        let is_due = match failure.remedy {
            Remedy::Report => self.told != Some(kind),
            Remedy::RetryThenReport if self.begins => {
                self.told.is_none() && failing >= FIRST_ANSWER
            }
            Remedy::RestartListing | Remedy::RetryThenReport => {
                self.told.is_none() && lasting >= LASTING
            }
            Remedy::Retry => self.told.is_none() && self.begins && failing >= FIRST_ANSWER,
            _ => false,
        };
        if !is_due {
            return Judgement::Again;
        }
        self.told = Some(kind);
        Judgement::Tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn failure(remedy: Remedy) -> Failure {
        Failure { remedy, error: Error::new(ErrorKind::Unavailable, "no"), answered: None }
    }

    /// What becomes of this failure each second, as long as it is waited for.
    fn judged(mut patience: Patience, remedy: Remedy, seconds: u64) -> Vec<Judgement> {
        let began = patience.began;
        let judge = |second| patience.judge(&failure(remedy), began + Duration::from_secs(second));
        (0..seconds).map(judge).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn missing_stream_is_believed_soon_only_where_nothing_is_known_of_it() {
        let first = |is_new| {
            let patience = Patience::new(true, is_new, Instant::now());
            let judged = judged(patience, Remedy::Gone, 60);
            judged.iter().position(|judgement| *judgement == Judgement::Gone)
        };
        assert_eq!((first(true), first(false)), (Some(2), Some(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn missing_stream_is_not_believed_beside_other_failures() {
        let now = Instant::now();
        let mut patience = Patience::new(true, true, now);
        for second in 0..100 {
            let remedy = if second % 2 == 0 { Remedy::Gone } else { Remedy::SlowDown };
            let judgement = patience.judge(&failure(remedy), now + Duration::from_secs(second));
            assert_eq!(judgement, Judgement::Again, "after {second} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn useless_answers_count_from_the_last_outage() {
        let now = Instant::now();
        let mut patience = Patience::new(false, false, now);
        let mut judge = |remedy, second| {
            patience.judge(&failure(remedy), now + Duration::from_secs(second)) == Judgement::Tell
        };
        for (remedy, second, is_told) in [
            (Remedy::Retry, 0, false),
            (Remedy::RetryThenReport, 70, false),
            (Remedy::Retry, 71, false),
            (Remedy::RestartListing, 80, false),
            (Remedy::SlowDown, 100, false),
            (Remedy::RetryThenReport, 139, false),
            (Remedy::RestartListing, 140, true),
        ] {
            assert_eq!(judge(remedy, second), is_told, "{remedy:?} after {second} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_failure_is_told_once() {
        for (remedy, begins, expected) in [
            (Remedy::Retry, true, Some(5)),
            (Remedy::Retry, false, None),
            (Remedy::RestartListing, false, Some(60)),
            (Remedy::RetryThenReport, true, Some(5)),
            (Remedy::RetryThenReport, false, Some(60)),
            (Remedy::Report, false, Some(0)),
            (Remedy::SlowDown, true, None),
        ] {
            let judged = judged(Patience::new(begins, false, Instant::now()), remedy, 200);
            let told: Vec<usize> = judged
                .iter()
                .enumerate()
                .filter(|(_, judgement)| **judgement == Judgement::Tell)
                .map(|(second, _)| second)
                .collect();
            assert_eq!(told, Vec::from_iter(expected), "{remedy:?}");
        }
    }
}
