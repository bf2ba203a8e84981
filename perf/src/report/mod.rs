//! Results: from rounds to medians, spreads and verdicts; as JSON and as tables.

pub mod compare;
pub mod page;
mod plot;
mod read;
#[cfg(test)]
mod sample;
mod sheet;
pub mod table;
mod targets;

pub use read::ReadError;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// Schema of the results that this program writes. 1 had neither phases nor curves.
pub const SCHEMA: u32 = 2;

/// With fewer rounds, a spread says nothing.
pub const VERDICT_ROUNDS_MIN: usize = 3;

/// Percentiles of a curve of latencies.
pub const CURVE_PERCENTILES: [f64; 15] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 99.999];

/// A percentile above which fewer samples lie would be one stall's figure.
const SAMPLES_ABOVE_MIN: f64 = 10.0;

/// The result of a suite, as written by `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Of the file; see [`SCHEMA`].
    #[serde(default = "first_schema")]
    pub schema: u32,
    /// Name of the suite.
    pub suite: String,
    /// Where it ran.
    pub machine: Machine,
    /// How often each subject had its turn in each case.
    pub rounds: usize,
    /// One per case, metric and subject.
    pub rows: Vec<Row>,
    /// One per case, metric and subject other than the first.
    pub ratios: Vec<Ratio>,
}

impl Report {
    /// The one whose ratios are told: the first in every round.
    pub fn subject(&self) -> &str {
        self.rows.first().map_or("the first subject", |row| row.subject.as_str())
    }

    /// All subjects, in the order of their turns.
    pub fn subjects(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.subject.as_str()))
    }

    /// Fills in what follows from the rest: the phase where it is not told, and no verdict where the rounds were too few.
    pub fn settle(&mut self) {
        if self.schema == first_schema() {
            // There was no open loop then.
            for row in &mut self.rows {
                row.phase.get_or_insert(Phase::Saturation);
            }
        }
        for ratio in &mut self.ratios {
            let of_case = || self.rows.iter().filter(|row| row.case == ratio.case);
            let phase = of_case()
                .find(|row| row.metric == ratio.metric)
                .and_then(|row| row.phase)
                .or_else(|| of_case().filter_map(|row| row.phase).min());
            ratio.phase = ratio.phase.or(phase);
            if self.rounds < VERDICT_ROUNDS_MIN {
                ratio.verdict = Verdict::None;
            }
        }
    }

    /// The figure behind one side of a ratio. Latencies stand in rows of their own or beside the rate.
    fn figure(&self, ratio: &Ratio, subject: &str) -> Option<Figure> {
        let of_subject = || {
            self.rows.iter().filter(|row| row.case == ratio.case && row.phase == ratio.phase && row.subject == subject)
        };
        if let Some(row) = of_subject().find(|row| row.metric == ratio.metric) {
            return Some(Figure { spread: row.spread(), unit: row.unit.clone() });
        }
        let us = of_subject().find_map(|row| match ratio.metric.as_str() {
            "p50" => row.p50_us,
            "p99" => row.p99_us,
            _ => None,
        })?;
        // Over all rounds together: there is no spread.
        Some(Figure { spread: Spread { median: us, min: us, max: us }, unit: "µs".into() })
    }
}

/// A figure with its spread.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    spread: Spread,
    unit: String,
}

/// Each of them once, in the order of their first.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

fn first_schema() -> u32 {
    1
}

/// How the load was driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Open loop: the same constant rate for all subjects of the case.
    EqualRate,
    /// Closed loop: as fast as it goes.
    Saturation,
}

impl Phase {
    /// The words for it.
    pub fn words(self) -> &'static str {
        match self {
            Phase::EqualRate => "equal rate",
            Phase::Saturation => "saturation",
        }
    }
}

