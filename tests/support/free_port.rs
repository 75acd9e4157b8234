//! Ports for servers that cannot choose a free port themselves.

use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range that systems use for outgoing connections, so that no such connection occupies
/// the port when a server restarts on it.
const FIRST: u16 = 10_000;
const PORTS: u16 = 20_000;

/// Returns a free port that no other test of this process receives.
pub(crate) fn free_port() -> u16 {
    static START: OnceLock<u16> = OnceLock::new();
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let start = START.get_or_init(|| fastrand::u16(..PORTS));
    let mut ports = std::iter::repeat_with(|| {
        FIRST + start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % PORTS
    });
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(free).expect("expected a free port between 10000 and 30000")
}
