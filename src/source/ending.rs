//! Ending positions: where a bounded reading of a shard stops.
//!
//! ```text
//!            a record that arrived after the ending
//!   reading ────────────────────────────────────────────────────────► reached
//!    │    ▲                                                             ▲
//!    │    │ the listing shows the shard as closed                       │ a listing that began
//!    │    │ (its children may have records of the time)                 │ later shows the shard
//!    │    │                                                             │ as open
//!    │    └───────────────────────────────────────────────┐             │
//!    └─────────────────────────────────────────────────► at the tip ────┘ with the third response
//!         caught up, in a response to a call of the time
//!         at which no earlier arrival can follow
//! ```
//!
//! The end of a closed shard leads from each state but the last to the end of the shard, as always.
//!
//! Being caught up proves nothing about a shard that is closed: its children continue it. Two
//! sources must agree that it is open, because each of them may be wrong:
//!
//! - The responses. A closed shard names no next position at its end. Some servers do so later:
//!   ferrokinesis names one in the first response after a placement. So [`OPEN_RESPONSES`]
//!   consecutive ones must name a next position. Each placement restarts the count.
//! - A listing that began after the tip was seen. Listings are eventually consistent: one may show
//!   the stream as it was before a reshard.
//!
//! A reader that polls so rarely that each response needs a new iterator never counts that far.
//! After that time a listing is current: it decides alone once the tip is [`LISTING_SETTLES`] old.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Position;
use super::fetch_state::{FetchState, Interrupt};
use super::kinesis::MAX_CLOCK_SKEW;
use crate::clock::Clock;

/// The resolution of the `Date` header, by which the server's clock is known.
const DATE_RESOLUTION: Duration = Duration::from_secs(1);

/// The number of consecutive responses with a next position, including the one that shows the tip,
/// that show a shard as open.
const OPEN_RESPONSES: u32 = 3;

/// The time after which a listing shows a reshard for certain.
const LISTING_SETTLES: Duration = Duration::from_secs(60);

/// The position at which a consumer stops reading, so that its stream ends.
///
/// Each shard is read up to the ending position. The stream ends when no shard is left to read; see
/// [bounded reads](crate::guide::bounded_reads). Nothing about the ending is stored: the checkpoint
/// of a shard is that of its last acknowledged record, and a later start continues there.
///
/// ```no_run
/// # async fn example(client: aws_sdk_kinesis::Client) -> kinestream::Result<()> {
/// use futures::TryStreamExt;
/// use kinestream::{Consumer, EndingPosition, StartingPosition};
///
/// // Everything that is in the stream now.
/// let consumer = Consumer::builder(client, "orders")
///     .starting_position(StartingPosition::TrimHorizon)
///     .ending_position(EndingPosition::Latest)
///     .build()?;
/// let mut records = consumer.records();
/// while let Some(record) = records.try_next().await? {
///     println!("{:?}", record.data());
/// }
/// consumer.close().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[doc(alias("until", "end offset", "stopping offset", "backfill", "bounded"))]
pub enum EndingPosition {
    /// Reading continues until the consumer is closed.
    #[default]
    Never,
    /// The tip of the stream at the first poll. Every record that was in the stream at that moment
    /// is delivered.
    ///
    /// A shard ends when it has caught up. Records that arrived between the first poll and that
    /// moment may be delivered as well: arrival times come from hosts whose clocks may differ, and
    /// do not show exactly which records were there. A shard that never catches up ends at the
    /// first record that arrived more than 5 min after the first poll.
    ///
    /// Each start, and each worker of a fleet, has its own first poll.
    Latest,
    /// The last record that arrived at this time or earlier, to the millisecond. The time may be in
    /// the future.
    ///
    /// A shard ends at the first record that arrived later, and delivers no record behind it. A
    /// shard without such a record ends when it has caught up 5 min after this time by the clock of
    /// Kinesis: the host that stamps the next record may have a clock that is so much behind. With
    /// [`fan_out`](crate::ConsumerBuilder::fan_out) it subscribes again after that time, which
    /// takes up to 5 s.
    AtTimestamp(SystemTime),
}