/// What one subject did in one case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the case.
    pub case: String,
    /// How the load was driven; unknown in the first schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// `rate`, `efficiency` (work per CPU-second of the balancer), `p50`, `p99`, `memory` (bytes per idle connection or flow), `loss`,
    /// `packet-time`, `lease-time`, `refused` …
    pub metric: String,
    /// Unit of the next three.
    pub unit: String,
    /// Name of the subject.
    pub subject: String,
    /// Median over the rounds.
    pub median: f64,
    /// Smallest of the rounds.
    pub min: f64,
    /// Largest of the rounds.
    pub max: f64,
    /// Latency that half of the work stayed below, over all rounds; none for bulk.
    #[serde(default)]
    pub p50_us: Option<f64>,
    /// The same for 99 %.
    #[serde(default)]
    pub p99_us: Option<f64>,
    /// The same for 99.9 %.
    #[serde(default)]
    pub p999_us: Option<f64>,
    /// Latencies over all rounds: (percentile, microseconds), both rising; empty where nothing is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<(f64, f64)>,
    /// Median of the work per second that was intended, in the unit of the rate, where the load was an open loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_per_s: Option<f64>,
    /// Median of the seconds of work of the balancer's CPU.
    #[serde(default)]
    pub balancer_cpu_s: f64,
    /// Median share of the time in which the balancer's CPU worked.
    #[serde(default)]
    pub balancer_busy: f64,
    /// Median share of the time in which the client's CPUs worked.
    #[serde(default)]
    pub client_busy: f64,
    /// Median share of the work on these CPUs that was neither the subject's, the client's nor the origin's.
    #[serde(default)]
    pub others_share: f64,
    /// Whether the client was the ceiling, not the balancer, in most rounds.
    #[serde(default)]
    pub client_bound: bool,
}

impl Row {
    /// What tells it from the other rows.
    fn key(&self) -> (&str, &str, Option<Phase>, &str) {
        (&self.case, &self.metric, self.phase, &self.subject)
    }

    /// Over the rounds.
    pub fn spread(&self) -> Spread {
        Spread { median: self.median, min: self.min, max: self.max }
    }

    /// The points of a plot of latencies: the curve, or what little an older result has.
    fn curve(&self) -> Vec<(f64, f64)> {
        if !self.latency.is_empty() {
            return self.latency.clone();
        }
        [(50.0, self.p50_us), (99.0, self.p99_us), (99.9, self.p999_us)]
            .into_iter()
            .filter_map(|(percentile, us)| Some((percentile, us?)))
            .collect()
    }
}

impl Ratio {
    /// What tells it from the other ratios.
    fn key(&self) -> (&str, &str, Option<Phase>, &str) {
        (&self.case, &self.metric, self.phase, &self.versus)
    }

    /// Over the rounds.
    pub fn spread(&self) -> Spread {
        Spread { median: self.median, min: self.min, max: self.max }
    }
}

/// How the first subject compares with another; above 1, the first is better, whatever the metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Name of the case.
    pub case: String,
    /// How the load was driven; unknown in the first schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// That of the rows it is made of.
    pub metric: String,
    /// Name of the other subject.
    pub versus: String,
    /// Median of the rounds' ratios.
    pub median: f64,
    /// Smallest of the rounds' ratios.
    pub min: f64,
    /// Largest of the rounds' ratios.
    pub max: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// What the rounds' ratios say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The first subject won every round.
    Better,
    /// Too few rounds to say.
    None,
    /// Now one, now the other.
    Tie,
    /// The first subject lost every round.
    Worse,
}

/// Median, smallest and largest of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle; of an even number, the mean of the two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// `None` for no figures.
    pub fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Spread { median: (sorted[lower] + sorted[upper]) / 2.0, min, max })
    }
}

impl Verdict {
    /// A spread that crosses 1 is a tie; a spread of fewer than [`VERDICT_ROUNDS_MIN`] rounds is none.
    pub fn of(ratios: Spread, rounds: usize) -> Verdict {
        if rounds < VERDICT_ROUNDS_MIN {
            Verdict::None
        } else if ratios.min > 1.0 {
            Verdict::Better
        } else if ratios.max < 1.0 {
            Verdict::Worse
        } else {
            Verdict::Tie
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::None => "-",
            Verdict::Tie => "tie",
            Verdict::Worse => "worse",
        }
    }
}

