//! A TCP proxy between clients and servers that can drop or delay bytes, and cut or redirect
//! connections.

// Each including program uses only some of these items.
#![allow(dead_code)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::free_port::free_port;

/// Treatment of the traffic by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Forwards every byte.
    Pass,
    /// Forwards every byte of the server after this delay.
    Delay(Duration),
    /// Drops every byte. A connection that has lost bytes stays half open: the proxy forwards no
    /// later byte and no close of either end.
    Swallow,
    /// Closes open connections, and accepts and closes new ones at once.
    Refuse,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    mode: Mode,
    /// The server port for new connections.
    target: u16,
    /// The source address that servers see.
    source: Ipv4Addr,
    /// Connections with a lower number are closed.
    cut_before: usize,
    /// Connections with a lower number drop every byte.
    frozen_before: usize,
}

/// Texts in server responses and their replacements, of equal length.
type Replacements = Arc<Mutex<Vec<(String, String)>>>;

/// A proxy on a port that stays free for it while it is stopped. A drop closes all its connections.
pub(crate) struct Proxy {
    port: u16,
    rules: watch::Sender<Rules>,
    replacements: Replacements,
    accepted: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy that forwards to the server on port `target` of 127.0.0.1.
    pub(crate) async fn start(target: u16) -> Self {
        Self::start_at(free_port(), target).await
    }

    /// Starts a proxy that listens on `port`.
    pub(crate) async fn start_at(port: u16, target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let source = Ipv4Addr::LOCALHOST;
        let rules = Rules { mode: Mode::Pass, target, source, cut_before: 0, frozen_before: 0 };
        let (rules, seen) = watch::channel(rules);
        let accepted = Arc::new(AtomicUsize::new(0));
        let replacements = Replacements::default();
        let passing = Passing { rules: seen, replacements: Arc::clone(&replacements) };
        let listening = tokio::spawn(listen(listener, passing, Arc::clone(&accepted)));
        Self { port, rules, replacements, accepted, listening }
    }

    /// Closes the listener and all connections, and returns once the port is free.
    pub(crate) async fn stop(mut self) {
        self.listening.abort();
        let _aborted = (&mut self.listening).await;
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Returns the number of connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Sets the mode of all connections, open and new.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.rules.send_modify(|rules| rules.mode = mode);
    }

    /// Forwards new connections to the server on port `target`. Open connections keep their server.
    pub(crate) fn redirect(&self, target: u16) {
        self.rules.send_modify(|rules| rules.target = target);
    }

    /// Replaces a server's port by that of its proxy in responses that name other servers.
    pub(crate) fn announce(&self, port: u16, proxy: u16) {
        // The port is a line in a sentinel's response, and follows a colon in CLUSTER SLOTS, MOVED
        // and ASK.
        let places = [("\r\n", "\r\n"), (":", "\r\n")];
        let replaced = |(before, after): (&str, &str)| {
            (format!("{before}{port}{after}"), format!("{before}{proxy}{after}"))
        };
        self.replacements.lock().unwrap().extend(places.map(replaced));
    }

    /// Sets the source address of new connections to servers.
    pub(crate) fn connect_from(&self, source: Ipv4Addr) {
        self.rules.send_modify(|rules| rules.source = source);
    }

    /// Closes every open connection.
    pub(crate) fn cut(&self) {
        let accepted = self.accepted();
        self.rules.send_modify(|rules| rules.cut_before = accepted);
    }

    /// Makes every open connection drop all bytes permanently. New connections work.
    pub(crate) fn freeze(&self) {
        let accepted = self.accepted();
        self.rules.send_modify(|rules| rules.frozen_before = accepted);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The state that the two directions of a connection share.
#[derive(Clone)]
struct Passing {
    rules: watch::Receiver<Rules>,
    replacements: Replacements,
}

async fn listen(listener: TcpListener, passing: Passing, accepted: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _address) = listener.accept().await.unwrap();
        let number = accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(connect(client, number, passing.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, number: usize, passing: Passing) {
    let Rules { mode, target, source, .. } = *passing.rules.borrow();
    if mode == Mode::Refuse {
        return;
    }
    if mode == Mode::Swallow {
        return until_cut(number, passing.rules).await;
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let target = (Ipv4Addr::LOCALHOST, target).into();
    let Ok(server) = socket.connect(target).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = pump(from_client, to_server, false, number, passing.clone());
    let back = pump(from_server, to_client, true, number, passing);
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

/// Forwards bytes in one direction until an end closes or the connection is cut.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_answer: bool,
    number: usize,
    Passing { mut rules, replacements }: Passing,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Rules { mode, cut_before, frozen_before, .. } = *rules.borrow_and_update();
        if number < cut_before || mode == Mode::Refuse {
            return;
        }
        if number < frozen_before || mode == Mode::Swallow {
            return until_cut(number, rules).await;
        }
        let length = tokio::select! {
            biased;
            changed = rules.changed() => match changed {
                Ok(()) => continue,
                Err(_the_proxy_is_gone) => return,
            },
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        if let (Mode::Delay(delay), true) = (mode, is_answer) {
            sleep(delay).await;
        }
        if is_answer {
            replace(&mut buffer[..length], &replacements.lock().unwrap());
        }
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

fn replace(bytes: &mut [u8], replacements: &[(String, String)]) {
    for (from, to) in replacements {
        assert_eq!(from.len(), to.len());
        for start in 0..(bytes.len() + 1).saturating_sub(from.len()) {
            let place = &mut bytes[start..start + from.len()];
            if place == from.as_bytes() {
                place.copy_from_slice(to.as_bytes());
            }
        }
    }
}

/// Keeps a connection open without forwarding, until it is cut.
async fn until_cut(number: usize, mut rules: watch::Receiver<Rules>) {
    let is_cut = |rules: &Rules| number < rules.cut_before || rules.mode == Mode::Refuse;
    let _the_proxy_is_gone = rules.wait_for(is_cut).await;
}
