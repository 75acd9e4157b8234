//! The log line of each event.

use super::Event;
use crate::telemetry::FallbackReason;

impl Event {
    /// Logs the event: at `warn` if it needs attention, at `info` if it is rare and normal, and
    /// otherwise at `debug`.
    pub(in crate::telemetry) fn trace(&self, stream: &str, application: &str) {
        macro_rules! log {
            ($level:ident, $message:literal $(, $name:ident = $value:expr)*) => {
                tracing::$level!(
                    stream, application, shard = self.shard_id().map(tracing::field::display),
                    $($name = $value,)* $message
                )
            };
        }
        use tracing::field;
        match self {
            Self::WorkerJoined { worker_id } => {
                log!(info, "worker joined", worker = worker_id.as_str());
            }
            Self::LeaseGained { epoch, .. } => log!(debug, "lease acquired", epoch = epoch),
            Self::LeaseReleased { epoch, .. } => {
                log!(debug, "lease release started", epoch = epoch);
            }
            Self::LeasesSuspended => log!(warn, "leases not renewed; delivery suspended"),
            Self::LeaseLost { epoch, .. } => log!(warn, "lease lost", epoch = epoch),
            Self::HandoffTimedOut { epoch, .. } => {
                log!(
                    warn,
                    "handoff timed out; unacknowledged records will be redelivered",
                    epoch = epoch
                );
            }
            Self::ShardStarted { position, .. } => {
                log!(debug, "shard started", position = position.as_ref().map(field::display));
            }
            Self::ShardEnded { children, .. } => {
                log!(debug, "shard read to its end", children = field::debug(children));
            }
            Self::EndingReached { .. } => log!(debug, "shard read to its ending position"),
            Self::ShardFailed { message, .. } => {
                log!(warn, "shard failed; releasing its lease", error = message.as_str());
            }
            Self::ShardFinished { .. } => log!(debug, "shard finished"),
            Self::Resharded { parents, .. } => {
                log!(info, "reshard detected", parents = field::debug(parents));
            }
            Self::CaughtUp { .. } => log!(debug, "shard caught up"),
            Self::Throttled { attempt, .. } => log!(debug, "call throttled", attempt = attempt),
            Self::Retried { message, attempt, .. } => {
                log!(debug, "call failed; retrying", error = message.as_str(), attempt = attempt);
            }
            Self::Gap { after, position, .. } => log!(
                warn,
                "records lost before they were read; reading continues",
                after = after.as_ref().map(field::display),
                position = field::display(position)
            ),
            Self::StoreFailed { message } => {
                log!(warn, "checkpoint write failed; retrying", error = message.as_str());
            }
            Self::StoreRecovered { after } => {
                log!(info, "checkpoint writes recovered", after = field::debug(after));
            }
            Self::StoreReset => log!(warn, "store lost its lease data; restoring it"),
            Self::ConsumerStalled { .. } => log!(warn, "shard not polled; releasing its lease"),
            Self::Stalled { limit, unacknowledged, oldest, .. } => log!(
                warn,
                "shard stalled at its in-flight limit; waiting for an acknowledgement",
                limit = limit.option(),
                unacknowledged = unacknowledged,
                oldest = field::debug(oldest)
            ),
            Self::TaskRestarted { task, message, .. } => {
                log!(
                    warn,
                    "task restarted after a panic",
                    task = task.as_str(),
                    error = message.as_str()
                );
            }
            Self::MigrationDelayed { worker_ids } => log!(
                warn,
                "migration of positions delayed: workers that read by name are alive",
                workers = field::debug(worker_ids)
            ),
            Self::PositionsMigrated { positions, refused: 0 } => {
                log!(info, "positions migrated from name to ARN", positions = positions);
            }
            Self::PositionsMigrated { positions, refused } => log!(
                warn,
                "positions under the stream's name refused: they belong to another stream",
                positions = positions,
                refused = refused
            ),
            Self::WireFormatFallback { reason: FallbackReason::Different } => {
                log!(warn, "CBOR and JSON responses differ; reading by JSON");
            }
            Self::WireFormatFallback { reason: FallbackReason::Unreadable } => {
                log!(warn, "a CBOR response cannot be decoded; reading by JSON");
            }
            Self::WireFormatFallback { reason } => {
                log!(debug, "reading by JSON", reason = reason.as_str());
            }
            Self::Lagged { .. } => {}
        }
    }
}