/// The points of a histogram of nanoseconds that a plot needs, for [`Row::latency`]; as far as enough samples lie above.
pub fn latency_curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let samples = histogram.len() as f64;
    CURVE_PERCENTILES
        .into_iter()
        .take_while(|percentile| samples * (100.0 - percentile) / 100.0 >= SAMPLES_ABOVE_MIN)
        .map(|percentile| (percentile, histogram.value_at_percentile(percentile) as f64 / 1000.0))
        .collect()
}

/// Compares two subjects round by round. `None` when a round lacks a figure.
pub fn ratio(case: &str, metric: &str, versus: &str, ours: &[f64], theirs: &[f64], better: Better) -> Option<Ratio> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(&ours, &theirs)| match better {
            Better::Higher => ours / theirs,
            Better::Lower => theirs / ours,
        })
        .filter(|ratio| ratio.is_finite())
        .collect();
    if ratios.len() != ours.len() {
        return None;
    }
    let spread = Spread::of(&ratios)?;
    Some(Ratio {
        case: case.to_owned(),
        phase: None,
        metric: metric.to_owned(),
        versus: versus.to_owned(),
        median: spread.median,
        min: spread.min,
        max: spread.max,
        verdict: Verdict::of(spread, ratios.len()),
    })
}

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    Higher,
    /// Latencies, memory, loss.
    Lower,
}

impl Better {
    /// Which way a metric is better; one that is not known here is told by its unit.
    pub fn of(metric: &str, unit: &str) -> Better {
        match (metric, unit) {
            ("efficiency" | "rate", _) => Better::Higher,
            ("busy" | "loss" | "memory" | "p50" | "p99" | "refused" | "retried", _) => Better::Lower,
            (_, "B" | "instructions" | "ms" | "ns" | "s" | "µs") => Better::Lower,
            _ => Better::Higher,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_that_crosses_one_is_a_tie() {
        let verdict = |ours: &[f64], better| ratio("c", "m", "p", ours, &[10.0, 10.0, 10.0], better).unwrap().verdict;
        assert_eq!(verdict(&[11.0, 12.0, 30.0], Better::Higher), Verdict::Better);
        assert_eq!(verdict(&[9.0, 12.0, 30.0], Better::Higher), Verdict::Tie);
        assert_eq!(verdict(&[9.0, 8.0, 1.0], Better::Higher), Verdict::Worse);
        assert_eq!(verdict(&[9.0, 8.0, 1.0], Better::Lower), Verdict::Better);
    }

    #[test]
    fn two_rounds_give_no_verdict() {
        assert_eq!(ratio("c", "m", "p", &[11.0, 12.0], &[1.0, 1.0], Better::Higher).unwrap().verdict, Verdict::None);
        assert_eq!(serde_json::to_string(&Verdict::None).unwrap(), "\"none\"");
    }

    #[test]
    fn a_curve_ends_where_samples_get_few() {
        let mut histogram = Histogram::new(3).unwrap();
        assert!(latency_curve(&histogram).is_empty());
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        let curve = latency_curve(&histogram);
        assert_eq!(curve.first().map(|point| point.0), Some(0.0));
        assert_eq!(curve.last().map(|point| point.0), Some(99.0));
        assert!((curve[3].1 - 500.0).abs() < 1.0, "{curve:?}");
    }

    #[test]
    fn the_median_is_of_the_rounds_own_ratios() {
        let ratio = ratio("c", "m", "p", &[10.0, 40.0, 90.0], &[10.0, 20.0, 30.0], Better::Higher).unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (1.0, 2.0, 3.0));
    }

    #[test]
    fn a_round_without_a_figure_gives_no_ratio() {
        assert!(ratio("c", "m", "p", &[1.0, 0.0], &[1.0, 0.0], Better::Higher).is_none());
        assert!(Spread::of(&[]).is_none());
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
    }
}
