//! The lines that are read ahead of the requests, limited in number and in bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::lines::{LONGEST, Line};
use crate::failure::Outcome;

/// The most lines.
const LINES: usize = 32;
/// The most bytes. The longest line fits.
const BYTES: usize = 16 << 20;
const _: () = assert!(LONGEST <= BYTES as u64);

/// The end of the queue that the reading thread fills.
#[derive(Debug)]
pub(super) struct AheadSender {
    lines: mpsc::Sender<(Outcome<Line>, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
}

/// The end of the queue from which lines are taken.
#[derive(Debug)]
pub(super) struct AheadReceiver(mpsc::Receiver<(Outcome<Line>, OwnedSemaphorePermit)>);

/// Creates an empty queue.
pub(super) fn queue() -> (AheadSender, AheadReceiver) {
    let (lines, receiver) = mpsc::channel(LINES);
    (AheadSender { lines, bytes: Arc::new(Semaphore::new(BYTES)) }, AheadReceiver(receiver))
}

impl AheadSender {
    /// Adds a line once the queue has room for it. Returns false if the receiver is gone.
    pub(super) async fn send(&self, line: Outcome<Line>) -> bool {
        let size = line.as_ref().map_or(0, |line| line.data.len().min(BYTES));
        let Ok(size) = u32::try_from(size) else { return false };
        let Ok(room) = Arc::clone(&self.bytes).acquire_many_owned(size).await else { return false };
        self.lines.send((line, room)).await.is_ok()
    }
}

impl AheadReceiver {
    /// Takes the next line; `None` after the last. The room of the line is free from then on.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the line in the queue.
    pub(super) async fn next(&mut self) -> Option<Outcome<Line>> {
        self.0.recv().await.map(|(line, _room)| line)
    }

    /// Takes a line that is in the queue.
    pub(super) fn next_read(&mut self) -> Option<Line> {
        self.0.try_recv().ok()?.0.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::failure::Failure;

    fn line(number: usize, length: usize) -> Line {
        Line::of(number as u64, &"x".repeat(length))
    }

    /// Returns false if the queue has no room for the line, which is then dropped.
    fn is_sent(sender: &AheadSender, line: Line) -> bool {
        sender.send(Ok(line)).now_or_never() == Some(true)
    }

    /// Adds lines until the queue has no room, and returns their number.
    fn fill(sender: &AheadSender, length: usize) -> usize {
        (0..1000).take_while(|number| is_sent(sender, line(*number, length))).count()
    }

    // Outside of a runtime, whose budget for a task would make a queue look full.
    #[test]
    fn queue_is_limited_in_bytes_and_in_lines() {
        let longest = usize::try_from(LONGEST).unwrap();
        for (length, expected) in
            [(0, LINES), (100, LINES), (1 << 20, 16), ((1 << 20) + 1, 15), (longest, 1)]
        {
            let (sender, _receiver) = queue();
            assert_eq!(fill(&sender, length), expected, "lines of {length} bytes");
        }
    }

    #[tokio::test]
    async fn taken_line_leaves_its_room_to_the_next() {
        let (sender, mut receiver) = queue();
        let large = 4 << 20;
        assert_eq!(fill(&sender, large), 4);
        for number in 0..4 {
            assert_eq!(receiver.next().await, Some(Ok(line(number, large))));
            assert!(is_sent(&sender, line(number, large)));
            assert!(!is_sent(&sender, line(9, 1)), "expected no room");
        }
    }

    #[tokio::test]
    async fn waiting_line_ends_with_the_receiver() {
        let (sender, receiver) = queue();
        fill(&sender, 1 << 20);
        let waiting = tokio::spawn(async move { sender.send(Ok(line(9, 1 << 20))).await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert!(!waiting.await.unwrap());
    }

    #[tokio::test]
    async fn failure_needs_no_room() {
        let (sender, mut receiver) = queue();
        fill(&sender, 1 << 20);
        assert_eq!(sender.send(Err(Failure::new("no"))).now_or_never(), Some(true));
        for number in 0..16 {
            assert_eq!(receiver.next_read(), Some(line(number, 1 << 20)));
        }
        assert_eq!(receiver.next().await, Some(Err(Failure::new("no"))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn lines_stay_in_order_within_the_limit(
            lengths in prop::collection::vec(0..(3_usize << 20), 1..60),
        ) {
            let (sender, mut receiver) = queue();
            let (mut sent, mut taken, mut held) = (0, 0, 0);
            while taken < lengths.len() {
                while let Some(length) = lengths.get(sent) {
                    if !is_sent(&sender, line(sent, *length)) {
                        break;
                    }
                    (sent, held) = (sent + 1, held + length);
                    prop_assert!(held <= BYTES && sent - taken <= LINES);
                }
                let next = receiver.next_read().expect("expected a line");
                prop_assert_eq!(next.origin.overall, taken as u64);
                held -= lengths[taken];
                taken += 1;
            }
        }
    }
}
