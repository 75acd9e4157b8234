//! An address that answers no attempt to connect, as behind a firewall that drops packets.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Far longer than a connection over loopback takes, and shorter than TCP's first repetition.
const UNANSWERED: Duration = Duration::from_millis(300);

/// Listens without ever accepting. Its backlog is full, so the system drops what would open a
/// connection.
pub(crate) struct BlackHole {
    _listener: TcpListener,
    _backlog: Vec<TcpStream>,
}

impl BlackHole {
    /// Takes a port of 127.0.0.1, and returns when attempts go unanswered.
    pub(crate) async fn open(port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, port).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut backlog = Vec::new();
        while let Ok(connected) = timeout(UNANSWERED, TcpStream::connect(address)).await {
            backlog.push(connected.unwrap());
            assert!(backlog.len() < 100, "this system accepts more than its backlog");
        }
        Self { _listener: listener, _backlog: backlog }
    }
}
