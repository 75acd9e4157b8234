//! The gate that readers pass before they deliver records.
//!
//! ```text
//!           saves have failed for max_unflushed
//!   Open ─────────────────────────────────────────► Shut
//!    ▲                                               │
//!    └──────────────── a save succeeds ──────────────┘
//! ```

use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::{Writer, WriterShared, WriterState};
use crate::error::Result;

/// The state of the gate.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    #[default]
    Open,
    /// The store has failed for `max_unflushed`; no records are delivered.
    Shut,
}

/// One reader's handle to the gate.
#[derive(Debug)]
pub(crate) struct ReaderGate {
    writer: Writer,
    /// The key of this reader among the waiting readers.
    key: u64,
    /// The number of advances when the reader first polled. If `interval` is zero, these advances
    /// must be saved before the reader delivers its next record.
    until: Option<u64>,
}

impl ReaderGate {
    pub(super) fn new(writer: Writer) -> Self {
        let key = writer.shared.keys.fetch_add(1, Ordering::Relaxed);
        Self { writer, key, until: None }
    }

    /// Waits until records may be delivered. Returns an error if a failure of the store is to be
    /// reported.
    ///
    /// If `interval` is zero, also waits until the advances made before the reader first polled are
    /// saved.
    pub(crate) fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let shared = &self.writer.shared;
        if !shared.must_check_gate.load(Ordering::Acquire) {
            self.until = None;
            return Poll::Ready(Ok(()));
        }
        let mut state = shared.lock();
        if let Some(error) = state.report.take()
            && !std::mem::replace(&mut state.is_outage_reported, true)
        {
            return Poll::Ready(Err(error));
        }
        let saved = *self.until.get_or_insert(state.advanced) <= state.saved;
        if state.gate == Gate::Open && saved {
            self.until = None;
            shared.update_attention(&state);
            return Poll::Ready(Ok(()));
        }
        let before = state.waiting.wait(self.key, context.waker());
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl Drop for ReaderGate {
    fn drop(&mut self) {
        let before = self.writer.shared.lock().waiting.remove(self.key);
        drop(before);
    }
}

impl WriterShared {
    /// Updates whether readers must check the gate.
    pub(super) fn update_attention(&self, state: &WriterState) {
        let attention =
            state.gate != Gate::Open || state.report.is_some() || state.saved < state.advanced;
        self.must_check_gate.store(attention, Ordering::Release);
    }

    /// Sets the state of the gate. Returns the wakers to wake after the lock is released.
    #[must_use = "wake them without the lock"]
    pub(super) fn set_gate(
        &self,
        state: &mut WriterState,
        gate: Gate,
    ) -> impl Iterator<Item = Waker> + use<> {
        state.gate = gate;
        self.update_attention(state);
        state.waiting.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;
    use std::time::Duration;

    use super::*;
    use crate::store::lease::Leases;
    use crate::store::writer::FlushConfig;
    use crate::store::{MemoryStore, Scope};
    use crate::telemetry::Telemetry;

    struct Unwoken;

    impl Wake for Unwoken {
        fn wake(self: Arc<Self>) {}
    }

    #[tokio::test]
    async fn shut_gate_keeps_one_waker_per_reader() {
        let second = Duration::from_secs(1);
        let scope = Scope::new("billing", "orders");
        let writer = Writer::spawn(
            Leases::new(Arc::new(MemoryStore::new()), scope.clone()),
            scope,
            FlushConfig { interval: second, max_unflushed: second },
            Telemetry::new(&"orders".into(), &"billing".into()),
        );
        let _woken = writer.shared.set_gate(&mut writer.shared.lock(), Gate::Shut);
        let mut readers = [writer.gate(), writer.gate()];
        for _ in 0..100 {
            for reader in &mut readers {
                let waker = Waker::from(Arc::new(Unwoken));
                assert!(reader.poll_open(&mut Context::from_waker(&waker)).is_pending());
            }
        }
        assert_eq!(writer.shared.lock().waiting.len(), 2);
        let [first, mut second] = readers;
        drop(first);
        assert_eq!(writer.shared.lock().waiting.len(), 1);
        let woken = writer.shared.set_gate(&mut writer.shared.lock(), Gate::Open);
        assert_eq!(woken.count(), 1);
        assert!(second.poll_open(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
