//! SIGINT, SIGTERM and SIGHUP: the first one asks the program to close, a second one ends it at once.

use tokio::sync::watch;

use crate::failure::{Failure, Outcome};

/// The request to close, which every clone sees.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<u32>);

impl Stop {
    /// Listens for the signals from now on, until the program ends.
    pub(crate) fn listen() -> Outcome<Self> {
        Self::exit_at(2)
    }

    /// Listens like [`listen`](Self::listen), for a command that handles the second signal itself. A
    /// third one ends the program at once.
    pub(crate) fn listen_for_two() -> Outcome<Self> {
        Self::exit_at(3)
    }

    fn exit_at(last: u32) -> Outcome<Self> {
        let listened = Signals::listen();
        let mut signals = listened
            .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            for received in 1.. {
                signals.received().await;
                if received == last {
                    // The exit code of a program that SIGINT has ended.
                    std::process::exit(130);
                }
                sender.send_replace(received);
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the first signal.
    pub(crate) async fn requested(&mut self) {
        self.received(1).await;
    }

    /// Waits for the second signal.
    pub(crate) async fn requested_again(&mut self) {
        self.received(2).await;
    }

    async fn received(&mut self, count: u32) {
        if self.0.wait_for(|received| *received >= count).await.is_err() {
            // The listener has ended with the runtime.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate, hang_up: signal(SignalKind::hangup())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn received(&mut self) {
        let _interrupted = self.0.recv().await;
    }
}
