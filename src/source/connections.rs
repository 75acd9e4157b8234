//! Spreads subscriptions over HTTP/2 connections, so that none carries more than a server allows.
//!
//! The SDK's client opens one HTTP/2 connection per server. The server limits the number of
//! concurrent requests on it, and further requests wait until an earlier one completes. A
//! subscription lasts for minutes, so further subscriptions would wait that long, and so would
//! every other call of the client.
//!
//! The client keeps a separate connection for each connect timeout. Subscriptions therefore use
//! timeouts that differ by one millisecond: 32 subscriptions use the first timeout, the next 32 the
//! second one. A client that selects connections differently is not affected.

use std::sync::MutexGuard;
use std::time::Duration;

use aws_sdk_kinesis::config::timeout::TimeoutConfig;

use crate::mutex::Mutex;

/// The maximum number of subscriptions on one connection. A server should allow 100 concurrent
/// requests (<https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>), and a shard has two
/// subscriptions while one replaces the other.
const MOST_SHARED: usize = 32;

/// The default connect timeout of the SDK.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);

/// The number of subscriptions on each connection. All subscriptions of the process are counted
/// together, since many consumers may share one client.
static SHARED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn shared() -> MutexGuard<'static, Vec<usize>> {
    SHARED.lock()
}

/// A slot on a connection, released when it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    connection: usize,
}

impl ConnectionSlot {
    /// Takes a slot on the first connection that has a free one.
    pub(super) fn take() -> Self {
        let mut shared = shared();
        let free = shared.iter().position(|count| *count < MOST_SHARED);
        let connection = free.unwrap_or_else(|| {
            shared.push(0);
            shared.len() - 1
        });
        shared[connection] += 1;
        Self { connection }
    }

    /// Returns the timeouts that make the client use this connection. `known` are the client's own
    /// timeouts.
    pub(super) fn timeout_config(&self, known: Option<&TimeoutConfig>) -> TimeoutConfig {
        let known = known.and_then(TimeoutConfig::connect_timeout).unwrap_or(CONNECT_TIMEOUT);
        // Other calls of the client use the known timeout, and therefore another connection.
        let apart = Duration::from_millis(1 + self.connection as u64);
        TimeoutConfig::builder().connect_timeout(known + apart).build()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        shared()[self.connection] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(place: &ConnectionSlot) -> Duration {
        place.timeout_config(None).connect_timeout().unwrap()
    }

    #[test]
    fn connection_carries_at_most_the_maximum_of_subscriptions() {
        let mut places: Vec<ConnectionSlot> = (0..100).map(|_| ConnectionSlot::take()).collect();
        let mut timeouts: Vec<Duration> = places.iter().map(timeout).collect();
        timeouts.sort();
        assert_ne!(timeouts[0], CONNECT_TIMEOUT, "the client's own calls use another timeout");
        let shared = timeouts.chunk_by(|one, other| one == other).map(<[_]>::len);
        let shared: Vec<usize> = shared.collect();
        assert!(shared.iter().all(|count| *count <= MOST_SHARED), "{shared:?}");
        assert!(shared.len() <= 100_usize.div_ceil(MOST_SHARED) + 1, "{shared:?}");
        // Released slots are reused.
        places.drain(..50);
        places.extend((0..50).map(|_| ConnectionSlot::take()));
        let again = places.iter().map(timeout).max();
        assert_eq!(again, timeouts.last().copied());
    }

    #[test]
    fn configured_timeout_is_extended_by_milliseconds() {
        let known = TimeoutConfig::builder().connect_timeout(Duration::from_secs(10)).build();
        let place = ConnectionSlot::take();
        let timeout = place.timeout_config(Some(&known)).connect_timeout().unwrap();
        assert!(timeout > Duration::from_secs(10) && timeout < Duration::from_secs(11));
    }
}
