//! SIGINT and SIGTERM: the first one asks the program to close, a second one ends it at once.

use tokio::sync::watch;

use crate::failure::{Failure, Outcome};

/// The request to close, which every clone sees.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens for the signals from now on, until the program ends.
    pub(crate) fn listen() -> Outcome<Self> {
        let listened = Signals::listen();
        let mut signals = listened
            .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                signals.received().await;
                if sender.send_replace(true) {
                    // The exit code of a program that SIGINT has ended.
                    std::process::exit(130);
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the first signal.
    pub(crate) async fn requested(&mut self) {
        if self.0.wait_for(|is_requested| *is_requested).await.is_err() {
            // The listener has ended with the runtime.
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
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
