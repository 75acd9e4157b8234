//! Which connection a subscription has: no more of them share one than a server allows.
//!
//! The SDK's client has one HTTP/2 connection to a server, and what goes beyond the requests that
//! the server allows there at a time waits until one of them is answered. Subscriptions are answered
//! for minutes, so those beyond would wait as long, and with them every other call of the client.
//! That client keeps a connection for each connect timeout, so subscriptions have timeouts that are
//! a millisecond apart: 32 have the first one, the next 32 the second one. To a client that works
//! otherwise it means nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_kinesis::config::timeout::TimeoutConfig;

/// Subscriptions on one connection. A server should allow a hundred requests at a time
/// (<https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>), and while one subscription takes over
/// from another there are two of a shard.
const MOST_SHARED: usize = 32;

/// What the SDK waits for a connection where nobody says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);

/// How many subscriptions each connection has. All that run in the process are counted together,
/// since many consumers may have one client.
static SHARED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn shared() -> MutexGuard<'static, Vec<usize>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place on a connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connection: usize,
}

impl Place {
    /// A place on the first connection that has one.
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

    /// What tells the client which connection it is; `known` are the client's own timeouts.
    pub(super) fn timeouts(&self, known: Option<&TimeoutConfig>) -> TimeoutConfig {
        let known = known.and_then(TimeoutConfig::connect_timeout).unwrap_or(CONNECT_TIMEOUT);
        // The client's other calls have what is known, and a connection of their own.
        let apart = Duration::from_millis(1 + self.connection as u64);
        TimeoutConfig::builder().connect_timeout(known + apart).build()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        shared()[self.connection] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(place: &Place) -> Duration {
        place.timeouts(None).connect_timeout().unwrap()
    }

    #[test]
    fn no_connection_has_more_than_a_server_allows() {
        let mut places: Vec<Place> = (0..100).map(|_| Place::take()).collect();
        let mut timeouts: Vec<Duration> = places.iter().map(timeout).collect();
        timeouts.sort();
        assert_ne!(timeouts[0], CONNECT_TIMEOUT, "the client's own calls have another one");
        let shared = timeouts.chunk_by(|one, other| one == other).map(<[_]>::len);
        let shared: Vec<usize> = shared.collect();
        assert!(shared.iter().all(|count| *count <= MOST_SHARED), "{shared:?}");
        assert!(shared.len() <= 100_usize.div_ceil(MOST_SHARED) + 1, "{shared:?}");
        // What is given back is taken again.
        places.drain(..50);
        places.extend((0..50).map(|_| Place::take()));
        let again = places.iter().map(timeout).max();
        assert_eq!(again, timeouts.last().copied());
    }

    #[test]
    fn what_the_caller_has_set_is_kept_to_some_milliseconds() {
        let known = TimeoutConfig::builder().connect_timeout(Duration::from_secs(10)).build();
        let place = Place::take();
        let timeout = place.timeouts(Some(&known)).connect_timeout().unwrap();
        assert!(timeout > Duration::from_secs(10) && timeout < Duration::from_secs(11));
    }
}
