//! Saves of positions without a lease, in stores that compare a text and replace it.

use std::sync::Arc;

use tokio::time::sleep;

use super::lease::{FencedOutcome, FencedSave};
use crate::backoff::{Backoff, CONFLICTS};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::record::ShardId;

/// Saves each checkpoint, unless the store has a further one. `save` compares and replaces texts,
/// whatever their epoch is. Returns the first stored text that cannot be read, with its shard; such
/// texts stay as they are.
pub(in crate::store) async fn save_unfenced<F>(
    checkpoints: &[(ShardId, Checkpoint)],
    save: impl Fn(Vec<FencedSave>) -> F,
) -> Result<Option<(ShardId, Arc<str>)>>
where
    F: Future<Output = Result<Vec<FencedOutcome>>>,
{
    // The checkpoints that are not saved yet, each with the text that the store may hold.
    let mut due: Vec<_> = checkpoints.iter().map(|it| (it, None::<Arc<str>>)).collect();
    let mut damaged = None;
    let mut conflicts = Backoff::new(CONFLICTS);
    let mut attempts = 0_u32;
    while !due.is_empty() {
        attempts += 1;
        // The first attempt shows the stored positions. After others, another process saves the same
        // ones.
        if attempts > 2 {
            sleep(conflicts.failed()).await;
        }
        let saves = due.iter().map(|((shard, checkpoint), expected)| {
            FencedSave::new(shard.clone(), 0, expected.clone(), checkpoint.to_string())
        });
        let outcomes = save(saves.collect()).await?;
        let mut rest = Vec::new();
        for ((position, _), outcome) in due.into_iter().zip(outcomes) {
            if outcome.is_saved {
                continue;
            }
            let (shard, checkpoint) = position;
            let stored = outcome.position;
            match stored.as_ref().map(|text| (text, text.parse::<Checkpoint>())) {
                Some((text, Err(_))) => {
                    damaged = damaged.or_else(|| Some((shard.clone(), Arc::clone(text))));
                }
                Some((_, Ok(known))) if !checkpoint.supersedes(&known) => {}
                _ => rest.push((position, stored)),
            }
        }
        due = rest;
    }
    Ok(damaged)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const SAVED: &str = "AFTER_SEQUENCE_NUMBER:5";

    /// Saves in a store that holds these texts in turn, one at each attempt. Returns the last text
    /// and the first one that cannot be read.
    async fn save_over(texts: &[Option<&str>]) -> (Option<String>, Option<String>) {
        let shard: ShardId = "shardId-000000000000".parse().unwrap();
        let texts = RefCell::new(texts.iter().copied());
        let last = RefCell::new(None);
        let checkpoints = [(shard, SAVED.parse().unwrap())];
        let damaged = save_unfenced(&checkpoints, |saves| {
            let stored: Option<Arc<str>> = texts.borrow_mut().next().unwrap().map(Into::into);
            let is_saved = saves[0].expected == stored;
            let after = if is_saved { Some(Arc::clone(&saves[0].text)) } else { stored };
            *last.borrow_mut() = after.as_deref().map(str::to_owned);
            std::future::ready(Ok(vec![FencedOutcome::new(is_saved, None, after)]))
        });
        let damaged = damaged.await.unwrap().map(|(_, text)| text.to_string());
        (last.into_inner(), damaged)
    }

    #[tokio::test(start_paused = true)]
    async fn save_is_repeated_until_it_meets_the_expected_text() {
        let saved = (Some(SAVED.to_owned()), None);
        assert_eq!(save_over(&[None]).await, saved);
        let [three, four] = [3, 4].map(|number| format!("AFTER_SEQUENCE_NUMBER:{number}"));
        let (three, four) = (Some(&*three), Some(&*four));
        assert_eq!(save_over(&[three, four, four]).await, saved);
        // The store loses the position in between.
        assert_eq!(save_over(&[three, None, None]).await, saved);
    }

    #[tokio::test]
    async fn further_and_damaged_positions_stay() {
        let further = "AFTER_SEQUENCE_NUMBER:6";
        assert_eq!(save_over(&[Some(further)]).await, (Some(further.to_owned()), None));
        let damaged = Some("damaged".to_owned());
        assert_eq!(save_over(&[Some("damaged")]).await, (damaged.clone(), damaged));
    }
}