/// The ending position of one reading of the stream. Clones share what they learn of the server's
/// clock.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    Never,
    Tip(FirstPoll),
    At(SystemTime),
}

/// The moment of the first poll of a reading.
#[derive(Debug, Clone)]
pub(crate) struct FirstPoll {
    at: Instant,
    /// The same moment by the clock of this host.
    on_the_wall: SystemTime,
    /// The same moment by the server's clock, or one shortly after it.
    by_server: Arc<OnceLock<SystemTime>>,
}

impl Ending {
    /// Returns the ending position of a reading that is polled now for the first time.
    pub(crate) fn begin(position: EndingPosition, clock: &Clock) -> Self {
        match position {
            EndingPosition::Never => Self::Never,
            EndingPosition::Latest => Self::Tip(FirstPoll {
                at: Instant::now(),
                on_the_wall: clock.now(),
                by_server: Arc::default(),
            }),
            EndingPosition::AtTimestamp(time) => Self::At(time),
        }
    }

    /// Notes the time of a response by the server's clock, truncated to the second. The call was
    /// made at `asked`.
    pub(super) fn see_date(&self, date: SystemTime, asked: Instant) {
        if let Self::Tip(first_poll) = self {
            first_poll.by_server.get_or_init(|| {
                let latest = date.checked_add(DATE_RESOLUTION).unwrap_or(date);
                let since = asked.saturating_duration_since(first_poll.at);
                latest.checked_sub(since).unwrap_or(latest)
            });
        }
    }

    /// Returns true if no record is too late to be delivered.
    pub(super) fn is_never(&self) -> bool {
        matches!(self, Self::Never)
    }

    /// Returns true if a record with this arrival time, and every record after it in its shard, is
    /// not to be delivered.
    pub(super) fn is_before(&self, arrival: SystemTime) -> bool {
        match self {
            Self::Never => false,
            Self::Tip(first_poll) => is_later(arrival, first_poll.moment()),
            Self::At(time) => arrival > *time,
        }
    }

    /// Returns true if a shard that had caught up at `now` has no further record to deliver. `now`
    /// is by the server's clock, or earlier, and not before the first poll.
    pub(super) fn has_passed(&self, now: SystemTime) -> bool {
        match self {
            Self::Never => false,
            // Every record that was there at the first poll was there at `now`.
            Self::Tip(_) => true,
            Self::At(time) => is_later(now, *time),
        }
    }

    /// Returns true if no record at or after this position is to be delivered.
    fn precedes(&self, position: &Position) -> bool {
        matches!((self, position), (Self::At(time), Position::AtTimestamp(start)) if start > time)
    }
}

impl FirstPoll {
    /// Returns the moment by the server's clock, or one after it.
    fn moment(&self) -> SystemTime {
        let by_own_clock = || self.on_the_wall.checked_add(MAX_CLOCK_SKEW);
        let known = self.by_server.get().copied().or_else(by_own_clock);
        known.unwrap_or(self.on_the_wall)
    }
}

/// The tip of a shard, at a time after the ending position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tip {
    /// The earliest start of a listing that shows whether the shard is still open.
    since: Instant,
    /// The number of consecutive responses with a next position since then, or since the last
    /// placement.
    responses: u32,
}

impl Tip {
    /// Notes that the next response shows less than the one after it would.
    pub(super) fn restart(&mut self) {
        self.responses = 0;
    }

    /// Counts a response with a next position. Returns true if a listing decides now.
    fn note_next_position(&mut self) -> bool {
        self.responses = self.responses.saturating_add(1);
        self.responses >= OPEN_RESPONSES || self.since.elapsed() >= LISTING_SETTLES
    }
}

/// Returns true if `time` is later than `than` even if the clocks that show them differ.
fn is_later(time: SystemTime, than: SystemTime) -> bool {
    than.checked_add(MAX_CLOCK_SKEW).is_some_and(|than| time > than)
}

impl FetchState {
    /// Returns true if the position is after the ending position, so that no call is needed.
    pub(super) fn starts_after_ending(&self) -> bool {
        self.ending.precedes(&self.position)
    }

