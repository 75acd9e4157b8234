//! The trace of a simulation, and the first promise that was broken in it.

use std::fmt;

use tokio::time::Instant;

use crate::seeds::SeedResult;

#[derive(Debug)]
pub(crate) struct Trace {
    began: Instant,
    lines: Vec<String>,
    broken: Option<(String, String)>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), lines: Vec::new(), broken: None }
    }

    pub(crate) fn log(&mut self, line: fmt::Arguments<'_>) {
        self.log_at(Instant::now(), line);
    }

    pub(crate) fn log_at(&mut self, at: Instant, line: fmt::Arguments<'_>) {
        let at = at.duration_since(self.began);
        self.lines.push(format!("{:9.3} s  {line}", at.as_secs_f64()));
    }

    /// Records a broken promise. Only the first one is kept, because later ones may be consequences
    /// of it.
    pub(crate) fn breaks(&mut self, promise: &dyn fmt::Debug, detail: fmt::Arguments<'_>) {
        self.log(format_args!("BROKEN {promise:?}: {detail}"));
        self.broken.get_or_insert_with(|| (format!("{promise:?}"), detail.to_string()));
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Returns the result of the simulation.
    pub(crate) fn end(&mut self, records: usize, calls: usize) -> SeedResult {
        SeedResult {
            trace: std::mem::take(&mut self.lines),
            broken: self.broken.take(),
            records,
            calls,
        }
    }
}
