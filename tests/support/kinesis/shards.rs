//! Streams, shards and records of the model.

use std::collections::VecDeque;

use tokio::time::{Duration, Instant};

/// How sequence numbers look.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbers {
    /// 56 digits, as Kinesis has them.
    Long,
    /// From 8 upwards: their length grows, so that whoever compares them as text is found out.
    Short,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) shards: Vec<Shard>,
    numbers: Numbers,
    next_number: u64,
}

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) parents: Vec<usize>,
    /// Not closed by a split or a merge.
    pub(crate) open: bool,
    /// When it was closed, in milliseconds since 1970.
    pub(crate) closed: Option<u64>,
    /// Past retention: not listed any more.
    pub(crate) expired: bool,
    pub(crate) records: Vec<Stored>,
    /// The records before this one have left retention.
    pub(crate) trimmed: usize,
    /// The reads of the last second.
    pub(crate) reads: VecDeque<Instant>,
    /// When the bytes of the last answers are paid for.
    pub(crate) paid: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) number: String,
    pub(crate) arrival: u64,
    pub(crate) data: Vec<u8>,
}

impl Stream {
    pub(crate) fn new(shards: usize, numbers: Numbers) -> Self {
        let mut stream = Self { shards: Vec::new(), numbers, next_number: 8 };
        for _ in 0..shards {
            stream.add(Vec::new());
        }
        stream
    }

    fn add(&mut self, parents: Vec<usize>) -> usize {
        self.shards.push(Shard {
            parents,
            open: true,
            closed: None,
            expired: false,
            records: Vec::new(),
            trimmed: 0,
            reads: VecDeque::new(),
            paid: None,
        });
        self.shards.len() - 1
    }

    pub(crate) fn put(&mut self, shard: usize, data: Vec<u8>, now: u64) -> String {
        assert!(self.shards[shard].open, "shard {shard} is closed");
        let number = match self.numbers {
            Numbers::Long => format!("4959{:052}", self.next_number),
            Numbers::Short => self.next_number.to_string(),
        };
        self.next_number += 1;
        let stored = Stored { number: number.clone(), arrival: now, data };
        self.shards[shard].records.push(stored);
        number
    }

    pub(crate) fn split(&mut self, shard: usize, now: u64) -> [usize; 2] {
        self.close(shard, now);
        [self.add(vec![shard]), self.add(vec![shard])]
    }

    pub(crate) fn merge(&mut self, shard: usize, adjacent: usize, now: u64) -> usize {
        self.close(shard, now);
        self.close(adjacent, now);
        self.add(vec![shard, adjacent])
    }

    fn close(&mut self, shard: usize, now: u64) {
        let shard = &mut self.shards[shard];
        assert!(shard.open, "a closed shard is not split or merged");
        shard.open = false;
        shard.closed = Some(now);
    }

    pub(crate) fn children(&self, shard: usize) -> Vec<usize> {
        (0..self.shards.len())
            .filter(|child| self.shards[*child].parents.contains(&shard))
            .collect()
    }
}

impl Shard {
    /// Whether five calls a second and two mebibytes a second leave room for a read now.
    pub(crate) fn may_read(&mut self, now: Instant) -> Result<(), &'static str> {
        while self.reads.front().is_some_and(|read| now - *read >= Duration::from_secs(1)) {
            self.reads.pop_front();
        }
        if self.reads.len() >= 5 {
            return Err("more than 5 reads in a second");
        }
        if self.paid.is_some_and(|paid| now < paid) {
            return Err("more than 2 MiB in a second");
        }
        self.reads.push_back(now);
        Ok(())
    }

    pub(crate) fn was_read(&mut self, now: Instant, bytes: usize) {
        let seconds = bytes as f64 / f64::from(2 << 20);
        self.paid = Some(now + Duration::from_secs_f64(seconds));
    }
}