    /// Notes a response that shows the tip of the shard. `shown` is a moment at which the shard had
    /// no record after those of the response.
    pub(super) fn note_tip(&mut self, shown: Instant) {
        if self.state.tip.is_none() && self.ending.has_passed(self.server_time_at(shown)) {
            self.state.tip = Some(Tip { since: Instant::now(), responses: 1 });
        }
    }

    /// Returns true if a response that shows the tip at the present moment would be of use, and one
    /// of the moment `shown` is not.
    pub(super) fn needs_later_tip(&self, shown: Instant) -> bool {
        let passed = |at| self.ending.has_passed(self.server_time_at(at));
        self.state.tip.is_none() && passed(Instant::now()) && !passed(shown)
    }

    /// Handles a response that names a next position, before its records are taken. Ends the source
    /// at the ending position if the shard had caught up before and is still open. Returns true if
    /// the listing that shows this has failed: the response is then discarded, and its records are
    /// fetched again.
    ///
    /// Cancel safe: a response that was counted and is dropped is fetched again with a new
    /// placement, which restarts the count.
    pub(super) async fn end_at_tip(&mut self) -> Result<bool, Interrupt> {
        let Some(tip) = &mut self.state.tip else { return Ok(false) };
        if !tip.note_next_position() {
            return Ok(false);
        }
        let since = tip.since;
        let listed = self.kinesis.shard_presence(self.telemetry.shard_id(), since).await;
        let presence = match listed {
            Ok(presence) => presence,
            Err(failure) => return self.recover(failure).await.map(|()| true),
        };
        if presence.is_listed && !presence.has_ended {
            return Err(Interrupt::Reached);
        }
        // The children may have records of the time, so the shard is read to its end first.
        self.state.tip = None;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn first_poll_by_the_servers_clock_is_not_before_the_real_one() {
        let ending = Ending::begin(EndingPosition::Latest, &Clock::default());
        tokio::time::advance(Duration::from_secs(60)).await;
        // The server's clock shows between 1060 and 1061 s, 60 s after the first poll.
        ending.see_date(at(1060), Instant::now());
        let skew = MAX_CLOCK_SKEW;
        assert!(!ending.is_before(at(1001) + skew), "the clock of the host may be ahead");
        assert!(ending.is_before(at(1001) + skew + Duration::from_millis(1)));
        ending.see_date(at(5000), Instant::now());
        assert!(!ending.is_before(at(1001) + skew), "the first response decides");
    }

    proptest! {
        #[test]
        fn tip_ends_a_shard_only_when_no_arrival_up_to_the_ending_can_follow(
            ending in 0..2000_u64, now in 0..4000_u64, behind in 0..=300_u64,
        ) {
            let ending_at = Ending::At(at(ending));
            // A record that arrives from now on, with a stamp of a clock that is behind.
            let next = at(now.saturating_sub(behind));
            if ending_at.has_passed(at(now)) {
                prop_assert!(ending_at.is_before(next));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn listing_decides_after_three_responses_of_one_placement_or_a_minute() {
        let mut tip = Tip { since: Instant::now(), responses: 1 };
        assert!(!tip.note_next_position());
        tip.restart();
        assert!(!tip.note_next_position() && !tip.note_next_position());
        assert!(tip.note_next_position());
        tip.restart();
        tokio::time::advance(LISTING_SETTLES).await;
        assert!(tip.note_next_position());
    }

    #[test]
    fn extreme_times_overflow_nothing() {
        let largest = (0..64).rev().fold(SystemTime::UNIX_EPOCH, |time, bit| {
            time.checked_add(Duration::from_secs(1 << bit)).unwrap_or(time)
        });
        assert!(!Ending::At(largest).has_passed(largest));
        assert!(!Ending::At(largest).is_before(largest));
        assert!(!Ending::Never.is_before(largest));
        assert!(!Ending::Never.has_passed(largest));
    }

    #[test]
    fn start_after_the_ending_needs_no_call() {
        let ending = Ending::At(at(10));
        assert!(ending.precedes(&Position::AtTimestamp(at(11))));
        assert!(!ending.precedes(&Position::AtTimestamp(at(10))));
        assert!(!ending.precedes(&Position::TrimHorizon));
        assert!(!Ending::Never.precedes(&Position::AtTimestamp(at(11))));
    }
}
