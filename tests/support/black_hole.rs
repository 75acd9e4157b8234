//! An address that does not answer connection attempts, like one behind a firewall that drops
//! packets.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Far longer than a connection over loopback takes, and shorter than TCP's first retransmission.
const UNANSWERED: Duration = Duration::from_millis(300);

/// A listener that never accepts. Its backlog is full, so the system drops further connection
/// attempts.
pub(crate) struct BlackHole {
    _listener: TcpListener,
    _backlog: Vec<TcpStream>,
}

impl BlackHole {
    /// Binds a port of 127.0.0.1, and returns once connection attempts stay unanswered.
    pub(crate) async fn open(port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, port).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut backlog = Vec::new();
        while let Ok(connected) = timeout(UNANSWERED, TcpStream::connect(address)).await {
            backlog.push(connected.unwrap());
            assert!(backlog.len() < 100, "expected the backlog to be full before 100 connections");
        }
        Self { _listener: listener, _backlog: backlog }
    }
}
