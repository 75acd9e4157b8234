//! Reports the figures as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use crate::subject::Cost;

/// The measurements of one subject, by round.
type Rounds = BTreeMap<usize, Cost>;

/// All measurements, by record size, subject and round.
#[derive(Default)]
pub(crate) struct Report {
    costs: BTreeMap<usize, BTreeMap<String, Rounds>>,
}

/// The figures of one subject.
struct Row {
    cpu_a_million: f64,
    /// The ratios to the bare loop of the same round: minimum, median and maximum.
    ratios: [f64; 3],
    /// The ratio of the minimum of all rounds to the minimum of the bare loop.
    of_least: f64,
    /// The ratio of the minimum of all rounds to the minimum of the floor.
    to_floor: f64,
    records_a_second: f64,
    peak_mebibytes: f64,
}

impl Report {
    pub(crate) fn add(&mut self, record_bytes: usize, round: usize, subject: &str, cost: Cost) {
        let subjects = self.costs.entry(record_bytes).or_default();
        subjects.entry(subject.to_owned()).or_default().insert(round, cost);
    }

    fn rows(&self) -> Vec<(usize, &str, Row)> {
        let mut rows = Vec::new();
        for (record_bytes, subjects) in &self.costs {
            let [bare, floor] = ["bare", "floor"].map(|subject| &subjects[subject]);
            for (subject, rounds) in subjects {
                rows.push((*record_bytes, subject.as_str(), Row::of(rounds, bare, floor)));
            }
        }
        rows
    }

    pub(crate) fn to_json(&self) -> String {
        let rows = self.rows().into_iter().map(|(record_bytes, subject, row)| {
            json!({
                "record_bytes": record_bytes,
                "subject": subject,
                "cpu_seconds_per_million_records": row.cpu_a_million,
                "ratio_to_bare": { "of_least": row.of_least, "least": row.ratios[0], "median": row.ratios[1], "most": row.ratios[2] },
                "ratio_to_floor": row.to_floor,
                "records_per_second": row.records_a_second,
                "peak_mebibytes": row.peak_mebibytes,
            })
        });
        Value::from(rows.collect::<Vec<_>>()).to_string()
    }
}

impl Row {
    fn of(rounds: &Rounds, bare: &Rounds, floor: &Rounds) -> Self {
        let mut ratios: Vec<f64> = rounds
            .iter()
            .map(|(round, cost)| {
                a_record(cost, cost.cpu_seconds) / {
                    let bare = &bare[round];
                    a_record(bare, bare.cpu_seconds)
                }
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let cpu = |cost: &Cost| a_record(cost, cost.cpu_seconds) * 1e6;
        let [all, all_bare, all_floor] = [rounds, bare, floor].map(|rounds| sorted(rounds, cpu));
        let speed = sorted(rounds, |cost| 1.0 / a_record(cost, cost.seconds));
        let peak = sorted(rounds, |cost| mebibytes(cost.peak_bytes));
        Self {
            cpu_a_million: middle(&all),
            of_least: all[0] / all_bare[0],
            to_floor: all[0] / all_floor[0],
            ratios: [ratios[0], middle(&ratios), ratios[ratios.len() - 1]],
            records_a_second: middle(&speed),
            peak_mebibytes: middle(&peak),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn a_record(cost: &Cost, seconds: f64) -> f64 {
    seconds / cost.records as f64
}

#[allow(clippy::cast_precision_loss)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Returns the figure of each round in ascending order.
fn sorted(rounds: &Rounds, figure: impl Fn(&Cost) -> f64) -> Vec<f64> {
    let mut figures: Vec<f64> = rounds.values().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn middle(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{:>9}  {:<22}{:>14}{:>10}{:>8}{:>18}{:>12}{:>10}{:>10}",
            "record B",
            "subject",
            "CPU s/million",
            "min ratio",
            "median",
            "(min to max)",
            "records/s",
            "peak MiB",
            "to floor"
        )?;
        for (record_bytes, subject, row) in self.rows() {
            let [least, middle, most] = row.ratios;
            let spread = format!("({least:.3} to {most:.3})");
            writeln!(
                formatter,
                "{record_bytes:>9}  {subject:<22}{:>14.3}{:>10.3}{middle:>8.3}{spread:>18}{:>12.0}{:>10.0}{:>10.2}",
                row.cpu_a_million,
                row.of_least,
                row.records_a_second,
                row.peak_mebibytes,
                row.to_floor
            )?;
        }
        Ok(())
    }
}
