//! Moves of leases from heavy workers to light ones.

use std::cmp::Reverse;

use super::shares::{Fleet, Share, relative};
use crate::record::ShardId;

/// A worker receives no lease to even out load if it then held more than this number of times its
/// share of the shards: an idle shard costs calls as well.
const MOST_SHARES: usize = 2;

/// The most leases that a worker hands over for one that it receives.
const MOST_GIVEN_BACK: usize = 8;

/// Exchanges are looked for between this number of the heaviest workers and of the lightest ones, so
/// that their cost does not grow with the square of the fleet.
const EXCHANGING: usize = 8;

/// Leases that move between two workers.
struct Transfer<'a> {
    from: usize,
    to: usize,
    leases: Vec<&'a ShardId>,
    /// The leases that move the other way.
    back: Vec<&'a ShardId>,
}

impl<'a> Fleet<'a> {
    /// Moves up to `limit` leases from heavy workers to light ones.
    pub(super) fn even_out(&mut self, mut limit: usize) {
        while limit > 0 {
            let Some(Transfer { from, to, leases, back }) = self.next_transfer(limit) else {
                return;
            };
            limit -= leases.len() + back.len();
            for shard in leases {
                self.remove(from, shard);
                self.give(to, shard);
            }
            for shard in back {
                self.remove(to, shard);
                self.give(from, shard);
            }
        }
    }

    /// Returns the transfer from the heaviest worker to the lightest one between which there is one.
    fn next_transfer(&self, limit: usize) -> Option<Transfer<'a>> {
        let mut order: Vec<usize> = (0..self.shares.len()).collect();
        order.sort_by_key(|place| {
            let worker = &self.shares[*place];
            let owns =
                |shard: &&ShardId| self.table.leases[*shard].owner.as_ref() == Some(worker.name);
            // Of two equal ones, that with leases that have not arrived gives first.
            (worker.load(), !worker.held.iter().all(owns))
        });
        let pairs = |most: usize| {
            let to = order.iter().take(most);
            order
                .iter()
                .rev()
                .take(most)
                .flat_map(move |from| to.clone().map(move |to| (*from, *to)))
        };
        pairs(order.len())
            .filter(|(from, to)| self.may_gain(*from, *to))
            .find_map(|(from, to)| self.transfer(from, to, limit))
            .or_else(|| {
                pairs(EXCHANGING)
                    .filter(|(from, to)| self.may_gain(*from, *to))
                    .find_map(|(from, to)| self.exchange(from, to, limit))
            })
    }

    /// Returns true if the heavier of two workers can become lighter by the least gain.
    fn may_gain(&self, from: usize, to: usize) -> bool {
        let (heavy, light) = (&self.shares[from], &self.shares[to]);
        light.capacity > 0 && heavy.load() >= light.load() + 2 * self.least_gain()
    }

    /// Returns how much lighter the heavier of two workers becomes if their shards then have these
    /// weights.
    fn gain(&self, (from, left): (usize, u64), (to, got): (usize, u64)) -> u64 {
        let (heavy, light) = (&self.shares[from], &self.shares[to]);
        heavy.load().saturating_sub(heavy.relative(left).max(light.relative(got)))
    }

    fn least_gain(&self) -> u64 {
        relative(self.weights.least_gain(), 100)
    }

    /// Returns the leases of a worker that may move to another one: the heaviest first, and of equal
    /// ones the one that is preferred.
    fn candidates(&self, from: usize, to: usize) -> Vec<&'a ShardId> {
        let held = self.shares[from].held.iter().copied();
        let mut candidates: Vec<&ShardId> =
            held.filter(|shard| !self.moved.contains(shard) && self.admits(to, shard)).collect();
        candidates.sort_by_key(|shard| {
            Reverse((self.weights.of_shard(shard), self.preference(from, shard)))
        });
        candidates
    }

    /// Returns the leases that even two workers out, at least one and at most `limit`; `None` if they
    /// would gain too little.
    fn transfer(&self, from: usize, to: usize, limit: usize) -> Option<Transfer<'a>> {
        let (heavy, light) = (&self.shares[from], &self.shares[to]);
        let most = limit.min(room(light));
        let candidates = self.candidates(from, to);
        let (mut left, mut got, mut moves) = (heavy.weight, light.weight, light.moves);
        let mut leases = Vec::new();
        for shard in &candidates {
            if leases.len() == most || moves == 0 {
                break;
            }
            let weight = self.weights.of_shard(shard);
            // Neither worker passes the mean.
            if heavy.relative(left - weight) >= self.mean
                && light.relative(got + weight) <= self.mean
            {
                (left, got) = (left - weight, got + weight);
                leases.push(*shard);
                moves -= 1;
            }
            if heavy.relative(left) < light.relative(got) + 2 * self.least_gain() {
                break;
            }
        }
        let back = Vec::new();
        if !leases.is_empty() && self.gain((from, left), (to, got)) >= self.least_gain() {
            return Some(Transfer { from, to, leases, back });
        }
        // A single lease that passes the mean, and still evens the two out.
        let of_one = |shard: &&&ShardId| {
            let weight = self.weights.of_shard(shard);
            self.gain((from, heavy.weight - weight), (to, light.weight + weight))
        };
        let best = candidates.iter().rev().max_by_key(of_one)?;
        let is_enough = most > 0 && of_one(&best) >= self.least_gain();
        is_enough.then(|| Transfer { from, to, leases: vec![*best], back })
    }

    /// Returns a heavy lease and lighter ones that go back for it; `None` if no such exchange gains
    /// twice the least gain, since it moves more leases. It evens out two workers if each lease of the
    /// heavier one would make the other one as heavy.
    fn exchange(&self, from: usize, to: usize, limit: usize) -> Option<Transfer<'a>> {
        let (heavy, light) = (&self.shares[from], &self.shares[to]);
        if limit < 2 || !light.has_room() || heavy.moves == 0 {
            return None;
        }
        // The weight after which the two are even.
        let net = (heavy.weight * light.size).saturating_sub(light.weight * heavy.size)
            / (heavy.size + light.size);
        let most = MOST_GIVEN_BACK.min(limit - 1).min(heavy.moves);
        let returned = self.candidates(to, from);
        let exchanges = self.candidates(from, to).into_iter().filter_map(|shard| {
            let weight = self.weights.of_shard(shard);
            let mut wanted = weight.checked_sub(net)?;
            let mut back = Vec::new();
            for other in &returned {
                let weight = self.weights.of_shard(other);
                if back.len() < most && weight <= wanted {
                    wanted -= weight;
                    back.push(*other);
                }
            }
            let moved = net + wanted;
            let gain = self.gain((from, heavy.weight - moved), (to, light.weight + moved));
            Some((gain, Transfer { from, to, leases: vec![shard], back }))
        });
        let (gain, transfer) =
            exchanges.max_by_key(|(gain, it)| (*gain, Reverse(it.back.len())))?;
        (gain >= 2 * self.least_gain()).then_some(transfer)
    }
}

/// Returns the number of leases that a worker may receive to even out load.
fn room(worker: &Share<'_>) -> usize {
    let most = (MOST_SHARES * worker.even).max(worker.even + 1).min(worker.capacity);
    most.saturating_sub(worker.held.len())
}
